"""Every attack of the benchmark, shorter: a good client gets its answers meanwhile, and the server keeps nothing."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from benchmarks.hostile import ATTACKS, BODY, Target, serve_echo
from benchmarks.loopback import tls_of
from benchmarks.processes import Echo
from compoff.operations.certificates import Authority
from compoff.wire.client import open_client
from tests.edge.peers import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.hostile import Attack


@pytest.mark.parametrize("name", ATTACKS)
def test_a_good_client_goes_on(name: str, tmp_path: Path) -> None:
    attack, encrypted = ATTACKS[name]
    edge = device = None
    if encrypted:
        authority = Authority(tmp_path)
        authority.issue_server("edge", ["127.0.0.1"])
        authority.issue_device("device")
        edge, device = tls_of(tmp_path, "edge"), tls_of(tmp_path, "device").client_context()
    stop = threading.Event()
    with serve_echo(edge) as server, open_client(server.address, [Echo().artifact_id], tls=device) as client:
        thread = threading.Thread(target=run, args=(attack, target := Target(server.address, stop)))
        thread.start()
        eventually(lambda: target.connections >= 20)
        for _ in range(200):
            assert client.request(BODY, timeout=30.0) == BODY
        stop.set()
        thread.join(60)
        eventually(lambda: server.stats().connections == 1)
        assert server.stats().held_bytes == server.stats().unread_bytes == 0


def run(attack: Attack, target: Target) -> None:
    asyncio.run(attack(target))
