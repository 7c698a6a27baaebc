"""A call of the model ─► arrays that a head's program takes, or what is wrong with them.

Knows where each tensor stands in a call (`binding`), and no program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from compoff.device.binding import CallForm
from compoff.errors import FeatureError
from compoff.structure import LABELS, input_leaves

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from compoff.manifest import Manifest, TensorSpec

__all__ = ["Inputs"]


class Inputs:
    """What a head takes.

    Args:
        manifest: What the head is.
        to_numpy: Gives the array behind a tensor of its runtime, None for anything else.

    Examples:
        >>> from compoff.manifest import Manifest, TensorSpec
        >>> specs = (TensorSpec((2,), "float32"),)
        >>> inputs = Inputs(Manifest("head", "", "input", "Net", specs, (), {}, (), (), 8), lambda value: None)
        >>> inputs.arrays((np.ones((1, 2), np.float32),), {})
        [array([[1., 1.]], dtype=float32)]
    """

    def __init__(self, manifest: Manifest, to_numpy: Callable[[Any], NDArray[Any] | None]) -> None:
        self._manifest = manifest
        self._specs = manifest.taken
        self._to_numpy = to_numpy
        self._form = CallForm(manifest.call, manifest.taken) if manifest.call else None

    @property
    def names(self) -> frozenset[str] | None:
        """The names that an input may be given by, labels excepted that stand for none; None where not known."""
        return None if self._form is None else self._form.names - (LABELS - self._form.needed)

    def arrays(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> list[NDArray[Any]]:
        """The inputs of a call as arrays, in the program's order.

        Args:
            inputs: What is given by position.
            keywords: What is given by name.

        Returns:
            Contiguous arrays of the right shapes and dtypes, finite.

        Raises:
            FeatureError: They are not what the head was exported for.
        """
        return self._arrays(inputs, keywords, self._manifest.max_batch)[0]

    def pieces(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> list[list[NDArray[Any]]]:
        """The inputs of a batch for the model, as the arrays of one call after another.

        Args:
            inputs: What is given by position; a picture also as the model takes it where the head takes its pixels.
            keywords: What is given by name.

        Returns:
            Arrays as of `arrays`, of no more samples at once than the head takes.

        Raises:
            FeatureError: They are not what the head was exported for.
        """
        arrays, samples = self._arrays(inputs, keywords, None, normalized=True)
        most, specs = self._manifest.max_batch, self._specs
        return [
            [array[first : first + most] if spec.batched else array for array, spec in zip(arrays, specs, strict=True)]
            for first in range(0, samples, most)
        ]

    def _arrays(
        self, inputs: tuple[Any, ...], keywords: dict[str, Any], most: int | None, *, normalized: bool = False
    ) -> tuple[list[NDArray[Any]], int]:
        """The inputs as arrays, and their number of samples, up to `most`."""
        values = self._in_order(inputs, keywords) if self._form is None else self._form.bind(inputs, keywords)
        if normalized and self._manifest.pixels is not None:
            place = self._manifest.pixels.input
            picture = self._as_array(values[place])
            if picture is not None and picture.dtype.kind == "f":
                checked = self._array(picture, self._manifest.inputs[place], place)
                values[place] = self._manifest.pixels.restored(checked)
        specs = self._specs
        arrays = [
            self._array(value, spec, index) for index, (value, spec) in enumerate(zip(values, specs, strict=True))
        ]
        sizes = {len(array) for array, spec in zip(arrays, specs, strict=True) if spec.batched}
        samples = max(sizes, default=1)
        if len(sizes) > 1 or samples < 1 or (most is not None and samples > most):
            expected = "at least 1" if most is None else f"from 1 to {most}"
            if most is not None and samples > most:
                expected += f": send fewer at a time, or export with max_batch={samples}"
            raise FeatureError(
                f"the batch holds {sorted(sizes)} samples; expected the same number in every input, {expected}"
            )
        return arrays, samples

    def _in_order(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> list[Any]:
        """The tensors of a call of which no more is known than their number."""
        values, number = list(input_leaves(inputs)), len(self._specs)
        if len(values) != number or keywords:
            raise FeatureError(
                f"{len(values)} inputs were given, and by name {', '.join(keywords) or 'none'}; this head of "
                f"{self._manifest.model} takes {number}: the model's tensors, in its own order, none by name"
            )
        return values

    def _as_array(self, value: Any) -> NDArray[Any] | None:
        return cast("NDArray[Any]", value) if isinstance(value, np.ndarray) else self._to_numpy(value)

    def _array(self, value: Any, spec: TensorSpec, index: int) -> NDArray[Any]:
        """One input as a contiguous array."""
        array = self._as_array(value)
        if isinstance(array, np.ma.MaskedArray):
            raise FeatureError(
                f"input {index} is a masked array, whose mask nothing here heeds; give array.filled(…) with what the "
                "model is to see there"
            )
        if array is None:
            given = type(cast("object", value)).__name__
            raise FeatureError(f"input {index} is a {given}; expected a tensor or a numpy array")
        if array.dtype != spec.dtype:
            pixels = self._manifest.pixels is not None and index == self._manifest.pixels.input
            advice = "give it as the camera does, the head normalizes it" if pixels else "convert it as for the model"
            raise FeatureError(
                f"input {index} is {array.dtype}; expected {spec.dtype} of shape {spec.sized('batch')}: {advice}"
            )
        if (array.shape[1:] if spec.batched else array.shape) != spec.shape or (spec.batched and array.ndim == 0):
            raise FeatureError(
                f"input {index} has shape {array.shape}; expected {spec.dtype} of shape {spec.sized('batch')}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FeatureError(
                f"input {index} holds NaN or infinity, which no symbol stands for; clean the input "
                "(in a mask, the dtype's lowest number does what -infinity does)"
            )
        # An axis of one sample counts as contiguous all the same, and so does a field of a record of odd length.
        odd = any(stride < 0 or stride % array.itemsize for stride in array.strides)
        if odd or not array.flags.aligned:
            array = np.array(array, order="C", copy=True)
        return np.asarray(array, order="C")
