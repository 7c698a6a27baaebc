"""A front's side of a tail that another process holds."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import compoff
from compoff.errors import AuthenticationError, BackendError, PayloadError, ReadTimeout, RemoteError, ServerBusy
from compoff.operations.relay import RelayTail
from compoff.wire.client import open_client
from compoff.wire.frames import Frame, FrameParser, FrameType, serialize
from compoff.wire.messages import ErrorCode, Route, Welcome, encode_error
from tests.small_networks import tiny_decoder, tiny_encoder
from tests.wire.scripted import read_frame, reply, scripted_server

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

Pair = tuple[compoff.Head, compoff.Tail]


@pytest.fixture(scope="module")
def pair() -> Pair:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model = compoff.wrap(net, "2", example_input=torch.zeros(2, 6), encoder=tiny_encoder, decoder=tiny_decoder)
    return compoff.export(model, "2", max_batch=8)


@pytest.fixture
def folder(pair: Pair, tmp_path: Path) -> Path:
    pair[1].save(tmp_path)
    return tmp_path


@pytest.fixture
def closing() -> Iterator[Callable[[RelayTail], RelayTail]]:
    """Closes what it is given at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda relay: stack.enter_context(contextlib.closing(relay))


def payloads(head: compoff.Head, *batches: int) -> list[bytes]:
    return [bytes(head(torch.randn(batch, 6))) for batch in batches]


def test_answers_as_the_tail_does_and_in_every_form_of_reply(pair: Pair, folder: Path, closing: Any) -> None:
    head, tail = pair
    with compoff.serve(tail, token="inside") as keeper:
        relay = closing(RelayTail(folder, keeper.address, token="inside"))
        sent = payloads(head, 1, 3, 2)
        for payload, (leaf,) in zip(sent, relay.run([relay.decode(one) for one in sent]), strict=True):
            np.testing.assert_allclose(leaf, tail(payload).numpy(), atol=1e-6)
        assert relay.answer(sent[1]) == tail.answer(sent[1])
        with compoff.serve(relay) as front, head.connect(front.address, reply="argmax") as remote:
            x = torch.randn(4, 6)
            assert remote(x).tolist() == tail(head(x)).argmax(1).tolist()


def test_finds_the_process_again_after_it_was_started_anew(pair: Pair, folder: Path, closing: Any) -> None:
    head, tail = pair
    (payload,) = payloads(head, 2)
    keeper = compoff.serve(tail)
    relay = closing(RelayTail(folder, keeper.address))
    expected = relay.answer(payload)
    keeper.close()
    with compoff.serve(tail, keeper.address):
        assert relay.answer(payload) == expected


def test_a_process_that_stays_away_is_an_error_in_time(pair: Pair, folder: Path) -> None:
    head, tail = pair
    keeper = compoff.serve(tail)
    keeper.close()
    relay = RelayTail(folder, keeper.address, timeout=0.3)
    with pytest.raises(BackendError, match=r"the process with the tail gave no answer within 0\.3 s"):
        relay.answer(payloads(head, 1)[0])


def test_damaged_payloads_stay_in_the_front(pair: Pair, folder: Path) -> None:
    relay = RelayTail(folder, "127.0.0.1:1")
    data = payloads(pair[0], 1)[0]
    for damaged in (b"", data[:-1], data + b"0"):
        with pytest.raises(PayloadError):
            relay.answer(damaged)


