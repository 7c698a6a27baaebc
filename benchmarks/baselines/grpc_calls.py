"""gRPC without protobuf messages: bytes as they are. Unary calls, and one bidirectional stream that stays open."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc

from benchmarks.baselines.interface import Running, System, answer_to

if TYPE_CHECKING:
    import contextlib
    from collections.abc import AsyncIterator, Callable, Iterator


def start_unary() -> Running:
    """The synchronous server with a pool of threads, as gRPC's own guide begins."""
    server = grpc.server(ThreadPoolExecutor(4))
    handler = grpc.unary_unary_rpc_method_handler(lambda body, _: answer_to(body))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", {"ask": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return Running(f"127.0.0.1:{port}", lambda: server.stop(0).wait())


def connect_unary(stack: contextlib.ExitStack, address: str) -> Callable[[bytes], bytes]:
    """One call a question."""
    return stack.enter_context(grpc.insecure_channel(address)).unary_unary("/bench/ask")


async def _answers(questions: AsyncIterator[bytes], _: object) -> AsyncIterator[bytes]:
    async for body in questions:
        yield answer_to(body)


def start_stream() -> Running:
    """The asyncio server, in a thread of its own."""
    started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def main() -> None:
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(_answers)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", {"ask": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stop = asyncio.Event()
        started.set_result((f"127.0.0.1:{port}", asyncio.get_running_loop(), stop))
        await stop.wait()
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    address, loop, stop = started.result()
    return Running(address, lambda: (loop.call_soon_threadsafe(stop.set), thread.join(5)))


def connect_stream(stack: contextlib.ExitStack, address: str) -> Callable[[bytes], bytes]:
    """One stream for all questions."""
    questions: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def sent() -> Iterator[bytes]:
        while (body := questions.get()) is not None:
            yield body

    answers = stack.enter_context(grpc.insecure_channel(address)).stream_stream("/bench/ask")(sent())
    stack.callback(questions.put, None)

    def ask(body: bytes) -> bytes:
        questions.put(body)
        return next(answers)

    return ask


SYSTEMS = [
    System("gRPC, bidirectional stream", start_stream, connect_stream),
    System("gRPC, unary", start_unary, connect_unary),
]
