"""Who gives up a place when a server is full: counted by hand, then over real sockets and certificates."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest

from compoff.edge.places import GUESTS, Places, holder_name
from compoff.edge.server import Server, serve
from compoff.errors import ConnectionLost, ServerBusy
from compoff.operations.certificates import Authority
from compoff.wire.client import Client, open_client
from compoff.wire.frames import Frame, FrameType
from compoff.wire.messages import ErrorCode
from compoff.wire.tls import TLS
from tests.edge.peers import HELLO, ID, Echo, Peer, content, eventually, request

if TYPE_CHECKING:
    from pathlib import Path

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs a loopback of several addresses")


@dataclass(eq=False)
class Holder:
    who: str
    asked: float = 0.0
    busy: bool = False


def kind(frame: Frame | None) -> FrameType | None:
    return frame and frame.type


def given(places: Places, *holders: Holder) -> None:
    for holder in holders:
        places.add(cast("Any", holder))


def test_the_idlest_of_who_holds_most_goes() -> None:
    places = Places()
    greedy = [Holder("a", 3.0), Holder("a", 1.0, busy=True), Holder("a", 2.0), Holder("b", 0.0)]
    given(places, *greedy)
    assert places.owed("c")
    assert not places.owed("a")
    assert places.owed("b")
    given(places, Holder("c"))
    assert places.give_up("c") is cast("Any", greedy[2])
    assert (places.taken, places.going, places.most()) == (4, 1, 2)
    assert not places.owed("b")
    assert places.owed("d")
    assert places.give_up("c") is cast("Any", greedy[0])
    assert places.give_up("c") is None
    for holder in greedy:
        places.remove(cast("Any", holder))
    assert (places.taken, places.going, places.most()) == (1, 0, 1)


def test_one_with_requests_in_flight_goes_where_all_have_some() -> None:
    places = Places()
    busy = [Holder("a", 2.0, busy=True), Holder("a", 1.0, busy=True)]
    given(places, *busy, Holder("b"))
    assert places.give_up("b") is cast("Any", busy[1])


@pytest.mark.parametrize(
    ("peername", "name"),
    [
        (("192.0.2.7", 1), "at 192.0.2.7"),
        (("::ffff:192.0.2.7", 1, 0, 0), "at 192.0.2.7"),
        (("2001:db8:0:1:2::3", 1, 0, 0), "at 2001:db8:0:1::/64"),
        (("fe80::1%eth0", 1, 0, 2), "at fe80::/64"),
        ("/a/socket", "at "),
        (None, "at "),
    ],
)
def test_whose_a_connection_is(peername: Any, name: str) -> None:
    assert holder_name(peername, None) == name
    assert holder_name(peername, {"subject": ((("organizationName", "x"),),)}) == name
    assert holder_name(peername, {"subject": ((("commonName", "camera-1"),),)}) == "camera-1"


def other(server: Server, first: bytes = HELLO) -> Peer:
    """A connection from another address than those of ``Peer``."""
    return Peer(server, first, source="127.0.0.2")


@linux
def test_one_address_cannot_hold_every_place() -> None:
    with serve(Echo(), max_connections=4) as server, contextlib.ExitStack() as stack:
        greedy = [stack.enter_context(Peer(server)) for _ in range(4)]
        for number, peer in enumerate(greedy):
            assert kind(peer.read()) is FrameType.WELCOME
            if number != 2:
                peer.send(request(1, b"x"))
                assert content(peer.read()) == (FrameType.REPLY, b"x", 1)
        fair = [stack.enter_context(other(server)) for _ in range(3)]
        assert [kind(peer.read()) for peer in fair[:2]] == [FrameType.WELCOME] * 2
        assert greedy[2].read() == Frame(FrameType.GOODBYE)
        assert greedy[0].read() == Frame(FrameType.GOODBYE)
        assert fair[2].refused() is ErrorCode.BUSY, "they are even"
        with pytest.raises(ServerBusy):
            open_client(server.address, [ID])
        for peer in (*fair[:2], greedy[1], greedy[3]):
            peer.send(request(2, b"y"))
            assert content(peer.read()) == (FrameType.REPLY, b"y", 2)
        eventually(lambda: server.stats().connections == 4)
        assert greedy[0].read() is None


@linux
def test_answers_in_flight_still_come_to_who_gives_up_a_place() -> None:
    tail = Echo()
    with serve(tail, max_connections=2) as server, Peer(server) as one, Peer(server) as two:
        for peer in (one, two):
            assert peer.read() is not None
            peer.send(request(1, b"held"))
        eventually(lambda: server.stats().pending == 2)
        with other(server) as newcomer:
            assert kind(newcomer.read()) is FrameType.WELCOME
            assert one.read() == Frame(FrameType.GOODBYE)
            tail.gate.set()
            assert [content(peer.read()) for peer in (one, two)] == [(FrameType.REPLY, b"held", 1)] * 2
            assert one.read() is None


@linux
def test_a_stranger_takes_no_place_of_who_knows_the_token() -> None:
    with serve(Echo(), max_connections=3, token="right") as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(open_client(server.address, [ID], token="right")) for _ in range(3)]
        for _ in range(GUESTS):
            stack.enter_context(other(server, b""))
        eventually(lambda: server.stats().connections == 3 + GUESTS)
        with other(server) as stranger:
            assert stranger.refused() is ErrorCode.TOKEN
        assert [client.request(b"x", timeout=30) for client in clients] == [b"x"] * 3
        assert server.stats().connections <= 3 + GUESTS
        assert not any(client.closed for client in clients)


def test_certificates_tell_devices_behind_one_address_apart(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.issue_server("edge", ["127.0.0.1"])
    for name in ("camera-1", "camera-2"):
        authority.issue_device(name)

    def tls(name: str) -> TLS:
        return TLS(certificate=tmp_path / f"{name}.pem", key=tmp_path / f"{name}.key", ca=tmp_path / "ca.pem")

    def dial(name: str) -> Client:
        return open_client(server.address, [ID], tls=tls(name).client_context())

    with serve(Echo(), tls=tls("edge"), max_connections=3) as server, contextlib.ExitStack() as stack:
        greedy = [stack.enter_context(dial("camera-1")) for _ in range(3)]
        with pytest.raises(ServerBusy):
            dial("camera-1")
        fair = stack.enter_context(dial("camera-2"))
        assert fair.request(b"x", timeout=30) == b"x"
        outcomes: list[str] = []
        for client in greedy:
            try:
                outcomes.append(client.request(b"y", timeout=30).decode())
            except ConnectionLost:
                outcomes.append("gone")
        assert sorted(outcomes) == ["gone", "y", "y"]
        with pytest.raises(ServerBusy):
            dial("camera-2")
