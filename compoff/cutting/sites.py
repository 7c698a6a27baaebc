"""Split points: the tensors that cross there, and where each can be caught, from one watched run of the model.

Every check of a split point is here, and all of them come before anything is changed. Knows no codec's weights.
"""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from compoff.cutting.behind import Layer, layers_behind
from compoff.cutting.complaints import crossing_told, nearest_clean
from compoff.cutting.features import Feature, feature_of, side_of
from compoff.cutting.moment import Cut, cut_at_call
from compoff.cutting.points import choose_points
from compoff.cutting.taps import find_tap
from compoff.cutting.trace import INPUT
from compoff.cutting.watching import named_modules, watch
from compoff.errors import SplitError
from compoff.trees import tensors_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from compoff.cutting.trace import ModuleCall, Trace
    from compoff.hooks import Tap

__all__ = ["AUTO", "INPUT", "Site", "Skips", "check_names", "check_skips", "find_call", "locate", "resolve"]

AUTO = "auto"
"""Stands for a few split points that span the network."""

Skips = Literal["encode", "send", "forbid"]
"""What happens to the other floating-point tensors that cross: a bottleneck each, sent as they are, or refused."""


@dataclass(frozen=True)
class Site:
    """One place where a model can be split.

    Args:
        path: Name of the split point: a module path, with ``#n`` for its n-th call, or ``"input"``.
        features: Tensors that get a bottleneck: the one that enters the split point, then those that pass it by.
        sides: Tensors that cross as they are.
        later: Paths of the blocks that run after the split point, in order: the features of Eq. 11.
        behind: Layers behind the split point that an adapter can change.
    """

    path: str
    features: tuple[Feature, ...]
    sides: tuple[Feature, ...]
    later: tuple[str, ...]
    behind: tuple[Layer, ...] = ()

    @property
    def raw_bytes(self) -> int:
        """Size of all floating-point tensors of one sample that cross, as they are, in bytes."""
        floats = (side for side in self.sides if side.dtype.is_floating_point)
        return sum(feature.raw_bytes for feature in (*self.features, *floats))


