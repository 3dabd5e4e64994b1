"""Checkpoints as safetensors: weights, the optimizer's state and how far training came, in one file without pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dna_deploy.errors import MachineError, RunError
from dna_deploy.files import write_atomic


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None, done: int, asked: Mapping[str, object] = {}
) -> None:
    """`done` counts finished epochs of the training `asked` for. Without an optimizer the file is final weights."""
    values: dict[str, Any] = {f"model/{name}": value for name, value in model.state_dict().items()}
    if optimizer is not None:
        known = optimizer.state_dict()
        for place, state in known["state"].items():
            values |= {f"optimizer/{place}/{name}": value for name, value in state.items()}
        for place, group in enumerate(known["param_groups"]):  # lamb and others count their steps there
            counts = {name: value for name, value in group.items() if type(value) in (int, float, torch.Tensor)}
            values |= {f"group/{place}/{name}": value for name, value in counts.items()}
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    plain = {name: value for name, value in values.items() if name not in tensors}
    save_tensors(path, tensors, {"done": str(done), "asked": json.dumps(dict(asked)), "plain": json.dumps(plain)})


def resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, asked: Mapping[str, object] = {}) -> int:
    """Go on with the training kept in `path`, if one is; returns its finished epochs, 0 where there is no file yet.

    A file of a training that was not begun as `asked` is refused: it would be written over.
    """
    if not path.exists():
        return 0
    tensors, about = load_tensors(path)
    if other := difference(json.loads(about.get("asked", "{}")), asked):
        raise RunError(f"{path}: begun with {other}; choose another --run NAME, or delete the file to begin anew")
    _fill(path, model, tensors)
    restored = optimizer.state_dict()
    restored["state"] = {}
    for name, value in {**tensors, **json.loads(about.get("plain", "{}"))}.items():
        kind, place, *part = name.split("/")
        if kind == "optimizer":
            restored["state"].setdefault(int(place), {})[part[0]] = value
        elif kind == "group":
            restored["param_groups"][int(place)][part[0]] = value
    optimizer.load_state_dict(restored)
    return int(about.get("done", "0"))


def load_weights(path: Path, model: nn.Module, advice: str) -> None:
    """Fill `model` with weights that were finished; `advice` is what to do where they are gone."""
    if not path.exists():
        raise MachineError(f"{path}: these weights were finished and are gone; {advice}")
    _fill(path, model, load_tensors(path)[0])


def _fill(path: Path, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    state = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()[:120]
        raise RunError(f"{path}: weights of another network ({reason}); start a new run with --run NAME") from error


def begun(path: Path, asked: Mapping[str, object]) -> bool:
    """Whether a training kept in `path` goes on as `asked`."""
    return path.exists() and difference(json.loads(load_tensors(path)[1].get("asked", "{}")), asked) is None


def difference(before: Mapping[str, object], asked: Mapping[str, object]) -> str | None:
    """The first thing that is asked for otherwise than before, in words."""
    changed = (f"{key} = {before.get(key)}, now asked for {value}" for key, value in asked.items() if before.get(key) != value)
    return next(changed, None)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> None:
    from safetensors.torch import save_file

    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_atomic(path, lambda temporary: save_file(plain, temporary, metadata=about))


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise RunError(f"{path}: no weights there; run dna-search again, it goes on where it stopped") from None
    except SafetensorError as error:
        raise RunError(f"{path}: not readable weights ({error}); delete the file and run dna-search again") from error
