"""Find, by one run of the model, the tensor that enters each split point and the module that made it.

Every check of a split point is here, and all of them come before anything is changed. Knows no codec.
"""

from __future__ import annotations

import contextlib
import difflib
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from compoff.errors import SplitError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

__all__ = ["INPUT", "Site", "check_names", "first_tensor", "frozen", "locate", "named_modules"]

INPUT = "input"
"""Name of the split point at the model's own input."""


@dataclass(frozen=True)
class Site:
    """One place where a model can be split.

    Args:
        path: Module path of the split point, or ``"input"``.
        producer: Path of the module whose output is the very tensor that enters the split point; None where a function
            made it, and the tensor must be caught on its way in.
        shape: Shape of the tensor without the batch axis.
        later: Paths of the blocks that run after the split point, in order: the features of Eq. 11.
        at_input: Whether that tensor is the model's own first input.

    Examples:
        >>> Site("layer2", "layer1", (16, 8, 8), ("layer2", "fc")).at_input
        False
    """

    path: str
    producer: str | None
    shape: tuple[int, ...]
    later: tuple[str, ...]
    at_input: bool = False


def first_tensor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first tensor among the arguments of a call.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.

    Returns:
        The tensor, or None where there is none.

    Examples:
        >>> import torch
        >>> first_tensor((3, torch.ones(2)), {}).shape
        torch.Size([2])
    """
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Generator[None]:
    """Run a block with the model in eval mode and no gradients, then give every module its own mode back.

    Args:
        model: The model.

    Yields:
        Nothing.

    Examples:
        >>> import torch
        >>> net = torch.nn.Dropout()
        >>> with frozen(net):
        ...     net.training
        False
        >>> net.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Inference mode is left, because its tensors do not tell whether they were changed in place.
        with torch.inference_mode(mode=False), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class _Seen:
    """A tensor as it was at one moment: the object, and how often it had been changed in place."""

    tensor: weakref.ref[Tensor]
    version: int

    @classmethod
    def now(cls, tensor: Tensor) -> _Seen:
        # Held weakly: the outputs of all modules together may not fit into memory.
        return cls(weakref.ref(tensor), -1 if tensor.is_inference() else tensor._version)

    def is_still(self, other: _Seen) -> bool:
        """Whether both are the same tensor with the same values."""
        tensor = self.tensor()
        return tensor is not None and tensor is other.tensor() and self.version == other.version


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its path, the model itself under the empty one.

    Args:
        model: The model.

    Returns:
        Modules by path; one that has several is listed under the first.
    """
    return dict(cast("Iterator[tuple[str, nn.Module]]", model.named_modules()))


class _Trace:
    """What one run of a model shows: calls in order, inputs of the split points, who made which tensor."""

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        self.calls: list[str] = []
        self.entered: dict[str, Any] = {}
        self.moments: dict[str, _Seen] = {}
        self.producers: dict[str, list[str]] = {}
        self._makers: list[tuple[_Seen, str]] = []
        self._names: dict[nn.Module, str] = {module: name for name, module in named_modules(model).items()}
        self._wanted = {INPUT, *paths}
        self._handles = [module.register_forward_pre_hook(self._enter, with_kwargs=True) for module in self._names]
        self._handles += [module.register_forward_hook(self._leave) for module in self._names]

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = self._names[module]
        self.calls.append(name)
        path = name or INPUT
        if path in self._wanted and path not in self.entered:
            given: Any = args[0] if args else next(iter(kwargs.values()), None)
            y = cast("Any", given) if isinstance(given, (list, tuple, dict)) else first_tensor(args, kwargs)
            self.entered[path] = y
            if isinstance(y, Tensor):
                self.moments[path] = now = _Seen.now(y)
                # Modules that returned this very tensor, unchanged since, the first one first. None that runs later:
                # an identity behind the split point returns it once more.
                self.producers[path] = [name for seen, name in self._makers if seen.is_still(now)]

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del args
        if isinstance(output, Tensor):
            self._makers.append((_Seen.now(output), self._names[module]))

    def remove(self) -> None:
        """Take the hooks out again."""
        for handle in self._handles:
            handle.remove()


def locate(
    model: nn.Module, paths: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> dict[str, Site]:
    """Find the tensors that enter the split points, by one run of the model.

    Args:
        model: The model; its modes, buffers and hooks are as before afterwards.
        paths: Split points: module paths, or ``"input"``.
        args: Positional inputs for one run.
        kwargs: Keyword inputs for one run.

    Returns:
        A site for each path, in the order of `paths`.

    Raises:
        SplitError: A path names no module; the module is never called, or more than once; what enters it is not one
            floating-point tensor with a batch axis; or the inputs hold no sample.

    Examples:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
        >>> locate(net, ["2"], (torch.zeros(2, 3, 16, 16),))["2"]
        Site(path='2', producer='1', shape=(8, 14, 14), later=('2',), at_input=False)

    Source: this project.
    """
    check_names(model, paths)
    _check_samples(args, kwargs or {})
    trace = _Trace(model, paths)
    try:
        with frozen(model):
            model(*args, **(kwargs or {}))
    finally:
        trace.remove()
    counts = Counter(trace.calls)
    return {path: _site(model, path, trace, counts) for path in paths}


def _check_samples(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a batch of nothing, on which most models fail with words of their own."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim() and not len(value):
            raise SplitError(f"an input has shape {tuple(value.shape)} and holds no sample; give a batch of 1 or more")


def check_names(model: nn.Module, paths: Sequence[str]) -> None:
    """Refuse names that are not modules of the model, before the model is run.

    Args:
        model: The model.
        paths: Split points.

    Raises:
        SplitError: A path names no module, or is given twice, or there is none.

    Examples:
        >>> import torch
        >>> check_names(torch.nn.Sequential(torch.nn.ReLU()), ["0", "input"])
    """
    if not paths:
        raise SplitError('no split point was given; expected module paths such as ["layer1", "layer2"], or "input"')
    names = [name for name in named_modules(model) if name]
    for path in paths:
        if not isinstance(path, str):  # pyright: ignore[reportUnnecessaryIsInstance] - a user's mistake all the same
            raise SplitError(f"split point {path!r} is a {type(path).__name__}; expected module paths as strings")
        if path != INPUT and path not in names:
            close = difflib.get_close_matches(path, [INPUT, *names], n=1, cutoff=0.4)
            hint = f" did you mean '{close[0]}'?" if close else ""
            depth = path.count(".")
            level = [name for name in names if name.count(".") == depth][:12] or names[:12]
            raise SplitError(
                f"'{path}' is not a module of {type(model).__name__};{hint} modules at that depth: {', '.join(level)}"
            )
    doubled = [path for path, count in Counter(paths).items() if count > 1]
    if doubled:
        raise SplitError(f"split point '{doubled[0]}' was given twice; name each split point once")


def _site(model: nn.Module, path: str, trace: _Trace, counts: Counter[str]) -> Site:
    """The site of one path, or the reason why there is none."""
    name = "" if path == INPUT else path
    if counts[name] != 1:
        happened = "never called" if not counts[name] else f"called {counts[name]} times"
        raise SplitError(
            f"'{path}' is {happened} in one forward pass of {type(model).__name__} with these inputs, so there is no "
            "one place to split; choose a module that runs exactly once, such as the block around it or after it"
        )
    y: Any = trace.entered[path]
    if not isinstance(y, Tensor):
        what = type(y).__name__ if y is None else f"a {type(y).__name__} of {len(y)} items"
        raise SplitError(
            f"the input of '{path}' is {what}, not one tensor; choose a block start that one tensor enters, such as "
            "the block around it"
        )
    if not y.is_floating_point():
        raise SplitError(
            f"the input of '{path}' is {y.dtype} (token ids or indices, not a feature); choose a split point after the "
            "embedding, where a floating-point tensor enters"
        )
    if not 2 <= y.dim() <= 4 or y.numel() == 0:
        raise SplitError(
            f"the input of '{path}' has shape {tuple(y.shape)}; expected a batch of features, (batch, channels, "
            "height, width), (batch, channels, time) or (batch, features), none of them empty"
        )
    # The first module that returned it: whoever reads the tensor later, skips included, then sees the decoded one.
    producer = next((maker for maker in trace.producers[path] if counts[maker] == 1), None) if path != INPUT else None
    first = trace.moments.get(INPUT)
    at_input = producer is None and first is not None and first.is_still(trace.moments[path])
    return Site(path, producer, tuple(y.shape[1:]), _later_blocks(model, name, trace.calls), at_input)


def _later_blocks(model: nn.Module, name: str, calls: list[str]) -> tuple[str, ...]:
    """Blocks that run from the split point on: children of each module on the way down to it, with parameters."""
    parents = [""]
    for part in name.split(".")[:-1]:
        parents.append(f"{parents[-1]}.{part}".lstrip("."))
    later = calls[calls.index(name) :]
    modules = named_modules(model)
    blocks: dict[str, None] = {}
    for call in later:
        parent = call.rpartition(".")[0]
        if call and parent in parents and next(modules[call].parameters(), None) is not None:
            blocks[call] = None
    return tuple(blocks)
