"""Global average pooling alone, where something stands between it and the linear layer (MobileNetV3's head)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dna_deploy.ops._op import Op

if TYPE_CHECKING:
    from torch import nn

    from dna_deploy.graph import Graph


@dataclass(frozen=True)
class Pool(Op):
    """`cout` is `cin`. It has no multiply-adds of its own kind and no parameters, but it takes time."""

    @property
    def out_hw(self) -> int:
        return 1

    @property
    def macs(self) -> int:
        return 0

    @property
    def params(self) -> int:
        return 0

    def module(self, padding: str = "") -> "nn.Module":
        from timm.layers import SelectAdaptivePool2d

        module: nn.Module = SelectAdaptivePool2d(pool_type="avg")
        return module

    def write(self, graph: "Graph", x: str) -> str:
        return graph.mean(x)


OP = Pool
