"""Reading what a phone says about itself, and judging by it which measurements count."""

import dataclasses

import pytest

from profilers import DeviceUnavailable, UnknownDevice, Visit
from profilers._android.facts import read_clusters, read_facts, read_thermal, sections
from profilers._android.gate import Gate, Limits, Reading
from tests.phone.texts import CORES, HOT


def test_clusters_come_from_the_phone() -> None:
    clusters = read_clusters(CORES)
    assert [(f"{cluster.mask:x}", cluster.max_khz) for cluster in clusters] == [("f", 1704000), ("f0", 2367000), ("100", 2914000)]
    facts = read_facts(f"== cores\n{CORES}\n")
    assert [facts.mask(name) for name in ("little", "big", "prime", "1f0", None)] == [0xF, 0xF0, 0x100, 0x1F0, None]
    for wrong in ("fast", ""):
        with pytest.raises(UnknownDevice, match="expected prime, big, little or a hexadecimal mask out of f "):
            facts.mask(wrong)
    for absent in ("400", "0"):
        with pytest.raises(DeviceUnavailable, match="no such cores; expected a hexadecimal mask out of f "):
            facts.mask(absent)


def test_big_is_prime_where_there_are_two_clusters() -> None:
    facts = read_facts("== cores\ncpu0 1800000 300 x\ncpu1 2400000 1024 x\n")
    assert facts.mask("big") == facts.mask("prime") == 2 and facts.mask("little") == 1
    (alike,) = read_clusters("cpu0 0 0\ncpu1 0 0 \n")  # a virtual machine tells no clocks
    assert str(alike) == "3 (2 x unknown clock)" and str(facts.clusters[1]) == "2 (1 x 2.40 GHz)"


def test_only_current_temperatures_count() -> None:
    thermal = read_thermal(HOT)
    assert (thermal.status, thermal.skin_c, thermal.throttled) == (2, 38.25, True)
    nothing = read_thermal("Can't find service: thermalservice\n")
    assert (nothing.status, nothing.skin_c, nothing.throttled) == (None, None, False)


def test_facts_survive_a_phone_that_says_nothing() -> None:
    facts = read_facts("")
    assert facts.concerns() == [] and facts.clusters == () and facts.mask(None) is None
    assert facts.mask("f0") == 0xF0  # whether it is given is seen on the device
    with pytest.raises(DeviceUnavailable, match="does not tell its cores; give a hexadecimal mask"):
        facts.mask("prime")


def test_what_spoils_numbers_is_said() -> None:
    facts = read_facts(
        f"== cores\n{CORES}\n== load\n9.5 8.0 7.0 3/900 1\n== thermal\n{HOT}== battery\n  level: 12\n"
        "== saver\n1\n== awake\n  mWakefulness=Dozing\n"
    )
    text = "; ".join(facts.concerns())
    for word in ("power saver", "12 %", "thermal status 2", "throttled", "screen is off", "load 9.5"):
        assert word in text


def test_sections_are_split_at_their_headings() -> None:
    assert sections("noise\n== a\n1\n2\n== b\n== c\n3") == {"a": "1\n2\n", "b": "", "c": "3"}


# ---- heat ----


def reading(number: int, key: str, ms: float, khz: int = 2800000) -> Reading:
    return Reading(number, Visit(key, 0, (int(ms * 1e6), int(ms * 1.2e6))), (khz, khz))


def segment(ms: float, khz: int = 2800000) -> list[Reading]:
    return [reading(number, "anchor", ms, khz) for number in range(5)]


def test_heat_spoils_a_segment() -> None:
    gate = Gate(Limits(), ["anchor"], skin_start_c=30.0)
    assert gate.complaint(read_thermal(HOT), segment(1.0)) == "thermal status 2"
    cool = read_thermal("Thermal Status: 0\n")
    assert gate.complaint(cool, segment(1.0)) is None
    assert gate.cool(cool) and not gate.cool(read_thermal(HOT))
    warm = read_thermal(
        "Thermal Status: 0\nCurrent temperatures from HAL:\n\tTemperature{mValue=31.5, mType=3, mName=S, mStatus=0}\n"
    )
    assert not gate.cool(warm)  # a degree and a half above the start
    assert dataclasses.replace(gate, skin_start_c=31.0).cool(warm)


def test_a_lowered_clock_spoils_a_segment() -> None:
    gate, cool = Gate(Limits(), ["anchor"]), read_thermal("")
    assert gate.complaint(cool, segment(1.0)) is None
    assert gate.complaint(cool, segment(1.0, khz=2700000)) is None  # 96 %
    assert "clock at 2.52 of 2.80 GHz" in str(gate.complaint(cool, segment(1.0, khz=2520000)))
    assert gate.complaint(cool, [reading(0, "anchor", 1.0, khz=-1)]) is None  # a kernel that does not tell


def test_slower_anchors_spoil_a_segment_until_they_are_normal() -> None:
    gate, cool = Gate(Limits(), ["anchor"]), read_thermal("")
    assert gate.complaint(cool, segment(1.0)) is None
    assert gate.complaint(cool, segment(1.04)) is None
    assert "10 % slower" in str(gate.complaint(cool, segment(1.1)))
    assert gate.complaint(cool, segment(1.1)[:2]) is None  # two visits say too little
    assert gate.complaint(cool, [reading(n, "other", 9.0) for n in range(5)]) is None
    gate.accept_as_normal()
    assert gate.complaint(cool, segment(1.1)) is None
