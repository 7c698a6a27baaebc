"""The device's end without a socket: what it sends, what it understands, what it refuses."""

from __future__ import annotations

import pytest

from compoff.errors import (
    ArtifactMismatch,
    AuthenticationError,
    CompoffError,
    ConnectionLost,
    LocalProtocolError,
    PayloadError,
    ReadTimeout,
    RemoteError,
    RemoteProtocolError,
    ServerBusy,
)
from compoff.wire.client_protocol import ClientProtocol
from compoff.wire.frames import Frame, FrameParser, FrameType, serialize
from compoff.wire.messages import ErrorCode, Hello, Offer, Route, Welcome, encode_error
from compoff.wire.protocol import Answer, Closing, Opened, Refusal

ID = bytes(range(32))


def sent(client: ClientProtocol) -> list[Frame]:
    parser = FrameParser(lambda frame_type, route, length: None)
    parser.feed(client.data_to_send())
    found: list[Frame] = []
    while (frame := parser.next_frame()) is not None:
        found.append(frame)
    return found


def welcome(window: int = 16, *maxima: int) -> bytes:
    routes = tuple(Route(index, maximum) for index, maximum in enumerate(maxima or (100,)))
    return serialize(Frame(FrameType.WELCOME, Welcome(window, routes).encode()))


def reply(request_id: int, body: bytes = b"answer") -> bytes:
    return serialize(Frame(FrameType.REPLY, body, request_id))


def error(code: ErrorCode, request_id: int = 0, text: str = "why") -> bytes:
    return serialize(Frame(FrameType.ERROR, encode_error(code, text), request_id))


def opened(window: int = 16, max_reply_bytes: int = 1000) -> ClientProtocol:
    client = ClientProtocol([ID], max_reply_bytes=max_reply_bytes)
    client.data_to_send()
    assert client.receive_data(welcome(window)) == [Opened(window)]
    return client


def test_it_says_hello_first() -> None:
    client = ClientProtocol([ID, bytes(32)], token="secret")
    assert sent(client) == [Frame(FrameType.HELLO, Hello((Offer(ID), Offer(bytes(32))), "secret").encode())]
    assert client.data_to_send() == b""
    assert not client.opened
    assert client.receive_data(welcome(3, 10, 20)) == [Opened(3)]
    assert (client.window, client.routes) == (3, (Route(0, 10), Route(1, 20)))


def test_requests_carry_route_deadline_and_new_ids() -> None:
    client = ClientProtocol([ID, bytes(32)])
    client.receive_data(welcome(16, 10, 20))
    client.data_to_send()
    assert [client.send_request(b"a"), client.send_request(b"b", route=1, deadline_ms=50), client.send_ping()] == [
        1,
        2,
        3,
    ]
    assert sent(client) == [
        Frame(FrameType.REQUEST, b"a", 1, 0, 0),
        Frame(FrameType.REQUEST, b"b", 2, 1, 50),
        Frame(FrameType.PING, b"", 3),
    ]


def test_a_request_for_what_the_server_lacks_is_never_sent() -> None:
    client = ClientProtocol([ID, bytes(32)])
    assert client.unserved == ()
    client.receive_data(welcome(16, 10, 0))
    client.data_to_send()
    assert client.unserved == (bytes(32),)
    for body in (b"", b"x"):
        with pytest.raises(ArtifactMismatch, match="no tail for the head 00000000; serve the tail of the same export"):
            client.send_request(body, route=1)
    assert client.data_to_send() == b""
    assert client.send_request(b"x") == 1


