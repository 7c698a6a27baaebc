"""Bytes out of a shared buffer: each receiver keeps what it was given, whatever is read there next."""

from __future__ import annotations

from compoff.wire.receiver import Receiver, new_buffer


class Keeper(Receiver):
    """Keeps what came."""

    def __init__(self, buffer: memoryview) -> None:
        super().__init__(buffer)
        self.kept: list[bytes] = []

    def receive(self, data: bytes) -> None:
        self.kept.append(data)


def test_two_share_a_buffer() -> None:
    buffer = new_buffer(8)
    one, other = Keeper(buffer), Keeper(buffer)
    for receiver, data in ((one, b"first"), (other, b"second"), (one, b"3")):
        receiver.get_buffer(-1)[: len(data)] = data
        receiver.buffer_updated(len(data))
    assert (one.kept, other.kept) == ([b"first", b"3"], [b"second"])
