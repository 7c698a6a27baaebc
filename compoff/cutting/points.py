"""Every place where a model can be cut with one tensor crossing: what it costs the device, and what it would send.

Found in one watched run. "auto" chooses a few of them that span the network. Knows no codec.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from torch import nn

from compoff.canvas import empty_figure, log_ticks
from compoff.cutting.flow import bytes_per_sample
from compoff.cutting.inputs import example_call
from compoff.cutting.moment import Cut, cut_at_call
from compoff.cutting.trace import INPUT
from compoff.cutting.watching import watch
from compoff.errors import SplitError
from compoff.hooks import catchers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

    from compoff.cutting.trace import ModuleCall, Trace

__all__ = ["SplitPoint", "SplitPoints", "choose_points", "list_split_points", "points_of"]

_BANDS = (0.25, 0.5, 0.75, 0.95)  # shares of the model's cost; "auto" takes at most one split point up to each


@dataclass(frozen=True)
class SplitPoint:
    """One place where a model can be cut.

    Args:
        path: Its name, as `compoff.wrap` takes it.
        shape: Shape of the tensor that enters, without the batch axis.
        raw_bytes: Size of the features that cross, one sample, as they are, in bytes.
        skips: Number of further floating-point tensors that cross; 0 at a clean block start.
        side_bytes: What masks, token ids, sizes and single numbers that cross take on the wire, estimated, in bytes.
        macs: Multiply-accumulates of what runs on the device before it, per sample.
        share: The same as a share of the whole model's.

    Examples:
        >>> SplitPoint("layer2", (256, 56, 56), 3211264, 0, 0.0, 7 * 10**8, 0.18).clean
        True
    """

    path: str
    shape: tuple[int, ...]
    raw_bytes: int
    skips: int
    side_bytes: float
    macs: int
    share: float

    @property
    def clean(self) -> bool:
        """Whether one feature crosses, with nothing but side tensors beside it."""
        return self.skips == 0


class SplitPoints(Sequence[SplitPoint]):
    """The split points of one model, in the order in which they run; prints as a table.

    Args:
        points: The split points.
        model: Class name of the model.
        macs: Multiply-accumulates of the whole model, per sample.

    Examples:
        >>> points = SplitPoints([SplitPoint("fc", (512,), 2048, 0, 0.0, 1800, 0.9)], "Net", 2000)
        >>> print(points)
        Net: 1 split point, 2.0 kMAC in all
        split point  shape   raw bytes  skips  side bytes  MACs before  share
        fc           512         2,048      0           0       1.8 k  90.0 %
        >>> points["fc"].raw_bytes
        2048
    """

    def __init__(self, points: Sequence[SplitPoint], model: str, macs: int) -> None:
        self._points = tuple(points)
        self.model = model
        self.macs = macs

    @overload
    def __getitem__(self, index: int | str) -> SplitPoint: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[SplitPoint, ...]: ...
    def __getitem__(self, index: int | str | slice) -> SplitPoint | tuple[SplitPoint, ...]:
        """One split point, by its place or its name, or several."""
        if not isinstance(index, str):
            return self._points[index]
        for point in self._points:
            if point.path == index:
                return point
        known = ", ".join(f"'{point.path}'" for point in self._points)
        first = ". 'input', before the whole model, is a split point but in no list" if index == "input" else ""
        raise SplitError(f"'{index}' is not in this list of split points; there are {known}{first}")

    def __len__(self) -> int:
        return len(self._points)

    def __iter__(self) -> Iterator[SplitPoint]:
        """Go through them in the order in which they run."""
        return iter(self._points)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        header = ("split point", "shape", "raw bytes", "skips", "side bytes", "MACs before", "share")
        rows = [header, *(_row(point) for point in self._points)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        count = f"{len(self)} split point{'s' if len(self) != 1 else ''}"
        return "\n".join([f"{self.model}: {count}, {_short(self.macs)}MAC in all", *lines])

    def plot(self) -> Figure:
        """Draw raw bytes and the device's cost along the network.

        Returns:
            A matplotlib figure.

        Raises:
            BackendError: matplotlib is not installed.

        Examples:
            >>> points = SplitPoints([SplitPoint("fc", (512,), 2048, 0, 0.0, 1800, 0.9)], "Net", 2000)
            >>> [axes.get_ylabel() for axes in points.plot().axes]
            ['raw bytes a sample', 'share of MACs before, %']
        """
        figure = empty_figure(max(7.0, 0.3 * len(self)), 4.5)
        left = figure.subplots()
        places = range(len(self))
        colors = ["tab:blue" if point.clean else "tab:gray" for point in self]
        left.bar(places, [point.raw_bytes for point in self], color=colors)
        left.set(ylabel="raw bytes a sample", yscale="log", title=f"{self.model} (gray: skips cross too)")
        log_ticks(left.yaxis)
        left.set_xticks(places, [point.path for point in self], rotation=90, fontsize=7)
        right = left.twinx()
        right.plot(places, [100 * point.share for point in self], color="tab:orange", marker=".")
        right.set(ylabel="share of MACs before, %", ylim=(0, 100))
        return figure


def list_split_points(model: nn.Module, example_input: Any, *, clean: bool = True) -> SplitPoints:
    """List where a model can be cut, with what each place costs.

    A module is listed where it computes something that counts, once for each tensor: the outermost of the modules that
    the same tensor enters.

    Args:
        model: The model; it is as before afterwards.
        example_input: One batch, as `compoff.wrap` takes it.
        clean: Whether to list only places where one floating-point tensor crosses.

    Returns:
        The split points, in the order in which they run.

    Raises:
        SplitError: The model has no such place, or is wrapped: its modules have other names then.

    Examples:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> for point in compoff.list_split_points(net, torch.zeros(2, 3, 16, 16)):
        ...     print(point.path, point.shape, point.macs, f"{point.share:.0%}")
        0 (3, 16, 16) 0 0%
        2 (8, 14, 14) 42336 51%

    Source: this project.
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance] - a user's mistake all the same
        raise SplitError(f"the model is a {type(model).__name__}; expected a torch.nn.Module")
    if any(catchers(module) for module in model.modules()):
        raise SplitError(
            "this model is wrapped already; list its split points before compoff.wrap, or after unwrap(), as those of "
            "a copy of it, too"
        )
    args, keywords = example_call(example_input)
    trace = watch(model, args, keywords)
    points = points_of(trace, clean=clean)
    total = round(trace.flow.macs(0) / max(trace.batch, 1))
    return SplitPoints(points, type(model).__name__, total)


