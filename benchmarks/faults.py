"""Is every fault that does harm found, and is the tensor named where it was planted? Is what is right left alone?

    python -m benchmarks.faults --run runs/NAME/cpu-2ms

40 faults of 8 kinds, 5 each, in random layers of two real networks: the run's fine-tuned teacher (EfficientNet-Lite0) and its
student, with their preprocessing in front (uint8 photograph -> input), on photographs of solar cells that neither was
trained on. A fault is harmful where it changes the class of any test image against the clean export of the same precision, and
in int8, where rounding alone does that, where it costs more than half a point of accuracy. It is detected where the verification
fails. The tensor is looked for whether or not it is detected.

Then 40 clean exports, the five steps of dna-export's chain (export, simplify, ONNX Runtime's own optimizer, fp16, int8) of eight
networks: teacher, student, and six more of the space with the weights that their blocks learned. Each step is verified against
the one before it as dna-export does, at its limits. It is searched too, as dna-export does only where a step fails.

Takes about 40 minutes on one core. Each fault is a line of benchmarks/results/faults.jsonl as it is done; interrupted, the same
command goes on. All rows are of one student: those of another one are refused.
"""

import itertools
import json
import math
import random
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import compose, helper, numpy_helper

from benchmarks._report import Result, arguments, report
from dna_deploy.arch import Architecture, sample
from dna_deploy.bundle import prefix_graph
from dna_deploy.chain import graphs, in_precision
from dna_deploy.checkpoint import load_weights
from dna_deploy.data import Images, load_split
from dna_deploy.exporters._exporter import Options
from dna_deploy.exporters.onnx import scopes
from dna_deploy.files import read_json, sha256
from dna_deploy.locate import MARKS, locate
from dna_deploy.networks import untrained
from dna_deploy.original import from_run
from dna_deploy.plugins import find
from dna_deploy.quantize import quantize_within
from dna_deploy.ranges import observe
from dna_deploy.reference import Graph, Module
from dna_deploy.run import Pick, TeacherReport
from dna_deploy.search import load_blocks, prepare_teacher
from dna_deploy.sources import open_source
from dna_deploy.supernet import Supernet
from dna_deploy.train import settle_statistics
from dna_deploy.verify import LIMITS, Inputs, Step, compare, failures, judge, outputs

RESULTS = Path(__file__).with_name("results") / "faults.jsonl"
HALF_A_POINT = 0.005
INT8 = replace(LIMITS["int8"], accuracy_drop=HALF_A_POINT)
STEPS = 5  # of a clean chain
SEEDS = range(5, 10)  # of faults that were never looked at while the search was written; seeds 0 to 4 and 100 to 129 were
SEARCHED = 8  # images that the search runs on
KINDS = ["weight", "padding", "channels", "BatchNorm eps", "activation", "Q/DQ", "transposed input", "mean or std"]


@dataclass(frozen=True, eq=False)
class Case:
    """A clean network with its preprocessing in front, in fp32 and int8, and what it answers to the test images."""

    name: str
    network: torch.nn.Module
    graph: onnx.ModelProto
    quantized: onnx.ModelProto
    images: np.ndarray  # (N, H, W, 3) uint8
    labels: np.ndarray

    @cached_property
    def logits(self):
        return {"fp32": answers(self.graph, self.images), "int8": answers(self.quantized, self.images)}


def answers(model, images, batch=64):
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(["output"], {name: images[i : i + batch]})[0] for i in range(0, len(images), batch)]
    return np.concatenate(parts)


def exported(network, contract):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        find("exporters", "onnx").write(network, contract, path, Options())
        return onnx.load(path)


def quantized(graph, images, labels):
    """By the product's own quantizer, as dna-export does it: layers go back to float until half a point is kept."""
    held_out = Inputs("held-out images", len(images), lambda places: images[list(places)], labels)
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(graph, fp32)
        load = find("exporters", "onnx").load
        quantize_within(fp32, int8, observe(graph, held_out), held_out, HALF_A_POINT, symmetric=False, load=load)
        return onnx.load(int8)


