"""export(): the door from training to running. A fitted Wrapped becomes a Head and a Tail that share one id."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from compoff import __version__
from compoff.autocast import no_autocast
from compoff.checks import check_whole
from compoff.codec import Encoder, code_of, trimmed
from compoff.cutting.capture import KeepsState, capture
from compoff.cutting.graph_flow import GraphFlow
from compoff.cutting.memory import require_memoryless
from compoff.cutting.pixels import from_pixels, require_picture
from compoff.cutting.prefix import Prefix, capture_prefix
from compoff.cutting.proof import answers_alike
from compoff.device.head import Head
from compoff.device.runners.torch import TorchRunner
from compoff.edge.backends.eager import EagerBackend
from compoff.edge.backends.module import ModuleBackend, make_model
from compoff.edge.tail import Tail
from compoff.errors import ArtifactError, SplitError
from compoff.fingerprint import fingerprint
from compoff.manifest import DTYPES, FORMAT, CodeSpec, Manifest, TensorSpec
from compoff.mounting import require_wrapped
from compoff.outer_hooks import require_onlookers
from compoff.programs import TorchProgram
from compoff.structure import flatten

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from compoff.codec import Bottleneck
    from compoff.coding import SymbolTables
    from compoff.cutting.inputs import ExampleInputs
    from compoff.edge.backends.backend import Backend
    from compoff.gates import Gate
    from compoff.pixels import Pixels
    from compoff.wrapping import Wrapped

__all__ = ["export"]

_log = logging.getLogger("compoff.export")

_FACTORY = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")

Crossing: TypeAlias = Sequence[tuple[Tensor, bool]]
"""Tensors, and for each whether its first axis is the batch."""


@no_autocast()
def export(
    wrapped: Wrapped,
    split: str,
    *,
    max_batch: int = 256,
    tail_factory: str | None = None,
    pixels: Pixels | None = None,
) -> tuple[Head, Tail]:
    """Cut a wrapped model at a split point into the part for the device and the part for the edge.

    The bottlenecks are taken as they are: fit them first; the log says so where that was not done. The wrapped model
    stays as it was and can be exported again. Inputs that are no tensors (flags, numbers, None) become constants.

    Args:
        wrapped: What `compoff.wrap` returned, its shapes known.
        split: The split point.
        max_batch: Largest number of samples in one payload; what the edge reserves memory for.
        tail_factory: ``"package.module:function"`` that makes the model with its weights, for a model whose part behind
            the split point cannot become a program (control flow that depends on values, such as NMS): its tail runs
            the model itself, in PyTorch, on the edge. Not used where a program can be made.
        pixels: How pixels become what the model takes: the head then takes a batch of 8-bit pictures and normalizes
            them itself.

    Returns:
        Head and tail.

    Raises:
        SplitError: `split` is unknown, the model cannot be exported, something crosses that cannot, or the parts would
            answer otherwise than the model: for one sample than for several, by what others send, by what it
            remembers of earlier calls, or by what a hook on `wrapped` or the model's ``__call__`` changes.
        FeatureError: The model takes no picture of such `pixels`.
        ArtifactError: The model returns something that cannot be described, `tail_factory` makes another model, or
            `max_batch` is out of range.

    Examples:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(2048, 5))
        >>> model = compoff.wrap(net, "input", example_input=torch.zeros(2, 3, 16, 16))
        >>> head, tail = compoff.export(model, "input")
        >>> head.artifact_id == tail.artifact_id
        True

    Source: DeepCOD (SenSys 2020), Sec. 4.1.
    """
    require_wrapped(wrapped)
    check_whole("max_batch", max_batch, ArtifactError, least=1)
    max_batch = int(max_batch)
    if tail_factory is not None and not _FACTORY.fullmatch(str(tail_factory)):
        raise ArtifactError(f"tail_factory is {tail_factory!r:.80}; expected the text 'package.module:function'")
    example, bottlenecks = wrapped.example_inputs(), [trimmed(one) for one in wrapped.bottlenecks_at(split)]
    if pixels is not None:
        require_picture(pixels, example)
    _refuse_loose(wrapped.base, example)
    require_onlookers(wrapped, SplitError)
    if missing := _missing(split, bottlenecks):
        _log.warning("%s", missing)
    tables = [code_of(bottleneck).tables for bottleneck in bottlenecks]
    with wrapped.at(split, bypass=True):
        require_memoryless(wrapped.base, example)
    made = _make(wrapped, split, example, tail_factory, max_batch)
    if pixels is not None:
        made = replace(made, head=from_pixels(made.head, pixels, example, split))
    shared: dict[str, Any] = {
        "split": split,
        "model": type(wrapped.base).__name__,
        "inputs": _specs(list(zip(example.tensors, example.batched, strict=True)), "takes"),
        "outputs": _specs(made.leaves, "returns"),
        "structure": made.structure,
        "codes": tuple(_code(bottleneck) for bottleneck in bottlenecks),
        "quality": bottlenecks[0].chosen,
        "sides": _specs(made.sides, "computes"),
        "max_batch": max_batch,
        "call": _call(wrapped.base, example),
        "pixels": pixels,
        "factory": made.factory,
        "base": fingerprint(wrapped.base.state_dict()),
    }
    shared["artifact_id"] = _identity(wrapped, Manifest("", "", **shared), tables, made)
    shared["report"] = {**_report(wrapped, split, shared["base"]), **made.macs}
    shared["report"]["head_macs"] = _macs(made.head) - _spared(bottlenecks, shared["quality"])
    shared["versions"] = {"compoff": __version__, "torch": torch.__version__}
    head, tail = Manifest("head", **shared), Manifest("tail", **shared)
    runner = TorchRunner(TorchProgram(made.head), head.codes)
    return Head(head, tables, runner), Tail(tail, tables, made.backend(tail))


def _refuse_loose(model: nn.Module, example: ExampleInputs) -> None:
    """Refuse keywords that no parameter of the model names: torch.export has no form for them and a free batch size."""
    parameters = inspect.signature(model.forward).parameters
    spread = [name for name, one in parameters.items() if one.kind is inspect.Parameter.VAR_KEYWORD]
    if spread and (loose := [name for name in example.keywords if name in spread or name not in parameters]):
        raise SplitError(
            f"'{loose[0]}' reaches {type(model).__name__}.forward by its **{spread[0]}, and torch.export takes only "
            "what a parameter names; set it in the model itself, such as in its configuration, and leave it out of the "
            "calls, or wrap a module whose forward names it and hands it on"
        )


def _report(wrapped: Wrapped, split: str, base: str) -> dict[str, Any]:
    """What was measured at a split point, where it is that which is exported."""
    report, adapter = wrapped.reports.get(split, {}), wrapped.bottleneck(split).adapter
    if report and report.get("adapter_bytes", 0) != (0 if adapter is None else adapter.bytes):
        _log.warning(
            "the figures at '%s' were measured with another adapter and are left out of the export; measure again with "
            "compoff.finish",
            split,
        )
        return {}
    figures = wrapped.figures_of(split, base)
    if figures is None:
        _log.warning(
            "the figures at '%s' were measured with other weights and are left out of the export; measure again with "
            "compoff.finish",
            split,
        )
    return figures or {}


def _missing(split: str, bottlenecks: Sequence[Bottleneck]) -> str:
    """What was left out at a split point; nothing where all was done, by a fit or some other way."""
    if not all(bottleneck.calibrated for bottleneck in bottlenecks):
        return f"the codec at '{split}' has not been fitted, so its answers are not the model's; call compoff.fit first"
    if all(bool(bottleneck.prior.logits.any()) for bottleneck in bottlenecks):  # zeros until they learn or are counted
        return ""
    return (
        f"the symbols at '{split}' have not been counted, so its payloads are as long as they can be; after a loop "
        "of your own call compoff.finish(model, batches)"
    )


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


def _spared(bottlenecks: Sequence[Bottleneck], quality: int) -> int:
    """Multiply-accumulates of the channels that the default quality does not send, nor the head compute."""
    return sum(
        one.encoder.macs - one.encoder.macs_of(one.qualities()[quality].channels)
        for one in bottlenecks
        if isinstance(one.encoder, Encoder)
    )


@dataclass(frozen=True)
class _Made:
    """The two parts, before they know what they are called."""

    head: ExportedProgram
    backend: Callable[[Manifest], Backend]
    sides: Crossing
    leaves: Crossing
    structure: dict[str, Any]
    factory: str = ""
    tail: ExportedProgram | None = None

    @property
    def macs(self) -> dict[str, int | None]:
        """Multiply-accumulates of both parts per sample; None for a tail that is no program."""
        return {"head_macs": _macs(self.head), "tail_macs": None if self.tail is None else _macs(self.tail)}


def _macs(program: ExportedProgram) -> int:
    """Multiply-accumulates of one sample, from the shapes in the graph.

    A program is made with two samples, and the graph remembers it.
    """
    return GraphFlow(program.graph).flow.macs(0) // 2


def _make(wrapped: Wrapped, split: str, example: ExampleInputs, factory: str | None, most: int) -> _Made:
    """Both parts as programs; or the head as one, and the model itself behind it."""
    gate, send = wrapped.gate(split), wrapped.skips == "send"
    with wrapped.at(split):  # so that no other bottleneck is on, even if this is called inside `at`
        try:
            programs = capture(wrapped.base, gate, split, example, most=most, send=send)
        except KeepsState:
            raise
        except SplitError as error:
            _refuse_adapter(gate, split, error)
            prefix = _prefix_or_raise(wrapped, split, example, factory, error, most)
        else:
            if not programs.leaves:
                raise SplitError("the model returns no tensor, so there is nothing for the tail to answer")
            tail = EagerBackend(TorchProgram(programs.tail))
            rest = (programs.sides, programs.leaves, programs.structure)
            return _Made(programs.head, lambda _: tail, *rest, tail=programs.tail)
    assert factory is not None
    places = [
        (crossing.tap, crossing.own) for crossing in (*wrapped.sites[split].features, *wrapped.sites[split].sides)
    ]
    model = make_model(factory, fingerprint(wrapped.base.state_dict()))
    if not answers_alike(wrapped.base, model, example):
        raise ArtifactError(
            f"tail_factory '{factory}' makes a model that answers otherwise than the one that was wrapped, though its "
            "weights are the same; a number in its code or a buffer that no state has must differ: make the same model"
        )
    decoders = TorchProgram(prefix.decoders)
    return _Made(
        prefix.head, lambda manifest: ModuleBackend(manifest, model, decoders, places), prefix.sides, (), {}, factory
    )


def _refuse_adapter(gate: Gate, split: str, error: SplitError) -> None:
    """Refuse an adapter whose tail is no program: a tail that runs the model itself would leave it out."""
    if gate.bottleneck.adapter is not None:
        raise SplitError(
            f"{error}. A tail that runs the model itself knows no adapter; wrap with strict=True to export '{split}'"
        ) from error


def _prefix_or_raise(
    wrapped: Wrapped, split: str, example: ExampleInputs, factory: str | None, error: SplitError, most: int
) -> Prefix:
    """The head of a model whose tail cannot be a program, or the reason why there is not even that."""
    try:
        prefix = capture_prefix(wrapped.base, wrapped.gate(split), wrapped.sites[split], example, most=most)
    except SplitError as before:
        raise before from error
    if factory is None:
        raise SplitError(
            f"{error}. What runs before '{split}' can be exported, so a head can be made: pass tail_factory="
            "'package.module:function', which makes this model with its weights, and the edge runs the model itself "
            "behind the split point"
        ) from error
    _log.warning(
        "compoff.export: the tail at '%s' is no program (%s); it runs the model that %s makes, in PyTorch, on the edge",
        split,
        error,
        factory,
    )
    return prefix


def _specs(crossing: Crossing, verb: str) -> tuple[TensorSpec, ...]:
    """Shapes and dtypes of tensors, and whether their first axis is the batch."""
    specs = [
        TensorSpec(tuple(value.shape[1:] if has_batch else value.shape), _dtype(value), has_batch)
        for value, has_batch in crossing
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


def _identity(wrapped: Wrapped, agreed: Manifest, tables: Sequence[SymbolTables], made: _Made) -> str:
    """A name that changes with anything that head and tail must agree on."""
    parts = {
        "format": FORMAT,
        **asdict(agreed),
        "bottlenecks": [fingerprint(bottleneck.state_dict()) for bottleneck in wrapped.bottlenecks_at(agreed.split)],
        # The same weights may be used otherwise: another number in the code, another buffer that no state has.
        "programs": [_reading(program) for program in (made.head, made.tail) if program is not None],
        "tables": [hashlib.sha256(one.weights.tobytes()).hexdigest() for one in tables],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _reading(program: ExportedProgram) -> list[str]:
    """What a program computes, and with which numbers."""
    numbers: dict[str, Any] = {**program.constants, **program.state_dict}
    return [hashlib.sha256(program.graph_module.code.encode()).hexdigest(), fingerprint(numbers)]
