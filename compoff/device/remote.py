"""connect() and Remote: the model as the device sees it. Runs a head, sends its bytes, returns what the model would.

Every call ends by its deadline with the right answer or an error; what is answered from anywhere else says so.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from compoff.device.answers import CallReport, Heads
from compoff.device.calls import Call
from compoff.device.edge import Edge
from compoff.device.fallback import Fallback, Hedge, OnFailure
from compoff.device.link import SHORTEST_HEARTBEAT, Link
from compoff.device.local import LocalModel, whole_models
from compoff.device.planner import PROFILED, TRIALS, Planner, no_goal
from compoff.device.statistics import RemoteStats, Tally
from compoff.errors import (
    ArtifactMismatch,
    ConnectionLost,
    ConnectTimeout,
    LocalProtocolError,
    ReadTimeout,
    ServerBusy,
)
from compoff.pickling import Unpickled
from compoff.wire.client import Client, open_client
from compoff.wire.client_protocol import unserved_words
from compoff.wire.security import check_token_form, device_tls
from compoff.wire.sockets import check_timeout, parse_target
from compoff.wire.tls import client_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

    from compoff.coding import Coding
    from compoff.device.sender import Sender
    from compoff.partition.decide import Goal, Plan
    from compoff.wire.replies import Reply
    from compoff.wire.tls import TLS

__all__ = ["FIRST_WAIT", "Grip", "Remote", "connect"]

FIRST_WAIT = 1.5  # seconds that a device with a model of its own waits for its first connection before it goes to work


class Grip:
    """What a remote and its copies hold together: with the last of them it goes, and the connection after it."""

    __slots__ = ("__weakref__",)


class Remote(Unpickled):
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
        self.timeout = timeout
        self._planner = planner
        self._heads = heads
        self._link = link
        self._tally = tally
        self._fallback = fallback
        self._edge = fallback.edge if fallback is not None else Edge(link, tally)
        self._report = threading.local()
        # A remote that nobody holds any more, nor a copy of it, takes its connection and its thread with it.
        self._grip = Grip()
        self._finalizer = weakref.finalize(self._grip, _close, link, fallback)

    @property
    def address(self) -> str:
        """The server's address, as it was given."""
        return self._link.address

    @property
    def last(self) -> CallReport | None:
        """Where this thread's last answer came from, and its time and bytes went; None before the first."""
        return getattr(self._report, "last", None)

    @property
    def stats(self) -> RemoteStats:
        """What all calls of this remote came to so far, and whether the edge answers now."""
        link = self._link
        return self._tally.snapshot(
            connections=link.opened,
            reachable=link.breaker.closed,
            reason=link.breaker.reason,
            round_trip=link.round_trip.mean,
        )

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Every way to answer a call with what it is expected to take now, the fastest first; none without a goal."""
        return () if self._planner is None else self._planner.plans(self._link.last_round_trip)

    @property
    def plan(self) -> Plan | None:
        """The way that the goal prefers now; None without a goal."""
        return None if self._planner is None else self._planner.plan(self._link.last_round_trip)

    def profile(self, *inputs: Any, timeout: float | None = None, **keywords: Any) -> tuple[Plan, ...]:
        """Measure every way on these inputs: each head at its lowest and highest quality, each tail, the whole model.

        Without it a remote with a goal learns the same in its first calls, but for the time of the whole model.

        Args:
            *inputs: What the model takes, as for a call.
            timeout: Deadline of each call, in seconds; None for the remote's own.
            **keywords: What the model takes by name.

        Returns:
            The `plans` then.

        Raises:
            LocalProtocolError: This remote has no goal.
            WireError: As for a call.
        """
        if self._planner is None:
            raise no_goal()
        for split, quality in self._planner.trials():
            self(*inputs, split=split, quality=quality, timeout=timeout, **keywords)
        if self._fallback is not None:
            seconds = check_timeout(self.timeout if timeout is None else timeout)
            for _ in range(TRIALS):
                route, head = self._heads.choose(None)
                call = Call(head, route, inputs, keywords, None, None, None, seconds, self._heads.form)
                self._finish(call, PROFILED)
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
        timeout = check_timeout(self.timeout if timeout is None else timeout)
        self._link.check_open()
        stays = None
        if self._planner is not None:
            split, quality, stays = self._planner.choose(split, quality, self._link.last_round_trip)
        route, head = self._heads.choose(split)
        call = Call(head, route, inputs, keywords, quality, max_bytes, coding, timeout, self._heads.form)
        return self._finish(call, stays)

    def _finish(self, call: Call, stays: str | None) -> Any:
        """Have a call answered and count it; by the device alone where there is a reason that it stays."""
        with self._tally.failures():
            output, report = self._answer(call, stays)
        self._report.last = report
        self._tally.answered(report)
        if self._planner is not None:
            self._planner.answered(report)
        return output

    def _answer(self, call: Call, stays: str | None) -> tuple[Any, CallReport]:
        fallback = self._fallback
        try:
            if fallback is None:
                return self._edge.answer(call, call.deadline)
            return fallback.answer(call) if stays is None else fallback.here(call, stays)
        except ReadTimeout:
            if self._planner is not None:
                self._planner.missed(call, time.monotonic())
            raise

    def close(self) -> None:
        """Close the connection; calls under way end with ConnectionLost."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(link: Link, fallback: Fallback | None) -> None:
    if link.forked:  # nothing here is ours, and its locks may be held by threads that are not here
        return
    link.close()
    if fallback is not None:
        fallback.close()