def case(name, network, contract, images, labels, held_out, known):
    prefix = onnx.ModelProto.FromString(prefix_graph(contract))
    network = network.eval()
    model = compose.merge_models(prefix, exported(network, contract), io_map=[("preprocess.normalised", "input")])
    del model.opset_import[1:]  # onnx.compose lists the same one twice, which the quantizer refuses
    return Case(name, network, model, quantized(model, held_out, known), images, labels)


def cases(pick, count):
    """The teacher and the student of a run, as they were trained."""
    student = from_run(pick)
    size = student.contract.image_size
    source = open_source(pick.run.asked.data, pick.run.asked.data_root)
    parts = load_split(pick.run.split, source)

    def pixels(indices):
        some = Images(source, indices, size)
        return some.batch(range(len(some))).permute(0, 2, 3, 1).contiguous().numpy(), some.labels.numpy()

    (test, labels), (held_out, known) = pixels(parts.test[:count]), pixels(parts.held_out)
    networks = {"teacher": teacher_of(pick), "student": student.network}
    return [case(name, network, student.contract, test, labels, held_out, known) for name, network in networks.items()]


def teacher_of(pick):
    network = untrained(pick.run.asked.teacher, len(read_json(pick.run.teacher_report, TeacherReport).classes))
    load_weights(pick.run.teacher, network, f"delete {pick.run.teacher_report} and run dna-search again")
    return network.eval()


def relatives(pick, count):
    """Networks to export: the teacher, the student, and others of the space with the weights that their blocks learned."""
    student = from_run(pick)
    run, space = pick.run, Architecture.load(pick.architecture).space
    yield replace(student, name="teacher", network=teacher_of(pick))
    yield replace(student, name="student")
    source = open_source(run.asked.data, run.asked.data_root)
    parts = load_split(run.split, source)
    teacher = prepare_teacher(run, source, parts, space)
    supernet = Supernet(space, teacher)
    load_blocks(run, supernet)
    images = Images(source, parts.train, space.image_size)
    for seed in range(count - 2):
        network = supernet.build(sample(space, random.Random(seed)))
        settle_statistics(network, images, teacher.preprocessing, range(256))
        yield replace(student, name=f"relative {seed}", network=network.eval())


# Each kind below changes a copy of the graph and returns what was done and the tensors of which one must be named.


def scaled_or_flipped(case, model, rng):
    weight = rng.choice([part for part in model.graph.initializer if part.name.endswith(".weight")])
    values = numpy_helper.to_array(weight).copy()
    place = rng.randrange(values.size)
    if rng.random() < 0.5:
        values.reshape(-1)[place] *= np.float32(1.01)
        did = f"{weight.name}[{place}] x 1.01"
    else:
        bit = rng.randrange(32)
        values.reshape(-1).view(np.uint32)[place] ^= np.uint32(1 << bit)
        did = f"{weight.name}[{place}], bit {bit} flipped"
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return did, reader(model, weight.name).output[0]


def wrong_pad(case, model, rng):
    padded = [node for node in model.graph.node if node.op_type == "Conv" and any(attribute(node, "pads").ints)]
    node = rng.choice(padded)
    pads = attribute(node, "pads").ints
    pads[:] = [0, 0, 2 * pads[0], 2 * pads[1]]  # all of it behind the image as another framework pads; none where it was there
    return f"{node.name}: pads {list(pads)}", node.output[0]


def swapped_channels(case, model, rng):
    weight = rng.choice([part for part in model.graph.initializer if len(part.dims) == 4])
    values = numpy_helper.to_array(weight).copy()
    one, two = rng.sample(range(len(values)), 2)
    values[[one, two]] = values[[two, one]]
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return f"{weight.name}: output channels {one} and {two} swapped", reader(model, weight.name).output[0]


