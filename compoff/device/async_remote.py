"""connect_async() and AsyncRemote: the asyncio twin of ``remote``, for the tasks of one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from compoff.device.breaker import Stall
from compoff.device.caller import Caller
from compoff.device.edge import ATTEMPTS, refused, worth_repeating
from compoff.device.fallback import not_answered, reserve
from compoff.device.local_runs import LocalRuns
from compoff.device.planner import Choice
from compoff.device.statistics import Tally
from compoff.device.task_reports import TaskReports
from compoff.device.timing import Estimate, Patience, RetryBudget
from compoff.errors import (
    ConnectionLost,
    PayloadError,
    ReadTimeout,
    RemoteError,
    RemoteProtocolError,
    ServerBusy,
    WireError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from typing_extensions import Self

    from compoff.coding import Coding
    from compoff.device.answers import CallReport, Heads
    from compoff.device.async_link import AsyncLink
    from compoff.device.calls import Call
    from compoff.device.fallback import OnFailure
    from compoff.device.planner import Planner
    from compoff.device.task_reports import Desk
    from compoff.errors import CompoffError
    from compoff.partition.decide import Plan
    from compoff.wire.async_client import AsyncClient
    from compoff.wire.protocol import Answer

__all__ = ["AsyncRemote"]


class AsyncRemote(Caller["AsyncLink"]):
    """The asyncio twin of `Remote`; `connect_async` makes it.

    Many calls may be in flight at once; the head and a local model run in threads, so that the event loop stays free.

    Examples:
        >>> import asyncio, torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(2048, 5))
        >>> model = compoff.wrap(net, "input", example_input=torch.zeros(2, 3, 16, 16))
        >>> head, tail = compoff.export(model, "input")
        >>> async def main(address):
        ...     async with await compoff.connect_async(head, address) as remote:
        ...         return (await remote(torch.zeros(1, 3, 16, 16))).shape
        >>> with compoff.serve(tail) as server:
        ...     asyncio.run(main(server.address))
        torch.Size([1, 5])

    Source: DeepCOD (SenSys 2020), Sec. 4.2.
    """

    _elsewhere = "call compoff.connect_async there, with what compoff.Head.load returns"

    def __init__(
        self,
        heads: Heads,
        link: AsyncLink,
        timeout: float,
        on_failure: OnFailure,
        whole: Sequence[Callable[..., Any]] | None,
        planner: Planner | None,
    ) -> None:
        hedges = on_failure == "hedge"
        super().__init__(heads, link, Tally(), timeout, planner, whole=whole is not None, hedges=hedges)
        self._reports = TaskReports()
        self._local_seconds = Estimate(warm_up=True)
        self._runs = LocalRuns(whole, self._local_seconds) if whole is not None else None
        self._budget = RetryBudget()
        self._patience = Patience()
        self._stalls: defaultdict[int, Stall] = defaultdict(Stall)
        # At the end of the process the loop is over, and its connections with it.
        weakref.finalize(self._grip, link.drop).atexit = False

    @property
    def last(self) -> CallReport | None:
        """Where this task's last answer came from, and its time and bytes went; None before the first.

        A call belongs to the task that makes it, also through ``asyncio.wait_for`` or ``asyncio.create_task``, and to
        the one that awaits it.

        Raises:
            LocalProtocolError: Several calls of this task were under way at once, so that any of them could be meant.

        Examples:
            >>> async def ask(remote, x):
            ...     return await remote(x), remote.last  # each task of a gather has its own
        """
        return self._reports.last

    async def profile(self, *inputs: Any, timeout: float | None = None, **keywords: Any) -> tuple[Plan, ...]:
        """Measure every way on these inputs.

        Args:
            *inputs: As for `Remote`.
            timeout: As for `Remote`.
            **keywords: As for `Remote`.

        Returns:
            The `plans` then.

        Raises:
            LocalProtocolError: This remote has no goal, or an option of a call was given.
            WireError: As for a call.
        """
        for call, stays in self._trials(inputs, keywords, timeout):
            await self._finish(call, stays, self._reports.here())
        return self.plans

    def __call__(
        self,
        *inputs: Any,
        split: str | None = None,
        quality: int | None = None,
        max_bytes: int | None = None,
        coding: Coding | None = None,
        timeout: float | None = None,
        **keywords: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Run the model: its head here, its tail on the edge.

        Args:
            *inputs: As for `Remote`.
            split: As for `Remote`.
            quality: As for `Remote`.
            max_bytes: As for `Remote`.
            coding: As for `Remote`.
            timeout: As for `Remote`.
            **keywords: As for `Remote`.

        Returns:
            Await it for what the model would have returned; `last` says where it came from.

        Raises:
            WireError: As for `Remote`.
        """
        maker = self._reports.here()  # which is not the task that runs the rest, where that is ``asyncio.wait_for``'s

        async def answer() -> Any:
            call, stays = self._call(inputs, keywords, Choice(split, quality), max_bytes, coding, timeout)
            return await self._finish(call, stays, maker)

        return answer()

    async def _finish(self, call: Call, stays: str | None, maker: Desk) -> Any:
        """Have a call answered and count it; by the device alone where there is a reason that it stays."""
        self._link.check_loop()
        desks = {maker, self._reports.here()}
        with contextlib.ExitStack() as stack:
            for desk in desks:
                stack.enter_context(desk.call())
            output, report = await self._counted(call, stays)
            for desk in desks:
                desk.take(report)
        return output

    async def _counted(self, call: Call, stays: str | None) -> tuple[Any, CallReport]:
        asked = self._asks(stays)
        with self._failures(call, asked=asked):
            answer = self._answer(call) if stays is None else self._in_time(call, self._on_device(call, stays))
            output, report = await answer
        self._answered(report, asked=asked)
        return output, report

    async def _answer(self, call: Call) -> tuple[Any, CallReport]:
        if self._runs is None:
            return await self._from_edge(call, self._encode(call, call.deadline), call.deadline)
        breaker = self._link.breaker
        if not breaker.closed:
            return await self._in_time(call, self._on_device(call, breaker.reason or "the edge cannot be reached"))
        if self._hedges:
            return await self._race(call)
        stall = self._stalls[call.route]
        if not stall.asks(time.monotonic(), call.timeout):
            return await self._on_device(call, stall.reason)
        try:
            latest = self._latest(call)
            return await self._from_edge(call, self._encode(call, latest), latest)
        except (WireError, PayloadError) as error:
            if self._link.closed:
                raise
            return await self._on_device(call, str(error))

    async def _race(self, call: Call) -> tuple[Any, CallReport]:
        """The edge; beside it the device, from when the edge takes longer than it mostly does. The first wins."""
        body = asyncio.ensure_future(self._encode(call, call.deadline))
        edge = asyncio.ensure_future(self._from_edge(call, body, call.deadline))
        running: set[asyncio.Future[tuple[Any, CallReport]]] = {edge}
        try:
            patience = self._patience.seconds(call.timeout)
            latest = self._latest(call)
            await _until(body, latest)
            await _until(edge, min(latest, call.after_encoded(patience)))
            if edge.done() and (error := edge.exception()) is not None:
                running = set()
                if self._link.closed or not isinstance(error, (WireError, PayloadError)):
                    raise error
                reason = str(error)
            elif edge.done():
                return edge.result()
            else:
                late = "the head had not ended in time for the edge"
                reason = late if call.payload is None else not_answered(patience)
                self._tally.hedged()
                if call.payload is not None:
                    self._patience.missed()
            running.add(asyncio.ensure_future(self._on_device(call, reason, beside=bool(running))))
            return await self._first(call, running)
        finally:
            for one in (body, *running):
                one.add_done_callback(_seen)
                one.cancel()

    async def _first(self, call: Call, running: set[asyncio.Future[tuple[Any, CallReport]]]) -> tuple[Any, CallReport]:
        """The first that answers; the last error where all fail."""
        waiting = set(running)
        while True:
            left = max(0.0, call.deadline - time.monotonic())
            done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for one in sorted(done, key=lambda one: one.exception() is not None):
                if one.exception() is None or not waiting:
                    return one.result()
            if not done:
                raise ReadTimeout(f"neither the edge nor the device answered within {call.timeout:g} s")

    async def _in_time(self, call: Call, local: Awaitable[tuple[Any, CallReport]]) -> tuple[Any, CallReport]:
        """Only a hedged call is cut off while the device computes: a local one is always answered."""
        if not self._hedges:
            return await local
        try:
            return await asyncio.wait_for(local, max(0.0, call.deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise ReadTimeout(f"the device did not answer within {call.timeout:g} s") from None

    async def _on_device(self, call: Call, reason: str, *, beside: bool = False) -> tuple[Any, CallReport]:
        if self._runs is None:
            raise RuntimeError("there is no whole model on this device")
        call.check()
        self._link.check_open(under_way=True)
        started = time.perf_counter()
        run = self._runs.submit(call, hurry=self._hedges)
        try:
            output = await asyncio.wrap_future(run)
        except asyncio.CancelledError:
            if run.cancelled():  # by ``close``, or with this task
                self._link.check_open(under_way=True)
            raise
        return output, call.from_device(reason, started, time.perf_counter(), beside=beside)

    def _latest(self, call: Call) -> float:
        """The last moment to turn to the device, so that it ends by the deadline if it can at all."""
        return call.deadline - reserve(self._local_seconds, call.timeout)

    async def _encode(self, call: Call, until: float) -> bytes:
        seconds = call.left(until)
        try:
            made = await asyncio.wait_for(asyncio.to_thread(call.run_head), seconds)
        except asyncio.TimeoutError:
            raise call.late() from None
        return call.take(*made)

    async def _from_edge(self, call: Call, encoded: Awaitable[bytes], until: float) -> tuple[Any, CallReport]:
        body = await encoded
        client = await self._link.connection(until, ATTEMPTS)
        try:
            answer = await self._ask(call, client, body, until)
        except (ConnectionLost, RemoteProtocolError) as error:
            answer = await self._once_more(call, body, error, until)
        self._patience.add(call.since_encoded)
        self._budget.earn()
        try:
            settled = call.from_edge(answer.body, answer.server_seconds)
        except RemoteProtocolError as error:
            self._refused(call, error)
            raise
        self._stalls[call.route].answered()
        return settled

    def _refused(self, call: Call, error: CompoffError) -> None:
        refused(self._stalls[call.route], call, error, self._link.level)

    async def _once_more(self, call: Call, body: bytes, error: CompoffError, until: float) -> Answer:
        """Send again over a fresh connection: the tail changes nothing by answering, so it may do so twice."""
        link = self._link
        if not worth_repeating(link, self._budget, until):
            raise error
        call.retried, call.reason = True, str(error)
        self._tally.retried()
        return await self._ask(call, await link.connection(until, ATTEMPTS), body, until)

    async def _ask(self, call: Call, client: AsyncClient, body: bytes, until: float) -> Answer:
        link = self._link
        seconds = call.left(until)  # where the head took it all, the link is not to blame
        try:
            return await client.ask(body, route=call.route, timeout=seconds, sent=self._tally.sent)
        except (ConnectionLost, RemoteProtocolError) as error:
            link.report(client, error)
            raise
        except ReadTimeout as error:
            first = self._stalls[call.route].unanswered(time.monotonic())
            link.suspect(error, again=not first)
            raise
        except (RemoteError, PayloadError, ServerBusy) as error:
            self._refused(call, error)
            raise
        finally:
            if client is not link.current:
                await link.release(client)

    async def close(self) -> None:
        """Close the connection; calls under way end with ConnectionLost.

        Raises:
            LocalProtocolError: The running event loop is another one.
        """
        if self._link.forked:
            return
        self._link.check_loop()
        if self._runs is not None:
            self._runs.close()
        await self._link.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _seen(future: asyncio.Future[Any]) -> None:
    """Look at how a future ended that nobody awaits any more, or asyncio logs a traceback."""
    if not future.cancelled():
        future.exception()


async def _until(future: asyncio.Future[Any], moment: float) -> None:
    """Wait for a future, until a moment of ``time.monotonic()``; it goes on."""
    await asyncio.wait([future], timeout=max(0.0, moment - time.monotonic()))
