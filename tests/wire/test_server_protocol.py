"""The edge's end without a socket: whom it lets in, what it takes, how it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compoff.errors import (
    ArtifactMismatch,
    AuthenticationError,
    ConnectionLost,
    LocalProtocolError,
    RemoteProtocolError,
    ServerBusy,
    WireError,
)
from compoff.wire.client_protocol import ClientProtocol
from compoff.wire.frames import Frame, FrameParser, FrameType, serialize
from compoff.wire.messages import ErrorCode, Hello, Offer, Route, Welcome, decode_error
from compoff.wire.protocol import Answer, Canceled, Closing, Opened, Refusal, Request
from compoff.wire.replies import ReplyForm, ReplyKind
from compoff.wire.server_protocol import ServerProtocol

if TYPE_CHECKING:
    import random

ID, OTHER_ID = bytes(range(32)), bytes(range(1, 33))


def sent(server: ServerProtocol) -> list[Frame]:
    parser = FrameParser(lambda frame_type, route, length: None)
    parser.feed(server.data_to_send())
    found: list[Frame] = []
    while (frame := parser.next_frame()) is not None:
        found.append(frame)
    return found


def sent_error(server: ServerProtocol) -> tuple[int, ErrorCode, str]:
    [frame] = sent(server)
    assert frame.type is FrameType.ERROR
    return (frame.request_id, *decode_error(frame.body))


def hello(*ids: bytes, token: str | None = None) -> bytes:
    return serialize(
        Frame(FrameType.HELLO, Hello(tuple(Offer(artifact_id) for artifact_id in ids or (ID,)), token).encode())
    )


def request(request_id: int = 1, body: bytes = b"payload", route: int = 0, deadline_ms: int = 0) -> bytes:
    return serialize(Frame(FrameType.REQUEST, body, request_id, route, deadline_ms))


def cancel(request_id: int) -> bytes:
    return serialize(Frame(FrameType.CANCEL, request_id=request_id))


def opened(window: int = 16) -> ServerProtocol:
    server = ServerProtocol({ID: 100, OTHER_ID: 200}, window=window)
    assert server.receive_data(hello()) == [Opened(window)]
    server.data_to_send()
    return server


def test_it_welcomes_with_a_route_for_each_artifact_in_the_clients_order() -> None:
    server = ServerProtocol({ID: 100, OTHER_ID: 200}, window=7)
    assert server.receive_data(hello(OTHER_ID, ID)) == [Opened(7)]
    assert sent(server) == [Frame(FrameType.WELCOME, Welcome(7, (Route(0, 200), Route(1, 100))).encode())]
    assert server.receive_data(request(5, b"x" * 200, route=0, deadline_ms=9)) == [Request(5, OTHER_ID, b"x" * 200, 9)]
    assert server.receive_data(request(6, b"y", route=1)) == [Request(6, ID, b"y", 0)]


def test_a_client_of_several_artifacts_is_welcome_with_those_that_are_here() -> None:
    server = ServerProtocol({ID: 100})
    assert server.granted == ()
    assert server.receive_data(hello(OTHER_ID, ID)) == [Opened(16)]
    assert sent(server) == [Frame(FrameType.WELCOME, Welcome(16, (Route(0, 0), Route(1, 100))).encode())]
    assert server.granted == (False, True)
    assert server.receive_data(request(6, b"y", route=1)) == [Request(6, ID, b"y", 0)]


@pytest.mark.parametrize("body", [b"", b"x"])
def test_a_request_for_an_artifact_that_is_not_here_ends_the_conversation(body: bytes) -> None:
    server = ServerProtocol({ID: 100})
    server.receive_data(hello(OTHER_ID, ID))
    server.data_to_send()
    with pytest.raises(RemoteProtocolError, match="route 0, whose artifact is not served here"):
        server.receive_data(request(1, body, route=0))
    assert sent_error(server)[:2] == (0, ErrorCode.PROTOCOL)


@pytest.mark.parametrize(
    ("data", "error", "code", "words"),
    [
        (hello(token="wrong"), AuthenticationError, ErrorCode.TOKEN, "the token is wrong"),
        (hello(), AuthenticationError, ErrorCode.TOKEN, "a token is needed"),
        (
            hello(bytes(32), OTHER_ID, token="secret"),
            ArtifactMismatch,
            ErrorCode.ARTIFACT,
            "head 00000000, 01020304; serve",
        ),
        (hello(bytes(32), token="wrong"), AuthenticationError, ErrorCode.TOKEN, "the token is wrong"),
        (
            serialize(Frame(FrameType.HELLO, b"COFF\x01 and so on")),
            RemoteProtocolError,
            ErrorCode.VERSION,
            "protocol version 2, the client version 1",
        ),
        (serialize(Frame(FrameType.HELLO, b"GIVE")), RemoteProtocolError, ErrorCode.PROTOCOL, "no HELLO"),
        (request(), RemoteProtocolError, ErrorCode.PROTOCOL, "expected HELLO"),
        (serialize(Frame(FrameType.PING, request_id=1)), RemoteProtocolError, ErrorCode.PROTOCOL, "expected HELLO"),
        (serialize(Frame(FrameType.HELLO, bytes(4097)))[:12], RemoteProtocolError, ErrorCode.PROTOCOL, "at most 4096"),
        (b"GET / HTTP/1.1\r\n\r\n", RemoteProtocolError, ErrorCode.PROTOCOL, "0x47"),
        (b"\x16\x03\x01\x02\x00", RemoteProtocolError, ErrorCode.PROTOCOL, "0x16"),
        (hello(token="secret")[:-1] + b"\x00", RemoteProtocolError, ErrorCode.PROTOCOL, "damaged"),
    ],
)
def test_whom_it_does_not_let_in(data: bytes, error: type[WireError], code: ErrorCode, words: str) -> None:
    server = ServerProtocol({ID: 100}, token="secret")
    with pytest.raises(error, match=words):
        server.receive_data(data)
    request_id, sent_code, text = sent_error(server)
    assert (request_id, sent_code) == (0, code)
    assert words in text
    with pytest.raises(LocalProtocolError, match="closed"):
        server.receive_data(hello(token="secret"))
    assert server.data_to_send() == b""


def test_a_client_for_which_there_is_no_place_is_not_welcomed() -> None:
    asked: list[bool] = []

    def admit() -> None:
        asked.append(True)
        raise ServerBusy("there is no place")

    server = ServerProtocol({ID: 100}, token="secret", admit=admit)
    with pytest.raises(ServerBusy, match="no place"):
        server.receive_data(hello(token="secret"))
    assert sent_error(server) == (0, ErrorCode.BUSY, "there is no place")
    stranger = ServerProtocol({ID: 100}, token="secret", admit=admit)
    with pytest.raises(AuthenticationError):
        stranger.receive_data(hello(token="wrong"))
    assert asked == [True], "who does not know the token asks for no place"


def test_a_stranger_without_the_token_learns_nothing_of_what_is_served() -> None:
    texts: list[str] = []
    for artifact_id in (ID, bytes(32)):
        server = ServerProtocol({ID: 100}, token="secret")
        with pytest.raises(AuthenticationError):
            server.receive_data(hello(artifact_id, token="wrong"))
        texts.append(sent_error(server)[2])
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (hello(), "may not send HELLO"),
        (serialize(Frame(FrameType.REPLY, b"x", 1)), "may not send REPLY"),
        (serialize(Frame(FrameType.PONG, request_id=1)), "may not send PONG"),
        (serialize(Frame(FrameType.ERROR, b"\x01", 1)), "may not send ERROR"),
        (request(route=1), "route 1 of 1"),
        (request(body=bytes(101))[:12], "101 bytes was announced; at most 100"),
        (request(0), "reserved"),
        (serialize(Frame(FrameType.PING, b"x", 1))[:12], "at most 0"),
        (serialize(Frame(FrameType.GOODBYE, b"x"))[:12], "at most 0"),
        (serialize(Frame(FrameType.CANCEL, b"x", 1))[:12], "at most 0"),
        (request(1) + request(1), "still in flight"),
        (request(1) + serialize(Frame(FrameType.PING, request_id=1)), "still in flight"),
    ],
)
def test_what_a_client_may_not_send(data: bytes, words: str) -> None:
    server = opened()
    with pytest.raises(RemoteProtocolError, match=words):
        server.receive_data(data)
    assert sent_error(server)[:2] == (0, ErrorCode.PROTOCOL)


def test_replies_and_refusals_go_out_in_any_order() -> None:
    server = opened()
    server.receive_data(request(1) + request(2) + request(3))
    assert server.in_flight == 3
    server.send_reply(3, b"three")
    server.send_error(1, ErrorCode.TAIL, "ValueError: no")
    server.send_reply(2, b"")
    assert server.in_flight == 0
    three, one, two = sent(server)
    assert three == Frame(FrameType.REPLY, b"three", 3)
    assert (one.request_id, decode_error(one.body)) == (1, (ErrorCode.TAIL, "ValueError: no"))
    assert two == Frame(FrameType.REPLY, b"", 2)
    for request_id in (1, 2, 3, 4):
        with pytest.raises(LocalProtocolError, match="awaits no answer"):
            server.send_reply(request_id, b"again")


def test_a_canceled_request_still_gets_an_answer() -> None:
    server = opened()
    server.receive_data(request(1))
    assert server.receive_data(cancel(1) + cancel(2) + cancel(0)) == [Canceled(1)]
    assert server.in_flight == 1
    server.send_error(1, ErrorCode.CANCELED, "nobody waits")
    assert server.receive_data(cancel(1)) == []
    assert sent_error(server)[:2] == (1, ErrorCode.CANCELED)


def test_a_form_of_reply_that_a_tail_cannot_give_is_refused_in_words() -> None:
    offer = Offer(ID, ReplyForm(ReplyKind.FP16))
    server = ServerProtocol({ID: 100})
    with pytest.raises(ArtifactMismatch, match="one form only"):
        server.receive_data(serialize(Frame(FrameType.HELLO, Hello((offer,)).encode())))
    assert sent_error(server)[:2] == (0, ErrorCode.REPLY)
    server = ServerProtocol({ID: 100}, check_reply=lambda artifact_id, reply: None)
    server.receive_data(serialize(Frame(FrameType.HELLO, Hello((offer, Offer(ID))).encode())))
    assert server.receive_data(request(1) + request(2, route=1)) == [
        Request(1, ID, b"payload", 0, ReplyForm(ReplyKind.FP16)),
        Request(2, ID, b"payload", 0),
    ]
    assert server.offers == (offer, Offer(ID))


def test_times_at_the_server_are_told() -> None:
    server = ServerProtocol({ID: 100}, idle_timeout=2.5, expected_wait=lambda: 0.07)
    server.receive_data(hello())
    [welcome] = sent(server)
    assert Welcome.decode(welcome.body, 1).idle_ms == 2500
    server.receive_data(request(1) + request(2) + serialize(Frame(FrameType.PING, request_id=3)))
    server.send_reply(1, b"", 0.123456)
    server.send_reply(2, b"", 1e9)
    pong, one, two = sent(server)
    assert (pong.seconds, one.seconds, two.seconds) == (0.07, 0.123456, (2**24 - 1) / 1e6)


def test_an_id_is_free_again_after_its_answer() -> None:
    server = opened()
    for _ in range(3):
        assert server.receive_data(request(1)) == [Request(1, ID, b"payload", 0)]
        server.send_reply(1, b"")


def test_beyond_the_window_is_busy_and_pings_are_not() -> None:
    server = opened(window=2)
    ping = serialize(Frame(FrameType.PING, request_id=9))
    assert len(server.receive_data(request(1) + request(2) + request(3) + ping)) == 2
    busy, pong = sent(server)
    assert (busy.request_id, decode_error(busy.body)[0]) == (3, ErrorCode.BUSY)
    assert pong == Frame(FrameType.PONG, request_id=9)
    server.send_reply(1, b"")
    assert server.receive_data(request(3)) == [Request(3, ID, b"payload", 0)]


def test_while_it_stops_answers_go_out_and_nothing_new_comes_in() -> None:
    server = opened()
    server.receive_data(request(1))
    server.send_goodbye()
    server.send_goodbye()
    assert sent(server) == [Frame(FrameType.GOODBYE)]
    assert server.receive_data(request(2)) == []
    assert sent_error(server)[:2] == (2, ErrorCode.CLOSING)
    server.send_reply(1, b"done")
    assert sent(server) == [Frame(FrameType.REPLY, b"done", 1)]


def test_the_clients_goodbye_is_told() -> None:
    server = opened()
    assert server.receive_data(serialize(Frame(FrameType.GOODBYE))) == [Closing()]
    assert server.closing


def test_a_farewell_is_the_last_word() -> None:
    server = opened()
    server.receive_data(request(1))
    server.send_farewell(ErrorCode.BUSY, "full")
    server.send_farewell(ErrorCode.PROTOCOL, "again")
    assert sent_error(server) == (0, ErrorCode.BUSY, "full")
    with pytest.raises(LocalProtocolError):
        server.send_reply(1, b"")


def test_the_end_of_the_stream() -> None:
    opened().receive_eof()
    server = opened()
    server.receive_data(request(1))
    with pytest.raises(ConnectionLost, match="1 requests unanswered"):
        server.receive_eof()
    with pytest.raises(LocalProtocolError, match="awaits no answer"):
        server.send_reply(1, b"late")
    assert server.data_to_send() == b""
    server = opened()
    server.receive_data(request(1)[:20])
    with pytest.raises(ConnectionLost, match="20 bytes half sent"):
        server.receive_eof()


@pytest.mark.parametrize(
    ("artifacts", "token", "window", "words"),
    [
        ({}, None, 16, "nothing to serve"),
        ({bytes(31): 100}, None, 16, "31 bytes"),
        ({ID: 0}, None, 16, "0 bytes was given"),
        ({ID: 2**32}, None, 16, "expected 1 to"),
        ({ID: 100}, "", 16, "token of 0 bytes"),
        ({ID: 100}, None, 0, "window of 0"),
        ({ID: 100}, None, 2**16, "window of 65536"),
    ],
)
def test_settings_that_no_server_can_keep(
    artifacts: dict[bytes, int], token: str | None, window: int, words: str
) -> None:
    with pytest.raises(LocalProtocolError, match=words):
        ServerProtocol(artifacts, token=token, window=window)


@given(st.lists(st.binary(max_size=100), max_size=10), st.randoms(use_true_random=False))
def test_two_ends_understand_each_other_in_any_chunks(bodies: list[bytes], rng: random.Random) -> None:
    client, server = ClientProtocol([ID], token="t"), ServerProtocol({ID: 100}, token="t")
    _, events = exchange(client, server, rng)
    assert events == [Opened(16)]
    expected = {client.send_request(body): body for body in bodies}
    requests, _ = exchange(client, server, rng)
    rng.shuffle(requests)
    for event in requests:
        assert isinstance(event, Request)
        if event.request_id % 3:
            server.send_reply(event.request_id, event.body[::-1])
        else:
            server.send_error(event.request_id, ErrorCode.TAIL, "no")
    _, answers = exchange(client, server, rng)
    assert len(answers) == len(bodies)
    for answer in answers:
        assert isinstance(answer, (Answer, Refusal))
        assert isinstance(answer, Answer) == bool(answer.request_id % 3)
        if isinstance(answer, Answer):
            assert answer.body == expected[answer.request_id][::-1]
    assert server.in_flight == 0


def exchange(client: ClientProtocol, server: ServerProtocol, rng: random.Random) -> tuple[list[object], list[object]]:
    """What each end makes of what the other has to send, cut at random places."""
    return chunked(client.data_to_send(), server, rng), chunked(server.data_to_send(), client, rng)


def chunked(data: bytes, end: ClientProtocol | ServerProtocol, rng: random.Random) -> list[object]:
    events: list[object] = []
    while data:
        size = rng.randint(1, len(data))
        events += end.receive_data(data[:size])
        data = data[size:]
    return events
