"""The model as the device sees it. Runs a head, sends its bytes, returns what the model would.

Every call ends by its deadline with the right answer or an error; what is answered from anywhere else says so.
"""

from __future__ import annotations

import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from compoff.device.aside import aside
from compoff.device.caller import Caller
from compoff.device.edge import Edge
from compoff.device.fallback import Hedge
from compoff.device.planner import Choice

if TYPE_CHECKING:
    from typing_extensions import Self

    from compoff.coding import Coding
    from compoff.device.answers import CallReport, Heads
    from compoff.device.calls import Call
    from compoff.device.fallback import Fallback
    from compoff.device.link import Link
    from compoff.device.planner import Planner
    from compoff.device.statistics import Tally
    from compoff.partition.decide import Plan

__all__ = ["Remote", "close"]

_CLOSED_WITHIN = 2.0  # seconds; mostly milliseconds


class Remote(Caller["Link"]):
    """A model whose tail runs elsewhere. `connect` makes it; threads may share it.

    Examples:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(2048, 5))
        >>> x = torch.randn(2, 3, 16, 16)
        >>> model = compoff.wrap(net, "input", example_input=x)
        >>> head, tail = compoff.export(model, "input")
        >>> with tail.serve("127.0.0.1:0") as server, head.connect(server.address) as remote:
        ...     y = remote(x)
        >>> y.shape, remote.last.source, remote.last.payload_bytes
        (torch.Size([2, 5]), 'edge', ...)

    Source: DeepCOD (SenSys 2020), Sec. 4.2.
    """

    _elsewhere = "call compoff.connect there, with what compoff.Head.load returns"

    def __init__(
        self,
        heads: Heads,
        link: Link,
        tally: Tally,
        fallback: Fallback | None,
        timeout: float,
        planner: Planner | None,
    ) -> None:
        hedges = isinstance(fallback, Hedge)
        super().__init__(heads, link, tally, timeout, planner, whole=fallback is not None, hedges=hedges)
        self._fallback = fallback
        self._edge = fallback.edge if fallback is not None else Edge(link, tally)
        self._report = threading.local()
        # The last holder may go in any thread, wherever that is: what the collector interrupts may hold the locks.
        self._finalizer = weakref.finalize(self._grip, aside, partial(close, link, fallback), 0.0)

    @property
    def address(self) -> str:
        """The server's address, as it was given."""
        return self._link.address

    @property
    def last(self) -> CallReport | None:
        """Where this thread's last answer came from, and its time and bytes went; None before the first."""
        return getattr(self._report, "last", None)

    def profile(self, *inputs: Any, timeout: float | None = None, **keywords: Any) -> tuple[Plan, ...]:
        """Measure every way on these inputs: each head at its lowest and highest quality, each tail, the whole model.

        A head that has context models runs with them and without. Without a profile a remote with a goal learns the
        same in its first calls, but for the time of the whole model.

        Args:
            *inputs: What the model takes, as for a call.
            timeout: Deadline of each call, in seconds; None for the remote's own.
            **keywords: What the model takes by name.

        Returns:
            The `plans` then.

        Raises:
            LocalProtocolError: This remote has no goal, or an option of a call was given.
            WireError: As for a call.
        """
        for call, stays in self._trials(inputs, keywords, timeout):
            self._finish(call, stays)
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
    ) -> Any:
        """Run the model: its head here, its tail on the edge.

        Args:
            *inputs: What the model takes, as for `Head`: tensors, or numpy arrays.
            split: Where to split; None for the first head that was connected, or with a goal, where that prefers.
            quality: Index of the quality; None for the export's default. With a goal, neither is given and it chooses
                both, or the device alone; where one is given, the goal is left aside.
            max_bytes: Most bytes that the payload may have, as for `Head`.
            coding: How the payload is coded, as for `Head`; None for the shortest.
            timeout: Deadline of this call, in seconds; None for the remote's own. The head, which nothing can
                interrupt, counts; where it takes longer, nothing is sent.
            **keywords: What the model takes by name; a parameter called as one of the above is given by position.

        Returns:
            What the model would have returned: tensors, or numpy arrays where numpy arrays were given. With a local
            model its own answer where the edge gave none; ``last.source`` says which it is.

        Raises:
            FeatureError: An input has another shape or dtype than the head was exported for.
            SplitError: There is no head for `split`.
            ReadTimeout: No answer came in time.
            WireError: The connection or the server failed, or serves this head's tail no more; the class says how.
        """
        return self._finish(*self._call(inputs, keywords, Choice(split, quality), max_bytes, coding, timeout))

    def _finish(self, call: Call, stays: str | None) -> Any:
        """Have a call answered and count it; by the device alone where there is a reason that it stays."""
        asked = self._asks(stays)
        with self._failures(call, asked=asked):
            output, report = self._answer(call, stays)
        self._report.last = report
        self._answered(report, asked=asked)
        return output

    def _answer(self, call: Call, stays: str | None) -> tuple[Any, CallReport]:
        fallback = self._fallback
        if fallback is None:
            return self._edge.answer(call, call.deadline)
        return fallback.answer(call) if stays is None else fallback.here(call, stays)

    def close(self) -> None:
        """Close the connection; calls under way end with ConnectionLost.

        A handler of signals may call it, whatever it interrupts: then calls may end a moment later.
        """
        if self._finalizer.detach() is not None:
            aside(partial(close, self._link, self._fallback), _CLOSED_WITHIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def close(link: Link, fallback: Fallback | None) -> None:
    """Close the connection of a remote, and let go of what its whole model runs in.

    Args:
        link: The connection.
        fallback: What answers where the edge cannot, if there is any.
    """
    if link.forked:  # nothing here is ours, and its locks may be held by threads that are not here
        return
    link.close()
    if fallback is not None:
        fallback.close()
