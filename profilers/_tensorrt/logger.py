"""What TensorRT says while it works: kept, so that an error can give its reason."""

import logging
import re
from functools import cache
from typing import Any

from profilers._tensorrt.package import TensorRT

log = logging.getLogger(__name__)

LAYERS = "Layers:"  # begins the builder's message on what the engine is made of


def make_logger(tensorrt: TensorRT) -> Any:
    return _logger_type(tensorrt)()


@cache
def _logger_type(tensorrt: TensorRT) -> Any:
    trt = tensorrt.api

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps what the engine is made of and what went wrong."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if message.startswith(LAYERS):
                self.layers = message
            elif severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            else:
                log.debug(message)

        def reason(self) -> str:
            """The first error without the places in the vendor's source it came through."""
            if not self.errors:
                return "it gave no reason"
            return plain(self.errors[0])

    return Logger


def plain(message: str) -> str:
    """What the vendor's message says, without its error codes and the places in its source it came through."""
    lines = message.strip().splitlines() or [""]
    line = next((line for line in lines if "Error Code" in line), lines[0])
    line = re.sub(r"\s+In \w+ at \S+?(?=\)?$)", "", line)
    return re.sub(r"^.*?Error Code \d+: [\w ]+ \((?:\[[^\]]*\] )?|\.?\)?$", "", line)