def test_answers_come_in_any_order_and_any_chunks() -> None:
    client = opened()
    for _ in range(3):
        client.send_request(b"x")
    client.send_ping()
    pong = serialize(Frame(FrameType.PONG, request_id=4))
    stream = reply(3, b"three") + pong + error(ErrorCode.TAIL, 1) + reply(2, b"")
    events = [event for index in range(len(stream)) for event in client.receive_data(stream[index : index + 1])]
    assert events[:2] == [Answer(3, b"three"), Answer(4, b"")]
    assert isinstance(events[2], Refusal)
    assert isinstance(events[2].error, RemoteError)
    assert events[3:] == [Answer(2, b"")]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ErrorCode.PROTOCOL, RemoteProtocolError),
        (ErrorCode.VERSION, RemoteProtocolError),
        (ErrorCode.TOKEN, AuthenticationError),
        (ErrorCode.ARTIFACT, ArtifactMismatch),
        (ErrorCode.BUSY, ServerBusy),
        (ErrorCode.CLOSING, ConnectionLost),
    ],
)
def test_a_refused_handshake(code: ErrorCode, expected: type[CompoffError]) -> None:
    with pytest.raises(expected, match="why"):
        ClientProtocol([ID]).receive_data(error(code))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ErrorCode.PAYLOAD, PayloadError),
        (ErrorCode.TAIL, RemoteError),
        (ErrorCode.BUSY, ServerBusy),
        (ErrorCode.DEADLINE, ReadTimeout),
        (ErrorCode.CLOSING, ConnectionLost),
        (ErrorCode.PROTOCOL, RemoteProtocolError),
    ],
)
def test_a_refused_request(code: ErrorCode, expected: type[CompoffError]) -> None:
    client = opened()
    client.send_request(b"x")
    [event] = client.receive_data(error(code, 1))
    assert isinstance(event, Refusal)
    assert event.request_id == 1
    assert type(event.error) is expected
    assert "why" in str(event.error)


def test_an_error_of_the_connection_ends_it() -> None:
    client = opened()
    with pytest.raises(ConnectionLost, match=r"protocol.*why"):
        client.receive_data(error(ErrorCode.PROTOCOL))
    assert client.closing
    with pytest.raises(LocalProtocolError, match="closed"):
        client.receive_data(b"x")


@pytest.mark.parametrize(
    "data",
    [
        reply(1),
        serialize(Frame(FrameType.GOODBYE)),
        serialize(Frame(FrameType.HELLO, Hello((Offer(ID),)).encode())),
        serialize(Frame(FrameType.PONG, request_id=1)),
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\x15\x03\x03\x00\x02\x02\x0a",
        welcome(16, 1, 2),
        welcome(16)[:-1] + b"\x00",
        serialize(Frame(FrameType.WELCOME, bytes(4097)))[:12],
    ],
)
def test_what_cannot_answer_a_hello(data: bytes) -> None:
    client = ClientProtocol([ID])
    with pytest.raises(RemoteProtocolError):
        client.receive_data(data)
    assert client.closing


@pytest.mark.parametrize(
    "data",
    [
        welcome(),
        reply(2),
        reply(0),
        serialize(Frame(FrameType.PONG, request_id=1)),
        serialize(Frame(FrameType.PING, request_id=1)),
        serialize(Frame(FrameType.REQUEST, b"x", 1)),
        serialize(Frame(FrameType.GOODBYE, b"x")),
        serialize(Frame(FrameType.REPLY, bytes(1001), 1))[:12],
        serialize(Frame(FrameType.ERROR, b"\x06" + bytes(1025), 1))[:12],
        serialize(Frame(FrameType.ERROR, b"\x63why", 1)),
        error(ErrorCode.TAIL, 2),
        reply(1) + reply(1),
    ],
)
def test_what_a_server_may_not_send(data: bytes) -> None:
    client = opened()
    client.send_request(b"x")
    with pytest.raises(RemoteProtocolError):
        client.receive_data(data)
    assert client.closing


def test_the_longest_reply_is_taken() -> None:
    client = opened(max_reply_bytes=1000)
    client.send_request(b"x")
    assert client.receive_data(reply(1, bytes(1000))) == [Answer(1, bytes(1000))]


def test_misuse_is_refused_before_anything_is_sent() -> None:
    client = ClientProtocol([ID])
    with pytest.raises(LocalProtocolError, match="before the server answered"):
        client.send_request(b"x")
    client = opened()
    with pytest.raises(LocalProtocolError, match="route 1 was given"):
        client.send_request(b"x", route=1)
    with pytest.raises(LocalProtocolError, match="route -1 was given"):
        client.send_request(b"x", route=-1)
    with pytest.raises(LocalProtocolError, match="101 bytes was given"):
        client.send_request(bytes(101))
    with pytest.raises(LocalProtocolError, match="65536 ms"):
        client.send_request(b"x", deadline_ms=65536)
    assert client.data_to_send() == b""
    with pytest.raises(LocalProtocolError, match="31 bytes"):
        ClientProtocol([bytes(31)])


