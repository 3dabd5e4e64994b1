"""Is every fault that does harm found, and is the tensor named where it was planted?

    python -m benchmarks.faults --run runs/NAME/cpu-2ms

40 faults of 8 kinds, 5 each, in random layers of two real networks: the run's fine-tuned teacher (EfficientNet-Lite0) and its
student, with their preprocessing in front (uint8 photograph -> input), on photographs of solar cells that neither was
trained on. Then 40 clean exports: ten random networks of `mobile`, each exported from torch, optimized twice by ONNX
Runtime and quantized to int8. Nothing of them may raise an alarm.

A fault is harmful where it changes the class of any test image against the clean export of the same precision, and in int8,
where rounding alone does that, where it costs more than half a point of accuracy. It is detected where the verification
fails. The tensor is looked for whether or not it is detected. Takes about 15 minutes on one core. Each fault is a line of
benchmarks/results/faults.jsonl as it is done; interrupted, the same command goes on.
"""

import json
import math
import random
import tempfile
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
from dna_deploy.checkpoint import load_checkpoint
from dna_deploy.data import Images, load_split, open_source
from dna_deploy.exporters._exporter import Contract, Options
from dna_deploy.files import read_json
from dna_deploy.locate import MARKS, Graph, locate
from dna_deploy.plugins import find
from dna_deploy.run import Pick, TeacherReport
from dna_deploy.teacher import untrained
from dna_deploy.verify import LIMITS, judge

RESULTS = Path(__file__).with_name("results") / "faults.jsonl"
INT8 = replace(LIMITS["int8"], accuracy_drop=0.005)
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


