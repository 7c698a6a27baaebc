"""What one process of a server does with what it is told: reloads go on, whatever a drop of former tails comes to."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any

from compoff.errors import LocalProtocolError
from compoff.operations import child
from compoff.operations.child import _Reader
from compoff.operations.worker import Worker
from tests.edge.peers import eventually

if TYPE_CHECKING:
    import pytest


class Busy(Worker):
    """A worker whose server is too busy for so many swaps."""

    exports = frozenset({"now"})  # type: ignore[assignment]

    def __init__(self, refusals: int) -> None:
        self._tails, self._former = [], ["former"]  # type: ignore[list-item]
        self._server: Any = self
        self.refusals = refusals

    def swap(self, tails: Any) -> None:
        del tails
        if self.refusals:
            self.refusals -= 1
            raise LocalProtocolError("the server is too busy")

    def reload(self, *_: Any, **__: Any) -> bool:
        return True


def test_reloads_go_on_where_former_tails_cannot_be_let_go_of_and_those_are_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(child, "_AGAIN_SECONDS", 60.0)
    ours, theirs = multiprocessing.Pipe()
    worker = Busy(refusals=2)
    reader = _Reader(worker, theirs)
    reader.drop()
    eventually(lambda: "former tails are served for longer: the server is too busy" in caplog.text)
    assert worker.refusals == 1
    assert worker._former == ["former"]
    reader.reload((7, None, True, False))  # type: ignore[arg-type]
    assert ours.poll(30)
    assert ours.recv() == ("exports", {"now"})
    assert ours.recv() == ("reloaded 7", True)
    monkeypatch.setattr(child, "_AGAIN_SECONDS", 0.05)
    reader.drop()
    eventually(lambda: not worker._former)  # at the second try
    assert worker.refusals == 0
