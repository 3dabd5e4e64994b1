"""What would the search of DNA's own space on ImageNet take, on 8 GPUs and on 64?

    python -m benchmarks.imagenet_plan
    python -m benchmarks.imagenet_plan --epochs 20 --batch 128 --dollars 2.5

Measures, on the device at hand and with the product's own steps, EfficientNet-B7 teaching the six blocks of space `dna` at
224 px: images a second of the teacher alone, of the whole step and of each block as a job of its own, the memory, and the
rating of all 24,000 candidates. From these: hours, gradient traffic and cost for 1,281,167 images an epoch. Weights are
random, which costs the same. What is not measured and taken as given: that gradients travel while the step computes, which
holds where the bandwidth printed is to be had, and that images are decoded in time: the cores that needs are printed.
"""

import io
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks._report import Result, arguments, plain, report
from dna_deploy.data import Images, Preprocessing
from dna_deploy.distill import draw, noise_to_signal, step
from dna_deploy.lessons import Lessons
from dna_deploy.machine import Machine, this_machine
from dna_deploy.networks import untrained
from dna_deploy.plugins import find
from dna_deploy.rate import rate
from dna_deploy.sources import Source
from dna_deploy.space import Candidate
from dna_deploy.supernet import PieceSupernet, Supernet
from dna_deploy.teacher import Teacher, cut

IMAGES, GPUS = 1_281_167, (8, 64)
PUBLISHED_GPU_DAYS = 8.5  # DNA (Li et al., CVPR 2020), on GPUs of its day


def teacher_and_supernet(machine: Machine, name: str, space_name: str, size: int) -> tuple[Teacher, Supernet]:
    space = find("spaces", space_name).at(size, 1000)
    model = untrained(name, 1000).eval().requires_grad_(False)
    cuts = cut(model, space)
    model.to(machine.device, memory_format=torch.channels_last)
    teacher = Teacher(name, model, Preprocessing((0.5,) * 3, (0.5,) * 3), cuts)
    return teacher, Supernet(space, teacher).to(machine.device).train()


def seconds(machine: Machine, work: Callable[[], object], repeats: int) -> list[float]:
    """Of one call each, after one that is not counted."""
    taken = []
    for repeat in range(repeats + 1):
        _wait(machine)
        began = time.perf_counter()
        work()
        _wait(machine)
        if repeat:
            taken.append(time.perf_counter() - began)
    return taken


def _wait(machine: Machine) -> None:
    if machine.device.type == "cuda":
        torch.cuda.synchronize()


def one_step(
    machine: Machine, teacher: Teacher, supernet: Supernet, optimizer: torch.optim.Optimizer, image: torch.Tensor, rng
) -> None:
    with machine.autocast():
        features = teacher.features(image)
    optimizer.zero_grad(set_to_none=True)
    paths = [draw(part.piece.block, rng) for part in supernet.pieces]
    step(supernet, features, image, paths, machine)
    optimizer.step()


def one_block(machine: Machine, part: PieceSupernet, into: torch.Tensor, target: torch.Tensor, path: Candidate) -> None:
    with machine.autocast():
        loss = noise_to_signal(part(into, path), target)
    loss.backward()
    part.zero_grad(set_to_none=True)


def warm_up(machine: Machine, supernet: Supernet, image: torch.Tensor, features: Sequence[torch.Tensor]) -> None:
    """Every op of every block once: the first use of a shape costs a GPU a hundred times what the others do."""
    for part, into, target in zip(supernet.pieces, [image, *features[:-1]], features, strict=True):
        for cell in part.piece.block.cells:
            for op in range(max(map(len, cell.layers))):
                path = Candidate(cell, tuple(min(op, len(layer) - 1) for layer in cell.layers))
                one_block(machine, part, into, target, path)


