"""connect() and Remote: the model as the device sees it. Runs a head, sends its bytes, returns what the model would.

Every call ends by its deadline with the right answer or an error; nothing is answered from anywhere else in silence.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

from compoff.device.answers import CallReport, Heads, restore
from compoff.errors import ConnectTimeout, LocalProtocolError, ReadTimeout
from compoff.wire.async_client import AsyncClient, open_async_client
from compoff.wire.client import Client, open_client
from compoff.wire.security import device_tls
from compoff.wire.sockets import check_timeout
from compoff.wire.tls import client_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from typing_extensions import Self

    from compoff.coding import Payload
    from compoff.device.sender import Sender
    from compoff.wire.replies import Reply
    from compoff.wire.tls import TLS

__all__ = ["AsyncRemote", "Remote", "connect", "connect_async"]


class Remote:
    """A model whose tail runs elsewhere. `connect` makes it; threads may share it.

    Examples:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(2048, 5))
        >>> x = torch.randn(2, 3, 16, 16)
        >>> model = compoff.wrap(net, "input", example_input=x)
        >>> head, tail = compoff.export(model, "input")
        >>> with tail.serve("127.0.0.1:0") as server, head.connect(server.address) as remote:
        ...     y = remote(x)
        >>> y.shape, remote.last.payload_bytes
        (torch.Size([2, 5]), ...)

    Source: DeepCOD (SenSys 2020), Sec. 4.2.
    """

    def __init__(
        self, heads: Heads, address: str, *, token: str | None, tls: TLS | ssl.SSLContext | None, timeout: float
    ) -> None:
        self.address = address
        self.timeout = timeout
        self._heads = heads
        self._token = token
        self._tls = tls
        self._opening = threading.Lock()
        self._report = threading.local()
        self._closed = False
        self._retired: set[Client] = set()  # connections that the server is ending, with calls of other threads on them
        self._client = self._open(timeout)

    def _open(self, timeout: float) -> Client:
        return open_client(
            self.address,
            self._heads.offers,
            token=self._token,
            tls=client_context(self._tls),
            connect_timeout=timeout,
            max_reply_bytes=self._heads.max_reply_bytes,
        )

    @property
    def last(self) -> CallReport | None:
        """Where the time and the bytes of this thread's last call went; None before the first."""
        return getattr(self._report, "last", None)

    def __call__(
        self, *inputs: Any, split: str | None = None, quality: int | None = None, timeout: float | None = None
    ) -> Any:
        """Run the model: its head here, its tail on the edge.

        Args:
            *inputs: What the model takes: tensors, or numpy arrays.
            split: Where to split; None for the first head that was connected.
            quality: Index of the quality; None for the best.
            timeout: Deadline of this call, in seconds; None for the remote's own. The head, which nothing can
                interrupt, counts; where it takes longer, nothing is sent.

        Returns:
            What the model would have returned: tensors, or numpy arrays where numpy arrays were given.

        Raises:
            FeatureError: An input has another shape or dtype than the head was exported for.
            SplitError: There is no head for `split`.
            ReadTimeout: No answer came in time.
            WireError: The connection or the server failed; the class says how.
        """
        begin = time.monotonic()
        timeout = check_timeout(self.timeout if timeout is None else timeout)
        deadline = begin + timeout
        route, head = self._heads.choose(split)
        payload = head(*inputs, quality=quality)
        encoded = time.monotonic()
        client = self._connected(deadline, timeout)
        try:
            reply = client.request(bytes(payload), route=route, timeout=_left(deadline, timeout))
        finally:
            self._close_if_over(client)
        answered = time.monotonic()
        output = restore(head, inputs, payload, reply, self._heads.form)
        self._report.last = _report(head, payload, reply, begin, encoded, answered)
        return output

    def _connected(self, deadline: float, timeout: float) -> Client:
        """The open connection, or a fresh one where the last one broke, is ending or can take nothing more."""
        if not self._opening.acquire(timeout=min(_left(deadline, timeout), threading.TIMEOUT_MAX)):
            raise ConnectTimeout(f"no connection to {self.address} within {timeout:g} s; another call is still trying")
        try:
            self._check_open()
            self._client.look()
            if self._client.closed or self._client.stuck:
                self._reopen(_left(deadline, timeout))
            return self._client
        finally:
            self._opening.release()

    def _reopen(self, timeout: float) -> None:
        last, self._client = self._client, self._open(timeout)
        self._retired.add(last)
        self._close_if_over(last)
        if self._closed:  # by another thread, meanwhile
            self._client.close()
            self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise LocalProtocolError("this Remote was closed; connect again")

    def _close_if_over(self, client: Client) -> None:
        """Close a retired connection, but not under the calls of other threads: a server that stops still answers."""
        if client is not self._client and client.idle:
            client.close()
            self._retired.discard(client)

    def close(self) -> None:
        """Close the connection; calls under way end with ConnectionLost."""
        self._closed = True
        for client in (self._client, *tuple(self._retired)):
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncRemote:
    """The asyncio twin of `Remote`; `connect_async` makes it.

    Many calls may be in flight at once; the head runs in a thread, so that the event loop stays free.

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

    def __init__(self, heads: Heads, client: AsyncClient, timeout: float) -> None:
        self.timeout = timeout
        self.last: CallReport | None = None
        self._heads = heads
        self._client = client

    async def __call__(
        self, *inputs: Any, split: str | None = None, quality: int | None = None, timeout: float | None = None
    ) -> Any:
        """Run the model: its head here, its tail on the edge.

        Args:
            *inputs: As for `Remote`.
            split: As for `Remote`.
            quality: As for `Remote`.
            timeout: As for `Remote`.

        Returns:
            What the model would have returned.

        Raises:
            WireError: As for `Remote`; a connection that broke is not opened again.
        """
        begin = time.monotonic()
        timeout = check_timeout(self.timeout if timeout is None else timeout)
        deadline = begin + timeout
        route, head = self._heads.choose(split)
        try:
            payload = await asyncio.wait_for(asyncio.to_thread(head, *inputs, quality=quality), timeout)
        except asyncio.TimeoutError:
            raise _late(timeout) from None
        encoded = time.monotonic()
        reply = await self._client.request(bytes(payload), route=route, timeout=_left(deadline, timeout))
        answered = time.monotonic()
        output = restore(head, inputs, payload, reply, self._heads.form)
        self.last = _report(head, payload, reply, begin, encoded, answered)
        return output

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _left(deadline: float, timeout: float) -> float:
    """Seconds until the deadline of a call, if there are any."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise _late(timeout)
    return seconds


