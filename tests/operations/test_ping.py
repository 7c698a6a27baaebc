"""What a device finds at an address, by real servers."""

from __future__ import annotations

import socket
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from compoff.artifact import write_folder
from compoff.edge.server import serve
from compoff.errors import (
    ArtifactError,
    ArtifactMismatch,
    AuthenticationError,
    CompoffError,
    ConnectionLost,
    ConnectTimeout,
    LocalProtocolError,
)
from compoff.operations.certificates import Authority
from compoff.operations.ping import Reached, ping
from compoff.wire.tls import TLS
from tests.edge.peers import ID, Echo
from tests.small_artifacts import MANIFEST, PROGRAM, TABLES

if TYPE_CHECKING:
    from pathlib import Path

OTHER = b"o" * 32


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder around two exports, of which a server of `Echo` holds one."""
    folder = tmp_path_factory.mktemp("exports")
    for name, identity in (("served", ID), ("other", OTHER)):
        manifest = replace(MANIFEST, artifact_id=identity.hex(), split=name)
        write_folder(folder / name / "head", manifest, TABLES, {"head.pt2": PROGRAM})
    return folder


def named(split: str, identity: bytes) -> str:
    return f"Net at '{split}' ({identity.hex()[:8]})"


def test_a_served_head_is_found_with_the_time_of_each_round(exports: Path) -> None:
    with serve(Echo(max_payload_bytes=4321)) as server:
        for folder in (exports / "served", exports / "served" / "head"):
            found = ping([folder], server.address, rounds=7)
            assert found.served == {named("served", ID): 4321}
            assert found.complete
            assert not found.secured
            assert len(found.rounds) == 7
            assert all(0 < seconds < 5 for seconds in [found.connect_seconds, *found.rounds])


def test_a_head_that_is_not_served_is_named_beside_one_that_is(exports: Path) -> None:
    with serve(Echo()) as server:
        found = ping([exports], server.address, rounds=1)
        assert found.served == {named("other", OTHER): None, named("served", ID): 2**16}
        assert not found.complete
        assert f"{named('other', OTHER)}: NOT SERVED" in str(found)
        assert "1 round: median" in str(found)
        with pytest.raises(ArtifactMismatch, match="no tail here belongs to the head"):
            ping([exports / "other"], server.address)


def test_it_comes_in_as_a_device_does(exports: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue_server("edge", ["127.0.0.1"])
    ours = TLS(certificate=certificate, key=key, ca=authority.path)
    device = TLS(**dict(zip(("certificate", "key"), authority.issue_device("camera"), strict=True)), ca=authority.path)
    with serve(Echo(), token="secret", tls=ours) as server:
        found = ping([exports / "served"], server.address, token="secret", tls=device)
        assert found.secured
        assert str(found).startswith(f"{server.address}: connected by TLS in ")
        with pytest.raises(AuthenticationError):
            ping([exports / "served"], server.address, token="wrong", tls=device)
        with pytest.raises(CompoffError):
            ping([exports / "served"], server.address, token="secret")


def test_nobody_and_strangers_are_told_apart(exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("compoff.operations.ping._TIMEOUT", 0.2)
        with pytest.raises(ConnectTimeout):
            ping([exports / "served"], address)
    with pytest.raises(ConnectionLost):
        ping([exports / "served"], address)


@pytest.mark.parametrize("rounds", [0, -1, 2.5, True])
def test_a_number_of_rounds_that_cannot_be(exports: Path, rounds: Any) -> None:
    with pytest.raises(LocalProtocolError, match="rounds is"):
        ping([exports], "127.0.0.1:1", rounds=rounds)


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no folder was given"):
        ping([], "127.0.0.1:1")
    with pytest.raises(ArtifactError, match="holds no head and no tail"):
        ping([tmp_path], "127.0.0.1:1")


def test_figures_are_told_in_milliseconds() -> None:
    told = str(Reached("edge:1", True, 0.5, {"a": None}, [0.001, 0.002, 0.009], 0.0125)).splitlines()
    assert told[0] == "edge:1: connected by TLS in 500.0 ms"
    assert told[2] == "3 rounds: median 2.0 ms, shortest 1.0 ms, longest 9.0 ms; the queue there takes 12.5 ms"
