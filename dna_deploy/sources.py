"""Where labelled images come from: a folder, a data set of timm's, or one that an installed package brings."""

import hashlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dna_deploy.errors import DataError, MachineError, first_line

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class Source:
    """A labelled set: `open(i)` decodes image i as a PIL image. `fixed_test` where its publisher named a test set."""

    name: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    open: Callable[[int], Any]
    fixed_test: frozenset[int] = frozenset()
    licence: str | None = None
    files: tuple[str, ...] = ()  # each image's, relative to the folder; () where they are not files of the user's

    def __post_init__(self) -> None:
        if len(set(self.labels)) < 2:
            raise DataError(f"{self.name}: all {len(self.labels)} images are of one class; expected at least two")

    @cached_property
    def sha256(self) -> str:
        """Of what says which image is which: classes, labels, the test set and file names. No image is read."""
        told = [self.classes, self.labels, sorted(self.fixed_test), self.files]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def open_source(spec: str, root: str | None = None) -> Source:
    """The data set `spec` names: `elpv`, `digits`, a folder with one folder a class, or a name timm.data reads.

    `root` is where the files of the latter lie, for those that need to be told.
    """
    if spec in KNOWN:
        return KNOWN[spec]()
    if spec and Path(spec).is_dir():  # Path("") is the folder one is in
        return _folder(Path(spec))
    if "/" in spec and not spec.startswith((".", "/")):
        return _timm(spec, root)
    raise DataError(
        f"--data {spec or repr(spec)}: no such folder; expected a folder with one folder a class, one of {', '.join(KNOWN)}, "
        "or a timm data set such as hfds/NAME, torch/cifar10 or wds/..."
    )


def _folder(root: Path) -> Source:
    """root/CLASS/*, or root/train/CLASS/* and root/test/CLASS/* (or val) where the publisher split it."""
    parts = {part.name: part for part in _folders(root)}
    test = next((parts[name] for name in ("test", "val", "valid", "validation") if name in parts), None)
    published = "train" in parts and bool(_folders(parts["train"]))
    if published and test is None and len(parts) > 1:
        raise DataError(f"{root}: holds {', '.join(sorted(parts))}; expected test/ or val/ beside train/, or train/ alone")
    roots = [part for part in (parts["train"], test) if part] if published else [root]
    images = {folder: _images(folder) for part in roots for folder in _folders(part)}
    classes = sorted({folder.name for folder, found in images.items() if found})
    if not classes:
        raise DataError(f"{root}: no images; expected one folder a class with {', '.join(SUFFIXES[:4])} files in them")
    if empty := sorted(str(folder) for folder in images if folder.name not in classes):
        raise DataError(f"{empty[0]}: no images in it; expected {', '.join(SUFFIXES[:4])} files of its class, or no such folder")
    files: list[Path] = []
    labels: list[int] = []
    fixed: set[int] = set()
    for part in roots:
        for label, name in enumerate(classes):
            for file in images.get(part / name, []):
                if part is test:
                    fixed.add(len(files))
                files.append(file)
                labels.append(label)
    names = tuple("/".join(file.parts[len(root.parts) :]) for file in files)

    def open_file(index: int) -> Any:
        from PIL import Image, UnidentifiedImageError

        try:
            image = Image.open(files[index])
            image.load()
            return image
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise OSError(f"{files[index]}: not a readable image ({type(error).__name__})") from error

    return Source(str(root), tuple(classes), tuple(labels), open_file, frozenset(fixed), files=names)


