"""What every op has: its place, its costs, its module and its key."""

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dna_deploy.graph import Graph


@dataclass(frozen=True)
class Op(ABC):
    """One layer at one place of a network: the unit we time is the unit we choose between.

    `hw` is the side of the square input in pixels, `cin` and `cout` are channels. A subclass adds what else it
    needs, states `macs` and `params`, and builds its `module`. BatchNorm counts for parameters (scale and shift),
    not for MACs: it is folded into the convolution before it before anything is deployed.
    """

    hw: int
    cin: int
    cout: int

    @property
    def kind(self) -> str:
        """The file it comes from."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def key(self) -> str:
        """Its text everywhere: in tables, logs and errors. Settings left at their default are left out."""
        shown = (
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        )
        return f"{self.kind}({', '.join(shown)})"

    @property
    def label(self) -> str:
        """A short name among the choices of one layer."""
        return self.kind

    @property
    def out_hw(self) -> int:
        return self.hw

    @property
    def in_shape(self) -> tuple[int, int, int]:
        return (self.cin, self.hw, self.hw)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.cout, self.out_hw, self.out_hw)

    @property
    @abstractmethod
    def macs(self) -> int:
        """Multiply-adds of one image, convolutions and matrix products only."""

    @property
    @abstractmethod
    def params(self) -> int:
        """Trainable parameters, BatchNorm's scale and shift among them."""

    @property
    def hidden(self) -> int:
        """Elements of one image that stand between its own layers."""
        return 0

    @property
    def bytes_moved(self) -> int:
        """What one image reads and writes in float32: weights, input, output, and what is hidden, written and read again."""
        return 4 * (self.params + math.prod(self.in_shape) + math.prod(self.out_shape) + 2 * self.hidden)

    @abstractmethod
    def module(self, padding: str = "") -> "nn.Module":
        """A fresh torch module (N, cin, hw, hw) -> (N, *out_shape), weights at random.

        `padding` is timm's: "" puts as much on either side, "same" is TensorFlow's, which puts the odd pixel of a strided
        convolution behind. It moves the features by a pixel, costs no time, and so is the teacher's choice, not the op's.
        """

    def absorb(self, module: "nn.Module", weight: "torch.Tensor", bias: "torch.Tensor") -> bool:
        """Fold the map x -> weight @ x + bias over channels, applied before the op, into its weights.

        True where the op can take it exactly: its first layer is a 1x1 convolution and nothing goes around it.
        """
        return False

    @abstractmethod
    def write(self, graph: "Graph", x: str) -> str:
        """Add the op's ONNX nodes behind the tensor named `x`; returns the name of the output."""


def absorb_1x1(conv: "nn.Conv2d", norm: "nn.Module", weight: "torch.Tensor", bias: "torch.Tensor") -> None:
    """Fold a map over channels into a 1x1 convolution without bias; the constant goes into the BatchNorm behind it."""
    import torch

    with torch.no_grad():
        kernel = conv.weight.flatten(1)
        norm.running_mean -= kernel @ bias  # type: ignore[operator]
        conv.weight.copy_((kernel @ weight)[:, :, None, None])


def strided(hw: int, stride: int) -> int:
    """The output side of a convolution padded by half its (odd) kernel."""
    return (hw - 1) // stride + 1
