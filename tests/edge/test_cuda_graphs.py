"""Recorded runs on a stand-in of two cards, where a card that is not the current one records nothing."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from compoff.edge.backends.cuda_graphs import CudaGraphs
from tests.pretended import pretended_cards

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


class Machine:
    """Streams, graphs and a kernel, as far as they know cards."""

    def __init__(self) -> None:
        self.current = 0
        self.recording: tuple[Any, int] | None = None
        self.modes: list[str] = []

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Generator[None]:
        before, self.current = self.current, device.index
        try:
            yield
        finally:
            self.current = before

    def make_stream(self) -> Any:
        return type("Stream", (), {"card": self.current, "wait_stream": lambda *_: None})()

    @contextlib.contextmanager
    def graph(self, graph: Any, stream: Any = None, capture_error_mode: str = "global") -> Generator[None]:
        self.recording = graph, 0 if stream is None else stream.card
        self.modes.append(capture_error_mode)
        yield
        self.recording = None

    def double(self, x: Tensor) -> Tensor:
        result = torch.empty_like(x)

        def launch() -> None:
            result.copy_(2 * x)

        if self.recording is not None and self.recording[1] == x.device.index:
            self.recording[0].launches.append(launch)
        else:
            launch()
        return result


class Graph:
    def __init__(self) -> None:
        self.launches: list[Callable[[], None]] = []

    def replay(self) -> None:
        for launch in self.launches:
            launch()


@pytest.mark.parametrize("card", ["cuda:0", "cuda:1"])
def test_a_card_that_is_not_the_current_one_records_and_answers(card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    with pretended_cards(), monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "device", machine.device)
        patch.setattr(torch.cuda, "Stream", machine.make_stream)
        patch.setattr(torch.cuda, "current_stream", machine.make_stream)
        patch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "graph", machine.graph)
        run = CudaGraphs(machine.double)
        assert [run(torch.tensor([value], device=card)).item() for value in (1.0, 2.0, 3.0)] == [2, 4, 6]
    assert machine.modes == ["thread_local"]  # other threads go on meanwhile
    assert machine.current == 0
