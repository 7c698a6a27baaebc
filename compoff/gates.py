"""Gates: the switches that hooks put at the split points of a model.

A hook is an object that owns its gate, and a gate owns its bottlenecks, so that a copied or pickled model owns its own.
A gate catches every tensor that crosses on its way; at the moment when the feature that enters the split point is
there, it sends them all through their bottlenecks, and whoever reads them from then on reads the decoded ones.
Knows neither where the split points are (`cutting.sites`) nor who switches (`wrapping`).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from compoff.errors import SplitError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from torch import Tensor

    from compoff.codec import Bottleneck
    from compoff.codec.layout import Layout

__all__ = ["Gate", "Work", "only_at"]


class Work:
    """Whether a gate is at work: what it calls then is no part of the model. Shared by all gates of one model."""

    def __init__(self) -> None:
        self.going_on = False


class Gate:
    """The switch at one split point.

    Args:
        split: Name of the split point, for messages.
        bottlenecks: What the features pass through while the gate is on: the one of the feature that enters the split
            point, then those of features that pass it by.
        layouts: Axes of each feature.
        own: For each feature, whether its memory may be written to.
        work: Shared by all gates of one model.

    Examples:
        >>> import torch
        >>> from compoff.codec import Bottleneck, Geometry
        >>> from compoff.codec.layout import Layout
        >>> gate = Gate("here", [Bottleneck(Geometry((4, 8)), 2).eval()], [Layout.channels_first(3)])
        >>> y = torch.randn(3, 4, 8)
        >>> gate.catch(0, y) is y
        True
        >>> gate.on = True
        >>> before = y.clone()
        >>> torch.equal(gate.catch(0, y), before), y.shape
        (False, torch.Size([3, 4, 8]))
    """

    def __init__(
        self,
        split: str,
        bottlenecks: Sequence[Bottleneck],
        layouts: Sequence[Layout],
        own: Sequence[bool] = (),
        work: Work | None = None,
    ) -> None:
        self.split = split
        self.bottlenecks = tuple(bottlenecks)
        self.layouts = tuple(layouts)
        self.own = tuple(own) or (True,) * len(self.bottlenecks)
        self.work = work or Work()
        self.quality: int | None = None  # at which the bottlenecks answer in eval mode; None for the chosen one
        self.bypassed = False
        self._restoring = False
        self._on = False
        self._replace: Callable[[list[Tensor]], list[Tensor]] | None = None
        self.active = False  # whether the gate does anything to what passes; every hook asks in every pass
        self.passes = 0
        self.was_cut = False  # in the last pass
        self._caught: dict[int, Tensor] = {}

    @property
    def bottleneck(self) -> Bottleneck:
        """The bottleneck of the feature that enters the split point."""
        return self.bottlenecks[0]

    @property
    def on(self) -> bool:
        """Whether features pass through the bottlenecks."""
        return self._on

    @on.setter
    def on(self, value: bool) -> None:
        self._on = value
        self.active = value or self._replace is not None

    @property
    def replace(self) -> Callable[[list[Tensor]], list[Tensor]] | None:
        """What is put in place of features, whether the gate is on or not; None for nothing."""
        return self._replace

    @replace.setter
    def replace(self, value: Callable[[list[Tensor]], list[Tensor]] | None) -> None:
        self._replace = value
        self.active = self._on or value is not None

    @property
    def at_work(self) -> bool:
        """Whether a gate of this model is computing something, which is no part of the model."""
        return self.work.going_on

    @property
    def adapting(self) -> bool:
        """Whether the layers behind get restored features, and so their adapter."""
        return (self.on or self._restoring) and not self.bypassed

    def adapt(self, index: int, tensor: Tensor) -> Tensor:
        """Take notice of what a layer behind the split point returns.

        Args:
            index: Which layer.
            tensor: What it returns.

        Returns:
            What the model goes on with: the tensor itself for the teacher, or where there is no adapter.
        """
        adapter = self.bottleneck.adapter
        return adapter(index, tensor) if adapter is not None and self.adapting else tensor

    def begin(self) -> None:
        """Forget what was caught in an earlier pass."""
        self.passes += 1
        self.was_cut = False
        self._caught.clear()

    def catch(self, index: int, tensor: Tensor) -> Tensor:
        """Take notice of a tensor on its way.

        Args:
            index: Which one: 0 for the feature that enters the split point, then further features, then side tensors.
            tensor: The tensor.

        Returns:
            What the model goes on with.

        Raises:
            SplitError: The feature that enters is there and another one that crosses was not seen before it.
        """
        if not self.active:
            return tensor
        self.work.going_on = True  # no context manager: a compiler would stop at it
        try:
            return self._cut(tensor) if index == 0 else self._keep(index, tensor)
        finally:
            self.work.going_on = False

    @contextlib.contextmanager
    def replacing(self, restored: list[Tensor]) -> Generator[None]:
        """Put given features in place of those that cross while the block runs, whether the gate is on or not.

        Args:
            restored: The features in the codec's layout, in any floating-point dtype.

        Yields:
            Nothing.
        """
        before = self.replace, self._restoring
        self.replace = lambda fresh: [y.to(like.dtype) for y, like in zip(restored, fresh, strict=True)]
        self._restoring = True
        try:
            yield
        finally:
            self.replace, self._restoring = before

    @contextlib.contextmanager
    def bypassing(self, bypass: bool) -> Generator[None]:
        """Hand features on as they are while the block runs, as new tensors that take the way of decoded ones.

        Args:
            bypass: False to code them, also inside of a block that hands them on.

        Yields:
            Nothing.
        """
        before = self.replace, self.bypassed
        if bypass:
            self.replace, self.bypassed = _copies, True
        elif self.bypassed:
            self.replace, self.bypassed = None, False
        try:
            yield
        finally:
            self.replace, self.bypassed = before

    @contextlib.contextmanager
    def answering_at(self, quality: int | None) -> Generator[None]:
        """Have the bottlenecks answer at one quality in eval mode while the block runs.

        Args:
            quality: Its index; None for the chosen one, also inside of a block that names one.

        Yields:
            Nothing.
        """
        before, self.quality = self.quality, quality
        try:
            yield
        finally:
            self.quality = before

    def sides(self, count: int) -> list[Tensor]:
        """Side tensors that were caught in this pass.

        Args:
            count: How many there are.

        Returns:
            The tensors, in order.

        Raises:
            SplitError: One was not seen.
        """
        first = len(self.bottlenecks)
        return [self._kept(index) for index in range(first, first + count)]

    def _keep(self, index: int, tensor: Tensor) -> Tensor:
        """Remember a tensor until the moment of the cut."""
        # One that shares its memory is replaced by a copy, so that decoding it later changes nothing else.
        kept = tensor if index >= len(self.own) or self.own[index] else tensor.clone()
        self._caught[index] = kept
        return kept

    def _cut(self, y: Tensor) -> Tensor:
        """The moment of the cut: every feature through its bottleneck."""
        self.was_cut = True
        features = [y, *(self._kept(index) for index in range(1, len(self.bottlenecks)))]
        packed = [layout.pack(feature) for layout, feature in zip(self.layouts, features, strict=True)]
        if self.replace is not None:
            restored = self.replace(packed)
        else:
            # Cloned, since what a bottleneck remembers for its gradient is about to be overwritten.
            pairs = zip(self.bottlenecks, packed, strict=True)
            restored = [bottleneck(one.clone(), self.quality) for bottleneck, one in pairs]
        for index in range(1, len(features)):
            if restored[index] is not packed[index]:
                features[index].copy_(self._unpacked(index, restored[index], features[index]))
        if restored[0] is packed[0]:
            return y
        y_hat = self._unpacked(0, restored[0], y)
        if not self.own[0] or y.requires_grad:
            return y_hat
        # Written into the tensor itself: whoever holds this object, in a list or under another name, has it decoded.
        return y.copy_(y_hat)

    def _unpacked(self, index: int, restored: Tensor, like: Tensor) -> Tensor:
        """A restored feature as the model has it."""
        layout = self.layouts[index]
        batch = layout.batch_axis()
        shape = tuple(size for axis, size in enumerate(like.shape) if axis != batch)
        return layout.unpack(restored, shape).to(like.dtype)

    def _kept(self, index: int) -> Tensor:
        if index not in self._caught:
            raise SplitError(
                f"this batch did not pass tensor {index} of those that cross at '{self.split}' before the cut: the "
                "model goes another way than with the example inputs; choose a split point that all inputs pass alike"
            )
        return self._caught[index]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to one running pass."""
        return {**self.__dict__, "_replace": None, "active": self._on, "_restoring": False, "_caught": {}}


def _copies(features: list[Tensor]) -> list[Tensor]:
    return [feature.clone() for feature in features]


@contextlib.contextmanager
def only_at(gates: Mapping[str, Gate], split: str | None) -> Generator[None]:
    """Turn one gate of a model on and the others off while the block runs.

    Args:
        gates: The gates of the model, by split point.
        split: Which one is on; None for none.

    Yields:
        Nothing.
    """
    before = {path: gate.on for path, gate in gates.items()}
    for path, gate in gates.items():
        gate.on = path == split
    try:
        yield
    finally:
        for path, gate in gates.items():
            gate.on = before[path]
