"""20,000 damaged or hostile messages against parser and state machines: no crash, no wrong output, no memory."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from collections.abc import Callable

import pytest

from compoff.errors import WireError
from compoff.wire.client_protocol import ClientProtocol
from compoff.wire.frames import OVERHEAD_BYTES, Frame, FrameParser, FrameType, serialize
from compoff.wire.messages import MAX_HANDSHAKE_BYTES, ErrorCode, Hello, Offer, Route, Welcome, encode_error
from compoff.wire.protocol import Answer, Request
from compoff.wire.server_protocol import ServerProtocol

ID = bytes(range(32))
MAXIMUM = 500
HELLO = serialize(Frame(FrameType.HELLO, Hello((Offer(ID),), "secret").encode()))
WELCOME = serialize(Frame(FrameType.WELCOME, Welcome(16, (Route(0, MAXIMUM),)).encode()))
NUM_REQUESTS = 4

Mutation = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def cut_out(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 40) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(rng.randrange(1, 40)) + data[start:]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    noise = rng.randbytes(min(rng.randrange(1, 40), len(data) - start))
    return data[:start] + noise + data[start + len(noise) :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    return data[:end] + data[start:end] + data[end:]


def noise(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 200))


def huge_length(data: bytes, rng: random.Random) -> bytes:
    length = rng.choice((MAXIMUM + 1, 4097, 2**16, 2**31, 2**32 - 1, rng.randrange(2**32)))
    return data[:8] + length.to_bytes(4, "big") + data[12:]


def other_header(data: bytes, rng: random.Random) -> bytes:
    """A frame with other fields and the right checksum, as only a hostile peer sends it."""
    frame_type, route, request_id = rng.randrange(256), rng.choice((0, 0, 1, 255)), rng.randrange(8)
    body = rng.randbytes(rng.choice((0, 0, 1, 20, MAXIMUM, MAXIMUM + 1)))
    number = rng.choice((frame_type, *FrameType))
    covered = bytes([number, route, 0, 0]) + request_id.to_bytes(4, "big") + len(body).to_bytes(4, "big") + body
    return covered + zlib.crc32(covered).to_bytes(4, "big")


DAMAGE = (flip, truncate, cut_out, insert, overwrite, repeat, noise, huge_length)
HOSTILE = (*DAMAGE, other_header)


def mutate(messages: list[bytes], rng: random.Random, mutations: tuple[Mutation, ...]) -> bytes:
    """The messages in a stream, one of them or all of it mutated, in the right order or not."""
    if rng.random() < 0.2:
        rng.shuffle(messages)
    if rng.random() < 0.3:
        return rng.choice(mutations)(b"".join(messages), rng)
    index = rng.randrange(len(messages))
    messages[index] = rng.choice(mutations)(messages[index], rng)
    return b"".join(messages)


def pieces(data: bytes, rng: random.Random) -> list[bytes]:
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 5))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def check_length(frame_type: FrameType, route: int, length: int) -> None:
    if length > MAXIMUM:
        raise WireError("too long")


def test_parser_returns_only_frames_that_were_sent() -> None:
    rng = random.Random(1)
    refused = 0
    for _ in range(8000):
        sent = [
            Frame(rng.choice(list(FrameType)), rng.randbytes(rng.choice((0, 1, 30, MAXIMUM))), rng.randrange(2**32))
            for _ in range(3)
        ]
        parser = FrameParser(check_length)
        try:
            for piece in pieces(mutate([serialize(frame) for frame in sent], rng, DAMAGE), rng):
                parser.feed(piece)
                while (frame := parser.next_frame()) is not None:
                    assert frame in sent
                assert parser.buffered < MAXIMUM + OVERHEAD_BYTES
        except WireError:
            refused += 1
    assert refused > 4000, "most damage does not even look like a frame"


@pytest.mark.parametrize("mutations", [DAMAGE, HOSTILE], ids=["damaged", "hostile"])
def test_server_takes_only_requests_that_were_made(mutations: tuple[Mutation, ...]) -> None:
    rng = random.Random(2)
    refused = taken = 0
    for _ in range(3000):
        bodies = {request_id: rng.randbytes(rng.choice((0, 40, MAXIMUM))) for request_id in range(1, NUM_REQUESTS + 1)}
        requests = [serialize(Frame(FrameType.REQUEST, body, number)) for number, body in bodies.items()]
        server = ServerProtocol({ID: MAXIMUM}, token="secret", window=3)
        try:
            for piece in pieces(mutate([HELLO, *requests], rng, mutations), rng):
                for event in server.receive_data(piece):
                    if isinstance(event, Request):
                        taken += 1
                        assert len(event.body) <= MAXIMUM
                        assert mutations is HOSTILE or bodies[event.request_id] == event.body
                # A HELLO whose length is damaged may wait for as much as any HELLO can have.
                longest = MAXIMUM if server.opened else MAX_HANDSHAKE_BYTES
                assert server.buffered <= longest + OVERHEAD_BYTES
                assert server.in_flight <= 3
        except WireError:
            refused += 1
            assert server.closing
        assert len(server.data_to_send()) < 3000, "what it answers is bounded, too"
    assert refused > 500
    assert taken > 500


@pytest.mark.parametrize("mutations", [DAMAGE, HOSTILE], ids=["damaged", "hostile"])
def test_client_accepts_only_answers_that_were_given(mutations: tuple[Mutation, ...]) -> None:
    rng = random.Random(3)
    refused = taken = 0
    for _ in range(3000):
        client = ClientProtocol([ID], max_reply_bytes=MAXIMUM)
        if rng.random() < 0.9:
            client.receive_data(WELCOME)
            waiting = [client.send_request(b"x") for _ in range(NUM_REQUESTS)]
            client.abandon(waiting[-1])
        else:
            waiting = []
        bodies = {number: rng.randbytes(rng.choice((0, 40, MAXIMUM))) for number in range(1, NUM_REQUESTS + 1)}
        answers = [serialize(Frame(FrameType.REPLY, body, number)) for number, body in bodies.items()]
        answers[0] = serialize(Frame(FrameType.ERROR, encode_error(ErrorCode.BUSY, "full"), 1))
        try:
            for piece in pieces(mutate(answers if waiting else [WELCOME], rng, mutations), rng):
                for event in client.receive_data(piece):
                    if isinstance(event, Answer):
                        taken += 1
                        assert event.request_id in waiting[:-1]
                        assert len(event.body) <= MAXIMUM
                        assert mutations is HOSTILE or bodies[event.request_id] == event.body
                assert client.buffered < max(MAXIMUM, 4096) + OVERHEAD_BYTES
        except WireError:
            refused += 1
            assert client.closing
    assert refused > 500
    assert taken > 500


def test_a_flood_in_small_pieces_holds_no_more_than_one_message() -> None:
    server = ServerProtocol({ID: 2**20})
    server.receive_data(serialize(Frame(FrameType.HELLO, Hello((Offer(ID),)).encode())))
    message = serialize(Frame(FrameType.REQUEST, bytes(2**20), 1))
    tracemalloc.start()
    for start in range(0, len(message) - 1, 1000):
        assert server.receive_data(message[start : min(start + 1000, len(message) - 1)]) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert server.buffered == len(message) - 1
    assert peak < 1.3 * 2**20
