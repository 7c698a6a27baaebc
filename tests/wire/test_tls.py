"""TLS on real sockets: who is let in, who is told why not, and certificates that change under open connections."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from compoff.edge.server import Server, serve
from compoff.errors import AuthenticationError, ConnectionLost, LocalProtocolError, WireError
from compoff.operations.certificates import Authority
from compoff.wire.async_client import open_async_client
from compoff.wire.client import Client, open_client
from compoff.wire.tls import TLS
from tests.edge.peers import ID, Echo, eventually

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    authority = Authority(folder)
    authority.issue_server("edge", ["localhost", "127.0.0.1"])
    authority.issue_server("elsewhere", ["elsewhere.example"])
    authority.issue_server("expired", ["127.0.0.1"], days=-0.5)
    for name in ("camera-1", "camera-2"):
        authority.issue_device(name)
    authority.issue_device("old-camera", days=-0.5)
    stranger = Authority(folder / "stranger")
    stranger.issue_device("camera-1")
    stranger.issue_server("edge", ["127.0.0.1"])
    return folder


@pytest.fixture
def certs(made: Path, tmp_path: Path) -> Path:
    """The same files, free to be changed."""
    return shutil.copytree(made, tmp_path / "certs")


def pair(folder: Path, name: str, *, revoked: bool = False) -> TLS:
    return TLS(
        certificate=folder / f"{name}.pem",
        key=folder / f"{name}.key",
        ca=folder / "ca.pem",
        revoked=folder / "revoked.pem" if revoked else None,
    )


def dial(server: Server, tls: TLS) -> Client:
    return open_client(server.address, [ID], tls=tls.client_context())


def works(server: Server, tls: TLS) -> None:
    with dial(server, tls) as client:
        assert client.request(b"hello", timeout=30) == b"hello"


def test_mutual_tls_lets_a_device_in_and_is_tls_1_3(certs: Path) -> None:
    with serve(Echo(), tls=pair(certs, "edge")) as server, dial(server, pair(certs, "camera-1")) as client:
        assert client.request(b"x", timeout=30) == b"x"
        sock = client._exchange._stream._socket
        assert isinstance(sock, ssl.SSLSocket)
        assert sock.version() == "TLSv1.3"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
def test_nothing_older_is_spoken(certs: Path, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=str(certs / "ca.pem"))
    context.maximum_version = version
    with serve(Echo(), tls=pair(certs, "edge")) as server, pytest.raises(WireError):
        open_client(server.address, [ID], tls=context)
    assert pair(certs, "camera-1").client_context().minimum_version is ssl.TLSVersion.TLSv1_3


def test_equal_where_the_files_are(certs: Path) -> None:
    assert pair(certs, "edge") == pair(certs, "edge")
    assert hash(pair(certs, "edge")) == hash(pair(certs, "edge"))
    assert pair(certs, "edge") != pair(certs, "camera-1")
    assert pair(certs, "edge") != "edge"


def test_a_server_without_ca_asks_devices_for_nothing(certs: Path) -> None:
    tls = TLS(certificate=certs / "edge.pem", key=certs / "edge.key")
    with serve(Echo(), tls=tls) as server:
        works(server, TLS(ca=certs / "ca.pem"))


@pytest.mark.parametrize("name", ["stranger/camera-1", "old-camera", None])
def test_a_device_that_is_not_trusted_stays_outside(certs: Path, name: str | None) -> None:
    tls = TLS(ca=certs / "ca.pem")
    if name is not None:
        tls = TLS(ca=certs / "ca.pem", certificate=certs / f"{name}.pem", key=certs / f"{name}.key")
    with serve(Echo(), tls=pair(certs, "edge")) as server:
        with pytest.raises((ConnectionLost, AuthenticationError), match="certificate"):
            dial(server, tls)

        async def main() -> None:
            await open_async_client(server.address, [ID], tls=tls.client_context())

        with pytest.raises((ConnectionLost, AuthenticationError), match="certificate"):
            asyncio.run(main())
        works(server, pair(certs, "camera-1"))


@pytest.mark.parametrize(
    ("server_name", "words"),
    [("stranger/edge", "self.signed|unable to get"), ("elsewhere", "IP address mismatch"), ("expired", "expired")],
)
def test_a_server_that_is_not_trusted_gets_nothing(certs: Path, server_name: str, words: str) -> None:
    tls = TLS(certificate=certs / f"{server_name}.pem", key=certs / f"{server_name}.key", ca=certs / "ca.pem")
    with serve(Echo(), tls=tls) as server, pytest.raises(AuthenticationError, match=words):
        dial(server, pair(certs, "camera-1"))


def test_a_device_cannot_pass_for_a_server(certs: Path) -> None:
    with serve(Echo(), tls=pair(certs, "camera-2")) as server, pytest.raises(AuthenticationError, match="not trusted"):
        dial(server, pair(certs, "camera-1"))


def test_plain_tcp_and_tls_do_not_meet(certs: Path) -> None:
    with serve(Echo()) as plain, pytest.raises(WireError, match="TLS"):
        dial(plain, pair(certs, "camera-1"))
    with serve(Echo(), tls=pair(certs, "edge")) as server, pytest.raises(WireError):
        open_client(server.address, [ID], connect_timeout=30)


def test_certificates_change_under_an_open_connection(certs: Path) -> None:
    with serve(Echo(), tls=pair(certs, "edge")) as server, dial(server, pair(certs, "camera-1")) as before:
        for name in ("edge.pem", "edge.key", "ca.pem"):
            shutil.copy(certs / "stranger" / name, certs / name)
        server.reload_certificates()
        with pytest.raises(WireError):
            dial(server, pair(certs, "camera-2"))  # of the authority that nobody trusts any more
        works(server, pair(certs / "stranger", "camera-1"))
        assert before.request(b"still here", timeout=30) == b"still here"


def test_a_device_reads_its_own_renewed_certificate(certs: Path) -> None:
    tls = pair(certs, "old-camera")
    with serve(Echo(), tls=pair(certs, "edge")) as server:
        with pytest.raises(WireError):
            dial(server, tls)
        Authority(certs).issue_device("old-camera", renew=True)
        works(server, tls)


def test_a_revoked_device_is_refused_after_a_reload(certs: Path) -> None:
    with serve(Echo(), tls=pair(certs, "edge", revoked=True)) as server:
        works(server, pair(certs, "camera-1"))
        Authority(certs).revoke("camera-1")
        server.reload_certificates()
        with pytest.raises(WireError):
            dial(server, pair(certs, "camera-1"))
        works(server, pair(certs, "camera-2"))


def test_a_damaged_file_changes_nothing(certs: Path) -> None:
    with serve(Echo(), tls=pair(certs, "edge")) as server:
        (certs / "edge.pem").write_text("nonsense")
        with pytest.raises(LocalProtocolError, match=r"edge\.pem"):
            server.reload_certificates()
        works(server, pair(certs, "camera-1"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["ca.pem"], "holds no list of revoked certificates"),
        (["camera-1.pem"], "holds no list of revoked certificates"),
        (["revoked.pem", "stranger/ca.pem"], "holds certificates beside a list"),
        ([], "holds no list of revoked certificates"),
    ],
)
def test_a_list_of_revoked_certificates_is_nothing_else(certs: Path, names: list[str], words: str) -> None:
    wrong = "".join((certs / name).read_text() for name in names)
    with serve(Echo(), tls=pair(certs, "edge", revoked=True)) as server:
        (certs / "revoked.pem").write_text(wrong)
        with pytest.raises(LocalProtocolError, match=rf"revoked\.pem' {words}"):
            server.reload_certificates()
        works(server, pair(certs, "camera-1"))
        with pytest.raises(WireError):
            dial(server, pair(certs / "stranger", "camera-1"))
    for read in (pair(certs, "edge", revoked=True).client_context, pair(certs, "edge", revoked=True).server_context):
        with pytest.raises(LocalProtocolError, match=rf"revoked\.pem' {words}"):
            read()


def test_a_list_is_no_authority(certs: Path) -> None:
    tls = TLS(ca=certs / "revoked.pem")
    with pytest.raises(LocalProtocolError, match=r"revoked\.pem' holds no certificates"):
        tls.client_context()


def test_a_server_without_files_has_nothing_to_reload() -> None:
    with serve(Echo()) as server, pytest.raises(LocalProtocolError, match="no certificate files"):
        server.reload_certificates()


def test_no_session_is_resumed_past_the_check_of_a_certificate(certs: Path) -> None:
    with serve(Echo(), tls=pair(certs, "edge")) as server, dial(server, pair(certs, "camera-1")) as client:
        client.request(b"x", timeout=30)
        sock = client._exchange._stream._socket
        assert isinstance(sock, ssl.SSLSocket)
        assert sock.session is None or not sock.session.has_ticket


def test_readmit_has_clients_come_again_without_losing_an_answer(certs: Path) -> None:
    echo = Echo()
    with serve(echo, tls=pair(certs, "edge")) as server, dial(server, pair(certs, "camera-1")) as client:
        pending = client.submit(b"held", timeout=30)
        eventually(lambda: echo.answered == 1)
        server.readmit()
        eventually(lambda: all(one._drain_end is not None for one in server._service.peers))
        echo.gate.set()
        assert pending.result() == b"held"
        assert client.closed, "it was told goodbye"
        works(server, pair(certs, "camera-1"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"certificate": "edge.pem"}, "without its key"),
        ({"key": "edge.key"}, "without its certificate"),
        ({"revoked": "revoked.pem"}, "without ca"),
        ({"ca": "missing.pem"}, "cannot be read"),
    ],
)
def test_what_cannot_be_certificates(certs: Path, names: dict[str, str], words: str) -> None:
    with pytest.raises(LocalProtocolError, match=words):
        TLS(**{name: certs / value for name, value in names.items()})


@pytest.mark.parametrize(
    "names",
    [
        {"certificate": "edge.pem", "key": "camera-1.key"},
        {"certificate": "edge.key", "key": "edge.key"},
        {"ca": "edge.key"},
        {"ca": "ca.pem", "revoked": "edge.key"},
    ],
)
def test_files_that_hold_something_else(certs: Path, names: dict[str, str]) -> None:
    tls = TLS(**{name: certs / value for name, value in names.items()})
    with pytest.raises(LocalProtocolError, match="PEM"):
        tls.client_context()


def test_a_server_needs_a_certificate(certs: Path) -> None:
    with pytest.raises(LocalProtocolError, match="compoff certs"):
        serve(Echo(), tls=TLS(ca=certs / "ca.pem"))


def test_tls_garbage_leaves_a_good_device_alone(certs: Path) -> None:
    with serve(Echo(), tls=pair(certs, "edge")) as server:
        host, port = server.address.split(":")
        for garbage in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), b"GET / HTTP/1.1\r\n\r\n", b""):
            with socket.create_connection((host, int(port)), timeout=30) as stranger:
                stranger.sendall(garbage)
                works(server, pair(certs, "camera-1"))


def test_without_cryptography_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from compoff.errors import BackendError\n"
        "try:\n    import compoff.operations.certificates\n"
        "except BackendError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "compoff[tls]" in done.stdout


def test_the_log_names_the_device(certs: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "compoff.serve")
    with serve(Echo(), tls=pair(certs, "edge"), token="right") as server:
        with pytest.raises(AuthenticationError):
            open_client(server.address, [ID], tls=pair(certs, "camera-2").client_context(), token="wrong")
        works_with = open_client(server.address, [ID], tls=pair(certs, "camera-1").client_context(), token="right")
        works_with.close()
    assert any("camera-2" in record.message and "token" in record.message for record in caplog.records)
