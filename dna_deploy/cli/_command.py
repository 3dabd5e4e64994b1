"""What the commands share: how a value is read, how an error is answered, how the result is printed."""

import functools
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any, ClassVar

import click
from click.core import ParameterSource

from dna_deploy import __version__
from dna_deploy.errors import DnaError, RequestError
from dna_deploy.torchrun import RANK
from profilers import ProfilerError

_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


POSITIVE = click.IntRange(min=1)


def scaled(text: str, unit: float) -> float:
    """A number in its unit, rounded once: 1.401M is 1401000 and not a bit less. Infinite where it is too large."""
    return float(Decimal(text) * Decimal(unit))


class Confidence(click.FloatRange):
    """A probability from 0.5 up to but not 1; a plain FloatRange lets nan through."""

    def __init__(self) -> None:
        super().__init__(0.5, 1, max_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = float(super().convert(value, param, ctx))
        if math.isnan(found):
            self.fail(f"{value} is not in the range 0.5<=x<1.", param, ctx)
        return found


class Latency(click.ParamType[float]):
    """A latency with its unit, in milliseconds: 80ms, 1.5ms, 0.08s, 250us."""

    name = "latency"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(-?[0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", str(value).strip())
        if match is None or match[2] not in _UNITS_MS:
            hint = f"; did you mean {match[1]}ms?" if match and not match[2] else ""
            self.fail(f"{value!r} has no unit I know; expected for example 80ms, 1.5ms or 0.08s{hint}", param, ctx)
        found = scaled(match[1], _UNITS_MS[match[2]])
        if not 0 < found < math.inf:
            self.fail(f"{value!r}: a latency must be greater than zero, and finite", param, ctx)
        return found


class DeviceLatency(click.ParamType[tuple[str | None, float]]):
    """A latency, for the device named before it where there are several: 80ms, pixel1=80ms."""

    name = "[DEVICE=]latency"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str | None, float]:
        if isinstance(value, tuple):
            return value
        device, named, text = str(value).rpartition("=")
        if named and not device:
            self.fail(f"{value!r} names no device; expected for example pixel1=80ms", param, ctx)
        return device or None, Latency().convert(text, param, ctx)


class Amount(click.ParamType[float]):
    """How many, with a power of ten: 300M, 1.2G, 500k."""

    name = "amount"
    units: ClassVar[dict[str, float]] = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
    example = "300M or 1.2G"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", str(value).strip())
        found = scaled(match[1], self.units[match[2]]) if match and match[2] in self.units else 0.0
        if not 0 < found < math.inf:
            self.fail(f"{value!r} is no {self.name} I know; expected for example {self.example}", param, ctx)
        return found


class Bytes(Amount):
    """Bytes with their unit: 10MB, 512kB, 2MiB."""

    name = "size"
    units: ClassVar[dict[str, float]] = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    example = "10MB or 512kB"


class Share(click.ParamType[float]):
    """A share of all, 0 to 1: 0.5% or 0.005."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(%?)", str(value).strip())
        share = float(match[1]) / (100 if match[2] else 1) if match else -1.0
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is no share; expected for example 0.5% or 0.005", param, ctx)
        return share


class Difference(click.ParamType[float]):
    """How far logits may be apart, in units of their spread: 0.01, 1e-4."""

    name = "difference"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if not 0 <= found < math.inf:
            self.fail(f"{value!r} is no difference; expected a number that is not negative, such as 1e-4", param, ctx)
        return found


class Duration(click.ParamType[float]):
    """A time span, in seconds: 90s, 2min."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(s|min)", str(value).strip())
        found = scaled(match[1], 60 if match[2] == "min" else 1) if match else 0.0
        if not 0 < found < math.inf:
            self.fail(f"{value!r} is no time; expected for example 90s or 2min", param, ctx)
        return found


def given() -> set[str]:
    """The flags on the command line, by their names there."""
    context = click.get_current_context()
    params = [param for param in context.command.params if param.name is not None]
    return {param.opts[0] for param in params if context.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE}


def require_only(mode: str, *others: str) -> None:
    """Refuse flags that say nothing here, rather than leave them unheard."""
    if unheard := sorted(given() - {mode, "--json", *others}):
        raise RequestError(f"{', '.join(unheard)}: not with {mode}, which goes with {', '.join(others)} only")


class Sectioned(click.Command):
    """A command whose help shows its options in sections, each from the option `sections` names on."""

    sections: Mapping[str, str] = MappingProxyType({})

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found: dict[str, list[tuple[str, str]]] = {}
        heading = "Options"
        for param in self.get_params(ctx):
            heading = self.sections.get(param.name or "", heading)
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                found.setdefault("General" if param.name in ("as_json", "version", "help") else heading, []).append(record)
        general = found.pop("General")
        for heading, records in [*found.items(), ("General", general)]:
            with formatter.section(heading):
                formatter.write_dl(records)


def command(**sections: str) -> Callable[[Callable[..., dict[str, Any]]], click.Command]:
    """A command from a recipe that returns its result; deliberate errors become one line and an exit code.

    `sections` says by the names of its parameters where a section of its help begins.
    """

    def made(function: Callable[..., dict[str, Any]]) -> click.Command:
        named = type("Sectioned", (Sectioned,), {"sections": sections})
        settings = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 120}
        described = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
        whole: click.Command = click.command(None, named, context_settings=settings)(described(_answering(function)))
        return click.version_option(__version__, prog_name="dna-deploy")(whole)

    return made


def _answering(function: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    @functools.wraps(function)
    def run(as_json: bool, **values: Any) -> None:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("profilers").setLevel(logging.INFO)  # what a device has to say while it is measured
        try:
            result = function(**values)
        except (DnaError, ProfilerError) as error:
            click.echo(f"error: {error}", err=True)
            if as_json:
                click.echo(json.dumps({"error": str(error), "exit_code": error.exit_code}))
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            if RANK == 0:  # one line, of however many processes
                click.echo("\ninterrupted; what was finished is kept, the same command goes on from there", err=True)
            sys.exit(130)
        except OSError as error:
            if error.errno != 28:  # ENOSPC, wherever it strikes
                raise
            click.echo("error: the disk is full; free some space and run the same command again, it goes on", err=True)
            sys.exit(3)
        if as_json and result:
            click.echo(json.dumps(result))

    return run
