"""Who holds the places of a server, and who gives one up when there are no more.

Whoever holds the most gives one to whoever holds fewer by two, so that no device can keep the others out by
connecting often enough. Knows nothing of bytes on a socket.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, cast

from compoff.wire.tls import common_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compoff.edge.peer import Peer

__all__ = ["GUESTS", "NO_ROOM", "Places", "holder_name"]

GUESTS = 16
"""Connections beyond ``max_connections``: newcomers who have not said yet who they are, and who was asked to go."""

NO_ROOM = "the server has no room for another connection; try again later"
"""What a client hears for which there is no place."""

_V6_PREFIX = 64  # bits that a network of IPv6 gives to one customer: whoever has one address there has them all


class Places:
    """The places of those who have said HELLO, by who they are.

    Examples:
        >>> places = Places()
        >>> places.taken, places.most()
        (0, 0)

    Source: max-min fairness: Bertsekas and Gallager, "Data Networks", Sec. 6.5.2.
    """

    def __init__(self) -> None:
        self._of: dict[str, dict[Peer, None]] = {}
        self._going: set[Peer] = set()
        self.taken = 0

    @property
    def going(self) -> int:
        """Connections that gave up their place and are not closed yet."""
        return len(self._going)

    def most(self) -> int:
        """How many places one of them holds at most."""
        return max(map(len, self._of.values()), default=0)

    def owed(self, who: str) -> bool:
        """Whether somebody holds so many that one of them is due to a newcomer."""
        return self.most() >= len(self._of.get(who, ())) + 2

    def add(self, peer: Peer) -> None:
        """Give a place away."""
        self._of.setdefault(peer.who, {})[peer] = None
        self.taken += 1

    def give_up(self, who: str) -> Peer | None:
        """Take a place back for the sake of a newcomer, of whoever holds the most of them.

        Args:
            who: Whose newcomer it is, which holds its place already.

        Returns:
            The connection that has to go: the one that has asked nothing for the longest, with no request in flight if
            there is such a one. None where nobody holds more than the newcomer's side by one.
        """
        if self.most() <= len(self._of.get(who, ())):
            return None
        own = max(self._of.values(), key=len)
        idlest = min(own, key=lambda peer: (peer.busy, peer.asked))
        self.remove(idlest)
        self._going.add(idlest)
        return idlest

    def remove(self, peer: Peer) -> None:
        """Take a connection out that is closed, or never had a place."""
        self._going.discard(peer)
        own = self._of.get(peer.who, {})
        if peer in own:
            del own[peer]
            self.taken -= 1
            if not own:
                del self._of[peer.who]


def holder_name(peername: Any, certificate: Mapping[str, Any] | None) -> str:
    """Whose a connection is: the name in the device's certificate, or where it shows none its address.

    Args:
        peername: The other end's address, as a transport gives it.
        certificate: As ``ssl.SSLSocket.getpeercert`` gives it.

    Returns:
        What is the same for all connections of one device; of IPv6 the network, which holds more addresses than a
        server could tell apart.

    Examples:
        >>> holder_name(("192.0.2.7", 50123), {"subject": ((("commonName", "camera-1"),),)})
        'camera-1'
        >>> holder_name(("192.0.2.7", 50123), None), holder_name(("2001:db8::1", 50123, 0, 0), None)
        ('at 192.0.2.7', 'at 2001:db8::/64')
    """
    name = common_name(certificate)
    if name is not None:
        return name
    host = str(cast("tuple[Any, ...]", peername)[0]) if isinstance(peername, tuple) and peername else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return f"at {host}"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return f"at {ipaddress.ip_network((address, _V6_PREFIX), strict=False)}"
        address = address.ipv4_mapped
    return f"at {address}"
