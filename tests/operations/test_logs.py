"""What a server process logs: one form for people, one for machines, and neither steers a terminal."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Literal

import pytest

from compoff.operations.logs import set_up_logs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    logger = logging.getLogger("compoff")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_is_quoted_in_a_log_does_not_steer_the_terminal(
    form: Literal["text", "json"], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logs(form)
    logging.getLogger("compoff.serve").error("the tails stay as they were: keys %s are unknown", "\x1b[2J\x9b31m")
    told = capsys.readouterr().err
    assert all(line.isprintable() for line in told.splitlines())
    if form == "text":
        assert "keys ?[2J?31m are unknown" in told
    else:
        assert json.loads(told)["message"].endswith("keys \x1b[2J\x9b31m are unknown")
