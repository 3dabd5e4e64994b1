"""A user's own ONNX file: its latency predicted from a table, and measured on the device beside it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dna_deploy.errors import RequestError, first_line
from dna_deploy.layers import Layers, fixed, layers_of
from dna_deploy.measure import device_of, measure_on, measure_whole
from dna_deploy.predictor import Account, Predicted, open_predictor
from dna_deploy.table import LatencyTable
from profilers import Device, Measurement, Model

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Judged:
    layers: Layers
    account: Account | None  # None: there is no table to predict from
    predicted: Predicted | None  # None: something in it is outside what the table can tell
    networks: int  # whole networks that corrected the prediction
    measured: Measurement | None  # None: the device is not at hand
    speed: float | None  # of the device now, relative to the table's sessions

    @property
    def uncovered(self) -> str | None:
        """Why there is no prediction."""
        if self.account is None:
            return "there is no table of this device yet"
        if self.layers.others:
            return f"it does what no op of ours does: {', '.join(self.layers.others)}"
        if not self.layers.ops:
            return "it has no layer of ours"
        if self.account.unknown:
            op = self.account.unknown[0]
            count, total = len(self.account.unknown), len(set(self.layers.ops))
            return f"{count} of its {total} ops lie outside what was measured, such as {op.key}; --extrapolate guesses them"
        return None


def judge(
    file: Path,
    image_size: int,
    table: Path | None,
    device: Device | None,
    seconds: float,
    confidence: float,
    extrapolate: bool = False,
) -> Judged:
    """`device` measures the file where there is no table; with a table, the device it was taken on does."""
    from google.protobuf.message import EncodeError

    try:
        model = fixed(_read(file), image_size)
    except RequestError as error:
        raise RequestError(f"--model {file}: {error}") from None
    except EncodeError:  # protobuf's own limit
        raise RequestError(f"--model {file}: above 2 GB with its weights; what is sent to a device is one file of less") from None
    layers, asked = layers_of(model), Model(file.name, model.SerializeToString())
    if table is None:
        assert device is not None
        return Judged(layers, None, None, 0, measure_on(device, [asked], seconds)[asked.key], None)
    predictor = open_predictor(table, layers.ops, extrapolate, image_size=layers.image_size)
    account = predictor.account(layers.ops)
    known = not layers.others and not account.unknown and bool(layers.ops)
    if known and not predictor.reaches(layers.ops):
        predictor = replace(predictor, corrected=False)
    predicted = predictor.network(layers.ops, (1 + confidence) / 2) if known else None  # an interval: two bounds
    found = None
    if device_of(predictor.table) is not None:
        about_ms = predicted.ms if predicted else _middle(predictor.table)
        found = measure_whole(predictor.table, [asked], about_ms, seconds)
    taken = found[asked.key] if found else None
    measured, speed = (taken.measurement, taken.speed) if taken else (None, None)
    return Judged(layers, account, predicted, predictor.correction.networks, measured, speed)


def _read(file: Path) -> "onnx.ModelProto":
    """With its weights, which may lie in files beside it."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(file)
    except FileNotFoundError:
        raise RequestError("no such file; expected an ONNX model") from None
    except (DecodeError, OSError):
        raise RequestError("not an ONNX file: it cannot be parsed") from None
    except (onnx.checker.ValidationError, ValueError) as error:
        raise RequestError(f"its weights cannot be read ({first_line(error)}); expected them in the files it names") from None
    return model


def _middle(table: LatencyTable) -> float:
    """A latency in the middle of the table's, where nothing is known of the model's."""
    latencies = sorted(found.latency_ms for found in table.measurements.values())
    return latencies[len(latencies) // 2] if latencies else 0.0
