"""A depthwise-separable convolution: depthwise, then 1x1 to the output width."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dna_deploy.ops._op import Op, strided

if TYPE_CHECKING:
    from torch import nn

    from dna_deploy.graph import Graph


@dataclass(frozen=True)
class DepthwiseSeparable(Op):
    kernel: int
    stride: int = 1
    act: str = "relu6"

    @property
    def label(self) -> str:
        return f"ds{self.kernel}"

    @property
    def out_hw(self) -> int:
        return strided(self.hw, self.stride)

    @property
    def macs(self) -> int:
        return self.out_hw**2 * self.cin * (self.kernel**2 + self.cout)

    @property
    def params(self) -> int:
        return self.cin * self.kernel**2 + 2 * self.cin + self.cin * self.cout + 2 * self.cout

    @property
    def hidden(self) -> int:
        return self.cin * self.out_hw**2

    def module(self, padding: str = "") -> "nn.Module":
        from timm.layers import get_act_layer
        from timm.models._efficientnet_blocks import DepthwiseSeparableConv

        module: nn.Module = DepthwiseSeparableConv(
            self.cin, self.cout, self.kernel, self.stride, act_layer=get_act_layer(self.act), pad_type=padding
        )
        return module

    def write(self, graph: "Graph", x: str) -> str:
        y = graph.act(graph.conv(x, self.cin, self.cin, self.kernel, self.stride, groups=self.cin), self.act)
        y = graph.conv(y, self.cin, self.cout, kernel=1)
        return graph.add(y, x) if self.in_shape == self.out_shape else y


OP = DepthwiseSeparable
