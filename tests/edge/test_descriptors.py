"""The limit of descriptors: raised where it may be, kept to where it may not; in a process of its own."""

from __future__ import annotations

import runpy
import subprocess
import sys

import pytest

from compoff.edge import descriptors

ASKS = """
import logging, resource, sys
logging.basicConfig(format="%(message)s")
from compoff.edge.descriptors import room_for

soft, hard, connections = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(room_for(connections), resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
@pytest.mark.parametrize(
    ("limits", "found"),
    [
        ((100, 400, 200), "200 (264, 400)"),
        ((300, 400, 200), "200 (300, 400)"),
        ((100, 120, 200), "56 (120, 120)"),
        ((40, 40, 200), "1 (40, 40)"),
    ],
    ids=["raised", "enough", "fewer", "one"],
)
def test_the_soft_limit_is_raised_up_to_the_hard_one(limits: tuple[int, int, int], found: str) -> None:
    command = [sys.executable, "-c", ASKS, *map(str, limits)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == found
    room = int(found.split()[0])
    assert (f"max_connections is {room} here, not 200" in done.stderr) is (room < 200)


def test_a_system_that_watches_fewer_sockets_has_room_for_fewer_connections(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(descriptors, "MOST_WATCHED", 512)
    assert descriptors.room_for(448) == 448
    assert not caplog.text
    assert descriptors.room_for(1024) == 448
    assert "max_connections is 448 here, not 1024: this process may watch 512 sockets (select)" in caplog.text


def test_a_python_that_knows_no_limits_of_descriptors_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert runpy.run_path(descriptors.__file__)["room_for"](10**6) == 10**6
