"""What a phone says about itself: one command that asks for everything, and readers of the text it prints."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from profilers.errors import DeviceUnavailable, UnknownDevice

SKIN = 3  # Android's number for what the hand feels; it moves slowly and decides about throttling

# One question instead of a dozen: a phone on a cable answers within a round trip. What a user build forbids stays empty.
QUESTION = """
echo "== properties"; getprop 2>/dev/null
echo "== machine"; uname -m; cat /proc/device-tree/model 2>/dev/null | tr -d '\\0'; echo
(. /etc/os-release; echo "$PRETTY_NAME") 2>/dev/null
echo "== cores"; cd /sys/devices/system/cpu; for c in cpu[0-9]*; do khz=0; capacity=0; governor=
{ read -r khz <$c/cpufreq/cpuinfo_max_freq; read -r capacity <$c/cpu_capacity
read -r governor <$c/cpufreq/scaling_governor; } 2>/dev/null
echo $c $khz $capacity $governor; done
echo "== memory"; grep MemAvailable /proc/meminfo
echo "== page"; getconf PAGE_SIZE 2>/dev/null
echo "== load"; cat /proc/loadavg 2>/dev/null
echo "== thermal"; dumpsys thermalservice 2>/dev/null
echo "== battery"; dumpsys battery 2>/dev/null
echo "== saver"; settings get global low_power 2>/dev/null
echo "== awake"; dumpsys power 2>/dev/null | grep mWakefulness=
"""


@dataclass(frozen=True)
class Cluster:
    """Cores of one speed."""

    mask: int
    max_khz: int
    capacity: int  # of 1024, as the kernel's scheduler sees it
    governor: str = ""

    def __str__(self) -> str:
        clock = f"{self.max_khz / 1e6:.2f} GHz" if self.max_khz else "unknown clock"
        return f"{self.mask:x} ({self.mask.bit_count()} x {clock})"


@dataclass(frozen=True)
class Thermal:
    """`dumpsys thermalservice`. status: 0 none, 1 light, 2 moderate, 3 severe, ...; None where it is not said."""

    status: int | None = None
    skin_c: float | None = None
    throttled: bool = False  # a cooling device holds the clocks of a cluster down


@dataclass(frozen=True)
class Facts:
    properties: Mapping[str, str]
    machine: str
    board: str
    system: str
    clusters: Sequence[Cluster]  # slowest first
    memory_mb: int | None
    page_bytes: int | None
    load: float | None
    thermal: Thermal
    battery: int | None  # percent
    power_saver: bool
    awake: bool | None

    @property
    def model(self) -> str:
        return self.properties.get("ro.product.model") or self.board or self.machine

    def mask(self, cores: str | None) -> int | None:
        """The cores named prime, big, little or by a hexadecimal mask; None leaves the choice to the system.

        With three clusters big is the middle one; with two, big and prime are the same; with one, all are.
        """
        if cores is None:
            return None
        names = {"little": 0, "prime": -1, "big": -2 if len(self.clusters) > 2 else -1}
        every = 0
        for cluster in self.clusters:
            every |= cluster.mask
        if cores in names:
            if not self.clusters:
                raise DeviceUnavailable(f"cores {cores}: the device does not tell its cores; give a hexadecimal mask")
            return self.clusters[names[cores]].mask
        layout = ", ".join(map(str, self.clusters)) or "none readable"
        try:
            mask = int(cores, 16)
        except ValueError:
            raise UnknownDevice(f"cores {cores!r}: expected prime, big, little or a hexadecimal mask out of {layout}") from None
        if not mask or (every and mask & ~every):
            raise DeviceUnavailable(f"cores {cores!r}: there are no such cores; expected a hexadecimal mask out of {layout}")
        return mask

    def concerns(self) -> list[str]:
        """What will spoil the numbers, in words."""
        found = []
        if self.power_saver:
            found.append("power saver is on and holds the clocks down: switch it off")
        if self.battery is not None and self.battery < 20:
            found.append(f"the battery is at {self.battery} %: below 20 % a phone slows itself down, charge it first")
        if self.thermal.status:
            found.append(f"it is hot (thermal status {self.thermal.status}): the run waits until it has cooled down")
        if self.thermal.throttled:
            found.append("its clocks are throttled now")
        if self.awake is False:
            found.append("the screen is off: the system may move the run to slow cores, switch it on")
        if self.load is not None and self.load > 0.75 * sum(cluster.mask.bit_count() for cluster in self.clusters):
            found.append(f"something else is busy on it (load {self.load:.1f})")
        return found


def read_facts(text: str) -> Facts:
    """The answer to QUESTION."""
    parts = sections(text)
    machine, board, system = [*(line.strip() for line in parts.get("machine", "").splitlines()), "", "", ""][:3]
    awake = re.search(r"mWakefulness=(\w+)", parts.get("awake", ""))
    return Facts(
        properties=dict(re.findall(r"^\[([^\]]+)\]: \[([^\]]*)\]", parts.get("properties", ""), re.M)),
        machine=machine,
        board=board,
        system=system,
        clusters=read_clusters(parts.get("cores", "")),
        memory_mb=_number(r"MemAvailable:\s*(\d+)", parts.get("memory", ""), 1024),
        page_bytes=_number(r"^(\d+)", parts.get("page", "")),
        load=float(parts["load"].split()[0]) if parts.get("load", "").split() else None,
        thermal=read_thermal(parts.get("thermal", "")),
        battery=_number(r"^\s*level: (\d+)", parts.get("battery", "")),
        power_saver=parts.get("saver", "").strip() == "1",
        awake=awake[1] == "Awake" if awake else None,
    )


def sections(text: str) -> dict[str, str]:
    """What stands under each line of the form "== name"."""
    pieces = re.split(r"^== (\w+)\n", text, flags=re.M)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def read_clusters(text: str) -> tuple[Cluster, ...]:
    """Lines "cpu4 2253000 498 sched_pixel": cores of equal clock and capacity, slowest first.

    Read from the phone and never from a list of phones: layouts differ between models of one name.
    """
    groups: dict[tuple[int, int, str], int] = {}
    for number, khz, capacity, governor in re.findall(r"^cpu(\d+) (\d+) (\d+) ?(\S*)$", text, re.M):
        kind = int(capacity), int(khz), governor
        groups[kind] = groups.get(kind, 0) | 1 << int(number)
    return tuple(Cluster(mask, khz, capacity, governor) for (capacity, khz, governor), mask in sorted(groups.items()))


def read_thermal(text: str) -> Thermal:
    """Only what the hardware says now: the section of cached temperatures has the same lines with old values."""
    status = re.search(r"^Thermal Status: (\d+)", text, re.M)
    now = text.partition("Current temperatures from HAL:")[2]
    skins = [
        float(value) for value, kind in re.findall(r"Temperature\{mValue=([-\d.]+), mType=(-?\d+)", now) if int(kind) == SKIN
    ]
    cooling = re.findall(r"CoolingDevice\{mValue=(\d+), mType=-?\d+, mName=\S*cpufreq", now)
    return Thermal(
        status=int(status[1]) if status else None,
        skin_c=max(skins, default=None),
        throttled=any(int(level) > 0 for level in cooling),
    )


def _number(pattern: str, text: str, divide: int = 1) -> int | None:
    found = re.search(pattern, text, re.M)
    return int(found[1]) // divide if found else None
