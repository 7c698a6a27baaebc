"""A Python that was built without ``ssl``: plain TCP works, TLS is refused in words."""

from __future__ import annotations

import asyncio
import runpy
import sys

import pytest

from compoff.edge.server import serve
from compoff.errors import BackendError, ConnectionLost, LocalProtocolError
from compoff.wire import async_connection, encryption, security, sockets, tls
from compoff.wire.async_client import open_async_client
from compoff.wire.client import open_client
from tests.edge.peers import ID, Echo


@pytest.fixture(autouse=True)
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ssl", None)
    stand_in = runpy.run_path(encryption.__file__)["ssl"]
    for module in (async_connection, encryption, security, sockets, tls):
        monkeypatch.setattr(module, "ssl", stand_in)


def test_plain_tcp_works() -> None:
    async def ask(address: str) -> bytes:
        async with await open_async_client(address, [ID]) as client:
            return await client.request(b"asyncio")

    with serve(Echo()) as server:
        with open_client(server.address, [ID]) as client:
            assert client.request(b"threads", timeout=30) == b"threads"
        assert asyncio.run(ask(server.address)) == b"asyncio"
    with pytest.raises(ConnectionLost, match="start a server there"):
        open_client(server.address, [ID])


def test_tls_is_refused() -> None:
    with pytest.raises(BackendError, match=r"this Python was built without; .* insecure=True"):
        tls.TLS()
    with pytest.raises(BackendError, match="this Python was built without"):
        security.device_tls("edge:7878", None, False)
    assert security.device_tls("edge:7878", None, True) is None
    with pytest.raises(LocalProtocolError, match="tls is a bool"):
        security.device_tls("edge:7878", True, False)  # type: ignore[arg-type]
