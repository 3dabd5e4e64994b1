"""Imports point one way, and commands start without the heavy packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ROWS = [  # design.md, from the bottom up; a module may import from rows below its own
    {"errors", "torchrun"},
    {"files", "plugins", "progress", "machine", "session", "sources"},
    {"recipe"},
    {"ops"},
    {"graph", "space"},
    {"layers"},
    {"arch", "spaces", "ratings", "pick", "costs", "footprint", "confirm"},
    {"milp", "pins", "scores", "zoo"},
    {"limits", "table", "regressor", "exporters", "subgraph"},
    {"transfer", "reference"},
    {"predictor", "measure", "data", "placement", "rounding"},
    {"budget", "locate", "networks"},
    {"teacher", "checkpoint", "verify"},
    {"supernet", "derived", "ranges", "lessons", "crops", "calibrate", "rivals"},
    {"distill", "rate", "precision", "quantize", "warm"},
    {"train", "run"},
    {"original", "bundle", "found"},
    {"on_device", "chain", "contents", "report"},
    {"profile", "search", "export", "rebuild", "own_model", "named"},
    {"weigh", "cluster"},
    {"cli"},
]
ROW = {name: row for row, names in enumerate(ROWS) for name in names}


def _imports(file):
    """Modules imported at the top of a file or in its functions, but not those for type checking only."""
    tree = ast.parse(file.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _part(module):
    return module.split(".")[1] if "." in module else None


@pytest.mark.parametrize("file", sorted((ROOT / "dna_deploy").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_down(file):
    own = file.relative_to(ROOT / "dna_deploy").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in ROW, f"{own} has no row: give it one in ROWS"
    for module in _imports(file):
        if module and module.startswith("dna_deploy."):
            other = _part(module)
            assert other == own or ROW[other] < ROW[own], f"{file.name} imports {module}, which stands above it"


@pytest.mark.parametrize("file", sorted((ROOT / "profilers").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_profilers_know_nothing_of_search(file):
    assert not [module for module in _imports(file) if module and module.startswith("dna_deploy")]


@pytest.mark.parametrize("command", ["profile", "search", "export", "train"])
def test_help_needs_no_heavy_package(command):
    heavy = ("torch", "timm", "onnx", "onnxruntime", "scipy", "sklearn", "pandas", "matplotlib", "pydantic", "rich", "numpy")
    code = (
        "import sys\n"
        f"from dna_deploy.cli.{command} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "Usage:" in done.stdout
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("command", ["profile", "search", "export", "train"])
def test_help_shows_every_option_once_and_the_sections_named(command):
    import importlib

    import click
    from click.testing import CliRunner

    main = importlib.import_module(f"dna_deploy.cli.{command}").main
    headings = [*(main.sections.values() or ["Options"]), "General"]
    about, _, text = CliRunner().invoke(main, ["--help"]).output.partition(f"\n{headings[0]}:\n")
    assert about.startswith("Usage:")
    flags = [param.opts[0] for param in main.params if isinstance(param, click.Option)]
    shown = [line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith("  -")]
    assert sorted(shown) == sorted([*flags, "-h"])
    names = [param.name for param in main.params]
    assert set(main.sections) <= set(names)  # each is where an option is
    assert [line.rstrip(":") for line in text.splitlines() if line.endswith(":") and line[0] != " "] == headings[1:]
