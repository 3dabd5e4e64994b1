"""Find an extension by its file name: ops, spaces and exporters are one file each, under a well-known name."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from dna_deploy.errors import RequestError


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
    if name.endswith(".py"):
        found = load_file(Path(name), attribute)
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
    return (folder, name) in _own or name in names(folder)


def load_file(file: Path, attribute: str) -> Any:
    """What a Python file of the user's defines under that name; the file is run."""
    if not file.is_file():
        raise RequestError(f"{file}: no such file; expected a Python file that defines {attribute}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return getattr(module, attribute)
    except AttributeError:
        example = (
            f"; see dna_deploy/{attribute.lower()}s for examples" if attribute != "MODEL" else ", a function that returns it"
        )
        raise RequestError(f"{file} defines no {attribute}{example}") from None
