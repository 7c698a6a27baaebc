"""The limit of descriptors: raised where it may be, kept to where it may not; in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
