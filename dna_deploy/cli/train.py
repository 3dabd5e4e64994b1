"""dna-train: train a network by its name, from random weights and by a recipe."""

import shlex
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import click

from dna_deploy.cli._command import POSITIVE, command
from dna_deploy.torchrun import RANK


@command()
@click.argument("network")
@click.option("--recipe", "recipe_name", default="scratch", help="scratch is DNA's published one; or a .toml file of your own.")
@click.option("--data", default="elpv", help="Image folder, elpv, digits, or a name timm.data reads (hfds/..., torch/...).")
@click.option("--data-root", help="Where the files of a timm data set lie.")
@click.option("--image-size", type=POSITIVE, default=224, help="Input side in pixels.")
@click.option("--run", "name", help="Folder under runs/; named after network, data and size if left out.")
@click.option("--epochs", type=POSITIVE, help="The recipe's if left out.")
@click.option("--batch", type=POSITIVE, help="Images a step, with a learning rate to match; the recipe's if left out.")
@click.option("--accumulate", type=POSITIVE, default=1, help="Work each batch in so many parts, to need less memory.")
@click.option("--amp/--no-amp", default=None, help="Forward passes in bfloat16; on a GPU that has it if left out.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Of everything random.")
def main(
    network: str,
    recipe_name: str,
    data: str,
    data_root: str | None,
    image_size: int,
    name: str | None,
    epochs: int | None,
    batch: int | None,
    accumulate: int,
    amp: bool | None,
    seed: int,
) -> dict[str, Any]:
    """Train NETWORK, dna_a to dna_d or any of timm's, alone on labelled images.

    Interrupt it, and the same command goes on. Exit codes: 0 trained, 2 the request is wrong, 3 the machine failed.
    """
    from dna_deploy.files import alone
    from dna_deploy.named import train_named
    from dna_deploy.progress import say
    from dna_deploy.recipe import recipe
    from dna_deploy.run import run_folder

    usual = recipe(recipe_name).at(batch)
    how = replace(usual, epochs=epochs or usual.epochs, accumulate=max(accumulate, usual.accumulate), seed=seed)
    folder = run_folder(name, network, data, image_size)
    with alone(folder, "dna-train") if RANK == 0 else nullcontext():
        done = train_named(network, data, data_root, image_size, folder, how, amp)
    if done is None:  # a process beside the first
        return {}
    say(f"{folder}: {done.test_accuracy:.2%} of {done.test_images} test images")
    flags = ["--weights", str(folder / "weights.safetensors"), "--data", data, "--image-size", str(image_size)]
    flags += ["--data-root", data_root] if data_root else []
    say(f"next: dna-export --model {network} {shlex.join(flags)}")
    return {"folder": str(folder), **asdict(done)}


if __name__ == "__main__":  # torchrun -m
    main()
