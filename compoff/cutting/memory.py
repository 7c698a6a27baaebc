"""Whether a model remembers in plain attributes what it was asked: no program can, and no edge may.

Seen by asking it the same thing again. What it keeps in buffers shows in the graph (`capture`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from compoff.batch import Batch
from compoff.cutting.capture import KeepsState
from compoff.cutting.proof import tried
from compoff.cutting.watching import frozen
from compoff.spare import changed_since, kept_by
from compoff.trees import tensors_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from compoff.cutting.inputs import ExampleInputs

__all__ = ["require_memoryless"]

_log = logging.getLogger("compoff.export")

_ROUNDING = {"cpu": 1e-5}  # of the largest value, by the same kernels; sums of an accelerator come in any order
_ROUNDING_OTHERS = 1e-2


def require_memoryless(model: nn.Module, example: ExampleInputs) -> None:
    """Refuse a model that answers the same question otherwise the next time, by what it keeps in an attribute.

    Where an attribute changes with every call and the answer does not, the log says so.

    Args:
        model: The model.
        example: Example inputs.

    Raises:
        KeepsState: It does.

    Examples:
        >>> import torch
        >>> from compoff.cutting.inputs import ExampleInputs
        >>> class Ever(torch.nn.Module):
        ...     calls = 0
        ...     def forward(self, x):
        ...         self.calls += 1
        ...         return x + self.calls
        >>> require_memoryless(Ever(), ExampleInputs.of_call(Ever(), (torch.ones(2, 3),)))
        Traceback (most recent call last):
        compoff.cutting.capture.KeepsState: Ever changes its own attribute 'calls' with every call, and its answers ...

    Source: this project.
    """
    gpus = sorted({tensor.device.index for tensor in example.tensors if tensor.is_cuda})

    def run(given: ExampleInputs) -> list[Tensor]:
        torch.default_generator.manual_seed(0)  # what a model draws is no memory
        for one in gpus:
            torch.cuda.default_generators[one].manual_seed(0)
        answers = tensors_of(Batch(given.args, given.keywords).call(model))
        return [answer.clone() for answer in answers]  # a model may answer with what it keeps

    with torch.random.fork_rng(devices=gpus), frozen(model):
        found = tried(example, lambda given: ((), run(given)))  # also fills what is filled once
        if found is None:
            return
        given, _, first = found
        before = kept_by(model)
        try:
            run(given.map(lambda tensor: tensor * 0.5 if tensor.is_floating_point() else tensor))
            if not changed_since(before, model):
                return
            differs, before = _differ(first, run(given)), kept_by(model)
            run(given)
        except Exception:  # what refuses other inputs, or a third call, shows nothing
            return
        changed = changed_since(before, model)
    if not changed:  # it keeps what it saw last
        return
    told = f"{type(model).__name__} changes its own attribute '{changed[0]}' with every call"
    if differs:
        raise KeepsState(
            f"{told}, and its answers with it, but a head and a tail keep nothing from one call to the next, and an "
            "edge answers several devices; let eval mode leave it as it is"
        )
    _log.warning("%s; the exported programs keep the value of now", told)


def _differ(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether answers differ by more than rounding."""
    for one, other in zip(ours, theirs, strict=False):
        if one.shape != other.shape:
            return True
        if not one.is_floating_point():
            if not torch.equal(one, other):
                return True
        elif one.numel():
            gap, most = ((value.cpu().double().nan_to_num().abs().max()) for value in (one - other, other))
            if float(gap) > _ROUNDING.get(one.device.type, _ROUNDING_OTHERS) * float(most):
                return True
    return len(ours) != len(theirs)
