"""The phone as a device of `profilers/`."""

import pytest

from profilers import DeviceUnavailable, UnknownDevice, find_device, find_profiler
from profilers._android.facts import read_facts
from profilers.android import PROFILER
from tests.phone import emulated


def test_pixel_is_a_device_we_know() -> None:
    device = find_device("pixel")
    assert (device.kind, device.cores, device.runtime) == ("android", "prime", "onnxruntime")
    assert find_profiler(device) is PROFILER
    with pytest.raises(UnknownDevice):
        find_device("pixel", threads=0)


def test_what_is_no_phone_we_can_measure_is_refused_before_anything_is_copied() -> None:
    with pytest.raises(UnknownDevice, match=r"mode 'fast'; expected fixed .* or none"):
        PROFILER.open(find_device("pixel", mode="fast"))
    emulator = read_facts("== properties\n[ro.product.cpu.abi]: [x86_64]\n[ro.product.model]: [sdk_gphone64]\n")
    with pytest.raises(DeviceUnavailable, match="sdk_gphone64: its programs are x86_64; expected arm64-v8a"):
        PROFILER.runtime(find_device("pixel"), emulator)


def test_the_emulated_phone_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated.shutil, "which", lambda name: None)
    assert "no adb here (apt install adb" in str(emulated.missing())
