"""CUDA graphs, one for each shape that comes: a run is then one launch instead of hundreds."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CudaGraphs"]

_RECORDING = threading.Lock()  # PyTorch records one graph at a time in a process


class CudaGraphs:
    """Replays what a callable does on the GPU.

    Args:
        call: Tensors on the GPU to tensors on the GPU; it must not wait for the GPU, nor depend on values.
        most: Number of shapes that are recorded, each of which takes memory; others run as they are.
        warm_up: Runs before one is recorded, in which kernels are loaded and memory is set up.
    """

    def __init__(self, call: Callable[..., Any], most: int = 16, warm_up: int = 3) -> None:
        self._call = call
        self._most = most
        self._warm_up = warm_up
        self._recorded: dict[tuple[Any, ...], _Recorded] = {}
        self._lock = threading.Lock()  # a graph has one place for its inputs

    def __call__(self, *inputs: Tensor) -> Any:
        """Run, recorded where it has been or can be.

        Args:
            *inputs: Tensors on the GPU.

        Returns:
            What the callable returns, in memory of its own.
        """
        shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)
        # Each thread has a current card of its own, and what another card does is not recorded.
        with self._lock, torch.cuda.device(inputs[0].device):
            if shapes not in self._recorded:
                if len(self._recorded) >= self._most:
                    return self._call(*inputs)
                with _RECORDING:
                    self._recorded[shapes] = _Recorded(self._call, inputs, self._warm_up)
            return self._recorded[shapes].replay(inputs)


class _Recorded:
    """One graph of the current card, with the memory that its inputs and outputs live in."""

    def __init__(self, call: Callable[..., Any], inputs: tuple[Tensor, ...], warm_up: int) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warm_up):
                call(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # By default it is recorded on a stream of whichever card was the first, and other threads' work is an error.
        with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
            self._outputs = call(*self._inputs)

    def replay(self, inputs: tuple[Tensor, ...]) -> Any:
        for place, tensor in zip(self._inputs, inputs, strict=True):
            place.copy_(tensor)
        self._graph.replay()
        return pytree.tree_map_only(Tensor, Tensor.clone, self._outputs)
