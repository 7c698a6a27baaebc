"""export(): the door from training to running. A fitted Wrapped becomes a Head and a Tail that share one id."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compoff import __version__
from compoff.cutting.capture import capture
from compoff.device.head import Head
from compoff.device.runners.torch import TorchRunner
from compoff.edge.backends.eager import EagerBackend
from compoff.edge.tail import Tail
from compoff.errors import ArtifactError, SplitError
from compoff.fingerprint import fingerprint
from compoff.manifest import DTYPES, FORMAT, CodeSpec, Manifest, TensorSpec
from compoff.programs import TorchProgram
from compoff.structure import flatten

if TYPE_CHECKING:
    from compoff.codec import Bottleneck
    from compoff.cutting.inputs import ExampleInputs
    from compoff.wrapping import Wrapped

__all__ = ["export"]


def export(wrapped: Wrapped, split: str, *, max_batch: int = 256) -> tuple[Head, Tail]:
    """Cut a wrapped model at a split point into the part for the device and the part for the edge.

    The bottleneck is taken as it is: fit it first. The wrapped model stays as it was and can be exported again. Inputs
    that are no tensors (flags, numbers, None) become constants: a head takes the tensors, in the model's own order.

    Args:
        wrapped: What `compoff.wrap` returned, its shapes known.
        split: The split point.
        max_batch: Largest number of samples in one payload; what the edge reserves memory for.

    Returns:
        Head and tail.

    Raises:
        SplitError: `split` is unknown, the model cannot be exported, or more than the symbols crosses the cut.
        ArtifactError: The model returns something that is not tensors in tuples, lists and dicts, or `max_batch` is out
            of range.

    Examples:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(2048, 5))
        >>> model = compoff.wrap(net, "input", example_input=torch.zeros(2, 3, 16, 16))
        >>> head, tail = compoff.export(model, "input")
        >>> head.artifact_id == tail.artifact_id
        True

    Source: DeepCOD (SenSys 2020), Sec. 4.1.
    """
    bottleneck = wrapped.bottleneck(split)
    example = wrapped.example_inputs()
    with wrapped.at(split):  # so that no other bottleneck is on, even if this is called inside `at`
        programs = capture(wrapped.base, wrapped.gate(split), split, example)
    leaves, structure = flatten(programs.output, lambda value: isinstance(value, Tensor))
    if not leaves:
        raise SplitError("the model returns no tensor, so there is nothing for the tail to answer")
    tables = bottleneck.prior.tables()
    shared: dict[str, Any] = {
        "split": split,
        "model": type(wrapped.base).__name__,
        "inputs": _specs(example.tensors, example.batched, "takes"),
        "outputs": _specs(leaves, programs.batched, "returns"),
        "structure": structure,
        "codes": (_code(bottleneck),),
        "quality": _default_quality(wrapped.reports.get(split, {}), bottleneck),
        "sides": (),
        "max_batch": max_batch,
        "call": _call(wrapped.base, example),
        "base": fingerprint(wrapped.base.state_dict()),
    }
    shared["artifact_id"] = _identity(wrapped, Manifest("", "", **shared), tables.weights.tobytes())
    shared["report"] = wrapped.reports.get(split, {})
    shared["versions"] = {"compoff": __version__, "torch": torch.__version__}
    head = Head(Manifest("head", **shared), [tables], TorchRunner(TorchProgram(programs.head)))
    tail = Tail(Manifest("tail", **shared), [tables], EagerBackend(TorchProgram(programs.tail)))
    return head, tail


def _call(model: nn.Module, example: ExampleInputs) -> dict[str, Any]:
    """How the model was called, with the defaults of what it was not given; empty where JSON cannot hold it."""
    signature = inspect.signature(model.forward)
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    bound = signature.bind(*example.args, **example.keywords)
    bound.apply_defaults()
    for args, keywords in ((bound.args, bound.kwargs), (example.args, example.keywords)):
        with contextlib.suppress(ArtifactError):
            call = flatten([list(args), dict(keywords)], lambda value: isinstance(value, Tensor))[1]
            names = [name for name, parameter in signature.parameters.items() if parameter.kind in by_position]
            return {"parameters": names, "call": call}
    return {}


def _default_quality(report: dict[str, Any], bottleneck: Bottleneck) -> int:
    """The quality that the fit chose, or -1 for the last."""
    chosen, last = report.get("quality", -1), len(bottleneck.qualities()) - 1
    return chosen if 0 <= chosen < last else -1


def _code(bottleneck: Bottleneck) -> CodeSpec:
    """The symbols of a bottleneck at each of its qualities."""
    qualities = bottleneck.qualities()
    steps = tuple(quality.step for quality in qualities)
    return CodeSpec(
        bottleneck.latent_shape,
        bottleneck.num_centers,
        tuple(quality.channels for quality in qualities),
        steps if max(steps) > 1 else (),
    )


def _specs(tensors: list[Tensor], batched: tuple[bool, ...], verb: str) -> tuple[TensorSpec, ...]:
    """Shapes and dtypes of what the model takes or returns."""
    specs = [
        TensorSpec(tuple(value.shape[1:] if has_batch else value.shape), _dtype(value), has_batch)
        for value, has_batch in zip(tensors, batched, strict=True)
    ]
    unknown = [spec.dtype for spec in specs if spec.dtype not in DTYPES]
    if unknown:
        raise SplitError(
            f"the model {verb} {unknown[0]}, which numpy and the wire do not know; expected {', '.join(DTYPES)}: wrap "
            "it in a module that converts at its ends"
        )
    return tuple(specs)


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _identity(wrapped: Wrapped, agreed: Manifest, tables: bytes) -> str:
    """A name that changes with anything that head and tail must agree on."""
    parts = {
        "format": FORMAT,
        **asdict(agreed),
        "bottleneck": fingerprint(wrapped.bottleneck(agreed.split).state_dict()),
        "tables": hashlib.sha256(tables).hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