def points_of(trace: Trace, *, clean: bool = True) -> list[SplitPoint]:
    """The split points that one run shows.

    Args:
        trace: The run.
        clean: Whether to leave out places where further floating-point tensors cross.

    Returns:
        The split points, in the order in which they run.
    """
    found: list[tuple[int, SplitPoint]] = []
    seen: set[int] = set()
    for call in trace.modules[1:]:
        if not trace.flow.macs(call.begin, call.end):
            continue
        try:
            cut = cut_at_call(trace, call, call.path)
        except SplitError:
            continue
        if cut.main in seen or trace.batch_axis(cut.main) is None or (clean and cut.skips):
            continue
        seen.add(cut.main)
        found.append((cut.moment, _point(trace, call, cut)))
    return [point for _, point in sorted(found, key=lambda pair: pair[0])]


def choose_points(trace: Trace, model: str) -> list[str]:
    """Choose a few split points that span a network: in each quarter of its cost, the one with the smallest feature.

    Args:
        trace: The run.
        model: Class name of the model, for messages.

    Returns:
        Names of one to four split points.

    Raises:
        SplitError: There is none at which one floating-point tensor crosses.

    Examples:
        >>> import torch
        >>> from compoff.cutting.watching import watch
        >>> net = torch.nn.Sequential(*(torch.nn.Conv2d(4, 4, 3, stride=2) for _ in range(3)))
        >>> choose_points(watch(net, (torch.zeros(2, 4, 64, 64),)), "Net")
        ['1']
    """
    points = [point for point in points_of(trace) if point.share > 0]
    chosen: list[str] = []
    low = 0.0
    for high in _BANDS:
        band = [point for point in points if low < point.share <= high]
        if band:
            chosen.append(min(band, key=lambda point: point.raw_bytes).path)
        low = high
    if not chosen:
        raise SplitError(
            f"{model} has no block start at which one floating-point tensor crosses, so split_points='auto' chooses "
            "none; see compoff.list_split_points(model, example_input, clean=False) and name some yourself"
        )
    return chosen


def _point(trace: Trace, call: ModuleCall, cut: Cut) -> SplitPoint:
    flow, batch = trace.flow, max(trace.batch, 1)
    # By its number, too, where the name alone is that of the place before the whole model.
    numbered = call.path == INPUT or any(other.path == call.path and other is not call for other in trace.modules)
    values = [flow.values[number] for number in (cut.main, *cut.skips)]
    before, total = flow.macs(0, cut.moment), flow.macs(0)
    main = values[0].shape
    axis = trace.batch_axis(cut.main)
    raw = sum(math.prod(int(size) for size in value.shape) * value.dtype.itemsize // batch for value in values)
    return SplitPoint(
        f"{call.path}#{call.number}" if numbered else call.path,
        tuple(int(size) for place, size in enumerate(main) if place != axis),
        raw,
        len(cut.skips),
        sum(bytes_per_sample(flow.values[number], packed=True) for number in cut.sides),
        round(before / batch),
        before / total if total else 0.0,
    )


def _row(point: SplitPoint) -> tuple[str, ...]:
    return (
        point.path,
        " × ".join(map(str, point.shape)),
        f"{point.raw_bytes:,}",
        str(point.skips),
        f"{point.side_bytes:,.0f}",
        _short(point.macs),
        f"{100 * point.share:.1f} %",
    )


def _short(count: int) -> str:
    """A large number with its thousands as a letter."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.1f} {letter}"
    return f"{count} "
