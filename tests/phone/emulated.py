"""A phone without a phone: our debug daemon before an arm64 userland (mksh, toybox: Android's own shell and tools)
under qemu, where musl poses as Android's libc, so that the bytes a Pixel gets are the bytes that run.

It proves the chain, the bytes, the numerics and the recovery; not Android's kernel policy, its libc, or any latency.
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent  # where the daemon finds its modules
DAEMON = [sys.executable, "-m", "tests.phone.daemon"]
DEBS = Path.home() / ".cache" / "dna-deploy" / "phone" / "debs"
SHIM_FLAGS = "-O2 -ffreestanding -ffixed-x18 -mno-outline-atomics -nostdlib -shared -fPIC -fno-stack-protector"
TOOLS = """
base64 basename cat chmod chown cp cut date dd df dirname du echo env expr false find free getconf grep gzip head id kill ln
ls md5sum mkdir mount mv nohup nproc pgrep pkill printf ps pwd readlink realpath rm rmdir sed seq setsid sha256sum sleep sort
stat tail tar taskset tee test timeout touch tr true uname uptime wc xargs
"""
PROPERTIES = {
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.product.model": "Pixel 6",
    "ro.product.device": "oriole",
    "ro.soc.model": "Tensor",
    "ro.soc.manufacturer": "Google",
    "ro.build.version.sdk": "34",
    "ro.build.version.release": "14",
    "ro.build.fingerprint": "emulated/oriole/oriole:14/TEST/1:user/test-keys",
}
CLUSTERS = (
    (4, 1803000, 160, 0xD05),
    (2, 2253000, 498, 0xD0B),
    (2, 2802000, 1024, 0xD44),
)  # cores, kHz, capacity, ARM's part
THERMAL = """\
IsStatusOverride: false
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=55.5, mType=3, mName=VIRTUAL-SKIN, mStatus=3}}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{{mValue=41.0, mType=0, mName=BIG, mStatus=0}}
\tTemperature{{mValue={skin}, mType=3, mName=VIRTUAL-SKIN, mStatus={status}}}
\tTemperature{{mValue=29.9, mType=2, mName=battery, mStatus=0}}
Current cooling devices from HAL:
\tCoolingDevice{{mValue=0, mType=2, mName=thermal-cpufreq-0}}
"""
BATTERY = """\
Current Battery Service state:
  USB powered: true
  level: {level}
  scale: 100
  temperature: 299
"""


def missing() -> str | None:
    """What the emulated phone lacks on this machine, in words for a skip; None where it can run."""
    for tool, package in (
        ("adb", "adb"),
        ("qemu-aarch64-static", "qemu-user-static"),
        ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
    ):
        if shutil.which(tool) is None:
            return f"no {tool} here (apt install {package}, or run .ci/phone-setup)"
    if not (DEBS / "complete").exists():
        return f"no arm64 packages in {DEBS} (run .ci/phone-setup)"
    probe = ["unshare", "-Urmpf", "--kill-child", "sh", "-c", "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        return "no private user namespace with binfmt_misc here (needs Linux 6.7 or later and user namespaces)"
    return None


def usable_cores() -> list[int]:
    """The emulated cores are this machine's: those of them that the phone's layout has as well."""
    return [core for core in sorted(os.sched_getaffinity(0)) if core < sum(cluster[0] for cluster in CLUSTERS)]


class EmulatedPhone:
    """A running phone; `state` is what it says about itself, as files a test may edit."""

    def __init__(self, root: Path, port: int, control: int) -> None:
        self.root, self.state, self.serial, self._control = root, root / "state", f"127.0.0.1:{port}", control

    def request(self, do: str, **values: object) -> dict[str, object]:
        """Asks the daemon for a fault or a count (see daemon.py)."""
        with (
            socket.create_connection(("127.0.0.1", self._control), timeout=30) as connection,
            connection.makefile("rw") as file,
        ):
            file.write(json.dumps({"do": do, **values}) + "\n")
            file.flush()
            answer: dict[str, object] = json.loads(file.readline())
        assert answer.pop("ok"), answer
        return answer

    def heat(self, status: int, skin: float = 31.2) -> None:
        _replace(self.state / "dumpsys_thermalservice", THERMAL.format(status=status, skin=skin))

    def charge(self, level: int) -> None:
        _replace(self.state / "dumpsys_battery", BATTERY.format(level=level))


@contextmanager
def adb_server(folder: Path) -> Iterator[dict[str, str]]:
    """A private adb server with keys of its own; yields the environment that makes clients use it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {"ANDROID_ADB_SERVER_PORT": str(port)}
    folder.mkdir(parents=True, exist_ok=True)
    server = {**os.environ, **environment, "HOME": str(folder), "TMPDIR": str(folder)}
    subprocess.run(["adb", "start-server"], env=server, check=True, capture_output=True, timeout=60)
    try:
        yield environment
    finally:
        subprocess.run(["adb", "kill-server"], env=server, capture_output=True, timeout=60)


