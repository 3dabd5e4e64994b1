"""Find an extension by its file name: ops, spaces and exporters are one file each, under a well-known name."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dna_deploy.errors import DnaError, RequestError, first_line


def names(folder: str) -> list[str]:
    """The extensions shipped in `dna_deploy/<folder>`; files that start with `_` are helpers, not extensions."""
    return sorted(file.stem for file in (Path(__file__).parent / folder).glob("*.py") if not file.stem.startswith("_"))


_own: dict[tuple[str, str], Any] = {}  # loaded from a path, under the name it gives itself


def find(folder: str, name: str) -> Any:
    """The object a plugin file offers: `SPACE` of spaces/<name>.py, `OP` of ops/<name>.py and so on.

    `name` is a file name of that folder, or a path ending in `.py` outside the package; what was found by its path is
    from then on also found by its own name, the one that stands in tables and architectures.
    """
    attribute = folder.removesuffix("s").upper()
    if folder == "spaces" and name.startswith("derived:"):
        # by its name only: deriving needs torch and stands far above this module
        return importlib.import_module("dna_deploy.derived").Derived(name.removeprefix("derived:"))
    if name.endswith(".py"):
        found = getattr(load(Path(name), attribute), attribute)
        kind = type(find(folder, names(folder)[0]))  # of ours
        if not isinstance(found, kind):
            raise RequestError(f"{name}: its {attribute} is {found!r:.60}, expected a {kind.__module__}.{kind.__name__}")
        if found.name in names(folder):
            raise RequestError(f"{name}: its {attribute} is called {found.name!r}, like one of ours; give it another name")
        _own[folder, found.name] = found
        return found
    if (folder, name) in _own:
        return _own[folder, name]
    if name in names(folder):
        return getattr(importlib.import_module(f"dna_deploy.{folder}.{name}"), attribute)
    raise RequestError(f"{name!r} is none of the {folder}: {', '.join(names(folder))}, or a path ending in .py")


def knows(folder: str, name: str) -> bool:
    """Whether `find` would find this name."""
    return (folder, name) in _own or name in names(folder) or (folder == "spaces" and name.startswith("derived:"))


def load(file: Path, attribute: str) -> Any:
    """The module of a user's own file, which has to define `attribute`; it may import files beside it."""
    if not file.is_file():
        raise RequestError(f"{file}: no such file; expected a Python file that defines {attribute}")
    spec = importlib.util.spec_from_file_location(f"own_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look for their module there; `own_`: net.py is not `import net`
    if (folder := str(file.parent.resolve())) not in sys.path:
        sys.path.append(folder)  # behind all others: an exporter tensorrt.py of the user's does not hide the package
    with blamed(file):
        spec.loader.exec_module(module)
    if not hasattr(module, attribute):
        raise RequestError(f"{file} defines no {attribute}; see the README for what it should be")
    return module


@contextmanager
def blamed(file: Path) -> Iterator[None]:
    """What goes wrong in the code of a user's file is answered in one line, with its place there."""
    try:
        yield
    except DnaError:
        raise
    except Exception as error:
        own = file.resolve()
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == own]
        place = f"{file}, line {lines[-1]}" if lines else str(file)  # a syntax error has no line of its own, but says it
        raise RequestError(f"{place}: {type(error).__name__}: {first_line(error)}") from error
