"""The registry of devices, shipped and the user's own."""

import pytest

from profilers import Device, UnknownDevice, find_device, find_profiler, registry


def test_shipped_devices_have_profilers(workdir):
    devices = registry()
    assert devices["cpu"].kind == "host"
    for device in devices.values():
        assert hasattr(find_profiler(device), "visits")


def test_users_devices_add_to_and_override_the_shipped(workdir):
    (workdir / "devices.toml").write_text('[board]\nkind = "host"\nthreads = 4\n[cpu]\nkind = "host"\nthreads = 2\n')
    assert find_device("board") == Device("board", "host", threads=4)
    assert find_device("cpu").threads == 2
    assert find_device("cpu", threads=3, cores=None).threads == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[board]\nthreads = 4\n", "has no kind"),
        ('[board]\nkind = "host"\nthread = 4\n', "unknown setting 'thread'"),
        ('[board]\nkind = "host"\nthreads = "four"\n', "expected int"),
        ('[board]\nkind = "host"\nthreads = 0\n', "at least 1"),
        ('[board]\nkind = "host"\nbatch = 8\n', "device board: batch = 8; every latency is that of one image"),
        ("[board\n", "not TOML"),
    ],
)
def test_a_wrong_registry_is_answered_in_one_line(workdir, text, says):
    (workdir / "devices.toml").write_text(text)
    with pytest.raises(UnknownDevice, match=says) as caught:
        registry()
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_registry_that_cannot_be_read_is_answered_in_one_line(workdir):
    (workdir / "devices.toml").symlink_to("/proc/self/mem")  # nobody may read it from its beginning, root neither
    with pytest.raises(UnknownDevice, match=r"devices\.toml: cannot be read \("):
        registry()


def test_unknown_names_say_what_there_is(workdir):
    with pytest.raises(UnknownDevice, match="cpu"):
        find_device("toaster")
    with pytest.raises(UnknownDevice, match="host"):
        find_profiler(Device("x", "toaster"))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("host", {"address": "pi@raspberry"}),
        ("host", {"mode": "fixed"}),
        ("tensorrt", {"threads": 4}),
        ("tensorrt", {"cores": "0"}),
        ("tensorrt", {"address": "1"}),
        ("android", {"precision": "fp16"}),
        ("ssh", {"precision": "fp16", "address": "pi@raspberry"}),
        ("ssh", {"mode": "fixed", "address": "pi@raspberry"}),
    ],
)
def test_a_setting_that_changes_nothing_is_refused(kind, settings):
    device = Device("mine", kind, **settings)
    name, value = next(iter(settings.items()))
    with pytest.raises(UnknownDevice, match=f"device mine: {name} = {value!r} changes nothing on a device of kind {kind}; leave"):
        find_profiler(device).environment(device)


def test_more_threads_than_cores_are_refused_with_what_to_give() -> None:
    device = Device(name="phone", kind="android", threads=2, cores="80")
    device.require_cores(2)
    expected = r"device phone: 2 threads on 1 core \(80\) would wait .* give --threads 1, or as many --cores, a mask out of f, f0"
    with pytest.raises(UnknownDevice, match=expected):
        device.require_cores(1, ", a mask out of f, f0")
