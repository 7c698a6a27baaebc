"""Whose last report is whose, among the tasks of one event loop: what ``threading.local`` is to the blocking remote."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from typing import TYPE_CHECKING

from compoff.errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Generator

    from compoff.device.answers import CallReport

__all__ = ["Desk", "TaskReports"]


class TaskReports:
    """The report of each task's last answer.

    A call's report goes to the task that made the call and to the one that ran it: ``asyncio.wait_for`` and
    ``asyncio.ensure_future`` run in a task of their own what another one has made and awaits.

    Source: this project.
    """

    def __init__(self) -> None:
        """Start without any."""
        self._desks: weakref.WeakKeyDictionary[object, Desk] = weakref.WeakKeyDictionary()

    def here(self) -> Desk:
        """The desk of the task that asks; outside of tasks, of its thread."""
        return self._desks.setdefault(_asker(), Desk())

    @property
    def last(self) -> CallReport | None:
        """The report of the last answer of the task that asks; None before the first.

        Raises:
            LocalProtocolError: Others of its calls were under way meanwhile, so that nobody knows which one is meant.
        """
        desk = self._desks.get(_asker())
        return None if desk is None else desk.last


class Desk:
    """Where the reports of one task's calls arrive.

    Source: this project.
    """

    def __init__(self) -> None:
        """Start without a report."""
        self._report: CallReport | None = None
        self._mixed = False  # whether the report's call was not the only one then
        self._under_way = 0
        self._crowded = False  # whether those under way were ever more than one

    @property
    def last(self) -> CallReport | None:
        """The report of the last answer; None before the first.

        Raises:
            LocalProtocolError: Its call was not the only one under way.
        """
        if self._mixed:
            raise LocalProtocolError(
                "several calls of this task were under way at once, so 'last' could be the report of any of them; read "
                "it in the task that awaits the call: async def ask(x): return await remote(x), remote.last"
            )
        return self._report

    @contextlib.contextmanager
    def call(self) -> Generator[None]:
        """A call is under way in the block."""
        self._crowded = self._under_way > 0
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def take(self, report: CallReport) -> None:
        """Keep the report of a call that is under way, and has its answer."""
        self._report, self._mixed = report, self._crowded


def _asker() -> object:
    with contextlib.suppress(RuntimeError):  # no event loop runs in this thread
        task = asyncio.current_task()
        if task is not None:
            return task
    return threading.current_thread()
