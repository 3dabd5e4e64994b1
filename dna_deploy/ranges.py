"""Which values the tensors of an ONNX graph take on real images: what a lower precision has to be able to hold."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_deploy.progress import bar
from dna_deploy.session import open_session
from dna_deploy.verify import Inputs

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, np.dtype[Any]]
BINS = 16384
IMAGES, BATCH = 128, 4  # every tensor of a batch is in memory at once


@dataclass
class Histogram:
    """How often each magnitude |x| occurred: `counts` in equal bins from 0 to `limit`, a power of two that grows."""

    limit: float = 2.0**-20
    counts: Array = field(default_factory=lambda: np.zeros(BINS, np.int64))
    largest: float = 0.0  # of all |x|; infinite where one was no number
    lowest: float = 0.0  # of all x and zero

    def add(self, values: Array) -> None:
        magnitudes = np.abs(values, dtype=np.float32).ravel()
        if not magnitudes.size:
            return
        most, least = float(magnitudes.max()), float(values.min())
        self.largest = math.inf if math.isnan(most) else max(self.largest, most)  # max(0.0, nan) would be 0.0
        self.lowest = -math.inf if math.isnan(least) else min(self.lowest, least)
        if not np.isfinite(self.largest):
            return
        while self.largest > self.limit:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
            self.limit *= 2
        bins = np.minimum((magnitudes * np.float32(BINS / self.limit)).astype(np.int32), BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)

    def clip(self, levels: int = 127) -> float:
        """The magnitude to clip at for the least squared error with `levels` steps on either side of zero.

        Clipping loses the few large values, not clipping makes all steps coarser: a uniform step of s costs s^2 / 12, and
        all of a value that is nearer to zero than half a step.
        """
        width = self.limit / BINS
        magnitudes = (np.arange(BINS) + 0.5) * width
        many, total, energy = (
            np.concatenate([[0.0], np.cumsum(self.counts * magnitudes**power)]) for power in (0, 1, 2)
        )  # of the values in the bins below each place: how many, their sum, the sum of their squares
        last = int(np.nonzero(self.counts)[0].max(initial=0)) + 1
        ends = np.unique(np.geomspace(1, last, 256).astype(int))
        at = np.minimum(ends * width, self.largest)
        vanish = np.minimum(np.rint(at / levels / 2 / width).astype(int), ends)  # bins below half a step
        rounding = energy[vanish] + (at / levels) ** 2 / 12 * (many[ends] - many[vanish])
        clipping = (energy[-1] - energy[ends]) - 2 * at * (total[-1] - total[ends]) + at**2 * (many[-1] - many[ends])
        return float(at[np.argmin(rounding + clipping)])


def observe(model: "onnx.ModelProto", inputs: Inputs, images: int = IMAGES) -> dict[str, Histogram]:
    """The values of every float tensor of the graph that is computed, and of its input, by name."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    own = {value.name for value in model.graph.output}
    for value in inferred.graph.value_info:
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and value.name not in own:
            watched.graph.output.append(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, None))
    session = open_session(watched.SerializeToString())
    names = [value.name for value in watched.graph.output]
    feed = model.graph.input[0].name
    seen = {name: Histogram() for name in (feed, *names)}
    count = min(images, inputs.count)
    with bar("watching every tensor", count) as advance:
        for start in range(0, count, BATCH):
            places = [place * inputs.count // count for place in range(start, min(start + BATCH, count))]  # evenly over all
            batch = inputs.at(places)
            seen[feed].add(batch)
            for name, values in zip(names, session.run(names, {feed: batch}), strict=True):
                seen[name].add(values)
            advance(len(places))
    return seen
