"""Is what a bundle's manifest says it was made from really what it was made from? Its ONNX files are made again and compared."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dna_deploy.bundle import Manifest
from dna_deploy.chain import graphs
from dna_deploy.contents import Contents
from dna_deploy.errors import RequestError
from dna_deploy.exporters._exporter import Exporter
from dna_deploy.files import parse, sha256
from dna_deploy.original import Asked, Original, from_model, from_run
from dna_deploy.plugins import find
from dna_deploy.run import find_pick
from dna_deploy.sources import KNOWN
from profilers import Device, find_profiler

HERE = Device("cpu", "host")


@dataclass(frozen=True)
class Rebuilt:
    """An ONNX file of the bundle: as shipped, and as the same request makes it now."""

    file: str
    shipped: str  # SHA-256
    found: str

    @property
    def same(self) -> bool:
        return self.shipped == self.found


def rebuild(contents: Contents, trust: bool = False) -> Iterator[Rebuilt]:
    """The portable file, and of each format made from ONNX the file it was made from; nothing of the bundle is changed.

    A Python file that the manifest names is run with `trust` only.
    """
    manifest = contents.manifest
    original = _original(manifest, trust)
    compared: set[str] = set()
    for packed in manifest.models.values():
        exporter: Exporter = find("exporters", packed.format)
        if exporter.made_from == "module" and exporter.name != "onnx":
            continue
        with tempfile.TemporaryDirectory(prefix="rebuild-") as folder:
            file = Path()
            for step in graphs(replace(original, folder=Path(folder)), exporter, packed.options):
                assert step.path is not None
                file = step.path
            if file.name in manifest.files and file.name not in compared:
                compared.add(file.name)
                yield Rebuilt(file.name, manifest.files[file.name].sha256, sha256(file))


def surroundings(manifest: Manifest) -> list[str]:
    """What is not as it was, packages and processor, each then and now: the first thing to look at where bytes differ."""
    here = find_profiler(HERE).environment(HERE)
    then = {**manifest.made_with, "processor": manifest.made_on.get("processor")}
    now = {**{name: _version(name) for name in manifest.made_with}, "processor": here["processor"]}
    return [f"{name} {was}, here {now[name]}" for name, was in then.items() if now[name] != was]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _original(manifest: Manifest, trust: bool) -> Original:
    if not manifest.made_from:
        raise RequestError(f"{manifest.name}: its manifest does not say what it was made from; it cannot be made again")
    if "run" in manifest.made_from:
        pick = find_pick(str(manifest.made_from["run"]))
        run = pick.run.asked
        _require_trust(trust, run.data, run.space, _space_of(pick.architecture))
        return from_run(pick)
    asked = parse(Asked, manifest.made_from, "manifest.json: made_from")
    _require_trust(trust, asked.data, asked.model)
    return from_model(asked)


def _space_of(architecture: Path) -> str:
    """The space it names, from the bare JSON: `Architecture.load` would run it where that is a Python file."""
    try:
        return str(json.loads(architecture.read_text(encoding="utf-8"))["space"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise RequestError(f"{architecture}: names no space; expected what dna-search wrote, copy the run again") from None


def _require_trust(trust: bool, data: str | None, *sources: str) -> None:
    """Python files are code; and timm reads some data sets by a script, or from the output of a shell command."""
    code = [source for source in sources if source.endswith(".py")]
    if data is not None and data not in KNOWN and not Path(data).is_dir():
        code.append(data)
    if code and not trust:
        raise RequestError(f"made from {code[0]}, which can run code here; add --trust if you trust who made the bundle")
