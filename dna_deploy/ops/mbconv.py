"""MBConv, the inverted residual of MobileNetV2: expand 1x1, depthwise, project 1x1, added to the input where it fits.

With squeeze-and-excitation behind the depthwise convolution it is the block of EfficientNet and MobileNetV3.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dna_deploy.ops._op import Op, absorb_1x1, strided

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dna_deploy.graph import Graph


@dataclass(frozen=True)
class MBConv(Op):
    kernel: int
    expand: int
    stride: int = 1
    act: str = "relu6"
    se: float = 0.0  # channels squeezed to, relative to the *input* channels (EfficientNet: 0.25); 0: no squeeze
    gate: str = "sigmoid"  # of the squeeze; hard_sigmoid also squeezes through ReLU, as MobileNetV3 does

    @property
    def label(self) -> str:
        return f"k{self.kernel}e{self.expand}" + ("se" if self.se else "")

    @property
    def squeezed(self) -> int:
        return max(1, round(self.cin * self.se)) if self.se else 0

    @property
    def out_hw(self) -> int:
        return strided(self.hw, self.stride)

    @property
    def macs(self) -> int:
        wide = self.cin * self.expand
        squeeze = 2 * wide * self.squeezed
        return self.hw**2 * self.cin * wide + self.out_hw**2 * wide * (self.kernel**2 + self.cout) + squeeze

    @property
    def params(self) -> int:
        wide = self.cin * self.expand
        squeeze = 2 * wide * self.squeezed + self.squeezed + wide if self.se else 0
        return wide * (self.cin + self.kernel**2 + self.cout) + 2 * (wide + wide + self.cout) + squeeze

    @property
    def hidden(self) -> int:
        return self.cin * self.expand * (self.hw**2 + self.out_hw**2)

    def module(self, padding: str = "") -> "nn.Module":
        from functools import partial

        from timm.layers import get_act_layer
        from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite

        inner = get_act_layer("relu") if self.gate == "hard_sigmoid" else None
        squeeze = partial(SqueezeExcite, rd_channels=self.squeezed, gate_layer=get_act_layer(self.gate), force_act_layer=inner)
        module: nn.Module = InvertedResidual(
            self.cin,
            self.cout,
            self.kernel,
            self.stride,
            exp_ratio=self.expand,
            act_layer=get_act_layer(self.act),
            pad_type=padding,
            se_layer=squeeze if self.se else None,
        )
        return module

    def absorb(self, module: "nn.Module", weight: "torch.Tensor", bias: "torch.Tensor") -> bool:
        if self.in_shape == self.out_shape:
            return False  # the input itself is added to the output
        absorb_1x1(module.conv_pw, module.bn1, weight, bias)  # type: ignore[arg-type]
        return True

    def write(self, graph: "Graph", x: str) -> str:
        wide = self.cin * self.expand
        y = graph.act(graph.conv(x, self.cin, wide, kernel=1), self.act)
        y = graph.act(graph.conv(y, wide, wide, self.kernel, self.stride, groups=wide), self.act)
        if self.se:
            inner = "relu" if self.gate == "hard_sigmoid" else self.act
            z = graph.act(graph.conv(graph.mean(y), wide, self.squeezed, kernel=1), inner)
            y = graph.mul(y, graph.act(graph.conv(z, self.squeezed, wide, kernel=1), self.gate))
        y = graph.conv(y, wide, self.cout, kernel=1)
        return graph.add(y, x) if self.in_shape == self.out_shape else y


OP = MBConv