def wrong_eps(case, model, rng):
    """BatchNorm is folded: a wrong eps is a wrong scale of each output channel of the convolution before it."""
    known = dict(case.network.named_modules())
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    norms = [(node, known[scope]) for node in convolutions for scope in scopes(node) if scope in known]
    node, norm = rng.choice([(node, norm) for node, norm in norms if isinstance(norm, torch.nn.BatchNorm2d)])
    eps = 1e-5 if norm.eps > 1e-4 else 1e-3
    var, beta = (value.detach().numpy() for value in (norm.running_var, norm.bias))
    ratio = np.sqrt((var + norm.eps) / (var + eps)).astype(np.float32)
    weight, bias = (next(part for part in model.graph.initializer if part.name == name) for name in node.input[1:])
    values = numpy_helper.to_array(weight) * ratio[:, None, None, None]
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    bias.CopyFrom(numpy_helper.from_array(beta + (numpy_helper.to_array(bias) - beta) * ratio, bias.name))
    return f"{weight.name}: folded with eps {eps:g} instead of {norm.eps:g}", node.output[0]


def missing_activation(case, model, rng):
    node = rng.choice([node for node in model.graph.node if node.op_type in ("Clip", "Relu")])
    readers = [other for other in model.graph.node if node.output[0] in other.input]
    for other in readers:
        other.input[:] = [node.input[0] if name == node.output[0] else name for name in other.input]
    model.graph.node.remove(node)
    return f"{node.name} ({node.op_type}) left out", readers[0].output[0]


def wrong_scale(case, model, rng):
    """Of an activation or of a whole weight; what is quantized and what is read back use the same, or not."""
    fixed = {part.name: part for part in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and len(node.input) > 2]
    pairs = [node for node in pairs if node.input[0] not in fixed or len(fixed[node.input[0]].dims) > 1]  # no biases
    node = rng.choice(pairs)
    place = rng.choice([1, 2])
    weight = next(part for part in model.graph.initializer if part.name == node.input[place])
    values = numpy_helper.to_array(weight)
    if place == 1:
        factor = rng.choice([0.25, 0.5, 2.0, 4.0])
        values, did = values * np.float32(factor), f"scale x {factor:g}"
    else:
        kind = np.iinfo(values.dtype)
        off = rng.choice(
            [size for size in (-32, -8, 8, 32) if kind.min <= int(values.min()) + size <= int(values.max()) + size <= kind.max]
        )
        values, did = (values.astype(np.int64) + off).astype(values.dtype), f"zero point {off:+d}"
    alone = numpy_helper.from_array(values, f"{weight.name}_wrong")
    model.graph.initializer.append(alone)
    node.input[place] = alone.name
    makers = {name: other for other in model.graph.node for name in other.output}
    both = rng.random() < 0.5 and node.input[0] in makers
    if both:
        makers[node.input[0]].input[place] = alone.name
    return f"{node.name}: {did}{' in Q and DQ' if both else ''}", node.output[0]


def transposed(case, model, rng):
    places = [(at, node) for at, node in enumerate(model.graph.node) if node.op_type in ("Conv", "Transpose")]
    at, node = rng.choice([*places, places[0], places[0], places[0]] if rng.random() < 0.4 else places)
    if node.op_type == "Transpose":
        attribute(node, "perm").ints[:] = [0, 3, 2, 1]
    else:
        model.graph.node.insert(at, helper.make_node("Transpose", [node.input[0]], ["turned"], "turn", perm=[0, 1, 3, 2]))
        node = model.graph.node[at + 1]
        node.input[0] = "turned"
    return f"rows and columns swapped before {node.name}", node.output[0]


def wrong_normalisation(case, model, rng):
    name = rng.choice(["mean", "std"])
    right = next(part for part in model.graph.initializer if part.name == f"preprocess.{name}")
    wrong = {"mean": [(0.485, 0.456, 0.406), (0.0,) * 3, (0.51,) * 3], "std": [(0.229, 0.224, 0.225), (1.0,) * 3, (0.51,) * 3]}
    values = rng.choice(wrong[name])
    right.CopyFrom(numpy_helper.from_array(np.array(values, np.float32) * np.float32(255), right.name))
    return f"{name} {values}", reader(model, right.name).output[0]


