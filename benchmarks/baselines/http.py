"""FastAPI under uvicorn, with its fast parser and loop; asked by httpx, and by the client of the standard library."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from typing import TYPE_CHECKING

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.baselines.interface import Running, System, answer_to

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable


async def _answer(request: Request) -> Response:
    return Response(answer_to(await request.body()), media_type="application/octet-stream")


def start() -> Running:
    """Uvicorn in a thread."""
    app = FastAPI()
    app.add_api_route("/ask", _answer, methods=["POST"])
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", access_log=False, loop="uvloop", http="httptools")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)

    def close() -> None:
        server.should_exit = True
        thread.join(5)

    return Running(f"127.0.0.1:{listener.getsockname()[1]}", close)


def connect_httpx(stack: contextlib.ExitStack, address: str) -> Callable[[bytes], bytes]:
    """A client of httpx, which keeps its connection."""
    client = stack.enter_context(httpx.Client(base_url=f"http://{address}"))
    return lambda body: client.post("/ask", content=body).content


def connect_http_client(stack: contextlib.ExitStack, address: str) -> Callable[[bytes], bytes]:
    """``http.client``: less to use, and less to wait for."""
    connection = http.client.HTTPConnection(address)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stack.callback(connection.close)

    def ask(body: bytes) -> bytes:
        connection.request("POST", "/ask", body)
        return connection.getresponse().read()

    return ask


SYSTEMS = [
    System("FastAPI and uvicorn, http.client", start, connect_http_client),
    System("FastAPI and uvicorn, httpx", start, connect_httpx),
]
