"""torch capturing a network as a graph: in silence, and where it cannot, in one line with the place in the network's code."""

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from dna_deploy.errors import RequestError


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """Around torch.export or torch.onnx.export, which print graphs and raise pages, in types of all kinds."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")  # torch's own deprecations; what it captured is run after
        logging.getLogger("torch").setLevel(logging.ERROR)
        try:
            yield
        except Exception as error:
            reason = error.__cause__ or error  # torch.onnx wraps what torch.export said
            raise RequestError(
                f"torch.export cannot capture the network{_place(reason)}: {_said(reason)}; its forward may not branch on values "
                "or on the number of images (torch.where chooses by value), nor be scripted"
            ) from error


def _place(error: BaseException) -> str:
    """The innermost line of code that is neither torch's nor ours."""
    import torch

    others = (Path(__file__).parent.parent, Path(torch.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    code = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(other) for other in others)]
    return f" at {code[-1].filename}, line {code[-1].lineno}" if code else ""


def _said(error: BaseException) -> str:
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip() and "TORCH_LOGS" not in line]
    return lines[0][:160] if lines else type(error).__name__
