"""Features and scores of many images, as quickly as this machine gives them: what measuring spends its time on.

On a CPU, onnxruntime runs the parts of an ImageNet network in under half of PyTorch's time, in the same float32.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal

import torch

import compoff
from benchmarks.behind import Before, Behind
from compoff.onnx_export import to_onnx
from compoff.onnx_session import OnnxSession
from compoff.programs import TorchProgram

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["Scorer", "WholeScorer"]

_BATCH = 50


class Scorer:
    """A network in two parts, before and behind a split point.

    Args:
        net: The network.
        split: ``"input"`` or the name of a stage.
        example: Two images, where the network is.
        runtime: What runs the parts.
        threads: Threads of onnxruntime; None for one a core.

    Attributes:
        before: The part before the split point.
    """

    def __init__(
        self,
        net: nn.Module,
        split: str,
        example: Tensor,
        *,
        runtime: Literal["torch", "onnxruntime"] = "torch",
        threads: int | None = None,
    ) -> None:
        before, behind = Before(net, split).eval(), Behind(net, split).eval()
        with torch.inference_mode():
            feature = before(example)
        if runtime == "onnxruntime":
            self._behind = _session(behind, feature.cpu().clone(), threads)
            self.before = _session(before, example.cpu(), threads) if split != "input" else before
        else:
            self.before, self._behind = before, behind
        self._last: tuple[Tensor, Tensor] | None = None

    def features(self, images: Tensor) -> Tensor:
        """Features of images at the split point, on the CPU; those of the last images are kept."""
        if self._last is None or self._last[0] is not images:
            self._last = None  # what is no longer needed may be as large
            self._last = images, self._in_batches(self.before, images)
        return self._last[1]

    def scores(self, features: Tensor) -> Tensor:
        """The network's scores of features, on the CPU."""
        return self._in_batches(self._behind, features)

    def _in_batches(self, part: nn.Module, inputs: Tensor) -> Tensor:
        # PyTorch's parts are the network's own layers, and move with it.
        where = next((weight.device for weight in self._behind.parameters()), torch.device("cpu"))
        return _in_batches(part, inputs, where)


class WholeScorer:
    """The same of a network whose parts are not known: a copy is run as a whole, its feature taken out or replaced.

    Args:
        net: The network, not wrapped.
        split: A split point that one tensor crosses.
        example: Two images, where the network is.
    """

    def __init__(self, net: nn.Module, split: str, example: Tensor) -> None:
        self._model = compoff.wrap(copy.deepcopy(net), split, example_input=example, skips="forbid").eval()
        self._gate = self._model.gate(split)
        self._blank = torch.zeros_like(example[:1])

    def features(self, images: Tensor) -> Tensor:
        """Features of images at the split point, on the CPU."""
        return _in_batches(self._taken, images, self._blank.device)

    def scores(self, features: Tensor) -> Tensor:
        """What the network makes of features, on the CPU."""
        return _in_batches(self._replaced, features, self._blank.device)

    def _taken(self, images: Tensor) -> Tensor:
        taken: list[Tensor] = []
        self._gate.replace = lambda ys: (taken.append(ys[0].clone()), ys)[1]
        try:
            self._model.base(images)
        finally:
            self._gate.replace = None
        return taken[0]

    def _replaced(self, features: Tensor) -> Tensor:
        """The answer to blank images, of which nothing is left behind the split point."""
        with self._gate.replacing([features]):
            return self._model.base(self._blank.expand(len(features), *self._blank.shape[1:]))


@torch.inference_mode()
def _in_batches(part: Callable[[Tensor], Tensor], inputs: Tensor, where: torch.device) -> Tensor:
    found = inputs.new_empty(0, device="cpu")
    for begin in range(0, len(inputs), _BATCH):
        made = part(inputs[begin : begin + _BATCH].to(where)).cpu()
        if not begin:
            found = made.new_empty(len(inputs), *made.shape[1:])
        found[begin : begin + _BATCH] = made
    return found


class _Session(torch.nn.Module):
    """A part of the network in onnxruntime."""

    def __init__(self, session: OnnxSession) -> None:
        super().__init__()
        self._session = session

    def forward(self, inputs: Tensor) -> Tensor:
        """Run on a batch."""
        return torch.from_numpy(self._session.run([inputs.contiguous().numpy()])[0])


def _session(part: nn.Module, example: Tensor, threads: int | None) -> _Session:
    free = {0: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        exported = torch.export.export(part.cpu(), (example,), dynamic_shapes=[free])
    data, _ = to_onnx(TorchProgram(exported), "a part of the network", [[example.numpy()]])
    return _Session(OnnxSession(data, "a part of the network", threads=threads))
