"""Files that survive: strict JSON in and out of dataclasses, arrays without pickle, atomic writes, append-only lines."""

import dataclasses
import errno
import hashlib
import json
import os
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dna_deploy.errors import MachineError, RequestError

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")


def parse(kind: type[T], values: object, where: str) -> T:
    """`values` as the dataclass `kind`: every field of the right type, none missing, none unknown."""
    from pydantic import ValidationError

    try:
        found: T = _checker(kind).validate_python(values)  # type: ignore[arg-type]
        return found
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise RequestError(f"{where}: {field}: {first['msg']} (got {str(first['input'])[:60]!r})") from None


@cache
def _checker(kind: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    kind.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    return TypeAdapter(kind)


def read_json(path: Path, kind: type[T]) -> T:
    """The JSON object in `path` as the dataclass `kind`; of the schema that `kind` has by default, if it has one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"{path}: not JSON ({error}); was it cut off or edited?") from None
    ours = getattr(kind, "schema", None)
    found = values.get("schema", ours) if isinstance(values, dict) else ours
    if found != ours:
        raise RequestError(f"{path}: schema {found!r}; this version reads {ours!r}")
    return parse(kind, values, str(path))


def read_toml(path: Path, kind: type[T]) -> T:
    """The TOML file in `path` as the dataclass `kind`."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: not TOML ({error})") from None
    return parse(kind, values, str(path))


def write_json(path: Path, value: Any) -> None:
    """`value`, a dataclass or plain values, as indented JSON."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    write_text(path, json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_arrays(path: Path, arrays: "Mapping[str, np.ndarray[Any, Any]]") -> None:
    """Arrays by name as NumPy's compressed npz."""
    import numpy as np

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    write_atomic(path, write)


def read_arrays(path: Path) -> "dict[str, np.ndarray[Any, Any]]":
    """The arrays of an npz in the order they were written; nothing that would have to be unpickled."""
    import numpy as np

    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, KeyError, AttributeError, TypeError) as error:
        raise RequestError(f"{path}: not readable arrays ({error}); export again") from None


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """`write` fills a temporary file beside `path`, which then takes its place: a reader sees the old or the new."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


class disk_errors:
    """Turn a full disk, or a place that cannot be written, into one line that names the file; what was written before stays."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # safetensors reports a full disk as an error of its own, with the errno only in the text
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or (error is not None and "No space left on device" in str(error)):
            raise MachineError(f"{self.path}: the disk is full; free some space and run the same command again") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise RequestError(f"{self.path}: cannot be written ({error.strerror}); choose another folder") from error


@contextmanager
def alone(path: Path, command: str) -> Iterator[None]:
    """While `path` is written, whoever else wants to is refused; `command` is who it can be."""
    from filelock import FileLock, Timeout

    whole = path.resolve()  # "." has no name
    lock = FileLock(whole.with_name(f".{whole.name}.lock"), blocking=False)
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    except Timeout:
        raise RequestError(f"{path}: another {command} is writing here; wait for it and run this again") from None
    try:
        yield
    finally:
        lock.release()


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
