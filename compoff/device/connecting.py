"""connect() and connect_async(): from heads and an address to a remote, checked before anything is opened."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypedDict

from compoff.device.answers import Heads
from compoff.device.async_link import AsyncLink
from compoff.device.async_remote import AsyncRemote
from compoff.device.edge import Edge
from compoff.device.fallback import Fallback, Hedge, OnFailure
from compoff.device.link import SHORTEST_HEARTBEAT, Link
from compoff.device.local import LocalModel, whole_models
from compoff.device.planner import Planner
from compoff.device.remote import Remote, close
from compoff.device.statistics import Tally
from compoff.errors import ArtifactMismatch, ConnectionLost, ConnectTimeout, LocalProtocolError, ServerBusy
from compoff.wire.async_client import AsyncClient, open_async_client
from compoff.wire.client import Client, open_client
from compoff.wire.client_protocol import unserved_words
from compoff.wire.security import check_token_form, device_tls
from compoff.wire.sockets import check_timeout, parse_target
from compoff.wire.tls import client_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from compoff.device.sender import Sender
    from compoff.partition.decide import Goal
    from compoff.wire.replies import Reply
    from compoff.wire.tls import TLS

__all__ = ["connect", "connect_async"]

_FIRST_WAIT = 1.5  # seconds that a device with a model of its own waits for its first connection before it goes to work


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
            of its ONNX file. A model of PyTorch may be on a GPU: it gets its inputs there, and its answers come on the
            CPU, as the edge's do. ``"local"`` runs it to its end, even past the deadline.
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
    terms = _Terms(
        Heads(heads, reply),
        address,
        token,
        device_tls(address, tls, insecure),
        goal,
        on_failure,
        local,
        timeout,
        heartbeat,
    )

    def opened(seconds: float) -> Client:
        return open_client(address, terms.heads.offers, connect_timeout=seconds, **terms.options())

    link = Link(opened, address, terms.heartbeat, warn=terms.whole is not None, probe=goal is not None)
    tally = Tally()
    edge = Edge(link, tally)
    fallback = None
    if terms.whole is not None:
        fallback = Fallback(edge, terms.whole) if on_failure == "local" else Hedge(edge, terms.whole, tally)
    try:
        _check_all_served(link.connection(terms.until).unserved)
    except BaseException as error:  # an interrupt, too: a thread would go on connecting for nobody
        if not terms.bear(error):
            close(link, fallback)
            raise
    return Remote(terms.heads, link, tally, fallback, terms.timeout, terms.planner)


async def connect_async(
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
) -> AsyncRemote:
    """The asyncio twin of `connect`.

    Args:
        heads: As for `connect`.
        address: As for `connect`.
        token: As for `connect`.
        tls: As for `connect`.
        insecure: As for `connect`.
        reply: As for `connect`.
        goal: As for `connect`.
        on_failure: As for `connect`.
        local: As for `connect`.
        timeout: As for `connect`.
        heartbeat: As for `connect`.

    Returns:
        The remote: await its calls; an async context manager.

    Raises:
        WireError: As for `connect`.
        SplitError: As for `connect`.

    Examples:
        >>> import asyncio, torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(2048, 5))
        >>> model = compoff.wrap(net, "input", example_input=torch.zeros(2, 3, 16, 16))
        >>> head, tail = compoff.export(model, "input")
        >>> async def main(address):
        ...     async with await compoff.connect_async(head, address) as remote:
        ...         answers = await asyncio.gather(*(remote(torch.zeros(1, 3, 16, 16)) for _ in range(3)))
        ...     return len(answers)
        >>> with compoff.serve(tail) as server:
        ...     asyncio.run(main(server.address))
        3

    Source: this project.
    """
    terms = _Terms(
        Heads(heads, reply),
        address,
        token,
        device_tls(address, tls, insecure),
        goal,
        on_failure,
        local,
        timeout,
        heartbeat,
    )

    async def opened(seconds: float) -> AsyncClient:
        return await open_async_client(address, terms.heads.offers, connect_timeout=seconds, **terms.options())

    link = AsyncLink(opened, address, terms.heartbeat, warn=terms.whole is not None, probe=goal is not None)
    try:
        _check_all_served((await link.connection(terms.until)).unserved)
    except BaseException as error:
        if not terms.bear(error):
            await link.close()
            raise
    return AsyncRemote(terms.heads, link, terms.timeout, on_failure, terms.whole, terms.planner)


class _Terms:
    """What a remote is to be, checked: whatever cannot become right is refused here.

    Args:
        heads: The heads, with the form of their answers.
        address: The server's.
        token: Its token.
        tls: What secures the connection.
        goal: What calls shall keep and take.
        on_failure: What a call does where the edge gives no answer.
        local: The whole model.
        timeout: Deadline of the connection and of calls.
        heartbeat: Seconds of quiet after which the server is asked for a sign.
    """

    def __init__(
        self,
        heads: Heads,
        address: str,
        token: str | None,
        tls: TLS | ssl.SSLContext | None,
        goal: Goal | None,
        on_failure: OnFailure,
        local: LocalModel | None,
        timeout: float,
        heartbeat: float,
    ) -> None:
        self.heads = heads
        self.timeout = check_timeout(timeout)
        self.whole = _whole_models(on_failure, local, heads)
        self.planner = None if goal is None else Planner(heads, goal, alone=self.whole is not None)
        self._token = token
        self._tls = tls
        parse_target(address)
        check_token_form(token)
        client_context(tls)
        self.heartbeat = check_timeout(heartbeat, "heartbeat", SHORTEST_HEARTBEAT)

    def options(self) -> _Options:
        """Of a connection, as both clients take them; certificates that were renewed are read anew."""
        return {"token": self._token, "tls": client_context(self._tls), "max_reply_bytes": self.heads.max_reply_bytes}

    @property
    def until(self) -> float:
        """Moment of ``time.monotonic()`` until which the first connection is waited for."""
        return time.monotonic() + (self.timeout if self.whole is None else min(self.timeout, _FIRST_WAIT))

    def bear(self, error: BaseException) -> bool:
        """Whether a device can go to work all the same: with a model of its own, where waiting may mend it."""
        return self.whole is not None and isinstance(error, (ConnectionLost, ConnectTimeout, ServerBusy))


class _Options(TypedDict):
    token: str | None
    tls: ssl.SSLContext | None
    max_reply_bytes: int


def _check_all_served(unserved: tuple[bytes, ...]) -> None:
    """Refuse to begin with a server that lacks tails; one that loses them later goes on with the others."""
    if unserved:
        raise ArtifactMismatch(unserved_words(*unserved))


def _whole_models(on_failure: OnFailure, local: LocalModel | None, heads: Heads) -> list[Callable[..., Any]] | None:
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
