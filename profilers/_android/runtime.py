"""Gets ONNX Runtime for a device, and proves that it is what was meant: nothing of it is shipped with us."""

import hashlib
import io
import logging
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from profilers._android import build
from profilers.errors import DeviceUnavailable, UnknownDevice

log = logging.getLogger(__name__)

# The only package of a public registry that carries ONNX Runtime's own Android build (1.29.0: CPU, XNNPACK, NNAPI).
NPM_PACKAGE, NPM_VERSION = "com.github.asus4.onnxruntime", "0.4.9"
NPM_MEMBER = "package/Plugins/Android/onnxruntime.aar"
NPM_LIBRARY_SHA256 = "3a602b463d434d20fbf69cd1b8bdfd2f86a2cb67d08de97aec8f62476fa4ab87"
AAR_MEMBER = "jni/arm64-v8a/libonnxruntime.so"

PYPI_VERSION = "1.32.0"
PYPI_LIBRARY_SHA256 = "49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a"
# Debian keeps these for the cross compiler; the device's own may be of another C library, or none
GLIBC_FOLDER = Path("/usr/aarch64-linux-gnu/lib")
GLIBC_LOADER = "ld-linux-aarch64.so.1"
GLIBC_LIBRARIES = ("libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0", "libstdc++.so.6", "libgcc_s.so.1")
ELF_ARM64 = 183


@dataclass(frozen=True)
class Runtime:
    """Files to put into one folder of the device: the library, the runner for it, and what both need."""

    label: str  # for tables: which build, where from, its hash
    files: Mapping[str, Path]  # name on the device -> file here
    loader: str | None = None  # of its own C library, where it brings one
    digest: str = field(init=False, default="")  # of everything in it

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for name, path in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        object.__setattr__(self, "digest", digest.hexdigest())

    def runner(self, folder: str) -> list[str]:
        """How the runner starts on the device, its files lying in that folder."""
        if self.loader is None:
            return [f"{folder}/dnarun"]
        # through the loader: LD_LIBRARY_PATH would lead the device's own programs to the wrong C library
        return [f"{folder}/{self.loader}", "--library-path", f"{folder}/lib", f"{folder}/dnarun"]

    def pack(self, tar: Path, extra: Mapping[str, bytes]) -> None:
        """Everything as one file: a folder would cost a round trip for each of its files."""
        with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
            for name, path in sorted(self.files.items()):
                add_bytes(archive, name, path.read_bytes(), 0o755)
            for name, content in extra.items():
                add_bytes(archive, name, content)


