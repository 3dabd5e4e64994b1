"""Blocks as jobs on a Ray cluster: given the teacher they are independent, so each is trained and rated wherever there is room.

A job is lost with its worker and begun again, where it goes on at the block's last whole epoch. For that the run's folder has
to lie where all machines see it, under the same path, and so have images and features; dna-deploy is installed on all of them.
Every job does its own teacher pass, unless the features are kept.
"""

import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dna_deploy.data import Images
from dna_deploy.errors import DnaError, MachineError, RequestError, first_line
from dna_deploy.plugins import find
from dna_deploy.progress import bar, say
from dna_deploy.ratings import Rating, save_ratings
from dna_deploy.run import Run
from dna_deploy.search import distilled, prepare_teacher, rated, splits
from dna_deploy.sources import Source, open_source
from dna_deploy.space import SearchSpace

RETRIES = 5  # of a block whose worker died


def rate_on(address: str) -> Callable[[Run, Source, SearchSpace], None]:
    """`search.rate_all` on the cluster at this address; `local` starts one here."""
    try:
        import ray
    except ImportError:
        raise MachineError('Ray is not installed: pip install -e ".[ray]"') from None
    _require_there(address)

    def rate_all(run: Run, source: Source, space: SearchSpace) -> None:
        from dna_deploy.checkpoint import load_tensors, save_tensors
        from dna_deploy.lessons import KeptLessons
        from dna_deploy.supernet import pieces

        if source.licence:
            say(f"data {source.name}: {source.licence}")
        parts = splits(run, source)
        teacher = prepare_teacher(run, source, parts, space)
        if run.asked.keep_features:
            KeptLessons(teacher, Images(source, parts.train, run.asked.image_size), run.folder / "features")
        blocks = [piece.block.name for piece in pieces(space, teacher)]
        ratings = _jobs(ray, address, run, blocks)
        trained = [load_tensors(run.block(block)) for block in blocks]
        _, about = trained[0]
        save_tensors(run.supernet, {name: value for tensors, _ in trained for name, value in tensors.items()}, about)
        save_ratings(run.ratings, ratings, space)
        shutil.rmtree(run.folder / "blocks")

    return rate_all


def _jobs(ray: Any, address: str, run: Run, blocks: list[str]) -> list[Rating]:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        raise MachineError(
            f"--ray {address}: {first_line(error)}; expected a running cluster, as `ray start --head` prints it"
        ) from error
    try:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        job = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(train_block)
        waiting = {job.remote(os.getcwd(), str(run.folder.resolve()), block): block for block in blocks}
        found: dict[str, list[Rating]] = {}
        aside = contextlib.redirect_stdout(sys.stderr)  # Ray tells of lost workers on stdout, which is for the result
        with aside, bar(f"{len(blocks)} blocks on Ray", len(blocks)) as advance:
            while waiting:
                (done, *_), _ = ray.wait(list(waiting))
                block = waiting.pop(done)
                found[block] = [Rating(**values) for values in _result(ray, done, block)]
                advance(1)
    finally:
        ray.shutdown()
    return [rating for block in blocks for rating in found[block]]


def _result(ray: Any, done: Any, block: str) -> list[dict[str, Any]]:
    try:
        result: list[dict[str, Any]] = ray.get(done)
        return result
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DnaError):
            raise type(error.cause)(f"block {block}: {error.cause}") from None
        raise
    except ray.exceptions.RayError as error:
        raise MachineError(
            f"block {block}: its worker died {RETRIES + 1} times ({first_line(error)}); run the same command again, it goes on"
        ) from error


def train_block(where: str, folder: str, block: str) -> list[dict[str, Any]]:
    """The job: the ratings of a block; its weights are in the run's folder."""
    run = Run(Path(folder))
    for path, needed in ((folder, run.teacher_report), (where, Path(where))):
        if not needed.exists():
            advice = "start dna-search in a folder that all machines see, or put the run into one with --run PATH"
            raise RequestError(f"{path}: not to be seen from {socket.gethostname()}; {advice}")
    os.chdir(where)  # relative paths are of there
    source = open_source(run.asked.data, run.asked.data_root)
    space: SearchSpace = find("spaces", run.asked.space).at(run.asked.image_size, len(source.classes))
    parts = splits(run, source)
    teacher = prepare_teacher(run, source, parts, space)
    supernet = distilled(run, source, parts, teacher, space, block)
    ratings = rated(run, source, parts, teacher, supernet)
    return [asdict(rating) for rating in ratings]


def _require_there(address: str) -> None:
    """Refuse an address where nobody answers, which takes Ray itself a minute."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address in ("local", "auto"):
        return
    if not (colon and port.isdecimal()):
        raise RequestError(f"--ray {address}: expected HOST:PORT as `ray start --head` prints it, auto, or local")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise MachineError(f"--ray {address}: nobody answers there ({first_line(error)}); start it: ray start --head") from None