def connect(
    heads: Sender | Sequence[Sender],
    address: str,
    *,
    # security
    token: str | None = None,
    tls: TLS | ssl.SSLContext | None = None,
    insecure: bool = False,
    # what comes back
    reply: Reply = "full",
    # which way calls take
    goal: Goal | None = None,
    # where the edge gives no answer
    on_failure: OnFailure = "raise",
    local: LocalModel | None = None,
    # deadlines
    timeout: float = 10.0,
    heartbeat: float = 1.0,
) -> Remote:
    """Connect the heads on this device to the server that holds their tails.

    The connection opens now and stays open: while it is quiet it is watched, and one that breaks or gives no sign is
    replaced by a fresh one. A request that was on it is sent once more, within its deadline.
    With a model of its own a device does not need the edge to start: it waits a second and a half for it, at most.
    A remote belongs to the process that made it: in a forked child its calls raise LocalProtocolError.

    Args:
        heads: One head, or several of different split points.
        address: ``"host:port"``.
        token: The server's token, if it asks for one.
        tls: Certificates, or a context of your own; None checks another machine against the authorities of this
            system, and is plain TCP on loopback.
        insecure: Whether to talk to another machine in plain TCP: whoever is between can read and change it.
        reply: What to bring back: ``"full"`` is what the model returns; ``"fp32"`` and ``"fp16"`` send it in at most
            that precision, and it comes back in the model's own dtypes; ``"argmax"`` or `ArgMax` is the index of the
            largest value along dimension 1, the classes; `TopK` is a `TopValues` of the largest values and their
            indices in each output's place. Outputs of whole numbers always come as they are.
        goal: What calls shall keep of the answers and how long they may take; then each takes the split point and the
            quality that suits the link as it is now, or stays on the device where there is a `local` model and that is
            better. None: the first head at its default quality.
        on_failure: What a call does where the edge gives no answer: ``"raise"`` the error; ``"local"``, run the whole
            model on this device, and at once while the edge is known to be out of reach; ``"hedge"``, start it as
            soon as the edge takes longer than it mostly does, and take the first answer.
        local: The whole model, for the last two: something to call with what the remote is called with, or the path
            of its ONNX file. ``"local"`` runs it to its end, even past the deadline.
        timeout: Deadline of the connection, and of each call that names none, in seconds.
        heartbeat: Seconds without a message after which the server is asked for a sign, and as many again after
            which the connection is given up; at least a millisecond.

    Returns:
        The remote: call it as the model; a context manager.

    Raises:
        ConnectTimeout: No server answered in time.
        ConnectionLost: Nobody listens there, or who does hangs up before it answers.
        AuthenticationError: The server refused the token or this device's certificate, or its own is not trusted.
        ArtifactMismatch: The server does not hold the tails of all these heads. Where it loses some later, only the
            calls of their heads fail.
        RemoteProtocolError: Something else than a compoff server listens there.
        SplitError: No head was given, or two of the same split point.
        FeatureError: The model's outputs have no such form.
        LocalProtocolError: An argument cannot be used, ``on_failure`` and ``local`` do not belong together, or no way
            keeps the agreement that the goal asks for.
        ArtifactError: A goal was given, and a head holds no figures to choose by.
        BackendError: The local model's file cannot be read.

    Examples:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(2048, 5))
        >>> model = compoff.wrap(net, "input", example_input=torch.zeros(2, 3, 16, 16))
        >>> head, tail = compoff.export(model, "input")
        >>> with compoff.serve([tail]) as server, compoff.connect([head], server.address) as remote:
        ...     remote(torch.zeros(1, 3, 16, 16)).shape
        torch.Size([1, 5])

        Of a thousand logits only the five that are looked at need to travel:

        >>> with compoff.serve(tail) as server, compoff.connect(head, server.address, reply=compoff.TopK(2)) as remote:
        ...     values, indices = remote(torch.zeros(1, 3, 16, 16))
        >>> indices.shape, remote.last.reply_bytes
        (torch.Size([1, 2]), 19)

    Source: DeepCOD (SenSys 2020), Sec. 4.2, 5.2.
    """
    timeout = check_timeout(timeout)
    chosen = Heads(heads, reply)
    whole = check_policy(on_failure, local, chosen)
    planner = None if goal is None else Planner(chosen, goal, alone=whole is not None)
    opened = _opener(chosen, address, token, device_tls(address, tls, insecure))
    link = Link(
        opened,
        address,
        check_timeout(heartbeat, "heartbeat", SHORTEST_HEARTBEAT),
        warn=whole is not None,
        probe=goal is not None,
    )
    tally = Tally()
    edge = Edge(link, tally)
    fallback = None
    if whole is not None:
        fallback = Fallback(edge, whole) if on_failure == "local" else Hedge(edge, whole, tally)
    try:
        client = link.connection(time.monotonic() + (timeout if fallback is None else min(timeout, FIRST_WAIT)))
        check_all_served(client.unserved)
    except BaseException as error:  # an interrupt, too: a thread would go on connecting for nobody
        # With a model of its own a device works from the start; what no waiting mends is still an error.
        if fallback is None or not isinstance(error, (ConnectionLost, ConnectTimeout, ServerBusy)):
            _close(link, fallback)
            raise
    return Remote(chosen, link, tally, fallback, timeout, planner)


