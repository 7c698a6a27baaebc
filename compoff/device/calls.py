"""One call on its way: what it was given, until when, and what became of it. Knows no connection."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from compoff.device.answers import CallReport, restore
from compoff.errors import ReadTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from compoff.coding import Coding, Payload
    from compoff.device.sender import Sender
    from compoff.wire.replies import ReplyForm

__all__ = ["Call"]


class Call:
    """One call.

    Args:
        head: The head to run.
        route: Its number on the wire.
        inputs: What the model takes.
        keywords: What it takes by name.
        quality: Index of the quality; None for the export's default.
        max_bytes: Most bytes that the payload may have; None for no limit.
        coding: How the payload is coded; None for the head's default.
        timeout: Seconds that the caller gave it.
        form: The form in which its answer comes.
        or_shortest: Whether the payload takes the shortest coding before `max_bytes` lowers its quality.
    """

    __slots__ = (
        "_encoded",
        "_head_began",
        "begin",
        "coding",
        "deadline",
        "form",
        "head",
        "inputs",
        "keywords",
        "max_bytes",
        "or_shortest",
        "payload",
        "quality",
        "reason",
        "retried",
        "route",
        "timeout",
    )

    def __init__(
        self,
        head: Sender,
        route: int,
        inputs: tuple[Any, ...],
        keywords: dict[str, Any],
        quality: int | None,
        max_bytes: int | None,
        coding: Coding | None,
        timeout: float,
        form: ReplyForm,
        *,
        or_shortest: bool = False,
    ) -> None:
        """Start the clock."""
        self.begin = time.perf_counter()  # times are told by this clock: that of deadlines may move in steps of 16 ms
        self.head = head
        self.route = route
        self.inputs = inputs
        self.keywords = keywords
        self.quality = quality
        self.max_bytes = max_bytes
        self.coding: Coding | None = coding
        self.timeout = timeout
        self.form = form
        self.or_shortest = or_shortest
        self.deadline = time.monotonic() + timeout
        self.payload: Payload | None = None
        self._head_began = self._encoded = self.begin
        self.reason: str | None = None
        self.retried = False

    def encode(self) -> bytes:
        """Run the head.

        Returns:
            The bytes to send.

        Raises:
            FeatureError: The head cannot take the inputs.
        """
        return self.take(*self.run_head())

    def run_head(self) -> tuple[Payload, Coding | None]:
        """What the head makes of the inputs, and how that is coded.

        Raises:
            FeatureError: The head cannot take the inputs.
        """
        self._head_began = time.perf_counter()  # perhaps long after an asyncio call: a thread has to be free
        if self.coding is None or not self.or_shortest:
            return self.head(*self.inputs, **self._options, **self.keywords), self.coding
        codings: tuple[Coding, Coding] = (self.coding, "range")
        payload, taken = self.head.coded(self.inputs, self.keywords, self.quality, self.max_bytes, codings)
        return payload, None if taken == "range" else taken

    def run_whole(self, models: Sequence[Callable[..., Any]]) -> Any:
        """What the whole model makes of the inputs.

        Args:
            models: It, as each head's calls call it.
        """
        return models[self.route](*self.inputs, **self.keywords)

    def check(self) -> None:
        """Refuse what the head would refuse, before the whole model answers in its place.

        Raises:
            FeatureError: The head cannot take the inputs.
        """
        if self.payload is None:  # else it has taken them
            self.head.check(*self.inputs, **self._options, **self.keywords)

    @property
    def _options(self) -> dict[str, Any]:
        given = {"max_bytes": self.max_bytes, "coding": self.coding}
        return {"quality": self.quality, **{name: value for name, value in given.items() if value is not None}}

    def take(self, payload: Payload, coding: Coding | None) -> bytes:
        """Note what the head made, and when; return what travels."""
        self.payload, self.coding = payload, coding
        self._encoded = time.perf_counter()
        return bytes(payload)

    @property
    def since_encoded(self) -> float:
        """Seconds since the head's payload was there, or since the call began where there is none."""
        return time.perf_counter() - self._encoded

    def after_encoded(self, seconds: float) -> float:
        """The moment of ``time.monotonic()`` so many seconds after that, since the head's time is not the edge's."""
        return time.monotonic() + seconds - self.since_encoded

    @property
    def _head_seconds(self) -> float:
        return 0.0 if self.payload is None else self._encoded - self._head_began

    def left(self, until: float) -> float:
        """Seconds until a moment of ``time.monotonic()``.

        Raises:
            ReadTimeout: It has come.
        """
        seconds = until - time.monotonic()
        if seconds <= 0:
            raise self.late()
        return seconds

    def late(self) -> ReadTimeout:
        """The error of a call whose time is over before anything is sent."""
        return ReadTimeout(
            f"the time for the edge, of this call's {self.timeout:g} s, passed before anything was sent; give the head "
            "more time"
        )

    def from_edge(self, reply: bytes, server_seconds: float) -> tuple[Any, CallReport]:
        """The output in a reply, and the report of the call that ends with it.

        Args:
            reply: The reply's body.
            server_seconds: What the server says it took there.

        Raises:
            RemoteProtocolError: The reply is not what this export's tail answers.
        """
        answered = time.perf_counter()
        payload = cast("Payload", self.payload)  # a reply answers what was sent
        output = restore(self.head, (self.inputs, self.keywords), payload, reply, self.form)
        report = CallReport(
            self.head.split,
            len(payload),
            len(reply),
            self._head_seconds,
            answered - self._encoded,
            time.perf_counter() - self.begin,
            reason=self.reason,
            retried=self.retried,
            server_seconds=server_seconds,
            quality=payload.quality,
            cut=payload.cut,
            coding=self.coding,
        )
        return output, report

    def from_device(self, reason: str, started: float, ended: float, *, beside: bool = False) -> CallReport:
        """The report of a call that ends with an answer of the whole model on this device.

        Args:
            reason: Why it was asked.
            started: When it was, a moment of ``time.perf_counter()``.
            ended: When it had answered.
            beside: Whether the edge was waited for until then.
        """
        payload = self.payload
        return CallReport(
            self.head.split,
            0 if payload is None else len(payload),
            0,
            self._head_seconds,
            0.0 if payload is None else max(0.0, (ended if beside else started) - self._encoded),
            ended - self.begin,
            source="local",
            reason=reason,
            retried=self.retried,
            local_seconds=ended - started,
            quality=None if payload is None else payload.quality,
            cut=payload is not None and payload.cut,
            coding=self.coding,
        )