def quantized(graph, images):
    """Static int8 by ONNX Runtime's own quantizer: symmetric weights a channel, ranges from these images."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            name = graph.graph.input[0].name
            self.left = iter([{name: images[i : i + 8]} for i in range(0, len(images), 8)])

        def get_next(self):
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder:
        into, out = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(graph, into)
        quantization.quantize_static(
            into, out, Reader(), per_channel=True, weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "Add"], extra_options={"WeightSymmetric": True},
        )  # fmt: skip
        return onnx.load(out)


def case(name, network, contract, images, labels, held_out):
    prefix = onnx.ModelProto.FromString(prefix_graph(contract))
    network = network.eval()
    model = compose.merge_models(prefix, exported(network, contract), io_map=[("preprocess.normalised", "input")])
    del model.opset_import[1:]  # onnx.compose lists the same one twice, which the quantizer refuses
    return Case(name, network, model, quantized(model, held_out), images, labels)


def cases(pick, count):
    """The teacher and the student of a run, as they were trained."""
    run = pick.run
    arch, about = Architecture.load(pick.architecture), read_json(run.teacher_report, TeacherReport)
    contract = Contract(arch.space.image_size, tuple(about.mean), tuple(about.std), tuple(about.classes))
    source = open_source(run.asked.data, run.asked.data_root)
    parts = load_split(run.split, source)

    def pixels(indices):
        some = Images(source, indices, arch.space.image_size)
        return some.batch(range(len(some))).permute(0, 2, 3, 1).contiguous().numpy(), some.labels.numpy()

    (test, labels), (held_out, _) = pixels(parts.test[:count]), pixels(parts.held_out[:64])
    teacher, student = untrained(run.asked.teacher, len(about.classes)), arch.module()
    load_checkpoint(run.teacher, teacher)
    load_checkpoint(pick.weights, student)
    return [case(n, net, contract, test, labels, held_out) for n, net in (("teacher", teacher), ("student", student))]


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
    pads[:] = [0, 0, 2 * pads[0], 2 * pads[1]]  # all of it behind the image, as another framework pads
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
    from dna_deploy.locate import _scopes

    known = dict(case.network.named_modules())
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    norms = [(node, known[scope]) for node in convolutions for scope in _scopes(node) if scope in known]
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
        off = rng.choice([-32, -8, 8, 32])
        kind = np.iinfo(values.dtype)
        values, did = np.clip(values.astype(np.int64) + off, kind.min, kind.max).astype(values.dtype), f"zero point {off:+d}"
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
        "harmful": right[0] - right[1] > 0.005 if precision == "int8" else flips > 0,
        "detected": not verdict.ok, "largest_difference": verdict.largest_difference,
        "planted_at": truth, "named": search.found and search.found.tensor, "module": search.found and search.found.module,
        "tensors": search.tensors, "runs": search.runs, "marks": search.most_marks,
        "bound": 2 * math.log2(search.tensors) + 3,
    }  # fmt: skip


def clean_exports(seed, count, source):
    """One random network of `mobile` through four steps, each held against the one before: what raised an alarm."""
    import onnxruntime

    torch.manual_seed(seed)
    space = find("spaces", "mobile").at(96, len(source.classes))
    network = sample(space, random.Random(seed)).module()
    some = Images(source, range(seed, len(source.labels), len(source.labels) // count), 96)
    pixels, labels = some.batch(range(len(some))), some.labels.numpy()
    x = ((pixels.float() / 255 - 0.5) / 0.5).contiguous()
    with torch.no_grad():
        network.train()(x[:64])  # BatchNorm has seen photographs
        reference = network.eval()(x).numpy()
    contract = Contract(96, (0.5,) * 3, (0.5,) * 3, source.classes)
    graph = exported(network, contract)
    steps = [("export", graph, "fp32")]
    levels = onnxruntime.GraphOptimizationLevel
    for name, level in (("basic", levels.ORT_ENABLE_BASIC), ("extended", levels.ORT_ENABLE_EXTENDED)):
        with tempfile.TemporaryDirectory() as folder:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.graph_optimization_level, options.optimized_model_filepath = level, f"{folder}/model.onnx"
            onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
            steps.append((name, onnx.load(f"{folder}/model.onnx"), "fp32"))
    steps.append(("int8", quantized(graph, x[:64].numpy()), "int8"))
    rows = []
    for name, model, precision in steps:
        found = answers(model, x.numpy())
        verdict = judge(reference, found, labels, 64, LIMITS[precision])
        searched = locate(Graph(graph), model, {"input": x[:SEARCHED].numpy()}, precision)
        rows.append(
            {
                "clean": name, "seed": seed, "detected": not verdict.ok, "agreement": verdict.top1_agreement,
                "largest_difference": verdict.largest_difference, "named": searched.found and searched.found.text,
                "fused_only": searched.fused_only, "tensors": searched.tensors,
            }
        )  # fmt: skip
    return rows


def kept():
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def keep(rows):
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--run", type=Path, help="a finished network of a run of dna-search, such as runs/NAME/cpu-2ms")
    parser.add_argument("--images", type=int, default=656, help="test images at most")
    asked = parser.parse_args()
    done = kept()
    each, clean = (1, 1) if asked.quick else (5, 10)
    wanted = [(kind, seed) for seed in range(each) for kind in KINDS]
    if left := [(kind, seed) for kind, seed in wanted if not any((r.get("kind"), r["seed"]) == (kind, seed) for r in done)]:
        if asked.run is None:
            parser.error("--run: expected a finished network of a run of dna-search, such as runs/NAME/cpu-2ms")
        both = cases(Pick(asked.run), asked.images)
        for kind, seed in left:
            row = fault(both[(seed + KINDS.index(kind)) % 2], kind, seed)
            print(row, flush=True)
            keep([row])
    source = open_source("elpv")
    for seed in range(clean):
        if not any("clean" in row and row["seed"] == seed for row in done):
            rows = clean_exports(seed, 200, source)
            print(*rows, sep="\n", flush=True)
            keep(rows)
    rows = kept()
    faults = [row for row in rows if "kind" in row and (row["kind"], row["seed"]) in wanted]
    cleans = [row for row in rows if "clean" in row and row["seed"] < clean]
    report("faults", figures(faults, cleans))


def figures(faults, cleans):
    harmful, detected = [row for row in faults if row["harmful"]], [row for row in faults if row["detected"]]
    missed = [row for row in harmful if not row["detected"]]
    harmless = [row for row in faults if not row["harmful"]]
    exact = sum(row["named"] == row["planted_at"] for row in detected) / len(detected)
    anyway = sum(row["named"] == row["planted_at"] for row in faults) / len(faults)
    longer = sum(row["runs"] > row["bound"] for row in faults)
    marks = max(row["marks"] for row in faults)
    alarms = [row for row in cleans if row["detected"] or row["named"] or row["fused_only"]]
    return [
        Result("harmful faults not detected", len(missed), "", "<= 0", not missed, len(harmful)),
        Result("detected faults named exactly", exact, "", ">= 0.95", exact >= 0.95, len(detected)),
        Result("all faults named exactly, the harmless too", anyway, "", n=len(faults)),
        Result("harmless faults detected all the same", sum(row["detected"] for row in harmless), "", n=len(harmless)),
        Result("searches of more than 2 log2(n) + 3 runs", longer, "", "<= 0", not longer, len(faults)),
        Result("runs of the longest search", max(row["runs"] for row in faults), "runs", n=len(faults)),
        Result("most extra outputs at a time", marks, "", f"<= {MARKS}", marks <= MARKS, len(faults)),
        Result("alarms on clean exports", len(alarms), "", "<= 0", not alarms, len(cleans)),
    ]


if __name__ == "__main__":
    main()