def test_what_the_tail_raises_and_a_wrong_token_come_through(
    pair: Pair, folder: Path, closing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, tail = pair
    (payload,) = payloads(head, 1)
    with compoff.serve(tail, token="inside") as keeper:
        with pytest.raises(AuthenticationError):
            RelayTail(folder, keeper.address, token="guessed").answer(payload)

        def breaking(*_: Any) -> Any:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(tail.backend, "run", breaking)
        with pytest.raises(RemoteError, match=r"^the process with the tail: .*out of memory"):
            closing(RelayTail(folder, keeper.address, token="inside")).answer(payload)


def test_asks_again_where_another_request_ended_the_connection(pair: Pair, folder: Path, closing: Any) -> None:
    head, tail = pair
    (payload,) = payloads(head, 2)
    greeting = serialize(Frame(FrameType.WELCOME, Welcome(4, (Route(0, tail.max_payload_bytes),)).encode()))
    replies = [bytes(2**20), tail.answer(payload)]  # the first is longer than any that this export has

    def script(connection: socket.socket, parser: FrameParser) -> None:
        read_frame(connection, parser)
        connection.sendall(greeting)
        reply(connection, read_frame(connection, parser).request_id, replies.pop(0))

    with scripted_server(script) as address:
        assert closing(RelayTail(folder, address)).answer(payload) == tail.answer(payload)
    assert not replies


def test_a_connection_all_of_whose_places_are_lost_is_left_for_another(pair: Pair, folder: Path, closing: Any) -> None:
    head, tail = pair
    (payload,) = payloads(head, 2)
    greeting = serialize(Frame(FrameType.WELCOME, Welcome(1, (Route(0, tail.max_payload_bytes),)).encode()))
    answers = [None, tail.answer(payload)]

    def script(connection: socket.socket, parser: FrameParser) -> None:
        read_frame(connection, parser)
        connection.sendall(greeting)
        number, answer = read_frame(connection, parser).request_id, answers.pop(0)
        if answer is None:
            read_frame(connection, parser)  # until the front has gone
        else:
            reply(connection, number, answer)

    with scripted_server(script) as address:
        relay = closing(RelayTail(folder, address, timeout=0.1))
        while len(answers) == 2:  # until the request has come so far, however busy this machine is
            with pytest.raises(BackendError, match="no answer within"):
                relay.answer(payload)
        relay._timeout = 30.0
        assert relay.answer(payload) == tail.answer(payload)


def test_devices_hear_no_inner_address(pair: Pair, folder: Path, closing: Any) -> None:
    (payload,) = payloads(pair[0], 1)
    greeting = serialize(Frame(FrameType.WELCOME, Welcome(4, (Route(0, len(payload)),)).encode()))

    def script(connection: socket.socket, parser: FrameParser) -> None:
        read_frame(connection, parser)
        connection.sendall(greeting)
        number = read_frame(connection, parser).request_id
        connection.sendall(serialize(Frame(FrameType.ERROR, encode_error(ErrorCode.BUSY, "no room"), number)))

    with scripted_server(script) as address:
        with pytest.raises(ServerBusy, match=r"^the process with the tail: .*no room") as caught:
            closing(RelayTail(folder, address)).answer(payload)
        assert address not in str(caught.value)


def test_where_one_of_several_fails_the_others_give_their_places_back(pair: Pair, folder: Path, closing: Any) -> None:
    first, second = payloads(pair[0], 1, 2)
    greeting = serialize(Frame(FrameType.WELCOME, Welcome(4, (Route(0, len(second)),)).encode()))
    asked: list[Frame] = []

    def script(connection: socket.socket, parser: FrameParser) -> None:
        read_frame(connection, parser)
        connection.sendall(greeting)
        asked.extend(read_frame(connection, parser) for _ in range(2))
        error = encode_error(ErrorCode.TAIL, "out of memory")
        connection.sendall(serialize(Frame(FrameType.ERROR, error, asked[0].request_id)))
        asked.append(read_frame(connection, parser))

    with scripted_server(script) as address:
        relay = closing(RelayTail(folder, address))
        with pytest.raises(RemoteError, match="out of memory"):
            relay.run([relay.decode(one) for one in (first, second)])
    assert (asked[2].type, asked[2].request_id) == (FrameType.CANCEL, asked[1].request_id)


def test_the_process_with_the_tail_hears_how_long_each_device_waits(pair: Pair, folder: Path, closing: Any) -> None:
    head, tail = pair
    ran, gate = 0, threading.Event()

    class Slow:
        artifact_id, max_payload_bytes = tail.artifact_id, tail.max_payload_bytes

        def answer(self, payload: bytes) -> bytes:
            nonlocal ran
            ran += 1
            gate.wait(30)
            return tail.answer(payload)

    (payload,) = payloads(head, 1)
    with contextlib.ExitStack() as stack:
        keeper = stack.enter_context(compoff.serve(Slow(), window=64, max_pending=64))
        relay = closing(RelayTail(folder, keeper.address))
        front = stack.enter_context(compoff.serve(relay, workers=2))
        clients = [stack.enter_context(open_client(front.address, [tail.artifact_id])) for _ in range(6)]
        asked = [client.submit(payload, timeout=0.3) for client in clients]
        for one in asked:
            with pytest.raises(ReadTimeout):
                one.result()
        gate.set()
        assert clients[0].request(payload, timeout=60) == tail.answer(payload)
        assert ran <= 3, "what nobody waits for any more is not run"
        gate.clear()
        opens = threading.Timer(0.3, gate.set)
        opens.start()
        one, two = relay.run_until([relay.decode(payload)] * 2, [time.monotonic() + 0.1, time.monotonic() + 25])
        opens.join()
        assert one is None
        np.testing.assert_allclose((two or [])[0], tail(payload).numpy(), atol=1e-6)
        assert relay.run_until([relay.decode(payload)], [time.monotonic() - 1]) == [None]
        keeper.close()
        began = time.monotonic()
        assert relay.run_until([relay.decode(payload)], [began + 0.5]) == [None]
        assert time.monotonic() - began < 20, "not the front's own 30 s"
