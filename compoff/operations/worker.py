"""One server process at work: tails loaded, listening, and everything that can change without a restart."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from compoff.edge.server import Server, serve
from compoff.errors import CompoffError, LocalProtocolError
from compoff.operations.figures import Figures, TailName, figures_of
from compoff.operations.relay import RelayTail

if TYPE_CHECKING:
    from collections.abc import Callable

    from compoff.edge.tail import Tail
    from compoff.operations.settings import Settings

__all__ = ["Worker"]

_logger = logging.getLogger("compoff.serve")


class Worker:
    """A running server with the settings it came from.

    Args:
        settings: How to run it.
        address: Where to listen, in place of the settings' own; None for that.
        shared: Whether other processes listen on the same port.

    Raises:
        CompoffError: The settings cannot be served.
        OSError: A file cannot be read.
    """

    def __init__(self, settings: Settings, address: str | None = None, *, shared: bool = False) -> None:
        """Load, and listen."""
        self.settings = settings
        self._tails = _load(settings)
        self._server: Server = serve(
            self._tails,
            address or settings.address,
            token=settings.tokens,
            tls=settings.tls,
            insecure=settings.insecure,
            reuse_port=shared,
            **settings.options,
        )

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._server.address

    @property
    def served(self) -> list[str]:
        """What it serves, in words."""
        return [repr(tail) for tail in self._tails]

    @property
    def running(self) -> bool:
        """Whether it has not stopped."""
        return not self._server.wait(0.0)

    def figures(self) -> Figures:
        """What it has counted."""
        names: dict[bytes, TailName] = {
            tail.artifact_id: {"model": tail.manifest.model, "split": tail.split} for tail in self._tails
        }
        return figures_of(self._server.stats(), names)

    def reload(self, settings: Settings) -> None:
        """Take over what may change under way: tokens, certificates, tails. Connections stay.

        Each is taken over by itself; what cannot be read stays as it was, and the log says so.

        Args:
            settings: The settings as they are now.
        """
        works: list[tuple[str, Callable[[], None]]] = [
            ("tokens", lambda: self._server.replace_tokens(settings.tokens)),
            ("tails", lambda: self._swap(settings)),
        ]
        if self.settings.tls is not None:
            works.append(("certificates", self._server.reload_certificates))
        for what, work in works:
            try:
                work()
            except (CompoffError, OSError) as error:
                _logger.error("the %s stay as they were: %s", what, error)
            else:
                _logger.info("reloaded the %s", what)

    def stop(self) -> None:
        """Send the answers in flight, and close."""
        self._server.close()
        for tail in self._tails:
            if isinstance(tail, RelayTail):
                tail.close()

    def _swap(self, settings: Settings) -> None:
        tails = _load(settings)
        self._server.swap(tails)
        self._tails = tails  # a front's old ones still have answers to wait for; the process with the tails hangs up


def _load(settings: Settings) -> list[Tail] | list[RelayTail]:
    if not settings.tails:
        raise LocalProtocolError("there is nothing to serve; give the folder of at least one tail")
    if settings.relay is not None:
        address, token = settings.relay.address, settings.relay.token
        return [RelayTail(place.folder, address, token=token) for place in settings.tails]
    from compoff.edge.tail import Tail  # pulls in torch, which fronts and the process that watches do not need
    from compoff.weights import WeightPool

    pool = WeightPool()  # tails of one model have the weights behind the later split points in common
    return [
        Tail.load(place.folder, device=place.device, factory=place.factory, backend=place.backend, pool=pool)
        for place in settings.tails
    ]
