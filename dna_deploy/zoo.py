"""The networks DNA published (Li et al., CVPR 2020): dna_a to dna_d, by name here and, once this is imported, in timm.

Their figures are those of the paper when multiply-adds are counted in all convolutions and matrix products, the two 1x1
convolutions of squeeze-and-excitation among them, and nothing else (no pooling, BatchNorm, activation or addition); by the
same count EfficientNet-B0 has 385.8 M multiply-adds and 5.29 M parameters.
"""

from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._efficientnet_builder import efficientnet_init_weights
from torch import nn

from dna_deploy.arch import Architecture
from dna_deploy.errors import RequestError
from dna_deploy.plugins import find
from dna_deploy.space import Candidate

PUBLISHED = {  # for each searched stage its width and its layers as kernel and expansion; the last stage is 320 wide, k3e6
    "dna_a": "c24 53 33 36 | c40 33 33 53 36 | c80 76 33 53 36 | c96 56 53 53 56 | c160 56 53 53 53 56",
    "dna_b": "c24 33 53 76 | c40 76 53 76 | c80 56 53 53 36 | c96 56 53 53 56 | c192 76 53 53 53 76",
    "dna_c": "c24 56 36 | c40 56 56 36 56 | c80 56 36 56 56 | c112 36 56 56 53 | c192 56 53 56 56",
    "dna_d": "c24 76 56 76 | c40 76 76 76 76 | c80 76 56 56 76 | c112 76 56 76 56 | c192 76 56 56 56 76",
}


def architecture(name: str, image_size: int = 224, num_classes: int = 1000) -> Architecture:
    """A published network by name, in the space it was found in."""
    if name not in PUBLISHED:
        raise RequestError(f"{name!r} is none of the published networks: {', '.join(PUBLISHED)}")
    space = find("spaces", "dna").at(image_size, num_classes)
    candidates: list[Candidate] = [space.blocks[0].candidates[0]]
    for block, stage in zip(space.blocks[1:], [*PUBLISHED[name].split(" | "), "c320 36", "only"], strict=True):
        if stage == "only":
            candidates.append(block.candidates[0])
            continue
        width, *layers = stage.split()
        cell = f"{candidates[-1].cell.out_shape[0]}-{width[1:]}x{len(layers)}"
        candidates.append(block.candidate(f"{cell}: {' '.join(f'k{layer[0]}e{layer[1]}se' for layer in layers)}"))
    return Architecture(space, tuple(candidates))


class Published(nn.Sequential):
    """A published network as timm's models are: features, then a head whose classifier can be replaced. Weights at random."""

    num_features = head_hidden_size = 1280

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **others: Any,
    ) -> None:
        super().__init__()
        if others:
            raise RequestError(f"{name}: has no {', '.join(others)}; expected num_classes, drop_rate or drop_path_rate")
        if in_chans != 3 or global_pool != "avg":
            raise RequestError(f"{name}: takes 3 channels and pools by avg; asked for {in_chans} and {global_pool}")
        for part, module in architecture(name).module().named_children():
            self.add_module(part, module)
        efficientnet_init_weights(self)
        self._classifier.drop.p = drop_rate
        drop_connect(self, drop_path_rate)
        self.num_classes = 1000
        if num_classes != self.num_classes:
            self.reset_classifier(num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, 1280, H / 32, W / 32)"""
        *blocks, head = self.children()
        for block in blocks:
            x = block(x)
        y: torch.Tensor = head.get_submodule("0")(x)
        return y

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        y: torch.Tensor = self._classifier(x, pre_logits=pre_logits)
        return y

    def get_classifier(self) -> nn.Module:
        classifier: nn.Module = self._classifier.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self._classifier.reset(num_classes, global_pool)

    @property
    def _classifier(self) -> Any:
        return self.get_submodule("head.1")


def drop_connect(network: nn.Module, rate: float) -> None:
    """Let timm's residual branches be left out at random while training: the last one at `rate`, those before it less."""
    branches = [module for module in network.modules() if hasattr(module, "drop_path")]
    for at, module in enumerate(branches if rate else [], 1):
        module.drop_path = DropPath(rate * at / len(branches))


default_cfgs = generate_default_cfgs(
    {
        name: {
            "url": "",  # no trained weights are published under a licence
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "num_classes": 1000,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "first_conv": "stem.0.conv",
            "classifier": "head.1.fc",
        }
        for name in PUBLISHED
    }
)


@register_model  # type: ignore[untyped-decorator]
def dna_a(pretrained: bool = False, **options: Any) -> nn.Module:
    """DNA-a: 4.24 M parameters, 335.1 M multiply-adds at 224 pixels."""
    return _built("dna_a", pretrained, options)


@register_model  # type: ignore[untyped-decorator]
def dna_b(pretrained: bool = False, **options: Any) -> nn.Module:
    """DNA-b: 4.92 M parameters, 392.5 M multiply-adds."""
    return _built("dna_b", pretrained, options)


@register_model  # type: ignore[untyped-decorator]
def dna_c(pretrained: bool = False, **options: Any) -> nn.Module:
    """DNA-c: 5.27 M parameters, 450.1 M multiply-adds."""
    return _built("dna_c", pretrained, options)


@register_model  # type: ignore[untyped-decorator]
def dna_d(pretrained: bool = False, **options: Any) -> nn.Module:
    """DNA-d: 6.41 M parameters, 592.8 M multiply-adds."""
    return _built("dna_d", pretrained, options)


def _built(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if pretrained:
        raise RequestError(f"{name}: no trained weights are published under a licence; give weights of your own")
    model: nn.Module = build_model_with_cfg(Published, name, False, **options, name=name)
    return model
