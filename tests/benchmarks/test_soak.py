"""The soak of the wire, shorter: right answers only, and nothing left behind in the server."""

from __future__ import annotations

import asyncio

from benchmarks.soak import Soak, start_server
from tests.edge.peers import eventually


def test_every_answer_belongs_to_its_request() -> None:
    looks: list[int] = []
    with start_server() as server:
        soak = Soak(server.address, 5000, 16, 0, looks.append)
        asyncio.run(soak.run())
        eventually(lambda: server.stats().pending == 0)
        eventually(lambda: server.stats().connections == 0)
        stats = server.stats()
        assert stats.held_bytes == stats.unread_bytes == 0
        assert sum(tail.requests for tail in stats.tails) <= 5000
        assert max(stats.tails[2].batch_sizes) > 1
    assert soak.outcomes["wrong"] == 0
    assert soak.outcomes.total() == 5000
    assert soak.outcomes["right"] > 4000
    assert soak.outcomes["late"] > 0
    assert soak.outcomes["canceled"] > 0
    assert looks == [500 * tenth for tenth in range(1, 11)]