@contextmanager
def phone(folder: Path, keys: Path | None = None) -> Iterator[EmulatedPhone]:
    """A phone switched on; `keys` makes it ask before it lets a host in, and keeps who was allowed."""
    root = folder / "root"
    make_root(root)
    chroot = "env -i LC_ALL=C PATH=/product/bin:/system/bin HOME=/ TMPDIR=/data/local/tmp"
    shell = f"{chroot} {shutil.which('chroot')} {shlex.quote(str(root))} /system/bin/sh -c"
    daemon = [*DAEMON, "--root", str(root), "--shell", shell]
    daemon += ["--keys", str(keys)] if keys else []
    for name in ("ro.product.name=oriole", "ro.product.model=Pixel 6", "ro.product.device=oriole"):
        daemon += ["--property", name]
    qemu = shutil.which("qemu-aarch64-static")
    command = ["unshare", "-Urmpf", "--kill-child", "sh", str(HERE / "namespace.sh"), str(root), str(qemu), *daemon]
    with _started(command, folder) as ports:
        yield EmulatedPhone(root, ports["port"], ports["control"])


@contextmanager
def bystander(folder: Path) -> Iterator[EmulatedPhone]:
    """A second phone that only shows up in the list of devices."""
    folder.mkdir(parents=True, exist_ok=True)
    daemon = [*DAEMON, "--root", str(folder), "--property", "ro.product.model=Pixel 8"]
    with _started(daemon, folder) as ports:
        yield EmulatedPhone(folder, ports["port"], ports["control"])


@contextmanager
def _started(command: Sequence[str], folder: Path) -> Iterator[dict[str, int]]:
    with (folder / "daemon.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the emulated phone did not start: {(folder / 'daemon.log').read_text()[-500:]}")
        yield json.loads(line)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def make_root(root: Path) -> None:
    """The phone's file system, under a folder."""
    for name in (
        "system/bin",
        "system/lib64",
        "system/etc",
        "data/local/tmp",
        "proc",
        "dev",
        "state",
        "lib/aarch64-linux-gnu",
    ):
        (root / name).mkdir(parents=True)
    with tempfile.TemporaryDirectory() as unpacked:
        packages = Path(unpacked)
        for package in DEBS.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(package), unpacked], check=True)
        libraries = packages / "lib" / "aarch64-linux-gnu"
        shutil.copy(packages / "bin" / "mksh", root / "system/bin/sh")
        shutil.copy(packages / "bin" / "toybox", root / "system/bin/toybox")
        shutil.copy(packages / "lib" / "aarch64-linux-musl" / "libc.so", root / "system/bin/linker64")
        shutil.copy(libraries / "ld-linux-aarch64.so.1", root / "lib")
        for library in ("libc.so.6", "libm.so.6", "libcrypt.so.1", "libgcc_s.so.1"):
            shutil.copy(libraries / library, root / "lib" / "aarch64-linux-gnu")
    (root / "system/bin/linker64").chmod(0o755)
    shim = root / "system/lib64/liblog.so"
    subprocess.run(
        ["aarch64-linux-gnu-gcc", *SHIM_FLAGS.split(), "-Wl,-soname,liblog.so", "-o", str(shim), str(HERE / "shim.c")],
        check=True,
    )
    shutil.copy(shim, root / "system/lib64/libandroid.so")
    (root / "system/etc/ld-musl-aarch64.path").write_text("/system/lib64\n")
    for tool in TOOLS.split():
        (root / "system/bin" / tool).symlink_to("toybox")
    for script in (HERE / "bin").iterdir():
        shutil.copy(script, root / "system/bin")
    _write_processor(root)
    state = root / "state"
    (state / "properties").write_text("".join(f"[{name}]: [{value}]\n" for name, value in PROPERTIES.items()))
    (state / "settings_global_low_power").write_text("0\n")
    (state / "settings_global_stay_on_while_plugged_in").write_text("0\n")
    (state / "dumpsys_power").write_text("POWER MANAGER (dumpsys power)\n  mWakefulness=Awake\n")
    emulated = EmulatedPhone(root, 0, 0)
    emulated.heat(0)
    emulated.charge(87)


def _write_processor(root: Path) -> None:
    cores = [(part, khz, capacity) for count, khz, capacity, part in CLUSTERS for _ in range(count)]
    features = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
    (root / "state/cpuinfo").write_text(
        "".join(
            f"processor\t: {number}\nBogoMIPS\t: 49.15\nFeatures\t: {features}\nCPU implementer\t: 0x41\n"
            f"CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: {part:#x}\nCPU revision\t: 0\n\n"
            for number, (part, _, _) in enumerate(cores)
        )
    )
    system = root / "sys/devices/system/cpu"
    files = {name: f"0-{len(cores) - 1}" for name in ("possible", "present", "online")}
    for number, (_, khz, capacity) in enumerate(cores):
        mates = [other for other, core in enumerate(cores) if core == cores[number]]
        files |= {
            f"cpu{number}/{name}": str(value)
            for name, value in {
                "cpu_capacity": capacity,
                "cpufreq/cpuinfo_max_freq": khz,
                "cpufreq/cpuinfo_min_freq": 300000,
                "cpufreq/scaling_cur_freq": khz,
                "cpufreq/scaling_max_freq": khz,
                "cpufreq/scaling_governor": "sched_pixel",
                "cpufreq/related_cpus": " ".join(map(str, mates)),
                "topology/physical_package_id": 0,
                "topology/cluster_cpus_list": f"{mates[0]}-{mates[-1]}",
            }.items()
        }
    for name, value in files.items():
        (system / name).parent.mkdir(parents=True, exist_ok=True)
        (system / name).write_text(f"{value}\n")


def _replace(path: Path, text: str) -> None:
    """A phone never shows half a state, whoever changes it."""
    new = path.with_suffix(f".{threading.get_ident()}")
    new.write_text(text)
    os.replace(new, path)
