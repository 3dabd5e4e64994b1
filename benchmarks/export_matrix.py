"""Every network in every format and precision that runs here: is it still the network, how large, how fast?

    python -m benchmarks.export_matrix [--run NAME] [--networks resnet50,...] [--formats onnx,...] [--size 96] [--no-compile]

Twelve networks: the student of a run of dna-search (real images, real accuracy), the teachers with the weights of their PyPI
packages, and DNA's own and well-known ones with random weights (no accuracy; agreement on synthetic images). Each export is the
product's own chain with all its checks. Latency is taken beside plain `torch.onnx.export` with ONNX Runtime's defaults, torch
eager and torch.compile, one image, in interleaved rounds in one process. Without a GPU, TensorRT engines are built and not run.
Hours on one core; each row is kept in results/export_matrix.jsonl as it is finished, and the same command goes on from there.
"""

import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks._report import Result, arguments, plain, report
from dna_deploy.errors import CheckFailed, DnaError, MachineError
from dna_deploy.export import export
from dna_deploy.exporters._exporter import Exporter, Options
from dna_deploy.measure import measure_runs
from dna_deploy.networks import PACKAGED, RANDOM
from dna_deploy.original import Asked, Original, from_model, from_run
from dna_deploy.plugins import find, names
from dna_deploy.run import find_pick
from profilers import ProfilerError

RESULTS = Path(__file__).with_name("results") / "export_matrix.jsonl"
MODELS = (
    "tf_efficientnet_lite0",
    "mobilenetv3_large_100",
    "dna_a",
    "resnet50",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "tf_efficientnet_lite1",
    "tf_efficientnet_lite2",
    "dna_b",
    "dna_c",
    "dna_d",
)


def networks(run: str | None, size: int) -> dict[str, Callable[[], Original]]:
    import dna_deploy.zoo  # noqa: F401  DNA's networks by name

    found: dict[str, Callable[[], Original]] = {}
    try:
        pick = find_pick(run)
        found["student"] = lambda: replace(from_run(pick), picked=None)
    except DnaError as missing:
        print(f"no trained student: {missing}")
    return found | {name: lambda name=name: from_model(_asked(name, size)) for name in MODELS}


def _asked(name: str, size: int) -> Asked:
    """With the weights of its PyPI package where it has one, else random ones: timm's own would need a network."""
    return Asked(name, None if name in PACKAGED else RANDOM, image_size=_size(name, size))


def _size(name: str, size: int) -> int:
    return 224 if name.startswith("vit") else size  # its positions are learned for one size


