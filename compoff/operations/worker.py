"""One server process at work: tails loaded, listening, and everything that can change without a restart."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from compoff.edge.server import Server, serve
from compoff.errors import CompoffError, LocalProtocolError
from compoff.operations.figures import Figures, TailName, figures_of
from compoff.operations.relay import RelayTail
from compoff.operations.settings import placed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
        tokens = settings.tokens  # before the tails, which take a while
        self._tails: Sequence[Tail | RelayTail] = _load(settings)
        self._former: Sequence[Tail | RelayTail] = []
        try:
            self._server: Server = serve(
                self._tails,
                address or settings.address,
                token=tokens,
                tls=settings.tls,
                insecure=settings.insecure,
                reuse_port=shared,
                **settings.options,
            )
        except LocalProtocolError as error:  # such as a limit that is too small for the tails: only now is that known
            with placed(next((settings.written[name] for name in settings.written if name in str(error)), "")):
                raise

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._server.address

    @property
    def served(self) -> list[str]:
        """What it serves, in words."""
        return [repr(tail) for tail in self._tails]

    @property
    def exports(self) -> frozenset[str]:
        """Ids of the exports that it serves; processes of one server that differ in them answer different heads."""
        return frozenset(tail.manifest.artifact_id for tail in self._tails)

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

    def reload(self, settings: Settings, *, tails: bool = True, keep: bool = False) -> bool:
        """Take over what may change under way: tokens, certificates, tails. Connections stay.

        Each is taken over by itself; what cannot be read stays as it was, and the log says so.

        Args:
            settings: The settings as they are now.
            tails: Whether to read the tails, too.
            keep: Whether former tails stay beside them until `drop_former`.

        Returns:
            False where the tails were to be read and could not be, so that they stay as they were.
        """
        works: list[tuple[str, Callable[[], None]]] = [
            ("tokens", lambda: self._server.replace_tokens(settings.tokens)),
        ]
        done = not tails
        if tails:
            works.append(("tails", lambda: self._swap(settings, keep=keep)))
        if self.settings.tls is not None:
            works.append(("certificates", self._server.reload_certificates))
        for what, work in works:
            try:
                work()
            except (CompoffError, OSError) as error:
                _logger.error("the %s stay as they were: %s", what, error)
            except Exception:  # such as too little memory for a second copy of the tails: the server goes on
                _logger.exception("the %s stay as they were", what)
            else:
                _logger.info("reloaded the %s", what)
                done |= what == "tails"
        return done

    def drop_former(self) -> None:
        """Serve only what the last reload has read.

        Raises:
            LocalProtocolError: The server is closed, or too busy just now; it serves what it did.
        """
        if self._former:
            self._server.swap(self._tails)
            self._former = []

    def stop(self) -> None:
        """Send the answers in flight, and close."""
        self._server.close()
        for tail in self._tails:
            if isinstance(tail, RelayTail):
                tail.close()

    def _swap(self, settings: Settings, *, keep: bool = False) -> None:
        tails = _load(settings)
        here = {tail.artifact_id for tail in tails}
        former = [tail for tail in (*self._tails, *self._former) if tail.artifact_id not in here] if keep else []
        self._server.swap([*tails, *former])
        # A front's old ones are not closed here: they still have answers to wait for, and go with the last of them.
        self._tails, self._former = tails, former


def _load(settings: Settings) -> list[Tail] | list[RelayTail]:
    if not settings.tails:
        raise LocalProtocolError("there is nothing to serve; give the folder of at least one tail")
    if settings.relay is not None:
        address, token = settings.relay.address, settings.relay.token
        relays: list[RelayTail] = []
        for place in settings.tails:
            with placed(place.written):
                relays.append(RelayTail(place.folder, address, token=token))
        return relays
    from compoff.edge.tail import Tail  # pulls in torch, which fronts and the process that watches do not need
    from compoff.weights import WeightPool

    pool = WeightPool()  # tails of one model have the weights behind the later split points in common
    tails: list[Tail] = []
    for place in settings.tails:
        device, factory, backend = place.device, place.factory, place.backend
        with placed(place.written):
            tails.append(Tail.load(place.folder, device=device, factory=factory, backend=backend, pool=pool))
    return tails