def check_all_served(unserved: tuple[bytes, ...]) -> None:
    """Refuse to begin with a server that lacks tails; one that loses them later goes on with the others.

    Args:
        unserved: Ids of the heads whose tails it does not hold.

    Raises:
        ArtifactMismatch: There are any.
    """
    if unserved:
        raise ArtifactMismatch(unserved_words(*unserved))


def check_policy(on_failure: OnFailure, local: LocalModel | None, heads: Heads) -> list[Callable[..., Any]] | None:
    """The whole model that a policy needs, as each head's calls call it; None where it needs none.

    Raises:
        LocalProtocolError: An unknown policy, one without its model, or a model without a policy that uses it.
        BackendError: The model's file cannot be read.
    """
    if on_failure not in ("raise", "local", "hedge"):
        raise LocalProtocolError(f"on_failure={on_failure!r} was given; expected 'raise', 'local' or 'hedge'")
    if (local is None) != (on_failure == "raise"):
        raise LocalProtocolError(
            f"on_failure={on_failure!r} was given {'without' if local is None else 'with'} local=, the whole model; "
            "'local' and 'hedge' need it, 'raise' does not use it"
        )
    return None if local is None else whole_models(local, heads.all, heads.form)


def _opener(
    heads: Heads, address: str, token: str | None, tls: TLS | ssl.SSLContext | None
) -> Callable[[float], Client]:
    """What opens the connection, again and again; everything that cannot become right is refused here."""
    parse_target(address)
    check_token_form(token)
    client_context(tls)

    def opened(timeout: float) -> Client:
        return open_client(
            address,
            heads.offers,
            token=token,
            tls=client_context(tls),  # certificates that were renewed are read anew
            connect_timeout=timeout,
            max_reply_bytes=heads.max_reply_bytes,
        )

    return opened