def test_the_window_is_kept_also_by_late_answers() -> None:
    client = opened(window=2)
    client.send_request(b"x")
    client.send_request(b"x")
    client.abandon(1)
    with pytest.raises(ServerBusy, match=r"2 requests are unanswered, 1 of them past .* takes 2"):
        client.send_request(b"x")
    assert client.receive_data(reply(1)) == [], "a late answer is dropped by its id"
    assert client.send_request(b"x") == 3
    assert client.receive_data(reply(2) + reply(3)) == [Answer(2, b"answer"), Answer(3, b"answer")]
    with pytest.raises(RemoteProtocolError):
        client.receive_data(reply(1))


def test_it_is_stuck_where_requests_past_their_deadline_hold_the_window() -> None:
    client = opened(window=2)
    ids = [client.send_request(b"x") for _ in range(2)]
    client.abandon(ids[0])
    assert not client.stuck
    client.abandon(ids[1])
    assert client.stuck
    client.receive_data(reply(ids[0]))
    assert not client.stuck


def test_late_pings_hold_no_place_in_the_window() -> None:
    client = opened(window=2)
    long = client.send_request(b"x")
    pings = [client.send_ping() for _ in range(3)]
    for ping in pings:  # they wait behind the long answer
        client.abandon(ping)
    assert not client.stuck
    client.send_request(b"x")
    with pytest.raises(ServerBusy, match=r"2 requests are unanswered, 0 of them past"):
        client.send_request(b"x")
    pongs = b"".join(serialize(Frame(FrameType.PONG, request_id=ping)) for ping in pings)
    assert client.receive_data(reply(long) + pongs) == [Answer(long, b"answer")]
    assert not client._missed


def test_a_late_refusal_is_dropped_too() -> None:
    client = opened()
    client.send_request(b"x")
    client.abandon(1)
    assert client.receive_data(error(ErrorCode.DEADLINE, 1)) == []


def test_a_withdrawn_request_awaits_nothing() -> None:
    client = opened(window=1)
    client.withdraw(client.send_request(b"x"))
    assert client.send_request(b"x") == 2
    with pytest.raises(RemoteProtocolError):
        client.receive_data(reply(1))


def test_ids_wrap_around_those_in_flight() -> None:
    client = opened()
    assert client.send_request(b"x") == 1
    client._last_id = 2**32 - 2
    assert client.send_request(b"x") == 2**32 - 1
    assert client.send_request(b"x") == 2, "0 is the connection and 1 is in flight"


def test_after_goodbye_answers_in_flight_still_come() -> None:
    client = opened()
    client.send_request(b"x")
    assert client.receive_data(serialize(Frame(FrameType.GOODBYE))) == [Closing()]
    assert client.closing
    with pytest.raises(ConnectionLost, match="has said goodbye"):
        client.send_request(b"x")
    assert client.receive_data(reply(1)) == [Answer(1, b"answer")]


def test_it_says_goodbye_once() -> None:
    client = ClientProtocol([ID])
    client.data_to_send()
    client.send_goodbye()
    assert client.data_to_send() == b"", "a server that has not answered waits for no goodbye"
    client = opened()
    client.send_goodbye()
    client.send_goodbye()
    assert sent(client) == [Frame(FrameType.GOODBYE)]


def test_the_end_of_the_stream() -> None:
    with pytest.raises(ConnectionLost, match=r"before it answered HELLO; is a compoff server there, .*TLS"):
        ClientProtocol([ID]).receive_eof()
    with pytest.raises(ConnectionLost, match="closed the connection; ask again"):
        opened().receive_eof()
    client = opened()
    client.send_request(b"x")
    client.receive_data(reply(1)[:-1])
    with pytest.raises(ConnectionLost, match="in the middle"):
        client.receive_eof()
    assert client.closing
