"""MBConv, the inverted residual of MobileNetV2: expand 1x1, depthwise, project 1x1, added to the input where it fits."""

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

    @property
    def label(self) -> str:
        return f"k{self.kernel}e{self.expand}"

    @property
    def out_hw(self) -> int:
        return strided(self.hw, self.stride)

    @property
    def macs(self) -> int:
        wide = self.cin * self.expand
        return self.hw**2 * self.cin * wide + self.out_hw**2 * wide * (self.kernel**2 + self.cout)

    @property
    def params(self) -> int:
        wide = self.cin * self.expand
        return wide * (self.cin + self.kernel**2 + self.cout) + 2 * (wide + wide + self.cout)

    def module(self, padding: str = "") -> "nn.Module":
        from timm.layers import get_act_layer
        from timm.models._efficientnet_blocks import InvertedResidual

        act = get_act_layer(self.act)
        module: nn.Module = InvertedResidual(self.cin, self.cout, self.kernel, self.stride, exp_ratio=self.expand, act_layer=act, pad_type=padding)
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
        y = graph.conv(y, wide, self.cout, kernel=1)
        return graph.add(y, x) if self.in_shape == self.out_shape else y


OP = MBConv
