"""Labelled images on their way to a network: how they are split, and the batches they are handed out in."""

import itertools
import math
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dna_deploy.errors import DataError
from dna_deploy.files import read_json, write_json
from dna_deploy.sources import Source, rgb

if TYPE_CHECKING:
    import numpy as np
    import torch

    from dna_deploy.machine import Machine

CACHE_BYTES = 1 << 30  # decoded images are kept in memory up to this much
THREADS = max(4, os.cpu_count() or 1)  # that decode images
AHEAD = 3  # batches decoded before they are asked for
TEST_SHARE, HELD_OUT_SHARE = 0.25, 0.15  # of all images; of those left for training


@dataclass(frozen=True)
class Split:
    """Indices into the source: `train` teaches, `held_out` rates and chooses, `test` only gives final figures."""

    source: str
    images: int
    sha256: str  # the source's
    train: list[int]
    held_out: list[int]
    test: list[int]


def split(source: Source, seed: int = 0) -> Split:
    """A stratified split, with one image of every class at least in each part; always the same for the same labels and seed."""
    from sklearn.model_selection import train_test_split

    everything, labels = range(len(source.labels)), source.labels
    divided = sorted(set(everything) - source.fixed_test)  # into train and held out, and where nobody has done it into test
    counts = Counter(labels[index] for index in divided)
    fewest = min(sorted(set(labels)), key=counts.__getitem__)
    if counts[fewest] < (needed := 2 if source.fixed_test else 4):
        raise DataError(
            f"{source.name}: class {source.classes[fewest]} has {counts[fewest]} images to learn from; expected at least {needed}"
        )

    def divide(indices: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
        kinds = [labels[i] for i in indices]
        size = max(round(share * len(indices)), len(set(labels)))
        rest, part = train_test_split(list(indices), test_size=size, stratify=kinds, random_state=seed)
        for rare in sorted(set(kinds) - {labels[i] for i in part}):  # its share is less than an image: one for one of the most
            there = Counter(labels[i] for i in part)
            most = max(sorted(there), key=there.__getitem__)
            into, out = (next(i for i in some if labels[i] == kind) for some, kind in ((rest, rare), (part, most)))
            rest[rest.index(into)], part[part.index(out)] = out, into
        return sorted(rest), sorted(part)

    if source.fixed_test:
        rest, test = divided, sorted(source.fixed_test)
    else:
        rest, test = divide(everything, TEST_SHARE, seed)
    train, held_out = divide(rest, HELD_OUT_SHARE, seed + 1)
    return Split(source.name, len(labels), source.sha256, train, held_out, test)


def save_split(path: Path, made: Split) -> None:
    write_json(path, made)


def load_split(path: Path, source: Source) -> Split:
    found = read_json(path, Split)
    advice = "restore the data, or start a new run with --run NAME"
    if (found.source, found.images) != (source.name, len(source.labels)):
        raise DataError(
            f"{path}: a split of {found.images} images of {found.source}; {source.name} now has {len(source.labels)}: {advice}"
        )
    if found.sha256 != source.sha256:
        raise DataError(f"{path}: classes, labels or file names of {source.name} changed since it was split; {advice}")
    return found


@dataclass(frozen=True)
class Framing:
    """What is seen of an image, in timm's words: its shorter side is scaled to size / crop_pct, and the centre cut out."""

    crop_pct: float = 1.0
    interpolation: str = "bicubic"

    def shorter_side(self, size: int) -> int:
        return math.floor(size / self.crop_pct)


class Images:
    """Some images of a source at one size, as uint8 batches (N, 3, size, size); decoded once where memory allows."""

    def __init__(self, source: Source, indices: Sequence[int], size: int, framing: Framing = Framing()) -> None:
        self.source, self.indices, self.size, self.framing = source, list(indices), size, framing

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def labels(self) -> "torch.Tensor":
        import torch

        return torch.tensor([self.source.labels[index] for index in self.indices])

    def batch(self, places: Sequence[int]) -> "torch.Tensor":
        """Images at these places (0 to len - 1)."""
        return next(self.batches([places]))

    def batches(self, wanted: Iterable[Sequence[int]]) -> "Iterator[torch.Tensor]":
        """The images at each of these lists of places; while one batch is worked on, threads decode the next ones."""
        import torch

        if self._cached is not None:
            for places in wanted:
                yield self._cached[torch.as_tensor(places)]
            return
        pool = ThreadPoolExecutor(THREADS)  # Pillow decodes and scales without holding the interpreter
        ahead: deque[list[Future[Any]]] = deque()
        try:
            for places in wanted:
                ahead.append([pool.submit(self._decode, self.indices[place]) for place in places])
                if len(ahead) > AHEAD:
                    yield torch.from_numpy(_stack([image.result() for image in ahead.popleft()]))
            while ahead:
                yield torch.from_numpy(_stack([image.result() for image in ahead.popleft()]))
        finally:
            pool.shutdown(cancel_futures=True)

    @cached_property
    def _cached(self) -> "torch.Tensor | None":
        import torch

        if len(self) * 3 * self.size**2 > CACHE_BYTES:
            return None
        with ThreadPoolExecutor(THREADS) as pool:
            return torch.from_numpy(_stack(list(pool.map(self._decode, self.indices))))

    def open(self, place: int) -> Any:
        """The image at this place as it was given, an RGB image of PIL's."""
        return self._open(self.indices[place])

    def _open(self, index: int) -> Any:
        try:
            image = self.source.open(index)
        except OSError as error:  # PIL's errors descend from it
            raise DataError(f"{error or 'an image cannot be read'}; remove or replace the file") from error
        try:
            return rgb(image)
        except (OSError, ValueError) as error:
            name = getattr(image, "filename", "") or f"image {index} of {self.source.name}"
            raise DataError(f"{name}: {error}; convert or remove it") from error

    def _decode(self, index: int) -> "np.ndarray[Any, Any]":
        """One image as it is framed: RGB, uint8 (3, size, size)."""
        import numpy as np
        from PIL import Image

        image = self._open(index)
        shorter = self.framing.shorter_side(self.size)
        width, height = (side * shorter // min(image.size) for side in image.size)  # rounded as torchvision does, here and below
        image = image.resize((width, height), Image.Resampling[self.framing.interpolation.upper()])
        left, top = (round((side - self.size) / 2) for side in (width, height))
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels: np.ndarray[Any, Any] = np.asarray(image).transpose(2, 0, 1)
        return pixels


def _stack(arrays: "list[np.ndarray[Any, Any]]") -> "np.ndarray[Any, Any]":
    import numpy as np

    return np.stack(arrays)


@dataclass(frozen=True)
class Preprocessing:
    """From pixels 0..255 to what the network takes: (pixel / 255 - mean) / std, one value a channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, batch: "torch.Tensor") -> "torch.Tensor":
        """uint8 (N, 3, H, W) -> float32, channels last, which is the faster layout for convolutions."""
        import torch

        mean, std = (sent(torch.tensor(values).view(1, 3, 1, 1) * 255, batch.device) for values in (self.mean, self.std))
        return batch.float().sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Augmentation:
    """Each image mirrored at random and shifted by up to an eighth, its border repeated; the same for the same seed.

    It is drawn for all `count` images of a step, so that an image is treated alike on every device and however the step is
    divided; `first` is the place in the step of the first image it is given.
    """

    seed: int
    count: int
    first: int = 0

    def __call__(self, batch: "torch.Tensor") -> "torch.Tensor":
        """uint8 (N, 3, H, W) -> the same shape, where it lies: bytes are what should travel to a GPU."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        own = slice(self.first, self.first + len(batch))
        height, width = batch.shape[2:]
        reach = max(1, height // 8)
        mirror = (torch.rand(self.count, generator=generator) < 0.5)[own]
        shifts = torch.randint(-reach, reach + 1, (2, self.count, 1), generator=generator)[:, own]
        rows = (torch.arange(height) + shifts[0]).clamp_(0, height - 1)
        columns = (torch.arange(width) + shifts[1]).clamp_(0, width - 1)
        mirror, rows, columns = (sent(drawn, batch.device) for drawn in (mirror, rows, columns))
        mirrored = torch.where(mirror.view(-1, 1, 1, 1), batch.flip(-1), batch)
        images = torch.arange(len(batch), device=batch.device)[:, None, None]
        return mirrored[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def sent(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """The tensor on the device; to a GPU out of pinned memory, so that nobody waits for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def epoch_batches(count: int, size: int, seed: int, epoch: int) -> "list[list[int]]":
    """The shuffled batches of one epoch, the last incomplete one left out; the same for the same seed and epoch."""
    import torch

    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator).tolist()
    size = min(size, count)
    return [order[start : start + size] for start in range(0, count - size + 1, size)]


def evenly(places: Sequence[int], most: int) -> list[Sequence[int]]:
    """`places` in as few batches of at most `most` as will do, as even as can be: no single image is left at the end."""
    return [some for _, some in parts_of(places, math.ceil(len(places) / most))]


def parts_of(places: Sequence[int], count: int) -> "list[tuple[int, Sequence[int]]]":
    """A batch in `count` parts as even as can be, fewer where it has fewer images: each with the place it begins at."""
    count = min(count, len(places))
    ends = [len(places) * part // count for part in range(count + 1)]
    return [(begin, places[begin:end]) for begin, end in itertools.pairwise(ends)]


def shares(
    batches: Sequence[Sequence[int]], machine: "Machine", accumulate: int, seed: int, first: int
) -> list[list[tuple[Sequence[int], Augmentation]]]:
    """What this process works of each batch: its parts, with the augmentation they get in steps number `first` and on."""
    return [
        [
            (some, Augmentation(seed * 1_000_003 + at, len(places), begin))
            for begin, some in machine.own(parts_of(places, accumulate * machine.world))
        ]
        for at, places in enumerate(batches, first)
    ]