def rivals(original: Original, folder: Path, compiled_too: bool) -> dict[str, Callable[[], object]]:
    """The network as others would run it, each a function that answers one image."""
    import onnxruntime

    network, size = original.network, original.contract.image_size
    image = torch.zeros(1, 3, size, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = folder / "plain.onnx"
        torch.onnx.export(network, (image,), file, dynamo=True, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image.numpy()}
    runs: dict[str, Callable[[], object]] = {"plain": lambda: session.run(None, feed)}

    def eager() -> object:
        with torch.no_grad():
            return network(image)

    runs["eager"] = eager
    if not compiled_too:
        return runs
    compiled = torch.compile(network)

    def fast() -> object:
        with torch.no_grad():
            return compiled(image)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fast()
        runs["compile"] = fast
    except Exception as error:  # no compiler here, or a network it cannot take
        print(f"torch.compile: {str(error).splitlines()[0][:100]}")
    return runs


def one(original: Original, beside: dict[str, Callable[[], object]], exporter: Exporter, precision: str, folder: Path) -> dict:
    row = {"weights": original.contract.weights, "size": original.contract.image_size, "inputs": original.test.about}
    began = time.perf_counter()
    try:
        done = export(replace(original, folder=folder), exporter.name, Options(precision))
    except CheckFailed as failed:
        return {**row, "ok": False, "why": str(failed)}
    seconds = time.perf_counter() - began
    files = [done.path, *(done.path.with_suffix(suffix) for suffix in exporter.beside)]
    row |= {"seconds": seconds, "bytes": sum(file.stat().st_size for file in files)}
    if done.verification.not_run is not None:
        return {**row, "ok": done.verification.nothing_failed, "not_run": done.verification.not_run}
    links = done.verification.links
    last, image = links[-1].comparisons[0], original.test.at([0])
    run = exporter.load(done.path)
    took = measure_runs({"exported": lambda: run(image), **beside})
    return {
        **row,
        "ok": True,
        "top1_agreement": last.top1_agreement,
        "largest_difference": last.largest_difference,
        "accuracy_before": last.accuracy_before,
        "accuracy_after": last.accuracy_after,
        "kept": done.verification.kept,
        "ms": {name: found.latency_ms for name, found in took.items()},
    }


def kept() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def run_all(args) -> None:
    done = {(row["network"], row["size_asked"], row["format"], row["precision"]) for row in kept()}
    formats = {name: find("exporters", name) for name in args.formats.split(",")}
    for name, make in networks(args.run, args.size).items():
        if args.networks and name not in args.networks.split(","):
            continue
        todo = [
            (exporter, precision)
            for exporter in formats.values()
            for precision in exporter.precisions
            if (name, args.size, exporter.name, precision) not in done and precision in args.precisions.split(",")
        ]
        if not todo:
            continue
        original = make()
        with tempfile.TemporaryDirectory() as folder:
            beside = rivals(original, Path(folder), not args.no_compile)
            for exporter, precision in todo:
                try:
                    row = one(original, beside, exporter, precision, Path(folder))
                except MachineError as missing:
                    print(f"{exporter.name} is left out: {missing}")
                    continue
                except (DnaError, ProfilerError) as refused:
                    row = {"weights": original.contract.weights, "ok": False, "why": str(refused)}
                row = {"network": name, "size_asked": args.size, "format": exporter.name, "precision": precision, **row}
                line = json.dumps(row).replace(f"{folder}/", "")
                RESULTS.parent.mkdir(exist_ok=True)
                with RESULTS.open("a") as file:
                    file.write(f"{line}\n")
                print(line, flush=True)


def summary(rows: list[dict]) -> list[Result]:
    failed = sum(not row["ok"] for row in rows)
    good = [row for row in rows if row["ok"] and "not_run" not in row]
    built = sum(row["ok"] and "not_run" in row for row in rows)
    results = [
        Result("exports that failed", failed, "", "= 0", failed == 0, len(rows)),
        Result("engines built, not run: no GPU here", built, "", n=built),
    ]
    for precision, share in (("fp32", 1.0), ("fp16", 0.999), ("bf16", None), ("int8", None)):
        # the classes of a network without training are decided by less than rounding: agreement says nothing of an export
        shares = [row["top1_agreement"] for row in good if row["precision"] == precision and row["weights"] != "random"]
        if shares:
            least = min(shares)
            reached = None if share is None else least >= share
            text = "" if share is None else f">= {share:g}"
            results.append(Result(f"{precision}: least top-1 agreement, trained networks", least, "", text, reached, len(shares)))
    drops = [
        (row["accuracy_before"] - row["accuracy_after"], row["kept"])
        for row in good
        if row["precision"] == "int8" and row["accuracy_before"] is not None
    ]
    if drops:
        within = all(drop <= 0.005 or kept for drop, kept in drops)
        worst = max(drop for drop, _ in drops)
        results.append(
            Result("int8: largest accuracy drop, test images", worst, "", "<= 0.005 or layers listed", within, len(drops))
        )
    for kind in sorted({(row["format"], row["precision"]) for row in good}):
        mine = [row for row in good if (row["format"], row["precision"]) == kind]
        name = " ".join(kind)
        for rival in ("plain", "eager", "compile"):
            ratios = [row["ms"]["exported"] / row["ms"][rival] for row in mine if rival in row["ms"]]
            if ratios:
                results.append(plain(f"{name}: latency over {rival}", ratios, "x"))
        results.append(plain(f"{name}: size", [row["bytes"] / 1e6 for row in mine], "MB"))
        results.append(plain(f"{name}: build and verification", [row["seconds"] for row in mine], "s"))
    return results


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--run", help="run of dna-search whose student is exported; the last one if left out")
    parser.add_argument("--networks", help="only these, with commas")
    parser.add_argument("--formats", default=",".join(names("exporters")), help="only these, with commas")
    parser.add_argument("--precisions", default="fp32,fp16,bf16,int8", help="only these, with commas")
    parser.add_argument("--size", type=int, default=224, help="image side; a run and a ViT have their own")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which needs minutes a network")
    args = parser.parse_args()
    if args.quick:
        args.size, args.networks, args.precisions, args.no_compile = 96, "tf_efficientnet_lite0", "fp32", True
    torch.set_num_threads(1)
    run_all(args)
    report("export_matrix", summary([row for row in kept() if row["size_asked"] == args.size]))


if __name__ == "__main__":
    main()
