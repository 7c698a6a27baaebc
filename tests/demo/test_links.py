"""Link arithmetic against values worked out by hand."""

from __future__ import annotations

import pytest

from compoff.demo.links import LINKS, Link


def test_the_links_are_the_promised_ones() -> None:
    assert [(link.name, link.bits_per_second, link.round_trip_seconds) for link in LINKS] == [
        ("1 Mbit/s", 1_000_000, 0.020),
        ("LTE", 20_000_000, 0.050),
        ("WiFi", 450_000_000, 0.002),
    ]


# 125 bytes up and 61 down are 1,488 bits.
@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, 0.003 + 0.020 + 0.001488), (1, 0.003 + 0.050 + 0.0000744), (2, 0.003 + 0.002 + 1488 / 450e6)],
)
def test_time_over_a_link(number: int, expected: float) -> None:
    seconds = LINKS[number].seconds(device=0.001, edge=0.002, bytes_up=125, bytes_down=61)
    assert seconds == pytest.approx(expected, rel=1e-9)


def test_nothing_sent_still_costs_the_round_trip() -> None:
    assert Link("any", 1e6, 0.5).seconds(device=0, edge=0, bytes_up=0, bytes_down=0) == 0.5