PLANT = dict(
    zip(
        KINDS,
        [
            scaled_or_flipped, wrong_pad, swapped_channels, wrong_eps, missing_activation, wrong_scale, transposed,
            wrong_normalisation,
        ],
        strict=True,
    )
)  # fmt: skip


def attribute(node, name):
    return next(entry for entry in node.attribute if entry.name == name)


def reader(model, name):
    return next(node for node in model.graph.node if name in node.input)


def fault(case, kind, seed):
    """Plant one fault, verify, search; a row of the results."""
    rng = random.Random(f"{kind} {seed}")
    precision = "int8" if kind == "Q/DQ" else "fp32"
    clean = case.quantized if precision == "int8" else case.graph
    broken = onnx.ModelProto.FromString(clean.SerializeToString())
    did, truth = PLANT[kind](case, broken, rng)
    del broken.graph.value_info[:]
    unharmed, found = case.logits[precision], answers(broken, case.images)
    verdict = judge(case.logits["fp32"], found, case.labels, 64, INT8 if precision == "int8" else LIMITS["fp32"])
    right = [float((logits.argmax(1) == case.labels).mean()) for logits in (unharmed, found)]
    flips = int((unharmed.argmax(1) != found.argmax(1)).sum())
    search = locate(Graph(case.graph), broken, {"image": case.images[:SEARCHED]}, precision)
    return {
        "kind": kind, "network": case.name, "seed": seed, "fault": did, "flips": flips,
        "accuracy_clean": right[0], "accuracy": right[1],
        "harmful": right[0] - right[1] > HALF_A_POINT if precision == "int8" else flips > 0,
        "detected": not verdict.ok, "largest_difference": verdict.largest_difference,
        "planted_at": truth, "named": search.found and search.found.tensor, "module": search.found and search.found.module,
        "tensors": search.tensors, "runs": search.runs, "marks": search.most_marks,
        "bound": 2 * math.log2(search.tensors) + 3,
    }  # fmt: skip


def clean_exports(original, count, done):
    """The steps of the product's chain on one network, each held against the one before: what raised an alarm.

    Those `done` are made again, for others are made from them, and not judged again.
    """
    with tempfile.TemporaryDirectory() as folder:
        test = original.test
        some = replace(test, count=min(count, test.count), labels=test.labels[:count])
        original = replace(original, folder=Path(folder), test=some)
        answered = {}
        first = graph = original.step  # an ONNX file is held against the one before it, what is made from it against the last
        for step in clean_steps(original):
            against, graph = graph, step if step.name in ("onnx", "simplified") else graph
            if step.name in done:
                continue
            if against.name not in answered:
                answered[against.name] = outputs(against, original.test, 8)
            limits = replace(LIMITS[step.precision], accuracy_drop=HALF_A_POINT)
            link, answered[step.name] = compare(against, answered[against.name], step, original.test, 8, limits)
            reference = Module(original.network) if against is first else Graph(onnx.load(against.path))
            images = {"input": original.test.at(range(SEARCHED))}
            searched = locate(reference, onnx.load(step.path), images, step.precision)
            yield {
                "clean": step.name, "network": original.name, "images": some.count,
                "detected": failures(link) if not link.ok else None,
                "agreement": link.comparisons[0].top1_agreement, "accuracy_before": link.comparisons[0].accuracy_before,
                "accuracy": link.comparisons[0].accuracy_after,
                "largest_difference": link.comparisons[0].largest_difference, "kept": step.kept,
                "named": searched.found and searched.found.text, "fused_only": searched.fused_only, "tensors": searched.tensors,
            }  # fmt: skip


