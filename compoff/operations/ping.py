"""`compoff ping`: whether a device reaches its server and finds its tails there, and how long a round takes.

Speaks the wire as a device does, with the same certificates and token; runs no head.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from compoff.artifact import read_folder
from compoff.checks import check_whole
from compoff.errors import ArtifactError, LocalProtocolError
from compoff.operations.inspecting import parts_around
from compoff.parts import find_part, kinds_in
from compoff.wire.client import open_client
from compoff.wire.security import device_tls
from compoff.wire.tls import client_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence
    from pathlib import Path

    from compoff.manifest import Manifest
    from compoff.wire.tls import TLS

__all__ = ["Reached", "ping"]

_TIMEOUT = 5.0  # seconds, for the connection and for each round


@dataclass(frozen=True)
class Reached:
    """What a device finds at an address.

    Args:
        address: The address.
        secured: Whether the connection is encrypted.
        connect_seconds: Until the server's welcome, in seconds: name, TCP, TLS, token.
        served: Each head's name, and the most bytes of a payload that the server takes of it; None where it does not
            hold its tail.
        rounds: Seconds of each round, in order.
        queue_seconds: What a request would wait in the server's queue, in seconds.

    Examples:
        >>> print(Reached("edge:7878", True, 0.0123, {"ResNet at 'layer2' (0a1b2c3d)": 5000}, [0.002, 0.004, 0.003]))
        edge:7878: connected by TLS in 12.3 ms
        ResNet at 'layer2' (0a1b2c3d): served, payloads of up to 5000 B
        3 rounds: median 3.0 ms, shortest 2.0 ms, longest 4.0 ms; the queue there takes 0.0 ms
    """

    address: str
    secured: bool
    connect_seconds: float
    served: dict[str, int | None]
    rounds: list[float] = field(default_factory=list[float])
    queue_seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether the server holds the tail of every head."""
        return None not in self.served.values()

    def __str__(self) -> str:
        how = "by TLS" if self.secured else "in plain TCP"
        lines = [f"{self.address}: connected {how} in {1000 * self.connect_seconds:.1f} ms"]
        for name, most in self.served.items():
            lines.append(f"{name}: {'NOT SERVED' if most is None else f'served, payloads of up to {most} B'}")
        median, shortest, longest = (f"{1000 * one(self.rounds):.1f} ms" for one in (statistics.median, min, max))
        rounds = f"{len(self.rounds)} round{'s' * (len(self.rounds) != 1)}"
        queue = f"the queue there takes {1000 * self.queue_seconds:.1f} ms"
        lines.append(f"{rounds}: median {median}, shortest {shortest}, longest {longest}; {queue}")
        return "\n".join(lines)


def ping(
    folders: Sequence[Path],
    address: str,
    *,
    rounds: int = 10,
    token: str | None = None,
    tls: TLS | ssl.SSLContext | None = None,
    insecure: bool = False,
) -> Reached:
    """Connect as a device does, and send small messages to and fro.

    Args:
        folders: Folders of exported heads or tails, or around both, or around several such pairs.
        address: ``"host:port"`` of the server.
        rounds: How many rounds.
        token: The server's token, if it asks for one.
        tls: Certificates, as for `compoff.connect`.
        insecure: Whether to talk to another machine in plain TCP.

    Returns:
        What was found.

    Raises:
        ArtifactError: A folder holds no export.
        ArtifactMismatch: The server holds the tail of none of them.
        WireError: It cannot be reached, does not let this device in, or is none of ours.
    """
    check_whole("rounds", rounds, LocalProtocolError, least=1)
    context = client_context(device_tls(address, tls, insecure))
    named = {f"{one.model} at '{one.split}' ({one.artifact_id[:8]})": one for path in folders for one in _exports(path)}
    if not named:
        raise ArtifactError("no folder was given; name one of an exported head or tail, which the server may hold")
    began = time.perf_counter()
    ids = [one.identity for one in named.values()]
    with open_client(address, ids, token=token, tls=context, connect_timeout=_TIMEOUT) as client:
        connected = time.perf_counter() - began
        missing = client.unserved
        served = {
            name: None if one.identity in missing else client.max_payload_bytes(route)
            for route, (name, one) in enumerate(named.items())
        }
        seconds = [client.ping(timeout=_TIMEOUT) for _ in range(rounds)]
        return Reached(address, context is not None, connected, served, seconds, client.queue_seconds)


def _exports(path: Path) -> list[Manifest]:
    """What the parts in a folder say of themselves, one of each pair."""
    found = [(place, kinds_in(place)[0]) for place in parts_around(path)]
    return [read_folder(find_part(place, kind), kind).manifest for place, kind in found]
