"""compoff's own wire: the blocking client, plain and with mutual TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.baselines.interface import System, answer_to
from compoff.edge.server import Server, serve
from compoff.wire.client import open_client

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable

ID = bytes(32)


class Tail:
    """Answers the questions of the comparison."""

    artifact_id = ID
    max_payload_bytes = 2**20

    def answer(self, payload: bytes) -> bytes:
        """As many bytes as were asked for."""
        return answer_to(payload)


def start() -> Server:
    """The server."""
    return serve(Tail())


def connect(stack: contextlib.ExitStack, address: str) -> Callable[[bytes], bytes]:
    """The blocking client."""
    client = stack.enter_context(open_client(address, [ID]))
    return lambda body: client.request(body, timeout=10.0)


SYSTEMS = [System("compoff", start, connect)]
