"""A model that writes into copies of its buffers for a while, and what else it keeps put back: it stays as it was.

Also which of its plain attributes a call changes.

Copies of buffers are put in, rather than put back afterwards, because a gradient may still want what the pass has left
in them.
"""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from torch import Tensor

__all__ = ["changed_since", "kept_by", "spare_attributes", "spare_buffers"]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# Containers whose content can be taken out and put back; a class of somebody's own may do anything with that.
_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict, Counter)


@contextlib.contextmanager
def spare_buffers(model: nn.Module) -> Generator[None]:
    """Run a block with copies in place of a model's buffers, then give it its own ones back.

    Args:
        model: The model.

    Yields:
        Nothing.

    Examples:
        >>> import torch
        >>> net = torch.nn.BatchNorm1d(2)
        >>> with spare_buffers(net):
        ...     _ = net(torch.ones(4, 2))
        ...     int(net.num_batches_tracked)
        1
        >>> int(net.num_batches_tracked)
        0
    """
    copies: dict[Tensor, Tensor] = {}
    own: list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]] = []
    with torch.inference_mode(mode=False), torch.no_grad():  # a copy made of a tensor of inference mode could not train
        for module in model.modules():
            buffers = module._buffers  # pyright: ignore[reportPrivateUsage] - buffers() leaves out repeated ones
            if not buffers:
                continue
            own.append((buffers, dict(buffers)))
            for name, buffer in buffers.items():
                if buffer is not None:
                    if buffer not in copies:
                        copies[buffer] = buffer.clone()
                    buffers[name] = copies[buffer]
    try:
        yield
    finally:
        for buffers, before in own:
            buffers.clear()
            buffers.update(before)


@contextlib.contextmanager
def spare_attributes(model: nn.Module, *, hooks: bool = True) -> Generator[None]:
    """Run a block, then put back what a model keeps in plain attributes, and what its hooks collect.

    While a program is made of it, a model that remembers its last features remembers tensors that hold no numbers.

    Args:
        model: The model.
        hooks: Whether what its hooks collect is put back, too; somebody may listen to a fit on purpose.

    Yields:
        Nothing.

    Examples:
        >>> import torch
        >>> net, seen = torch.nn.ReLU(), []
        >>> handle = net.register_forward_hook(lambda module, args, output: seen.append(output))
        >>> with spare_attributes(net):
        ...     net.last = net(torch.ones(1))
        >>> hasattr(net, "last"), seen
        (False, [])

    Source: this project.
    """
    attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
    contents: dict[int, tuple[Any, Any]] = {}
    tensors: dict[int, tuple[Tensor, Tensor, int]] = {}
    for module in model.modules():
        plain = _plain_attributes(module)
        attributes.append((vars(module), plain))
        _note(plain.values(), contents, tensors)
        # Of what hooks reach, tensors are left alone: among them may be all the data of a script.
        _note(_reached_by_hooks(module) if hooks else (), contents)
    try:
        yield
    finally:
        for now, before in attributes:
            for name in [name for name in now if name not in _OF_EVERY_MODULE and name not in before]:
                del now[name]
            now.update(before)
        for container, content in contents.values():
            container.clear()
            (container.extend if isinstance(container, (list, deque)) else container.update)(content)
        for tensor, numbers, changes in tensors.values():
            if tensor._version != changes:
                with torch.no_grad():
                    tensor.copy_(numbers)


def kept_by(model: nn.Module) -> dict[str, Any]:
    """What a model keeps in plain attributes, for `changed_since`.

    Args:
        model: The model.

    Returns:
        By the attribute's path, the numbers, texts and tensors in it, and how lists, dicts and sets nest them.
    """
    return {
        f"{path}.{name}" if path else name: _seen(value, set())
        for path, module in cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
        for name, value in _plain_attributes(module).items()
    }


def changed_since(before: dict[str, Any], model: nn.Module) -> list[str]:
    """Which attributes of a model are no longer what they were; a tensor of the same numbers is the same.

    Args:
        before: What `kept_by` returned.
        model: The model.

    Returns:
        Their paths.

    Examples:
        >>> import torch
        >>> net = torch.nn.ReLU()
        >>> net.calls, net.last = 0, torch.zeros(1)
        >>> before = kept_by(net)
        >>> net.calls, net.last = 1, torch.zeros(1)
        >>> changed_since(before, net)
        ['calls']

    Source: this project.
    """
    now = kept_by(model)
    return [name for name in {**before, **now} if not _same(before.get(name), now.get(name))]


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}


def _seen(value: Any, above: set[int]) -> Any:
    """A value that may change as one that stays: a tensor with the number of its changes, a container's content."""
    if isinstance(value, torch.Tensor):
        return value, 0 if value.is_inference() else value._version
    if id(value) in above:
        return None
    if isinstance(value, dict):
        named = cast("dict[Any, Any]", value)
        return [*map(repr, named), *(_seen(one, {*above, id(named)}) for one in named.values())]
    if isinstance(value, (list, tuple, set, deque)):
        return [_seen(one, {*above, id(cast("Any", value))}) for one in cast("Iterable[Any]", value)]
    return value if isinstance(value, (bool, int, float, complex, str)) else None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):  # tensors
        (first, changes), (second, later) = cast("tuple[Any, int]", one), cast("tuple[Any, int]", other)
        return changes == later if first is second else _same_numbers(first, second)
    if isinstance(one, list) and isinstance(other, list):
        ours, theirs = cast("list[Any]", one), cast("list[Any]", other)
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if type(cast("object", one)) is not type(cast("object", other)):
        return False
    return one == other or (one != one and other != other)  # NaN is itself


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    strided = one.layout is other.layout is torch.strided and not (one.is_meta or one.is_nested or other.is_nested)
    return not strided or torch.equal(one, other)


def _note(
    values: Iterable[Any],
    contents: dict[int, tuple[Any, Any]],
    tensors: dict[int, tuple[Tensor, Tensor, int]] | None = None,
) -> None:
    """Note what containers hold, and those in them; and the numbers of tensors, where there is a place for them."""
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if type(value) in _CONTAINERS and id(value) not in contents:
            contents[id(value)] = (value, value.copy())
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, torch.Tensor):
            if tensors is not None and _can_be_copied(value):
                tensors[id(value)] = (value, value.detach().clone(), value._version)
        elif type(value) is tuple:
            waiting += cast("tuple[Any, ...]", value)


def _can_be_copied(tensor: Tensor) -> bool:
    """Whether a tensor tells that it was written to, and its numbers can be put back."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    return plain and not (tensor.is_inference() or tensor.is_meta or tensor.is_quantized or tensor.is_nested)


def _reached_by_hooks(module: nn.Module) -> list[Any]:
    """What the functions that listen to a module's passes can write to."""
    found: list[Any] = []
    hooks: list[Any] = [*module._forward_hooks.values()]  # pyright: ignore[reportPrivateUsage]
    hooks += module._forward_pre_hooks.values()  # pyright: ignore[reportPrivateUsage]
    for hook in hooks:
        owner = getattr(hook, "__self__", None)
        found += vars(owner).values() if hasattr(owner, "__dict__") and not isinstance(owner, nn.Module) else ()
        function: Any = getattr(hook, "__func__", hook)
        for cell in getattr(function, "__closure__", None) or ():
            with contextlib.suppress(ValueError):  # a cell that is empty yet
                found.append(cell.cell_contents)
        code, known = getattr(function, "__code__", None), getattr(function, "__globals__", {})
        found += [known[name] for name in code.co_names if name in known] if code is not None else ()
    return found
