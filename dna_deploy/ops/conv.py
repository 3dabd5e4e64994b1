"""A convolution with BatchNorm and activation: stems and the layer before the classifier."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dna_deploy.ops._op import Op, absorb_1x1, strided

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dna_deploy.graph import Graph


@dataclass(frozen=True)
class Conv(Op):
    kernel: int
    stride: int = 1
    act: str = "relu6"

    @property
    def label(self) -> str:
        return f"conv{self.kernel}"

    @property
    def out_hw(self) -> int:
        return strided(self.hw, self.stride)

    @property
    def macs(self) -> int:
        return self.out_hw**2 * self.cin * self.cout * self.kernel**2

    @property
    def params(self) -> int:
        return self.cin * self.cout * self.kernel**2 + 2 * self.cout

    def module(self, padding: str = "") -> "nn.Module":
        from timm.layers import ConvNormAct

        module: nn.Module = ConvNormAct(self.cin, self.cout, self.kernel, self.stride, padding=padding, act_layer=self.act)
        return module

    def absorb(self, module: "nn.Module", weight: "torch.Tensor", bias: "torch.Tensor") -> bool:
        if self.kernel != 1:
            return False  # padding would see the constant only inside the image
        absorb_1x1(module.conv, module.bn, weight, bias)  # type: ignore[arg-type]
        return True

    def write(self, graph: "Graph", x: str) -> str:
        return graph.act(graph.conv(x, self.cin, self.cout, self.kernel, self.stride), self.act)


OP = Conv
