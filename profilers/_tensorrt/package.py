"""Find TensorRT, or TensorRT for RTX in its place.

TensorRT's own packages on PyPI fetch their libraries from elsewhere as they are installed. TensorRT for RTX is on PyPI whole, has
the same interface, and builds engines without a GPU.
"""

import ctypes
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from profilers.errors import DeviceUnavailable

INSTALL = 'pip install "dna-deploy[tensorrt]"'
RTX_BUNDLE = "onnxruntime_ep_nv_tensorrt_rtx"  # the package that carries the libraries the bindings need
RTX_LIBRARIES = ("libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*")  # the second needs the first


@dataclass(frozen=True)
class TensorRT:
    """`api` is the module; both packages offer the same names, TensorRT for RTX with the exceptions that stand here."""

    name: str
    api: Any

    @property
    def version(self) -> str:
        return str(self.api.__version__)

    @property
    def for_rtx(self) -> bool:
        return self.name != "TensorRT"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@cache
def load() -> TensorRT:
    """Raises DeviceUnavailable with the install line where there is neither."""
    if importlib.util.find_spec("tensorrt") is not None:
        try:
            import tensorrt
        except (ImportError, OSError) as error:
            raise DeviceUnavailable(
                f"TensorRT is installed but cannot be imported ({first_line(error)}); or: {INSTALL}"
            ) from error
        return TensorRT("TensorRT", tensorrt)
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        raise DeviceUnavailable(
            f"TensorRT is not installed: {INSTALL} (150 MB, Linux on x86-64), or NVIDIA's own tensorrt package"
        )
    try:
        for library in _rtx_libraries():
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)  # the bindings then find it loaded, under its soname
        import tensorrt_rtx_bindings
    except (ImportError, OSError) as error:
        raise DeviceUnavailable(
            f"TensorRT for RTX is installed but cannot be imported ({first_line(error)}): {INSTALL}"
        ) from error
    return TensorRT("TensorRT for RTX", tensorrt_rtx_bindings)


def _rtx_libraries() -> list[Path]:
    """The bundled libraries; empty where the system's own are to be used."""
    bundle = importlib.util.find_spec(RTX_BUNDLE)  # imported it would put links into its folder and change LD_LIBRARY_PATH
    if bundle is None or bundle.origin is None:
        return []
    folder = Path(bundle.origin).parent
    return [max(folder.glob(pattern), key=lambda file: len(file.name)) for pattern in RTX_LIBRARIES]


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
