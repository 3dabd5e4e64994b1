"""Warm start: ops of the supernet take over the weights of teacher layers of their own kind and place.

A layer of the teacher fits an op where both are the same sequence of convolutions and norms with the same strides, in the
same piece of the network. Of another kernel the middle is taken, or zeros stand around it; of more channels those that weigh
most on what follows (elastic kernels and widths: Cai et al., Once-for-All, ICLR 2020, arXiv 1908.09791), and the adapter at
a narrower edge starts as the choice of these. Ops that nothing fits keep their random weights. All are trained afterwards.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from dna_deploy.supernet import PieceSupernet, Supernet
from dna_deploy.teacher import Teacher

WEIGHTED = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
Kept = Mapping[tuple[int, int], torch.Tensor]  # (the teacher's channels, the student's): which of them the student has
NONE: Kept = {}


def warm_start(supernet: Supernet, teacher: Teacher) -> tuple[int, int]:
    """Returns how many of the supernet's ops started from the teacher, and how many there are."""
    named = [(name, module) for name, module in teacher.model.named_modules() if isinstance(module, WEIGHTED)]
    layers = [module for _, module in named]
    started, begin, into = 0, 0, NONE
    with torch.no_grad():
        for part, cut in zip(supernet.pieces, [*(cut for cut in teacher.cuts if cut is not None), None], strict=True):
            inside = [at for at, (name, _) in enumerate(named) if cut is None or f"{name}.".startswith(f"{cut.name}.")]
            end = inside[-1] + 1
            out = NONE if cut is None else _kept(part, cut.channels, layers[:end], layers[end:])
            _adapt(part, into, out)
            started += _start(part, layers[begin:end], into, out)
            begin, into = end, out
    return started, sum(len(part.ops) for part in supernet.pieces)


def _start(part: PieceSupernet, layers: Sequence[nn.Module], into: Kept, out: Kept) -> int:
    """The n-th op of a shape starts from the piece's n-th layer of that shape, or from its last one."""
    started = 0
    first: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}  # depth at which a shape first stands
    for (depth, op), module in part.places():
        begins = first.setdefault((op.in_shape, op.out_shape), depth)
        own = _weighted(module)
        runs = (layers[at : at + len(own)] for at in range(len(layers) - len(own) + 1))
        arriving = out if depth else into
        fitting = [found for run in runs if (found := _fitted(own, run, arriving, out)) is not None]
        if fitting:
            values = fitting[min(depth - begins, len(fitting) - 1)]
            for tensor, value in zip((t for layer in own for t in layer.state_dict().values()), values, strict=True):
                tensor.copy_(value)
            started += 1
    return started


def _fitted(own: Sequence[nn.Module], layer: Sequence[nn.Module], into: Kept, out: Kept) -> list[torch.Tensor] | None:
    """The tensors of `layer` in the shapes of an op's, one for each; None where the layer does not fit the op."""
    if not all(map(_alike, own, layer)):
        return None
    first, *_, last = (at for at, part in enumerate(own) if not isinstance(part, nn.BatchNorm2d)) if len(own) > 2 else (0, 0)
    wide, hidden = (part[first].get_parameter("weight").shape[0] for part in (layer, own))
    inside = {(wide, hidden): _strongest(layer[:last], layer[last], hidden)} if first < last and hidden < wide else NONE
    found = []
    for at, (part, given) in enumerate(zip(own, layer, strict=True)):
        for wanted, tensor in zip(part.state_dict().values(), given.state_dict().values(), strict=True):
            for axis, (size, want) in enumerate(zip(tensor.shape, wanted.shape, strict=True)):
                if axis > 1:
                    tensor = _kernel(tensor, axis, want)
                elif size != want:
                    kept = into if (at, axis) == (first, 1) else out if at >= last and axis == 0 else inside
                    if (size, want) not in kept:
                        return None
                    tensor = tensor.index_select(axis, kept[size, want])
            found.append(tensor)
    return found


def _alike(own: nn.Module, given: nn.Module) -> bool:
    """Whether two parts do the same but for kernel and channels, and hold the same: a norm may have no weights, or no
    statistics, and a weight may be computed from others (torch's parametrizations)."""
    if own.state_dict().keys() != given.state_dict().keys():
        return False
    if isinstance(own, nn.Conv2d) and isinstance(given, nn.Conv2d):
        return (own.stride, own.groups == 1) == (given.stride, given.groups == 1)
    return any(isinstance(own, kind) and isinstance(given, kind) for kind in WEIGHTED[1:])


def _weighted(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, WEIGHTED)]


def _kept(part: PieceSupernet, channels: int, before: Sequence[nn.Module], behind: Sequence[nn.Module]) -> Kept:
    """For each width of a piece's cells below the teacher's at this cut: which of the teacher's channels they have."""
    reader = next((layer for layer in behind if isinstance(layer, nn.Conv2d) and layer.weight.shape[1] == channels), None)
    widths = {op.cout for op in (cell.layers[-1][0] for cell in part.piece.block.cells)}
    return {(channels, width): _strongest(before, reader, width) for width in widths if reader is not None and width < channels}


def _strongest(before: Sequence[nn.Module], reader: nn.Module, count: int) -> torch.Tensor:
    """The channels with the largest weights in what reads them, times the norm right before it, in their order."""
    weight = reader.weight
    assert isinstance(weight, torch.Tensor)
    strength = weight.flatten(2).square().sum((0, 2)).sqrt()
    norm = next((layer for layer in reversed(before) if isinstance(layer, nn.BatchNorm2d) and layer.affine), None)
    if norm is not None and norm.num_features == len(strength):
        strength = strength * norm.weight.abs()
    return strength.topk(count).indices.sort().values


def _adapt(part: PieceSupernet, into: Kept, out: Kept) -> None:
    """Start the adapters at the edges of a piece as the choice of the channels that were kept."""
    for adapter in (*part.enter.values(), *part.leave.values()):
        if isinstance(adapter, nn.Conv2d):
            taken = into.get((adapter.in_channels, adapter.out_channels))
            given = out.get((adapter.out_channels, adapter.in_channels))
            if taken is not None:
                adapter.weight.zero_()[range(len(taken)), taken] = 1
            elif given is not None:
                adapter.weight.zero_()[given, range(len(given))] = 1


def _kernel(tensor: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """A kernel of odd `size` around the same middle."""
    more = (size - tensor.shape[axis]) // 2
    if more <= 0:
        return tensor.narrow(axis, -more, size)
    zeros = tensor.new_zeros([more if at == axis else length for at, length in enumerate(tensor.shape)])
    return torch.cat([zeros, tensor, zeros], axis)