def locate(
    model: nn.Module,
    paths: Sequence[str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    skips: Skips = "encode",
) -> dict[str, Site]:
    """Find the tensors that cross at split points, by one run of the model.

    Args:
        model: The model; its modes, buffers and hooks are as before afterwards.
        paths: Split points: module paths, or ``"input"``; ``"auto"`` alone chooses some.
        args: Positional inputs for one run.
        kwargs: Keyword inputs for one run.
        skips: What happens to further floating-point tensors that cross.

    Returns:
        A site for each path, in the order of `paths`.

    Raises:
        SplitError: A path names no module; the module is never called, or more than once; no floating-point tensor
            with a batch axis enters it; what else crosses is forbidden or cannot be caught; or the inputs hold no
            sample.

    Examples:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
        >>> site = locate(net, ["2"], (torch.zeros(2, 3, 16, 16),))["2"]
        >>> str(site.features[0].tap), site.features[0].shape, site.later
        ('output of 1', (8, 14, 14), ('2',))

    Source: this project.
    """
    check_names(model, paths)
    _check_samples(args, kwargs or {})
    trace = watch(model, args, kwargs)
    chosen = choose_points(trace, type(model).__name__) if _is_auto(model, paths) else paths
    return {path: resolve(model, trace, path, skips) for path in chosen}


def resolve(model: nn.Module, trace: Trace, path: str, skips: Skips) -> Site:
    """The site of one split point in a run.

    Args:
        model: The model.
        trace: The run.
        path: The split point.
        skips: What happens to further floating-point tensors that cross.

    Returns:
        The site.

    Raises:
        SplitError: As `locate`.
    """
    call = find_call(model, trace, path)
    cut = cut_at_call(trace, call, path)
    if cut.skips and skips == "forbid":
        raise SplitError(
            f"{crossing_told(trace, cut, path)} Choose {nearest_clean(trace, call)}, or let each of them have a "
            "bottleneck of its own with skips='encode'"
        )
    main = feature_of(trace, cut.main, cut.tap, path)
    others = tuple(feature_of(trace, number, _caught(trace, cut, number, path), path) for number in cut.skips)
    sides = tuple(side_of(trace, number, _caught(trace, cut, number, path)) for number in cut.sides)
    later, behind = _later_blocks(model, trace, call), layers_behind(model, trace, cut.moment)
    if skips == "send":
        raw = tuple(side_of(trace, number, _caught(trace, cut, number, path)) for number in cut.skips)
        return Site(path, (main,), (*raw, *sides), later, behind)
    _require_one_device((main, *others), path)
    return Site(path, (main, *others), sides, later, behind)


def _require_one_device(features: tuple[Feature, ...], path: str) -> None:
    """Refuse a cut at which features cross on several devices, which are fitted as one."""
    places = sorted({str(feature.device) for feature in features})
    if len(places) > 1:
        raise SplitError(
            f"the tensors that cross at '{path}' are on {' and '.join(places)}, and their bottlenecks are fitted "
            "together; choose a split point at which all are on one, or move the model there as a whole, with "
            f".to('{places[-1]}')"
        )


def find_call(model: nn.Module, trace: Trace, path: str) -> ModuleCall:
    """The call of a module at which a split point lies.

    Args:
        model: The model.
        trace: The run.
        path: The split point.

    Returns:
        The call.

    Raises:
        SplitError: There is none, or more than one and none is named.
    """
    if path == INPUT:
        return trace.modules[0]
    name, number = _named_call(path)
    calls = trace.calls_of(name)
    if len(calls) == 1 and number in (None, 0):
        return calls[0]
    if number is not None and number < len(calls):
        return calls[number]
    if not calls:
        raise SplitError(
            f"'{name}' is never called in one forward pass of {type(model).__name__} with these inputs, so there is no "
            "place to split; choose a module that runs, such as the block around it"
        )
    names = ", ".join(f"'{name}#{place}'" for place in range(min(len(calls), 6)))
    times = "once" if len(calls) == 1 else f"{len(calls)} times"
    raise SplitError(
        f"'{path}' is not one place: '{name}' is called {times} in one forward pass of "
        f"{type(model).__name__}; name the call: {names}{', …' if len(calls) > 6 else ''}"
    )


def _caught(trace: Trace, cut: Cut, number: int, path: str) -> Tap:
    """Where a crossing value is caught on its way."""
    found = find_tap(trace, number, cut.moment)
    if found is None:
        shape = trace.flow.values[number].shape[1:]
        raise SplitError(
            f"{crossing_told(trace, cut, path)} The one of shape {shape} comes from neither a module nor a function of "
            "torch, so it cannot be caught; choose another split point, or compute it in a module of its own"
        )
    return found[0]


def _check_samples(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a batch of nothing, on which most models fail with words of their own."""
    for value in tensors_of((args, kwargs)):
        if value.dim() and not len(value):
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
    if _is_auto(model, paths):
        return
    for path in paths:
        if not isinstance(path, str):  # pyright: ignore[reportUnnecessaryIsInstance] - a user's mistake all the same
            raise SplitError(f"split point {path!r:.80} is a {type(path).__name__}; expected module paths as text")
        name = _named_call(path)[0]
        if path != INPUT and name not in names:
            close = difflib.get_close_matches(name, [INPUT, *names], n=1, cutoff=0.4)
            hint = f" did you mean '{close[0]}'?" if close else ""
            depth = name.count(".")
            level = [other for other in names if other.count(".") == depth][:12] or names[:12]
            raise SplitError(
                f"'{path}' is not a module of {type(model).__name__};{hint} modules at that depth: {', '.join(level)}"
            )
    doubled = [path for path, count in Counter(paths).items() if count > 1]
    if doubled:
        raise SplitError(f"split point '{doubled[0]}' was given twice; name each split point once")


def check_skips(skips: Skips) -> Skips:
    """Refuse what says nothing of further tensors that cross.

    Args:
        skips: What was given.

    Returns:
        The same.

    Raises:
        SplitError: It is none of the three.
    """
    if skips not in get_args(Skips):
        raise SplitError(f"skips is {skips!r:.80}; expected {', '.join(map(repr, get_args(Skips)))}")
    return skips


def _is_auto(model: nn.Module, paths: Sequence[str]) -> bool:
    return list(paths) == [AUTO] and AUTO not in named_modules(model)


def _named_call(path: str) -> tuple[str, int | None]:
    """Module path and number of the call in the name of a split point."""
    name, mark, number = path.rpartition("#")
    return (name, int(number)) if mark and number.isdecimal() else (path, None)


def _later_blocks(model: nn.Module, trace: Trace, call: ModuleCall) -> tuple[str, ...]:
    """Blocks that run from the split point on: children of each module on the way down to it, with parameters."""
    parents = [""]
    for part in call.path.split(".")[:-1]:
        parents.append(f"{parents[-1]}.{part}".lstrip("."))
    modules = named_modules(model)
    blocks: dict[str, None] = {}
    for later in trace.modules[trace.modules.index(call) :]:
        parent = later.path.rpartition(".")[0]
        if later.path and parent in parents and next(modules[later.path].parameters(), None) is not None:
            blocks[later.path] = None
    return tuple(blocks)
