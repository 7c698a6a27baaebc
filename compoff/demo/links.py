"""Time over a link by arithmetic: what was measured on this machine, plus what bytes and round trips cost elsewhere.

Knows bytes and seconds only. One round trip, since the connection stays open and every message here fits one initial
TCP window; the headers of TCP and IP are left out for every way alike.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FORMULA", "LINKS", "Link"]

FORMULA = "device time + edge time + round trip + 8 × (bytes up + bytes down) / rate"
"""The arithmetic of `Link.seconds`, for people."""


@dataclass(frozen=True)
class Link:
    """A way from the device to the edge.

    Args:
        name: Its name in the table.
        bits_per_second: Rate in both directions.
        round_trip_seconds: Time of an empty message there and back, in seconds.

    Examples:
        >>> Link("slow", 1e6, 0.02).seconds(device=0.001, edge=0.002, bytes_up=100, bytes_down=25)
        0.024

    Source: this project.
    """

    name: str
    bits_per_second: float
    round_trip_seconds: float

    def transfer_seconds(self, bytes_both_ways: float) -> float:
        """Time on the line alone.

        Args:
            bytes_both_ways: Bytes up and down together.

        Returns:
            Seconds.
        """
        return 8 * bytes_both_ways / self.bits_per_second

    def seconds(self, *, device: float, edge: float, bytes_up: float, bytes_down: float) -> float:
        """Time of one answer over this link.

        Args:
            device: Time on the device, in seconds.
            edge: Time on the edge, in seconds.
            bytes_up: Bytes of the request.
            bytes_down: Bytes of the reply.

        Returns:
            Seconds.
        """
        return device + edge + self.round_trip_seconds + self.transfer_seconds(bytes_up + bytes_down)


LINKS = (
    Link("1 Mbit/s", 1e6, 0.020),
    Link("LTE", 20e6, 0.050),
    Link("WiFi", 450e6, 0.002),
)
"""The links of the table: a narrow one, LTE at 20 Mbit/s, WiFi at 450 Mbit/s."""