def _late(timeout: float) -> ReadTimeout:
    return ReadTimeout(f"the deadline of {timeout:g} s passed before anything was sent; give the head more time")


def _report(head: Sender, payload: Payload, reply: bytes, begin: float, encoded: float, answered: float) -> CallReport:
    """The report of a call that ends now."""
    return CallReport(
        head.split, len(payload), len(reply), encoded - begin, answered - encoded, time.monotonic() - begin
    )


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
    # deadlines
    timeout: float = 10.0,
) -> Remote:
    """Connect the heads on this device to the server that holds their tails.

    The connection opens now and stays open; one that breaks is opened again by the next call.

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
        timeout: Deadline of the connection, and of each call that names none, in seconds.

    Returns:
        The remote: call it as the model; a context manager.

    Raises:
        ConnectTimeout: No server answered in time.
        ConnectionLost: Nobody listens there.
        AuthenticationError: The server refused the token or this device's certificate, or its own is not trusted.
        ArtifactMismatch: The server does not hold the tails of these heads.
        RemoteProtocolError: Something else than a compoff server listens there.
        SplitError: No head was given, or two of the same split point.
        FeatureError: The model's outputs have no such form.

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
    return Remote(Heads(heads, reply), address, token=token, tls=device_tls(address, tls, insecure), timeout=timeout)


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
    # deadlines
    timeout: float = 10.0,
) -> AsyncRemote:
    """The asyncio twin of `connect`.

    Args:
        heads: As for `connect`.
        address: As for `connect`.
        token: As for `connect`.
        tls: As for `connect`.
        insecure: As for `connect`.
        reply: As for `connect`.
        timeout: As for `connect`.

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
    chosen = Heads(heads, reply)
    client = await open_async_client(
        address,
        chosen.offers,
        token=token,
        tls=client_context(device_tls(address, tls, insecure)),
        connect_timeout=timeout,
        max_reply_bytes=chosen.max_reply_bytes,
    )
    return AsyncRemote(chosen, client, timeout)
