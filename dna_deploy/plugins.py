"""Find an extension by its file name: ops, spaces and exporters are one file each, under a well-known name."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from dna_deploy.errors import RequestError


def names(folder: str) -> list[str]:
    """The extensions shipped in `dna_deploy/<folder>`; files that start with `_` are helpers, not extensions."""
    return sorted(file.stem for file in (Path(__file__).parent / folder).glob("*.py") if not file.stem.startswith("_"))


def find(folder: str, name: str) -> Any:
    """The object a plugin file offers: `SPACE` of spaces/<name>.py, `OP` of ops/<name>.py and so on.

    `name` is a file name of that folder, or a path ending in `.py` outside the package.
    """
    attribute = folder.removesuffix("s").upper()
    if name.endswith(".py"):
        file = Path(name)
        if not file.is_file():
            raise RequestError(f"{name}: no such file; expected a Python file that defines {attribute}")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    elif name in names(folder):
        module = importlib.import_module(f"dna_deploy.{folder}.{name}")
    else:
        raise RequestError(f"{name!r} is none of the {folder}: {', '.join(names(folder))}, or a path ending in .py")
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise RequestError(f"{name} defines no {attribute}; see dna_deploy/{folder} for examples") from None
