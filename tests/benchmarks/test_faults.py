"""A few faults of every kind, judged as the benchmark judges hundreds; and that its judge can say no."""

from __future__ import annotations

import pytest

from benchmarks.fault_kinds import KINDS, LINK_ERRORS
from benchmarks.faults import DEADLINE, SLACK, Ledger, run_kind
from compoff.errors import ArtifactMismatch, ConnectionLost


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_ends_in_time_and_right(kind: str) -> None:
    row, violations = run_kind(kind, faults=3, sites=1, seed=7)
    assert violations == []
    assert row["faults"] == 3
    assert row["raise: edge"] > 0
    assert row["asyncio: edge"] > 0
    answered = [value for key, value in row.items() if key.startswith("local: ")]
    assert sum(answered) == row.get("local: edge", 0) + row.get("local: local", 0) > 0


def test_the_judge_sees_wrong_late_and_foreign() -> None:
    ledger = Ledger(LINK_ERRORS)
    ledger.answered("raise", "edge", True, 0.0, 0.1)
    ledger.failed("raise", ConnectionLost("cut"), 1.0, 1.0 + DEADLINE)
    ledger.judge()
    assert ledger.violations == []
    ledger.answered("raise", "edge", False, 0.0, 0.1)
    ledger.failed("raise", ArtifactMismatch("another"), 0.0, 0.1)
    ledger.failed("local", ConnectionLost("cut"), 0.0, 0.1)
    ledger.answered("hedge", "local", True, 2.0, 2.0 + DEADLINE + SLACK + 0.01)
    ledger.answered("hedge", "local", True, 4.0, 4.0 + DEADLINE + SLACK + 0.01)
    ledger.stalls.append((4.1, 4.3))
    ledger.judge()
    assert [violation.split(":")[0] for violation in ledger.violations] == ["raise", "raise", "local", "hedge"]