def decoding(size: int) -> float:
    """Seconds one core takes to decode a photograph of 500 x 375 px and scale it."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (25, 20, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
    source = Source("made", ("a", "b"), (0, 1), lambda index: Image.open(io.BytesIO(file.getvalue())))
    images = Images(source, [0], size)
    return statistics.median(seconds(Machine(torch.device("cpu")), lambda: images._decode(0), 50))


def main() -> None:
    import random

    parser = arguments(__doc__)
    parser.add_argument("--teacher", default="tf_efficientnet_b7")
    parser.add_argument("--space", default="dna")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64, help="images a GPU and step")
    parser.add_argument("--epochs", type=int, default=20, help="of block training, as published")
    parser.add_argument("--rating-images", type=int, default=5_000, help="0 leaves the rating out")
    parser.add_argument("--dollars", type=float, help="price of a GPU hour, for the cost")
    parser.add_argument("--no-amp", action="store_true", help="float32 throughout")
    args = parser.parse_args()
    machine = this_machine(False if args.no_amp else None)
    batch, repeats = (2, 2) if args.quick else (args.batch, 10)
    teacher, supernet = teacher_and_supernet(machine, args.teacher, args.space, args.image_size)
    optimizer = torch.optim.AdamW(supernet.parameters(), 1e-4, fused=machine.fused)
    rng = random.Random(0)
    pixels = torch.randint(0, 256, (batch, 3, args.image_size, args.image_size), dtype=torch.uint8)
    image = teacher.preprocessing(pixels.to(machine.device))

    def teach() -> None:
        with machine.autocast():
            teacher.features(image)

    with machine.autocast():
        features = teacher.features(image)
    warm_up(machine, supernet, image, features)
    taught = seconds(machine, teach, repeats)
    whole = seconds(machine, lambda: one_step(machine, teacher, supernet, optimizer, image, rng), repeats)
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if machine.device.type == "cuda" else float("nan")
    blocks = {
        part.piece.block.name: seconds(
            machine, lambda part=part, x=x, y=y: one_block(machine, part, x, y, draw(part.piece.block, rng)[0]), repeats
        )
        for part, x, y in zip(supernet.pieces, [image, *features[:-1]], features, strict=True)
    }
    results = [
        plain("teacher alone", [batch / value for value in taught], "images/s"),
        plain("whole step: teacher and all blocks", [batch / value for value in whole], "images/s"),
        *(
            plain(f"block {name} alone, without the teacher", [batch / v for v in values], "images/s")
            for name, values in blocks.items()
        ),
        Result("memory at most", peak_gb, "GB"),
    ]
    rating = 0.0
    if args.rating_images and not args.quick:
        from PIL import Image

        source = Source("made", ("a", "b"), (0, 1) * 16, lambda index: Image.fromarray(pixels[index].permute(1, 2, 0).numpy()))
        lessons = Lessons(teacher, Images(source, range(32), args.image_size))
        rating = seconds(machine, lambda: rate(supernet, lessons, range(32), 32), 1)[0] / 32 * args.rating_images
        results.append(Result(f"rating every candidate on {args.rating_images} images", rating / 3600, "GPU hours"))
    parameters = sum(weight.numel() for weight in supernet.parameters())
    drawn = sum(sum(op.params for op in draw(part.piece.block, rng)[0].ops) for part in supernet.pieces)
    results += [
        Result("weights of the supernet", parameters / 1e6, "million"),
        Result("weights of the paths of a step", drawn / 1e6, "million"),
    ]
    per_step = statistics.median(taught) + sum(map(statistics.median, blocks.values()))  # the whole step is the check of it
    core = decoding(args.image_size)
    gpu_hours = (args.epochs * IMAGES * per_step / batch + rating) / 3600
    results += [
        Result("the parts together: teacher and all blocks", batch / per_step, "images/s"),
        Result("block training and rating", gpu_hours / 24, "GPU days"),
        Result("published for DNA, on GPUs of 2019", PUBLISHED_GPU_DAYS, "GPU days"),
    ]
    for gpus in GPUS:
        traffic = 2 * (gpus - 1) / gpus * parameters * 4
        results += [
            Result(f"{gpus} GPUs, each image to one of them: time", gpu_hours / gpus, "h"),
            Result(f"{gpus} GPUs: gradients in and out of a GPU, every step", traffic / 1e9, "GB"),
            Result(f"{gpus} GPUs: bandwidth that hides them", traffic / per_step / 1e9, "GB/s"),
            Result(
                f"{gpus} GPUs: cores that decode {batch / per_step * gpus:.0f} images a second",
                batch / per_step * gpus * core,
                "cores",
            ),
        ]
        if args.dollars:
            results.append(Result(f"{gpus} GPUs: cost", gpu_hours * args.dollars, "$"))
    job = [(statistics.median(taught) + statistics.median(values)) / batch for values in blocks.values()]
    results.append(
        Result(
            "blocks as independent jobs, each with its own teacher pass: all", args.epochs * IMAGES * sum(job) / 86400, "GPU days"
        )
    )
    results.append(Result("the same, one GPU a block: the longest", args.epochs * IMAGES * max(job) / 3600, "h"))
    report("imagenet_plan", results)


if __name__ == "__main__":
    main()
