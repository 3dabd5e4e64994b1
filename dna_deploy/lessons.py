"""What the blocks learn from: batches of images with the teacher's features for them, computed as they come or kept on disk.

The teacher's pass costs about as much as the training of the blocks. Where the images are not augmented its features
are the same in every epoch, and in every experiment, so they are computed once and read from then on.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dna_deploy.data import Augmentation, Images, sent
from dna_deploy.errors import RunError, TeacherError
from dna_deploy.files import disk_errors, read_json, write_json
from dna_deploy.progress import bar
from dna_deploy.teacher import Teacher

CHUNK = 256  # images between two marks of how far the computing came

Lesson = tuple[torch.Tensor, list[torch.Tensor]]  # images, and the teacher's features for them


class Lessons:
    """Images and the teacher's features for them, computed for each batch."""

    def __init__(self, teacher: Teacher, images: Images) -> None:
        self.teacher, self.images = teacher, images

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, places: Sequence[int], augmentation: Augmentation | None = None) -> Lesson:
        """One of `batches`."""
        return next(self.batches([(places, augmentation)]))

    def batches(self, wanted: Sequence[tuple[Sequence[int], Augmentation | None]]) -> Iterator[Lesson]:
        """The images at these places as the teacher takes them, and its features, one a piece, on the teacher's device."""
        device = next(self.teacher.model.parameters()).device
        for pixels, (places, augmentation) in zip(self.images.batches(places for places, _ in wanted), wanted, strict=True):
            yield self._taught(sent(pixels, device), places, augmentation)

    def _taught(self, pixels: torch.Tensor, places: Sequence[int], augmentation: Augmentation | None) -> Lesson:
        image = self.teacher.preprocessing(pixels if augmentation is None else augmentation(pixels))
        return image, self.teacher.features(image)


class KeptLessons(Lessons):
    """The same from features kept in `folder` as float16, one memory-mapped file a cut; an interrupted pass goes on.

    Images are never augmented, whatever is asked for.
    """

    def __init__(self, teacher: Teacher, images: Images, folder: Path) -> None:
        super().__init__(teacher, images)
        self.folder = folder
        self.names = [*(cut.name for cut in teacher.cuts if cut is not None), "logits"]
        self._kept = self._prepare()

    def _taught(self, pixels: torch.Tensor, places: Sequence[int], augmentation: Augmentation | None) -> Lesson:
        order = np.asarray(places)
        return self.teacher.preprocessing(pixels), [_loaded(kept[order], pixels.device) for kept in self._kept]

    def _prepare(self) -> "list[np.memmap[Any, Any]]":
        plain = Lessons(self.teacher, self.images)
        first = [_stored(name, feature) for name, feature in zip(self.names, plain.batch([0])[1], strict=True)]
        shapes = [list(feature.shape[1:]) for feature in first]
        wanted = _Contents(self.teacher.name, dict(zip(self.names, shapes, strict=True)), len(self), 0)
        mark = self.folder / "features.json"
        kept = read_json(mark, _Contents) if mark.exists() else wanted
        if not kept.serves(wanted):
            raise RunError(f"{self.folder}: features of {kept.images} images under {kept.teacher}; give another folder")
        if kept.done < len(self):
            with disk_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._compute(plain, kept, mark)
        found = [self._open(name, wanted.shapes[name], len(self)) for name in self.names]
        if not np.allclose(found[-1][0], first[-1][0], rtol=1e-2, atol=1e-2):
            raise RunError(f"{self.folder}: the teacher says otherwise of the first image now; give another folder")
        return found

    def _compute(self, plain: Lessons, kept: "_Contents", mark: Path) -> None:
        if list(kept.shapes) != self.names:
            raise RunError(f"{self.folder}: begun with features {', '.join(kept.shapes)}; finish it with the same ones")
        for name in self.names if kept.done else ():
            self._open(name, kept.shapes[name], kept.done)
        with bar("the teacher's features", len(self)) as advance:
            advance(kept.done)
            chunks = [range(first, min(first + CHUNK, len(self))) for first in range(kept.done, len(self), CHUNK)]
            for places, (_, features) in zip(chunks, plain.batches([(places, None) for places in chunks]), strict=True):
                for name, feature in zip(self.names, features, strict=True):
                    self._write(name, _stored(name, feature), places.start)
                write_json(mark, replace(kept, done=places.stop))
                advance(len(places))

    def _write(self, name: str, array: "np.ndarray[Any, Any]", first: int) -> None:
        """Not through a map: where the disk is full, that ends the process with a signal."""
        with (self.folder / f"{name}.f16").open("r+b" if first else "wb") as file:
            file.seek(first * array[0].nbytes)
            file.write(array.tobytes())
            os.fsync(file.fileno())

    def _open(self, name: str, shape: list[int], images: int) -> "np.memmap[Any, Any]":
        file = self.folder / f"{name}.f16"
        try:
            return np.memmap(file, np.float16, "r", shape=(images, *shape))
        except (FileNotFoundError, ValueError) as error:
            raise RunError(f"{file}: missing or cut off ({error}); delete {self.folder} and run again") from error


@dataclass(frozen=True)
class _Contents:
    """What lies in the folder: the shape of one image's features by name, and for how many images they are done."""

    teacher: str
    shapes: dict[str, list[int]]
    images: int
    done: int
    schema: str = "dna-deploy/features/1"

    def serves(self, wanted: "_Contents") -> bool:
        same = (self.teacher, self.images) == (wanted.teacher, wanted.images)
        return same and all(self.shapes.get(name) == shape for name, shape in wanted.shapes.items())


def _stored(name: str, feature: torch.Tensor) -> "np.ndarray[Any, Any]":
    """(N, C, H, W) or (N, classes) as float16, channels last, which is how it is read back."""
    array: np.ndarray[Any, Any] = (feature.permute(0, 2, 3, 1) if feature.ndim == 4 else feature).half().cpu().numpy()
    if not np.isfinite(array).all():
        raise TeacherError(
            f"the teacher's features behind {name} are NaN, infinite or above 65504, which float16 cannot keep; check the "
            "teacher, or leave out --keep-features"
        )
    return array


def _loaded(array: "np.ndarray[Any, Any]", device: torch.device) -> torch.Tensor:
    found = sent(torch.from_numpy(array), device).float()
    return found.permute(0, 3, 1, 2) if found.ndim == 4 else found
