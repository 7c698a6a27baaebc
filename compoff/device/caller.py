"""What the blocking and the asyncio remote share: a call is made of what was asked, and what became of it counted.

How a call is answered is for ``remote`` and ``async_remote``.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from compoff.device.calls import Call
from compoff.device.planner import Choice, check_profiled, no_goal
from compoff.errors import FeatureError, ReadTimeout
from compoff.pickling import Unpickled
from compoff.wire.sockets import check_timeout

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from compoff.coding import Coding
    from compoff.device.answers import CallReport, Heads
    from compoff.device.async_link import AsyncLink
    from compoff.device.link import Link
    from compoff.device.planner import Planner
    from compoff.device.statistics import RemoteStats, Tally
    from compoff.partition.decide import Plan

__all__ = ["Caller", "Grip"]

LinkT = TypeVar("LinkT", bound="Link | AsyncLink")


class Grip:
    """What a remote and its copies hold together: with the last of them it goes, and the connection after it."""

    __slots__ = ("__weakref__",)


class Caller(Unpickled, Generic[LinkT]):
    """A remote, but for the way to an answer.

    Args:
        heads: The heads.
        link: The connection.
        tally: Where calls are counted.
        timeout: Deadline of calls that name none, in seconds.
        planner: What chooses the way of calls that name none; None without a goal.
        whole: Whether the whole model can run on this device.
        hedges: Whether it may do so while the edge is still being waited for.

    Source: this project.
    """

    def __init__(
        self,
        heads: Heads,
        link: LinkT,
        tally: Tally,
        timeout: float,
        planner: Planner | None,
        *,
        whole: bool,
        hedges: bool,
    ) -> None:
        self.timeout = timeout
        self._heads = heads
        self._link = link
        self._tally = tally
        self._planner = planner
        self._whole = whole
        self._hedges = hedges
        # A remote that nobody holds any more, nor a copy of it, takes its connection with it.
        self._grip = Grip()

    @property
    def stats(self) -> RemoteStats:
        """What all calls of this remote came to so far, and whether the edge answers now."""
        link = self._link
        link.check_made_here()
        return self._tally.snapshot(
            connections=link.opened,
            reachable=link.breaker.closed,
            reason=link.breaker.reason,
            round_trip=link.round_trip.mean,
        )

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Every way to answer a call with what it is expected to take now, the fastest first; none without a goal."""
        if self._planner is None:
            return ()
        self._link.check_made_here()
        return self._planner.plans(self._link.last_round_trip)

    @property
    def plan(self) -> Plan | None:
        """The way that the goal prefers now; None without a goal."""
        if self._planner is None:
            return None
        self._link.check_made_here()
        return self._planner.plan(self._link.last_round_trip)

    def _call(
        self,
        inputs: tuple[Any, ...],
        keywords: dict[str, Any],
        choice: Choice,
        max_bytes: int | None = None,
        coding: Coding | None = None,
        timeout: float | None = None,
    ) -> tuple[Call, str | None]:
        """A call that begins now, and why the edge is not asked; None where it is.

        A choice of nothing is made by the planner, where there is one.
        """
        link, planner = self._link, self._planner
        link.check_open()
        with self._tally.failures():  # what is refused has ended, too
            seconds = check_timeout(self.timeout if timeout is None else timeout)
            if planner is not None and choice.stays is None:
                made = planner.choose(choice.split, choice.quality, link.last_round_trip, link.opened, max_bytes)
                choice = made._replace(coding=choice.coding or made.coding)
            route, head = self._heads.choose(choice.split)
        free = coding is None and max_bytes is not None  # what a goal chose gives way before the quality does
        coding, quality, form = choice.coding if coding is None else coding, choice.quality, self._heads.form
        call = Call(head, route, inputs, keywords, quality, max_bytes, coding, seconds, form, or_shortest=free)
        return call, choice.stays

    def _trials(
        self, inputs: tuple[Any, ...], keywords: dict[str, Any], timeout: float | None
    ) -> Iterator[tuple[Call, str | None]]:
        """The calls that a profile takes, each of which begins when it is asked for.

        Raises:
            LocalProtocolError: There is no goal, or an option of a call was given.
        """
        if self._planner is None:
            raise no_goal()
        check_profiled(keywords)
        for choice in self._planner.trials():
            yield self._call(inputs, keywords, choice, timeout=timeout)

    def _asks(self, stays: str | None) -> bool:
        """Whether the edge is to answer a call: not where the device does at once, by choice or since it is away."""
        return stays is None and (not self._whole or self._link.breaker.closed)

    @contextlib.contextmanager
    def _failures(self, call: Call, *, asked: bool) -> Generator[None]:
        """Count the call in the block where it ends with an error; unless its inputs are to blame, its way is, too."""
        try:
            with self._tally.failures():
                yield
        except FeatureError:
            raise
        except Exception as error:
            if self._planner is not None:
                self._planner.failed(call, asked=asked, late=isinstance(error, ReadTimeout))
            raise

    def _answered(self, report: CallReport, *, asked: bool) -> None:
        """Count an answered call."""
        self._tally.answered(report)
        if self._planner is not None:
            self._planner.answered(report, asked=asked, hedged=self._hedges)
