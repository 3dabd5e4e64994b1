"""Does a search that is killed over and over end where an undisturbed one does?

    python -m benchmarks.kills

dna-search on the smallest space, under the smallest teacher (the tests' own both) and on scikit-learn's digits, from the
teacher's fine-tuning to the trained network: once undisturbed, once killed (SIGKILL) at 20 random moments and started again
each time, half of them while it fine-tunes, distills and rates, half while the network found is trained. Compared are the
teacher, the weights of all blocks, the ratings, the network found and its trained weights, bit by bit: on a CPU with one
thread nothing may differ. Each kill is a line of benchmarks/results/kills.jsonl. It takes 3 minutes on a quiet core.
"""

import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the order of sums depends on it

import torch

from benchmarks._report import Result, arguments, report
from dna_deploy import distill, found, measure, named, rate, train, warm, zoo  # noqa: F401  everything a search imports
from dna_deploy.checkpoint import load_tensors
from dna_deploy.cli.profile import main as profile
from dna_deploy.cli.search import main as search

ROOT = Path(__file__).parent.parent
SPACE = ROOT / "tests" / "tiny_space.py"
RESULTS = Path(__file__).with_name("results") / "kills.jsonl"
FILES = ("teacher.safetensors", "supernet.safetensors", "ratings.jsonl", "architecture.json", "student.safetensors")
SMALL = ["--space", str(SPACE), "--image-size", "32"]
PROFILE = [*SMALL, "--classes", "10", "--validate", "10", "--budget", "60s"]
SEARCH = [*SMALL, "--latency", "50ms", "--data", "digits", "--teacher", str(ROOT / "tests" / "own_teacher.py")]
SEARCH += ["--teacher-epochs", "8", "--distill-epochs", "8", "--epochs", "20", "--rating-images", "64"]


def start(command: str, flags: list[str], folder: Path) -> int:
    """The command in a process of its own, forked from this one, which has imported everything and run nothing: its id.

    Starting the interpreter anew would cost ten seconds a kill, in which there is nothing to lose.
    """
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.chdir(folder)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    code = 70
    try:
        {"profile": profile, "search": search}[command](flags)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def left(folder: Path) -> list[str]:
    """What the run has finished by now, in the order it does."""
    names = ("run.json", "teacher-training.safetensors", "teacher.json", "supernet.safetensors", "ratings.jsonl", "pick.json")
    names += ("student-training.safetensors", "student.json")
    return [name for name in names if any(folder.rglob(name))]


def same(a: Path, b: Path, name: str) -> bool:
    one, other = next(a.rglob(name)), next(b.rglob(name))
    if one.suffix != ".safetensors":
        return one.read_bytes() == other.read_bytes()
    tensors, others = load_tensors(one)[0], load_tensors(other)[0]
    return tensors.keys() == others.keys() and all(torch.equal(value, others[key]) for key, value in tensors.items())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    kills = 3 if args.quick else args.kills
    rng, lines = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        assert ended(start("profile", PROFILE, place)) == 0
        began = time.monotonic()
        assert ended(start("search", [*SEARCH, "--run", "calm", "--no-train"], place)) == 0
        picked_s = time.monotonic() - began
        assert ended(start("search", [*SEARCH, "--run", "calm"], place)) == 0
        whole_s = time.monotonic() - began
        calm, torn = place / "runs" / "calm", place / "runs" / "torn"
        for stage, most, share in (("--no-train", kills - kills // 2, picked_s), ("--train", kills, whole_s - picked_s)):
            flags = [*SEARCH, "--run", "torn", stage]
            while len(lines) < most:
                child = start("search", flags, place)
                moment = rng.uniform(0, 5 / kills * share)  # an epoch cut off has to be done again, so it is not done too early
                time.sleep(moment)
                if os.waitpid(child, os.WNOHANG)[0]:
                    break  # it was done
                os.killpg(child, signal.SIGKILL)
                ended(child)
                lines.append({"kill": len(lines) + 1, "after_s": round(moment, 2), "left": left(torn) if torn.exists() else []})
                print(json.dumps(lines[-1]), flush=True)
            assert ended(start("search", flags, place)) == 0
        killed = len(lines)
        equal = {file: same(calm, torn, file) for file in FILES}
        stray = [str(file) for file in torn.rglob("*") if file.name.startswith(".")]
    if not args.quick:
        RESULTS.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"equal": equal, "stray": len(stray)}]))
    stages = len({tuple(line["left"]) for line in lines})
    report(
        "kills",
        [
            Result("kills", killed, "", f">= {kills}", killed >= kills),
            Result("stages they struck in", stages, ""),
            *(Result(f"{file} equal, bit by bit", float(ok), "", ">= 1", ok) for file, ok in equal.items()),
            Result("temporary files left lying", len(stray), ""),
        ],
    )


if __name__ == "__main__":
    main()
