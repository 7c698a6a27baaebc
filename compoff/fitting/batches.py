"""Batches as people have them, turned into what the model is called with; labels fall away here.

Knows the shapes of loaders (tensors, tuples, dicts), nothing of training.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from compoff.batch import Batch
from compoff.checks import check_whole
from compoff.cutting.inputs import require_known
from compoff.errors import BackendError, FitError
from compoff.fitting.form import missing, names_of, refusal, require_samples
from compoff.programs import device_trouble
from compoff.structure import LABELS
from compoff.trees import map_tensors, tensors_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from compoff.wrapping import Wrapped

__all__ = ["Batches", "check_seed", "not_finite", "require_batches", "require_device", "to_batch"]


class Batches:
    """Batches as the model takes them, made anew whenever they are gone through: none is kept.

    Args:
        items: What gives them as people have them, again and again.
        wrapped: The wrapped model.
        device: Where to move them; None to leave them.

    Examples:
        >>> import torch, compoff
        >>> model = compoff.wrap(torch.nn.Linear(3, 1), "input")
        >>> batches = Batches([torch.ones(2, 3), torch.ones(1, 3)], model)
        >>> [batch.size for batch in batches], [batch.size for batch in batches]
        ([2, 1], [2, 1])
    """

    def __init__(self, items: Iterable[Any], wrapped: Wrapped, device: torch.device | None = None) -> None:
        self._items = items
        self._wrapped = wrapped
        self._device = device

    def __iter__(self) -> Iterator[Batch]:
        return (to_batch(item, self._wrapped, self._device) for item in self._items)


def to_batch(item: Any, wrapped: Wrapped, device: torch.device | None = None) -> Batch:
    """Take the model's inputs out of one item of a loader.

    Args:
        item: A tensor; a dict, of which the model's own argument names are taken, labels excepted that the model was
            not wrapped with; ``(tuple, dict)`` of positional and keyword inputs, as ``example_input`` may be, where
            the model takes the names in that dict; a tuple or list, whose first entry is the input (a tensor, a tuple
            of them, or one of the others) and whose others are labels; or what this gave before.
        wrapped: The wrapped model.
        device: Where to move the tensors; None to leave them.

    Returns:
        The inputs.

    Raises:
        FitError: The item holds no tensor, or no samples, or one that the model was not wrapped with, or what falls
            away may be an input that it was wrapped with, or an input has samples where it had none then.

    Examples:
        >>> import torch, compoff
        >>> model = compoff.wrap(torch.nn.Linear(3, 1), "input")
        >>> to_batch((torch.ones(2, 3), torch.tensor([0, 1])), model).args[0].shape
        torch.Size([2, 3])
    """
    if isinstance(item, Batch):
        return Batch(_move(item.args, device), _move(item.kwargs, device))
    model, others = wrapped.base, ()
    inputs: Any = item
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(item, (tuple, list)) and not _is_call(item, model, names_of(wrapped)):
        inputs, *others = cast("tuple[Any, ...]", item) or (None,)
    if _is_call(inputs, model, names_of(wrapped)):
        args, kwargs = tuple(inputs[0]), dict(inputs[1])
    elif isinstance(inputs, Mapping):
        kwargs = _arguments(cast("Mapping[str, Any]", inputs), model, names_of(wrapped))
    elif isinstance(inputs, (tuple, list)):
        args = tuple(cast("tuple[Any, ...]", inputs))
    else:
        args = (inputs,)
    tensors = tensors_of((args, kwargs))
    if not tensors:
        names = _names(model)
        itself = (
            f"; a dict that is an argument itself goes as {{'{names[0]}': …}}" if isinstance(inputs, Mapping) else ""
        )
        raise FitError(
            f"a batch is {_described(inputs)}, without a tensor that {type(model).__name__} takes; give tensors, "
            f"(input, label) tuples, or dicts with the model's argument names: {', '.join(names)}{itself}"
        )
    if not any(tensor.dim() for tensor in tensors) or any(tensor.dim() and not len(tensor) for tensor in tensors):
        raise FitError("a batch is empty (no samples in its first axis); drop empty batches from the loader")
    batch = Batch(_move(args, device), _move(kwargs, device))
    if absent := missing(batch, wrapped):
        _refuse_doubt(absent, inputs, others, kwargs, wrapped)
    require_known(model, wrapped.example, batch.args, batch.kwargs)
    require_samples(batch, wrapped)
    return batch


def _refuse_doubt(
    absent: list[str], inputs: Any, others: Iterable[Any], taken: dict[str, Any], wrapped: Wrapped
) -> None:
    """Refuse a batch without an input that the model was wrapped with where that may be in what falls away.

    Where nothing falls away, it was left out on purpose.
    """
    if isinstance(inputs, Mapping):
        named = cast("Mapping[str, Any]", inputs)
        unknown = [name for name in named if name not in taken and name not in LABELS and tensors_of(named[name])]
        if unknown:
            why = f"of a dict the model's own arguments are taken, and {', '.join(map(repr, unknown))} is none"
            raise refusal(absent, wrapped, why)
    nested = isinstance(inputs, (Mapping, tuple, list))
    for other in others:
        if any(name in other for name in absent) if isinstance(other, Mapping) else not nested and tensors_of(other):
            raise refusal(
                absent, wrapped, "of a tuple the first entry is the input, and what comes after it are labels"
            )


def not_finite(batch: Batch) -> FitError:
    """Why nothing can be learned or measured from a batch whose features are not all finite.

    Args:
        batch: The batch.

    Returns:
        The error to raise.
    """
    if not all(bool(torch.isfinite(value).all()) for value in tensors_of((batch.args, batch.kwargs))):
        return FitError("a batch holds NaN or infinity, for which there are no symbols; clean the inputs")
    return FitError("the model itself computes NaN or infinity from a batch, or gradients of it; check its weights")


def check_seed(seed: Any) -> int:
    """Refuse what PyTorch's generators do not take.

    Args:
        seed: What was given.

    Returns:
        The seed.

    Raises:
        FitError: It is no whole number of 64 bits.
    """
    check_whole("seed", seed, FitError)
    if not -(2**63) <= seed < 2**64:
        raise FitError(f"seed is {seed}; expected a whole number of at most 64 bits")
    return int(seed)  # PyTorch takes none of numpy's


def require_batches(name: str, batches: Any, *, or_none: bool = False) -> None:
    """Refuse what holds no batches to go through.

    Args:
        name: Name of the argument.
        batches: What was given.
        or_none: Whether None passes, too.

    Raises:
        FitError: It cannot be gone through.
    """
    if or_none and batches is None:
        return
    if isinstance(batches, Tensor):
        raise FitError(f"{name} is a tensor, which is one batch; give several in a list, as x.split(64), or [x]")
    if isinstance(batches, nn.Module):
        raise FitError(f"{name} is a model, {type(batches).__name__}; expected a loader, or a list of batches")
    if isinstance(batches, (str, Mapping)) or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        given = type(cast("object", batches)).__name__
        raise FitError(f"{name} is a {given}; expected a loader, a list, or anything else that gives batches")


def require_device(device: Any) -> None:
    """Refuse a device that is not here, before anything is moved.

    Args:
        device: What was given.

    Raises:
        BackendError: There is none of this name, or PyTorch cannot use it.
    """
    if reason := device_trouble(device):
        raise BackendError(f"device is {device!r:.80}, which cannot be used here ({reason:.200}); choose another")


def _names(model: nn.Module) -> list[str]:
    """Names of the model's arguments."""
    return list(inspect.signature(model.forward).parameters)


