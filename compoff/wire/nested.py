"""An answer that says its own structure, for models whose outputs are not known before they have answered.

It is a list of arrays like any answer: first a description (`compoff.structure`) as JSON in UTF-8, an array of uint8,
then the leaves, each of which the description names once, in order. Knows no models and no sockets.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from compoff.errors import ArtifactError, FeatureError, RemoteProtocolError
from compoff.structure import imported, leaf_places, unflatten

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["MOST_LEAVES", "nested_arrays", "restore_nested"]

MOST_LEAVES = 1 << 16
"""The most leaves of such an answer."""

_MOST_DESCRIPTION = 1 << 20  # bytes: what JSON makes of them takes some thirty times as much memory
_ARRAY_BYTES = 2 + 5  # of an array, beside its values and sizes; and of the count before all of them
_SIZE_BYTES = 5


def nested_arrays(description: dict[str, Any], leaves: Sequence[NDArray[Any]], most_bytes: int) -> list[NDArray[Any]]:
    """The arrays of an answer.

    Args:
        description: How the leaves are nested.
        leaves: The leaves.
        most_bytes: The most bytes that the arrays may take on the wire.

    Returns:
        The arrays to send.

    Raises:
        FeatureError: The answer is too long.

    Examples:
        >>> arrays = nested_arrays({"list": [{"leaf": 0}]}, [np.zeros(3)], most_bytes=1000)
        >>> [array.shape for array in arrays]
        [(21,), (3,)]

    Source: this project.
    """
    text = np.frombuffer(json.dumps(description, separators=(",", ":")).encode(), np.uint8)
    arrays = [text, *leaves]
    size = sum(_ARRAY_BYTES + _SIZE_BYTES * array.ndim + array.nbytes for array in arrays)
    if size > most_bytes or text.size > _MOST_DESCRIPTION or len(leaves) > MOST_LEAVES:
        raise FeatureError(
            f"the answer has {len(leaves)} tensors in {size} bytes, {text.size} of them for their nesting; at most "
            f"{MOST_LEAVES}, {most_bytes} and {_MOST_DESCRIPTION} can be sent: return less, or export with a larger "
            "max_reply_bytes"
        )
    return arrays


def restore_nested(
    arrays: Sequence[NDArray[Any]],
    convert: Callable[[NDArray[Any]], Any],
    find: Callable[[str], type | None] = imported,
) -> Any:
    """The answer in the arrays that `nested_arrays` made.

    Args:
        arrays: The arrays.
        convert: Makes an array a tensor of the caller's runtime.
        find: Gives the class of a name; see `compoff.structure.unflatten`.

    Returns:
        The answer, nested as the model nested it.

    Raises:
        RemoteProtocolError: The description is damaged, or does not fit the leaves.

    Examples:
        >>> arrays = nested_arrays({"list": [{"leaf": 0}, {"value": "cat"}]}, [np.zeros(3)], most_bytes=1000)
        >>> restore_nested(arrays, lambda array: array.tolist())
        [[0.0, 0.0, 0.0], 'cat']

    Source: this project.
    """
    text, leaves = (arrays[0], arrays[1:]) if arrays else (None, ())
    if text is None or text.dtype != np.uint8 or text.ndim != 1 or text.size > _MOST_DESCRIPTION:
        raise RemoteProtocolError(_damaged("it does not begin with its structure"))
    try:
        description = json.loads(text.tobytes())
        answer = unflatten(description, [convert(leaf) for leaf in leaves], find)
        places = list(leaf_places(description))
    except (ArtifactError, ValueError, RecursionError) as error:  # JSON, UTF-8 and endless digits raise ValueError
        raise RemoteProtocolError(_damaged(str(error))) from error
    if places != list(range(len(leaves))):
        raise RemoteProtocolError(_damaged(f"its structure does not hold each of {len(leaves)} tensors once, in order"))
    return answer


def _damaged(reason: str) -> str:
    return f"an answer with a structure of its own cannot be read: {reason:.200}; is the server of the same compoff?"
