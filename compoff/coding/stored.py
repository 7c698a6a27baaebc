"""Tables and context models as named arrays, as a folder keeps them. Knows no files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from compoff.coding.context_model import ContextModel
from compoff.coding.tables import SymbolTables
from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["MODEL_PARTS", "arrays_of", "model_arrays", "model_of", "tables_of"]

MODEL_PARTS = ("weights", "bounds", "tables", "leading")
"""Names of the arrays of a context model."""


def model_arrays(model: ContextModel) -> dict[str, NDArray[Any]]:
    """Give the arrays of a context model their names.

    Args:
        model: the model.

    Returns:
        One array for each of `MODEL_PARTS`.

    Source: this project.
    """
    parts = (model.weights, model.bounds, model.tables.weights, model.leading)
    return {name: np.ascontiguousarray(part.astype(np.int32)) for name, part in zip(MODEL_PARTS, parts, strict=True)}


def model_of(arrays: Mapping[str, NDArray[Any]]) -> ContextModel:
    """Undo `model_arrays`.

    Args:
        arrays: the arrays by their names.

    Returns:
        The model.

    Raises:
        ArtifactError: they hold no context model.

    Source: this project.
    """
    weights, bounds, tables, leading = (arrays[name] for name in MODEL_PARTS)
    return ContextModel(weights, bounds, SymbolTables(tables), leading)


def arrays_of(tables: Sequence[SymbolTables]) -> dict[str, NDArray[Any]]:
    """Give the arrays of the coder's tables their names.

    Args:
        tables: one a code.

    Returns:
        Of each code the weights of its tables, and of its context models where it has some.

    Examples:
        >>> {name: array.shape for name, array in arrays_of([SymbolTables([[2**23, 2**23]])]).items()}
        {'weights.0': (1, 2)}

    Source: this project.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for index, table in enumerate(tables):
        arrays[f"weights.{index}"] = np.ascontiguousarray(table.weights)
        for quality, model in enumerate(table.contexts):
            arrays |= {f"contexts.{index}.{quality}.{name}": array for name, array in model_arrays(model).items()}
    return arrays


def tables_of(arrays: dict[str, NDArray[Any]], qualities: Sequence[int]) -> tuple[SymbolTables, ...]:
    """Undo `arrays_of`.

    Args:
        arrays: the arrays by their names.
        qualities: how many qualities each code has.

    Returns:
        The tables, one a code.

    Raises:
        ArtifactError: an array is missing, or one too many, or holds no table.

    Examples:
        >>> tables_of(arrays_of([SymbolTables([[2**23, 2**23]])]), qualities=[1])
        (SymbolTables(num_channels=1, num_symbols=2),)

    Source: this project.
    """
    left = dict(arrays)
    if left.keys() == {"weights"} and len(qualities) == 1:
        left = {"weights.0": left["weights"]}  # as format 1 named those of its only code

    def taken(name: str) -> NDArray[Any]:
        if name not in left:
            raise ArtifactError(f"it holds {', '.join(arrays)[:80]}, expected {name}")
        return left.pop(name)

    result: list[SymbolTables] = []
    for index, count in enumerate(qualities):
        models: list[ContextModel] = []
        if any(name.startswith(f"contexts.{index}.") for name in left):
            for quality in range(count):
                name = f"contexts.{index}.{quality}"
                models.append(model_of({part: taken(f"{name}.{part}") for part in MODEL_PARTS}))
        result.append(SymbolTables(taken(f"weights.{index}"), models))
    if left:
        raise ArtifactError(f"it holds {', '.join(left)[:80]}, which no code has")
    return tuple(result)
