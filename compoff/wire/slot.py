"""Where one answer will be, for the thread that waits for it. Knows no connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading

    from compoff.errors import CompoffError

__all__ = ["Slot"]


class Slot:
    """Where one answer will be; guarded by the lock of its exchange.

    Args:
        request_id: The request that it answers.
        timeout: Seconds the caller gave it.
        deadline: Moment of ``time.monotonic()`` at which nobody waits any more.

    Source: this project.
    """

    __slots__ = ("body", "deadline", "done", "error", "event", "request_id", "server_seconds", "timeout")

    def __init__(self, request_id: int, timeout: float, deadline: float) -> None:
        """Start unanswered."""
        self.request_id = request_id
        self.timeout = timeout
        self.deadline = deadline
        self.done = False
        self.body = b""
        self.server_seconds = 0.0
        self.error: CompoffError | None = None
        self.event: threading.Event | None = None  # there only while a thread waits and another one reads

    def settle(self, body: bytes = b"", error: CompoffError | None = None, server_seconds: float = 0.0) -> None:
        """Set the outcome and wake who waits for it."""
        self.body, self.error, self.server_seconds, self.done = body, error, server_seconds, True
        self.wake()

    def wake(self) -> bool:
        """Wake who waits, if anyone does."""
        event, self.event = self.event, None
        if event is not None:
            event.set()
        return event is not None