def clean_steps(original):
    import onnxruntime

    exporter = find("exporters", "onnx")
    graph = original.folder / "model.onnx"
    for step in graphs(original, exporter, Options("fp16")):
        yield step
        if step.path == graph:
            optimized = original.folder / "optimized.onnx"
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.optimized_model_filepath = str(optimized)
            onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            yield Step("optimized", "fp32", exporter.load(optimized), optimized)
    int8 = original.folder / "model-int8.onnx"
    kept = in_precision(graph, int8, original, exporter, Options("int8", max_drop=HALF_A_POINT))
    yield Step("int8", "int8", exporter.load(int8), int8, kept=kept)


def kept(student):
    """The rows there are; refused where they are of another student."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    if others := {row["student"] for row in rows} - {student or rows[0]["student"] if rows else student}:
        raise SystemExit(f"{RESULTS}: has rows of another student ({', '.join(others)}); move it away to begin anew")
    return rows


def keep(student, row):
    print(row, flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps({"student": student, **row}) + "\n")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--run", type=Path, help="a finished network of a run of dna-search, such as runs/NAME/cpu-2ms")
    parser.add_argument("--images", type=int, default=656, help="test images at most")
    asked = parser.parse_args()
    seeds, networks = (SEEDS[:1], 1) if asked.quick else (SEEDS, 8)
    pick = Pick(asked.run) if asked.run else None
    student = sha256(pick.weights)[:12] if pick else None
    done = kept(student)
    planted = {(row["kind"], row["seed"]) for row in done if "kind" in row}
    left = [(kind, seed) for seed in seeds for kind in KINDS if (kind, seed) not in planted]
    clean = defaultdict(set)
    for row in done:
        if "clean" in row:
            clean[row["network"]].add(row["clean"])
    finished = sum(len(steps) == STEPS for steps in clean.values())
    if pick is None and (left or finished < networks):
        parser.error("--run: expected a finished network of a run of dna-search, such as runs/NAME/cpu-2ms")
    if left:
        both = cases(pick, asked.images)
        for kind, seed in left:
            keep(student, fault(both[(seed + KINDS.index(kind)) % 2], kind, seed))
    if finished < networks:
        for original in itertools.islice(relatives(pick, 8), networks):
            if len(clean[original.name]) < STEPS:
                for row in clean_exports(original, asked.images, clean[original.name]):
                    keep(student, row)
    rows = kept(student)
    report("faults", figures([row for row in rows if "kind" in row], [row for row in rows if "clean" in row]))


def figures(faults, cleans):
    harmful, detected = [row for row in faults if row["harmful"]], [row for row in faults if row["detected"]]
    missed = [row for row in harmful if not row["detected"]]
    harmless = [row for row in faults if not row["harmful"]]
    exact = sum(row["named"] == row["planted_at"] for row in detected) / len(detected)
    anyway = sum(row["named"] == row["planted_at"] for row in faults) / len(faults)
    longer = sum(row["runs"] > row["bound"] for row in faults)
    marks = max(row["marks"] for row in faults)
    failed = sum(row["detected"] is not None for row in cleans)
    named = sum(row["named"] is not None or row["fused_only"] for row in cleans)
    return [
        Result("harmful faults not detected", len(missed), "", "<= 0", not missed, len(harmful)),
        Result("detected faults named exactly", exact, "", ">= 0.95", exact >= 0.95, len(detected)),
        Result("all faults named exactly, the harmless too", anyway, "", n=len(faults)),
        Result("harmless faults detected all the same", sum(row["detected"] for row in harmless), "", n=len(harmless)),
        Result("searches of more than 2 log2(n) + 3 runs", longer, "", "<= 0", not longer, len(faults)),
        Result("runs of the longest search", max(row["runs"] for row in faults), "runs", n=len(faults)),
        Result("most extra outputs at a time", marks, "", f"<= {MARKS}", marks <= MARKS, len(faults)),
        Result("clean exports that fail", failed, "", "<= 0", not failed, len(cleans)),
        Result("clean exports in which the search, were it run, names a tensor", named, "", "<= 0", not named, len(cleans)),
    ]


if __name__ == "__main__":
    main()
