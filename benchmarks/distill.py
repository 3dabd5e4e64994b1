"""What does training all blocks in one teacher pass cost, and what does it save?

    python -m benchmarks.distill

Three ways through the same batches and updates, interleaved step by step: all blocks at once (ours), block after block
with a teacher pass up to that block for each (as DNA was published), and the parts of ours alone: one teacher forward, then the
blocks' own forward, backward and update on features that lie ready. With EfficientNet-Lite0 and with EfficientNet-B7 as
the teacher (timing needs no trained weights). Takes 2 minutes on 2 cores.
"""

import random

import torch

from benchmarks._report import Result, arguments, at_least, at_most, plain, report, seconds
from dna_deploy.data import Preprocessing
from dna_deploy.distill import draw, noise_to_signal, step
from dna_deploy.networks import untrained
from dna_deploy.plugins import find
from dna_deploy.supernet import Supernet
from dna_deploy.teacher import Teacher, cut


class _Reached(Exception):
    pass


def features_up_to(teacher: Teacher, x: torch.Tensor, count: int) -> list[torch.Tensor]:
    """The teacher's first `count` features, computing nothing behind the last of them."""
    if count > len([place for place in teacher.cuts if place]):
        return teacher.features(x)
    last = teacher.model.get_submodule(teacher.cuts[count - 1].name)
    found = []

    def stop(*_):
        raise _Reached

    hooks = [
        teacher.model.get_submodule(place.name).register_forward_hook(lambda m, i, output: found.append(output))
        for place in teacher.cuts[:count]
    ]
    hooks.append(last.register_forward_hook(stop))
    try:
        with torch.no_grad():
            teacher.model(x)
    except _Reached:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found


def measured(name: str, image_size: int, batch: int, steps: int) -> list[Result]:
    torch.manual_seed(0)
    space = find("spaces", "mobile").at(image_size, 10)
    model = untrained(name, 10).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    teacher = Teacher(name, model, Preprocessing((0.5,) * 3, (0.5,) * 3), cut(model, space))
    supernet = Supernet(space, teacher).train()
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=1e-4)
    rng = random.Random(0)
    overhead, saving, teacher_share = [], [], []
    for number in range(steps + 1):
        x = torch.randn(batch, 3, image_size, image_size).contiguous(memory_format=torch.channels_last)
        paths = [draw(part.piece.block, rng) for part in supernet.pieces]
        ready = teacher.features(x)

        def ours(x=x, paths=paths):
            features = teacher.features(x)
            optimizer.zero_grad(set_to_none=True)
            step(supernet, features, x, paths)
            optimizer.step()

        def blocks_alone(x=x, paths=paths, ready=ready):
            optimizer.zero_grad(set_to_none=True)
            for part, into, target, (path,) in zip(supernet.pieces, [x, *ready[:-1]], ready, paths, strict=True):
                noise_to_signal(part(into, path), target).backward()
            optimizer.step()

        def published(x=x, paths=paths):
            for k, (part, (path,)) in enumerate(zip(supernet.pieces, paths, strict=True)):
                features = features_up_to(teacher, x, k + 1)
                optimizer.zero_grad(set_to_none=True)
                noise_to_signal(part(x if k == 0 else features[k - 1], path), features[k]).backward()
                optimizer.step()

        ways = {"ours": ours, "teacher": lambda x=x: teacher.features(x), "blocks": blocks_alone, "published": published}
        order = list(ways)
        random.Random(number).shuffle(order)
        took = {way: seconds(ways[way]) for way in order}
        if number:  # the first step warms up
            overhead.append(took["ours"] / (took["teacher"] + took["blocks"]))
            saving.append(took["published"] / took["ours"])
            teacher_share.append(took["teacher"] / took["ours"])
    goal = 1.5 if name == "tf_efficientnet_lite0" else 3.0
    return [
        at_most(f"{name}: all blocks in one pass / its parts alone", overhead, "x", 1.15),
        at_least(f"{name}: block after block / all in one pass", saving, "x", goal),
        plain(f"{name}: share of the teacher in a pass", teacher_share, ""),
    ]


def main() -> None:
    quick = arguments(__doc__).parse_args().quick
    results = measured("tf_efficientnet_lite0", 96, 32, 6 if quick else 30)
    results += measured("tf_efficientnet_b7", 96, 8, 2 if quick else 12)
    report("distill", results)


if __name__ == "__main__":
    main()
