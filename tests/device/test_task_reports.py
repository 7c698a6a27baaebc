"""Whose report is `AsyncRemote.last`: of this task's last answer, however it is awaited, or an error."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from compoff.device.connecting import connect_async
from compoff.edge.server import serve
from compoff.errors import CompoffError, LocalProtocolError, RemoteError
from tests.device.stand_in import StandIn, Tail

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from compoff.device.async_remote import AsyncRemote


class Backwards(Tail):
    """Answers the longest payload first, none that begins with 99, and one that begins with 98 when it is let go."""

    let_go = threading.Event()

    def answer(self, payload: bytes) -> bytes:
        if payload[0] == 99:
            raise ValueError("99")
        if payload[0] == 98:
            self.let_go.wait(30)
        return super().answer(bytes([2 * (8 - len(payload))]))


def word(size: int) -> np.ndarray[Any, Any]:
    return np.zeros(size, np.uint8)


def run(work: Callable[[AsyncRemote], Awaitable[Any]]) -> Any:
    async def main(address: str) -> Any:
        async with await connect_async(StandIn(), address) as remote:  # type: ignore[arg-type]
            return await work(remote)

    with serve(Backwards(), workers=8) as server:
        return asyncio.run(main(server.address))


def sent(remote: AsyncRemote) -> int | None:
    return None if remote.last is None else remote.last.payload_bytes


def as_it_is(call: Awaitable[Any]) -> Awaitable[Any]:
    return call


def in_time(call: Awaitable[Any]) -> Awaitable[Any]:
    return asyncio.wait_for(call, 5)


@pytest.mark.parametrize("wrap", [as_it_is, in_time, asyncio.ensure_future])
def test_a_task_reads_the_report_of_its_own_call(wrap: Callable[[Any], Awaitable[Any]]) -> None:
    async def main(remote: AsyncRemote) -> list[int | None]:
        async def one(size: int) -> int | None:
            before = sent(remote)
            assert before is None, "that of the task around it is not its own"
            await wrap(remote(word(size)))
            return sent(remote)

        await remote(word(7))
        assert sent(remote) == 7
        found = await asyncio.gather(*(one(size) for size in (1, 2, 3, 4)))
        assert sent(remote) == 7
        return found

    assert run(main) == [1, 2, 3, 4]


def test_the_task_that_awaits_a_call_of_another_reads_its_report_too() -> None:
    async def main(remote: AsyncRemote) -> list[int | None]:
        async def wait(call: Awaitable[Any]) -> int | None:
            await call
            return sent(remote)

        return await asyncio.gather(*(wait(remote(word(size))) for size in (1, 2, 3)))

    assert run(main) == [1, 2, 3]


def test_where_any_of_several_could_be_meant_it_is_an_error() -> None:
    async def main(remote: AsyncRemote) -> None:
        first, second = asyncio.ensure_future(remote(word(6))), asyncio.ensure_future(remote(word(1)))
        await first
        with pytest.raises(LocalProtocolError, match="several calls of this task were under way at once"):
            _ = remote.last
        await second
        with pytest.raises(LocalProtocolError, match="several calls"):
            _ = remote.last
        await remote(word(4))
        assert sent(remote) == 4

    run(main)


def test_a_call_without_an_answer_leaves_the_last_as_it_was() -> None:
    async def main(remote: AsyncRemote) -> None:
        await remote(word(3))
        with pytest.raises(RemoteError):
            await remote(np.full(5, 99, np.uint8))
        assert sent(remote) == 3
        with pytest.raises((asyncio.TimeoutError, CompoffError)):
            await asyncio.wait_for(remote(np.full(1, 98, np.uint8)), 0.001)
        assert sent(remote) == 3
        Backwards.let_go.set()

    run(main)


def test_outside_of_tasks_the_thread_counts() -> None:
    async def main(remote: AsyncRemote) -> list[int | None]:
        loop = asyncio.get_running_loop()

        def ask(size: int) -> int | None:
            asyncio.run_coroutine_threadsafe(remote(word(size)), loop).result(60)
            return sent(remote)

        with ThreadPoolExecutor(3) as pool:
            return await asyncio.gather(*(loop.run_in_executor(pool, ask, size) for size in (1, 2, 3)))

    assert run(main) == [1, 2, 3]