def _arguments(item: Mapping[str, Any], model: nn.Module, known: list[str]) -> dict[str, Any]:
    """The entries of a dict that the model takes, without labels that it was not wrapped with."""
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {
        key: value
        for key, value in item.items()
        if (takes_any or key in parameters) and (key not in LABELS or key in known)
    }


def _is_call(given: Any, model: nn.Module, known: list[str]) -> bool:
    """Whether a pair holds positional and keyword inputs of one call, so that its second part cannot be labels."""
    if not isinstance(given, (tuple, list)) or len(parts := cast("tuple[Any, ...]", given)) != 2:
        return False
    inputs, other = parts
    if not isinstance(inputs, (tuple, list)) or not isinstance(other, Mapping) or not other:
        return False
    named = cast("Mapping[Any, Any]", other)
    signature = inspect.signature(model.forward)
    for name, value in named.items():
        if name not in known and (name not in signature.parameters or name in LABELS or (known and tensors_of(value))):
            return False
    try:
        signature.bind_partial(*cast("tuple[Any, ...]", inputs), **named)
    except TypeError:  # one of them is given by place already
        return False
    return True


def _described(inputs: Any) -> str:
    """What was given, in a few words."""
    if isinstance(inputs, Mapping):
        return f"a dict of {sorted(map(str, cast('Mapping[Any, Any]', inputs)))}"
    return f"a {type(inputs).__name__}"


def _move(value: Any, device: torch.device | None) -> Any:
    def moved(tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            raise FitError("a batch holds a tensor on the device 'meta', which has no values; give the data themselves")
        tensor = tensor.clone() if tensor.is_inference() else tensor  # of which no gradient could be taken
        # Not in the background: whoever reads next, or a loader that fills the same memory again, would not wait.
        return tensor if device is None else tensor.to(device)

    return map_tensors(value, moved)
