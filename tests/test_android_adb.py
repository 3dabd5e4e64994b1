"""What adb prints, and which phone is meant."""

import stat
from pathlib import Path

import pytest

from profilers import DeviceUnavailable
from profilers._android import adb


def test_devices_are_read_with_their_states() -> None:
    text = (
        "* daemon not running; starting now at tcp:5037\n* daemon started successfully\nList of devices attached\n"
        "1A2B3C                 device usb:1-4 product:shiba model:Pixel_8 device:shiba transport_id:3\n"
        "192.168.0.7:5555       offline transport_id:4\n"
        "9X8Y                   unauthorized usb:1-2 transport_id:5\n"
        "????????????           no permissions (user in plugdev group; are your udev rules wrong?); see [http://x]\n\n"
    )
    devices = adb.parse_devices(text)
    assert [(device.serial, device.state) for device in devices] == [
        ("1A2B3C", "device"),
        ("192.168.0.7:5555", "offline"),
        ("9X8Y", "unauthorized"),
        ("????????????", "no permissions"),
    ]
    assert devices[0].model == "Pixel 8" and "udev" in str(devices[3]) and "tap Allow" in str(devices[2])


def fake_adb(folder: Path, listing: str) -> dict[str, str]:
    """An environment in which adb lists these devices and answers to nothing else."""
    folder.mkdir(exist_ok=True)
    (folder / "list").write_text(f"List of devices attached\n{listing}\n")
    program = folder / "adb"
    answers = f'*devices*) cat {folder}/list ;; connect*) echo "failed to connect to $2" ;; *) exit 1 ;;'
    program.write_text(f'#!/bin/sh\ncase "$*" in {answers} esac\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("listing", "wanted", "says"),
    [
        ("", None, ["no phone", "sees no device", "USB debugging", "--device pixel1"]),
        ("A device model:Pixel_6\nB device model:Pixel_8", None, ["2 phones", "A (Pixel 6)", "B (Pixel 8)", "--address"]),
        ("A device model:Pixel_6", "Pixel 8", ["no phone 'Pixel 8'", "A (Pixel 6)"]),
        ("A no permissions (udev)", None, ["no permissions", "udev"]),
        ("A unauthorized", None, ["A unauthorized", "tap Allow"]),
        ("A offline", None, ["A offline", "plug it in again"]),
        ("10.0.0.7:5555 offline", None, ["10.0.0.7:5555 offline", "switch wireless debugging off and on again"]),
        ("", "10.0.0.7:5555", ["no phone '10.0.0.7:5555'", "failed to connect to 10.0.0.7:5555", "switch wireless debugging on"]),
    ],
)
def test_without_a_usable_phone_one_line_says_what_was_seen(tmp_path: Path, listing: str, wanted: str, says: list[str]) -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        adb.connect(wanted, patience_s=0, environment=fake_adb(tmp_path, listing))
    message = str(caught.value)
    assert all(part in message for part in says), message
    assert "\n" not in message and caught.value.exit_code == 3


def test_without_adb_it_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb, "programs", lambda environment: iter(()))
    with pytest.raises(DeviceUnavailable, match=r"adb was not found \(\$ADB, PATH.*pip install adbutils.*pixel1"):
        adb.connect(None, environment={"PATH": str(tmp_path)})


def test_an_adb_that_is_not_there_is_named() -> None:
    with pytest.raises(
        DeviceUnavailable, match=r"adb \(/nowhere/adb\) cannot be started: No such file.*; set \$ADB to one that runs"
    ):
        adb.connect(None, environment={"ADB": "/nowhere/adb"})


def test_phones_are_found_by_serial_or_model(tmp_path: Path) -> None:
    environment = fake_adb(tmp_path, "A device model:Pixel_6\nB device model:Pixel_8\nC offline")
    assert adb.connect("B", environment=environment).serial == "B"
    assert adb.connect("Pixel 6", environment=environment).serial == "A"
    assert adb.connect(None, environment={**environment, "ANDROID_SERIAL": "A"}).serial == "A"


def test_adb_is_looked_for_where_people_have_it(tmp_path: Path) -> None:
    tools = tmp_path / "sdk" / "platform-tools"
    tools.mkdir(parents=True)
    (tools / "adb").write_text("")
    environment = fake_adb(tmp_path / "path", "")
    found = list(adb.programs({**environment, "ADB": "/mine/adb", "ANDROID_HOME": str(tmp_path / "sdk")}))
    assert found[:3] == ["/mine/adb", str(tmp_path / "path" / "adb"), str(tools / "adb")]
