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
READERS = ("torch", "hfds", "hfids", "tfds", "wds")  # what timm reads otherwise than as a folder
TRAIN = ("train", "training")
TEST = ("test", "val", "valid", "validation", "eval", "evaluation")


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
    train, test = (next((parts[name] for name in names if name in parts), None) for names in (TRAIN, TEST))
    published = train is not None and bool(_folders(train))
    if published and test is None and len(parts) > 1:
        raise DataError(f"{root}: holds {', '.join(sorted(parts))}; expected test/ or val/ beside train/, or train/ alone")
    roots = [part for part in (train, test) if part] if published else [root]
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
        return _opened(files[index], str(files[index]))

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
    """Those of a class, in folders of it too, but for what is hidden: thumbnails are made of other files' images."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def _timm(spec: str, root: str | None) -> Source:
    """What timm's create_dataset reads: `hfds/...`, `torch/...`, `wds/...`, `tfds/...`; a validation split is the test set.

    By any other name timm reads the folder `root`, as torchvision does for torch/folder, and answers to a split that is not
    there with all images: such a folder is read as any other.
    """
    prefix = spec.lower().partition("/")[0]
    if prefix not in READERS or spec.lower() in ("torch/folder", "torch/image_folder"):
        if root and Path(root).is_dir():
            return _folder(Path(root))
        raise DataError(
            f"--data {spec}: neither it nor --data-root ({root or 'not given'}) is a folder; expected one folder a class there"
        )
    from timm.data import create_dataset

    mode = "RGB" if prefix == "tfds" else None  # the others hand out the file's own mode, for `rgb`
    parts: list[tuple[Any, Callable[[int], Any], list[int]]] = []
    for name in ("train", "validation"):
        try:
            part = create_dataset(spec, root=root, split=name, is_training=name == "train", input_img_mode=mode)
            parts.append((part, *_indexed(part)))
        except Exception as error:  # each backend has errors of its own
            if name == "train":
                hint = "" if root else "; give --data-root where the files are"
                raise DataError(f"--data {spec}: timm cannot open it ({first_line(error)}){hint}") from error
    (train, open_train, train_labels), *rest = parts
    test, open_test, test_labels = rest[0] if rest else (train, open_train, [])
    numbers, others = _numbers(train), _numbers(test)
    if numbers != others:
        differing = sorted(name for name in {*numbers, *others} if numbers.get(name) != others.get(name))
        raise DataError(
            f"--data {spec}: class {differing[0]} has another number in its validation split; expected the same in both"
        )
    labels = train_labels + test_labels
    count = len(train_labels)
    names = {number: name for name, number in numbers.items()}
    classes = tuple(names.get(number, str(number)) for number in range(max(labels) + 1))

    def open_sample(index: int) -> Any:
        return open_train(index) if index < count else open_test(index - count)

    return Source(spec, classes, tuple(labels), open_sample, frozenset(range(count, len(labels))))


def _numbers(part: Any) -> dict[str, int]:
    """The classes as the data set numbers them; none where it does not name them."""
    known = getattr(part, "class_to_idx", None) or getattr(getattr(part, "reader", None), "class_to_idx", None) or {}
    return {str(name): int(number) for name, number in known.items()}


def _indexed(part: Any) -> tuple[Callable[[int], Any], list[int]]:
    """What opens each image of a data set, and the labels; a stream is read once and kept as compressed images."""
    import io

    from PIL import Image

    reader: Any = getattr(part, "reader", None)
    if hasattr(reader, "iter_targets"):  # Hugging Face: `part[i]` would be the next image where this one cannot be read
        labels = [int(label) for label in reader.iter_targets()]
        return lambda i: _opened(reader[i][0], reader.filename(i) or f"image {i}"), labels
    if hasattr(part, "targets"):
        return lambda i: part[i][0], [int(label) for label in part.targets]
    if hasattr(part, "__getitem__") and not hasattr(part, "set_loader_cfg"):
        return lambda i: part[i][0], [int(part[index][1]) for index in range(len(part))]
    kept: list[tuple[bytes, int]] = []
    for image, label in part:
        encoded = io.BytesIO()
        rgb(image).save(encoded, "png")
        kept.append((encoded.getvalue(), int(label)))
    return lambda i: Image.open(io.BytesIO(kept[i][0])), [label for _, label in kept]


def _opened(file: Any, name: str) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file)
        image.load()
        return image
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"{name}: not a readable image ({type(error).__name__})") from error


def rgb(image: Any) -> Any:
    """8 bits a channel. Pillow's own conversion cuts 16 bits off at 255, which is white, and makes floats of 0..1 black."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, which may be of any range; expected 8 or 16 bits a channel")
    return image.convert("RGB")


KNOWN: dict[str, Callable[[], Source]] = {"elpv": _elpv, "digits": _digits}
