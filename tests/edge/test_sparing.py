"""Messages that are left out are counted, and those of the next minute are written again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from compoff.edge.sparing import Sparing

if TYPE_CHECKING:
    import pytest

LOG = logging.getLogger("compoff.tests.sparing")


def test_so_many_a_minute_are_written_and_the_rest_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOG.name)
    now = 1000.0
    sparing = Sparing(LOG, logging.INFO, most=3, clock=lambda: now)
    for turn in range(10):
        sparing.log("closed %s", turn)
        now += 1
    assert caplog.messages == [
        "closed 0",
        "closed 1",
        "closed 2",
        "more messages like the last are left out for up to 60 s",
    ]
    caplog.clear()
    now = 1060.0
    sparing.log("closed %s", "later")
    assert caplog.messages == ["7 messages like the next were left out", "closed later"]
    caplog.clear()
    now = 1120.0
    sparing.log("closed %s", "last")
    assert caplog.messages == ["closed last"]


def test_what_the_log_does_not_take_counts_for_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, LOG.name)
    sparing = Sparing(LOG, logging.INFO, most=1, clock=lambda: 0.0)
    for _ in range(5):
        sparing.log("closed")
    caplog.set_level(logging.INFO, LOG.name)
    sparing.log("closed")
    assert caplog.messages[0] == "closed"