def _elpv() -> Source:
    """Photographs of solar cells by electroluminescence: mono- or polycrystalline, working or defective."""
    found = importlib.util.find_spec("elpv_dataset")
    if found is None or found.origin is None:
        raise MachineError('the solar cell images are not installed: pip install -e ".[demo]"')
    folder = Path(found.origin).parent / "data"
    classes = ("mono-defective", "mono-functional", "poly-defective", "poly-functional")
    files, labels = [], []
    for line in (folder / "labels.csv").read_text(encoding="utf-8").splitlines():
        file, probability, kind = line.split()
        files.append(folder / file)
        labels.append(classes.index(f"{kind}-{'defective' if float(probability) > 0.5 else 'functional'}"))

    def open_file(index: int) -> Any:
        from PIL import Image

        return Image.open(files[index])

    licence = "CC BY-NC-SA 4.0 (Deitsch et al., elpv-dataset): not for commercial use"
    return Source("elpv", classes, tuple(labels), open_file, licence=licence)


def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels: for tests and first tries, nothing to download."""
    from sklearn.datasets import load_digits

    found = load_digits()

    def open_array(index: int) -> Any:
        import numpy as np
        from PIL import Image

        return Image.fromarray((found.images[index] * 15.9).astype(np.uint8)).resize((32, 32))

    return Source("digits", tuple("0123456789"), tuple(int(label) for label in found.target), open_array)


def _folders(root: Path) -> list[Path]:
    return [folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")]


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("[!.]*") if file.suffix.lower() in SUFFIXES)


def _timm(spec: str, root: str | None) -> Source:
    """What timm's create_dataset reads: `hfds/...`, `torch/...`, `wds/...`, `tfds/...`; a validation split is the test set."""
    from timm.data import create_dataset

    parts: list[tuple[Any, list[int]]] = []
    for name in ("train", "validation"):
        try:
            part = create_dataset(spec, root=root, split=name, is_training=name == "train")
            parts.append(_indexed(part))
        except Exception as error:  # each backend has errors of its own
            if name == "train":
                hint = "" if root else "; give --data-root where the files are"
                raise DataError(f"--data {spec}: timm cannot open it ({first_line(error)}){hint}") from error
    train, train_labels = parts[0]
    test, test_labels = parts[1] if len(parts) > 1 else (train, [])
    if test_labels == train_labels and spec.endswith("folder"):
        test_labels = []  # a plain folder answers to every split name
    labels = train_labels + test_labels
    count = len(train_labels)

    def open_sample(index: int) -> Any:
        return train[index][0] if index < count else test[index - count][0]

    fixed = frozenset(range(count, len(labels)))
    return Source(spec, _class_names(train, max(labels) + 1), tuple(labels), open_sample, fixed)


def _class_names(part: Any, count: int) -> tuple[str, ...]:
    """What the data set calls its classes; their numbers where it does not."""
    known = getattr(part, "class_to_idx", None) or getattr(getattr(part, "reader", None), "class_to_idx", None) or {}
    names = {index: str(name) for name, index in known.items()}
    return tuple(names.get(index, str(index)) for index in range(count))


def _indexed(part: Any) -> tuple[Any, list[int]]:
    """A data set that can be indexed, and its labels; a stream is read once and kept as compressed images."""
    import io

    if hasattr(part, "targets"):
        return part, [int(label) for label in part.targets]
    if hasattr(part, "__getitem__") and hasattr(getattr(part, "reader", None), "samples"):
        return part, [int(label) for _, label in part.reader.samples]
    if hasattr(getattr(part, "reader", None), "iter_targets"):  # a Hugging Face data set: no image is opened
        return part, [int(label) for label in part.reader.iter_targets()]
    if hasattr(part, "__getitem__") and not hasattr(part, "set_loader_cfg"):
        return part, [int(part[index][1]) for index in range(len(part))]
    kept: list[tuple[bytes, int]] = []
    for image, label in part:
        encoded = io.BytesIO()
        image.save(encoded, "png")
        kept.append((encoded.getvalue(), int(label)))

    class Kept:
        def __getitem__(self, index: int) -> tuple[Any, int]:
            from PIL import Image

            return Image.open(io.BytesIO(kept[index][0])), kept[index][1]

    return Kept(), [label for _, label in kept]


KNOWN: dict[str, Callable[[], Source]] = {"elpv": _elpv, "digits": _digits}