def add_bytes(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    """A member without time or owner, so that equal contents make equal archives."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    archive.addfile(info, io.BytesIO(content))


def obtain(wanted: str) -> Runtime:
    """For Android. `wanted`: "onnxruntime", "onnxruntime-glibc", or a file of the user's own (.aar or .so)."""
    if wanted.endswith((".aar", ".so")):
        path = Path(wanted).expanduser()
        if not path.is_file():
            raise DeviceUnavailable(
                f"runtime {wanted}: no such file; expected an onnxruntime-android AAR or its libonnxruntime.so"
            )
        library = _from_aar(path) if path.suffix == ".aar" else path
        return _android(library, f"given as {path.name}")
    if wanted == "onnxruntime-glibc":
        return glibc_bundle()
    if wanted != "onnxruntime":
        raise UnknownDevice(f"runtime {wanted!r}: expected onnxruntime, onnxruntime-glibc, or a path to an .aar or .so")
    try:
        return _android(_from_npm(), f"npm {NPM_PACKAGE} {NPM_VERSION}")
    except DeviceUnavailable as unavailable:
        try:
            bundle = glibc_bundle()
            log.warning("%s; taking the build for Linux instead, without XNNPACK and NNAPI", unavailable)
            return bundle
        except DeviceUnavailable as also:
            raise DeviceUnavailable(
                f"no ONNX Runtime for the phone: {unavailable}; and {also}; "
                "download onnxruntime-android's AAR from Maven and give its path"
            ) from also


def page_alignment(library: Path) -> int:
    """The smallest page size in bytes that every segment of an arm64 library is made for is at most this."""
    head = library.read_bytes()[: 1 << 16]
    if head[:5] != b"\x7fELF\x02" or struct.unpack_from("<H", head, 18)[0] != ELF_ARM64:
        raise DeviceUnavailable(f"{library}: not a 64-bit ARM library; expected the arm64-v8a libonnxruntime.so")
    start, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", head, start + number * size) for number in range(count)]
    return min((header[7] for header in headers if header[0] == 1), default=0)  # 1: a segment that is loaded


def glibc_bundle() -> Runtime:
    """The PyPI wheel's library for arm64 Linux with a C library of its own: newer, without XNNPACK and NNAPI."""
    library = _from_wheel()
    own = [GLIBC_LOADER, *GLIBC_LIBRARIES]
    absent = [name for name in own if not (GLIBC_FOLDER / name).exists()]
    if absent:
        raise DeviceUnavailable(f"no arm64 {absent[0]} in {GLIBC_FOLDER} (Debian: apt install gcc-aarch64-linux-gnu)")
    return Runtime(
        label=f"onnxruntime {PYPI_VERSION} for Linux with its own C library (PyPI wheel, sha256 {_sha256(library)[:12]})",
        files={
            "dnarun": build.linux_arm64_runner(),
            "run.sh": build.SOURCE / "run.sh",
            "libonnxruntime.so": library,
            **{f"lib/{name}": GLIBC_FOLDER / name for name in own},
        },
        loader=f"lib/{GLIBC_LOADER}",
    )


def _android(library: Path, source: str) -> Runtime:
    page_alignment(library)
    return Runtime(
        label=f"onnxruntime for Android ({source}, sha256 {_sha256(library)[:12]})",
        files={"dnarun": build.android_runner(), "run.sh": build.SOURCE / "run.sh", "libonnxruntime.so": library},
    )


def _from_npm() -> Path:
    """The pinned library, from the cache or the registry (150 MB, of which 32 MB are kept)."""
    library = build.CACHE / "runtime" / f"{NPM_PACKAGE}-{NPM_VERSION}" / "libonnxruntime.so"
    if not library.exists():
        with tempfile.TemporaryDirectory() as folder:
            package = _npm_package(Path(folder))
            try:
                with tarfile.open(package) as archive:
                    member = archive.extractfile(NPM_MEMBER)
                    aar = Path(folder) / "onnxruntime.aar"
                    aar.write_bytes(member.read() if member else b"")
            except (OSError, tarfile.TarError, KeyError) as error:
                raise DeviceUnavailable(f"npm package {NPM_PACKAGE} {NPM_VERSION} is not what it was ({error})") from error
            _keep(_aar_library(aar), library)
    return _proven(library, NPM_LIBRARY_SHA256, f"npm package {NPM_PACKAGE} {NPM_VERSION}")


def _npm_package(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm:
        packed = subprocess.run(
            [npm, "pack", "--loglevel=error", f"{NPM_PACKAGE}@{NPM_VERSION}"], cwd=folder, capture_output=True, text=True
        )
        if packed.returncode:
            reason = (packed.stderr.strip() or "no message").splitlines()[0]
            raise DeviceUnavailable(f"npm could not get {NPM_PACKAGE}@{NPM_VERSION} ({reason[:120]})")
        return next(folder.glob("*.tgz"))
    url = f"https://registry.npmjs.org/{NPM_PACKAGE}/-/{NPM_PACKAGE}-{NPM_VERSION}.tgz"
    package = folder / "package.tgz"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, package.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except OSError as error:
        raise DeviceUnavailable(f"npm package {NPM_PACKAGE} could not be downloaded ({error})") from error
    return package


def _from_aar(aar: Path) -> Path:
    library = build.CACHE / "runtime" / f"aar-{_sha256(aar)[:16]}" / "libonnxruntime.so"
    if not library.exists():
        _keep(_aar_library(aar), library)
    return library


def _aar_library(aar: Path) -> bytes:
    try:
        with zipfile.ZipFile(aar) as archive:
            return archive.read(AAR_MEMBER)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise DeviceUnavailable(f"{aar}: no {AAR_MEMBER} in it ({error}); expected an onnxruntime-android AAR") from error


def _from_wheel() -> Path:
    library = build.CACHE / "runtime" / f"onnxruntime-{PYPI_VERSION}-aarch64" / "libonnxruntime.so"
    if not library.exists():
        with tempfile.TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
            target = ["--platform", "manylinux_2_28_aarch64", "--python-version", "3.11", f"onnxruntime=={PYPI_VERSION}"]
            # in that folder: `python -m` would run a pip.py of the current one
            done = subprocess.run([*pip, *target], capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=folder)
            wheels = list(Path(folder).glob("*.whl"))
            if done.returncode or not wheels:
                raise DeviceUnavailable(f"pip could not get onnxruntime {PYPI_VERSION} for arm64 Linux")
            with zipfile.ZipFile(wheels[0]) as wheel:
                names = [name for name in wheel.namelist() if "capi/libonnxruntime.so" in name]
                _keep(wheel.read(names[0]) if names else b"", library)
    return _proven(library, PYPI_LIBRARY_SHA256, f"onnxruntime {PYPI_VERSION} for arm64 Linux")


def _proven(library: Path, sha256: str, what: str) -> Path:
    """The library, if it is the very one we know: it is going to run on somebody's phone."""
    if _sha256(library) != sha256:
        library.unlink()
        raise DeviceUnavailable(f"{what}: its library has another hash than the one we know; not used")
    return library


def _keep(content: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(content)
    os.replace(part, path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
