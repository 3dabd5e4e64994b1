"""Global average pooling and the linear layer: the end of every network."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dna_deploy.ops._op import Op

if TYPE_CHECKING:
    from torch import nn

    from dna_deploy.graph import Graph


@dataclass(frozen=True)
class Classifier(Op):
    """`cout` is the number of classes."""

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.cout,)

    @property
    def macs(self) -> int:
        return self.cin * self.cout

    @property
    def params(self) -> int:
        return self.cin * self.cout + self.cout

    def module(self, padding: str = "") -> "nn.Module":
        from timm.layers import ClassifierHead

        module: nn.Module = ClassifierHead(self.cin, self.cout, pool_type="avg")
        return module

    def write(self, graph: "Graph", x: str) -> str:
        return graph.linear(graph.pool(x), self.cin, self.cout)


OP = Classifier
