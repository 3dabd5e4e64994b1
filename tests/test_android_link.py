"""A link that breaks: what is said again, what is given up."""

from pathlib import Path

import pytest

from profilers import DeviceUnavailable
from profilers._android.link import LinkLost
from tests.phone.local import LocalLink


def test_a_device_that_never_comes_back_is_given_up(tmp_path: Path) -> None:
    link = LocalLink(tmp_path, faults=1.0)
    link.patience_s = 0.1
    with pytest.raises(DeviceUnavailable, match=r"local: no answer .*gave up after"):
        link.ask("true")


def test_a_command_that_exits_by_itself_is_no_lost_link(tmp_path: Path) -> None:
    link = LocalLink(tmp_path)
    assert link.ask("echo a; exit 3", check=False) == "a\n"
    with pytest.raises(LinkLost):
        link._ask_once("kill -9 $$", True, 10)
