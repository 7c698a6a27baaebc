"""Inputs of the right shapes for a tail's program, to compile it with and to compare what was compiled."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from compoff.errors import BackendError
from compoff.onnx_export import agreement, every_other
from compoff.printable import told

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from compoff.manifest import Manifest, TensorSpec

__all__ = ["check_agreement", "sample_parts"]

_BATCHES = (1, 3)
_LEAST_SYMBOLS = 0.99


def sample_parts(manifest: Manifest, batch: int, seed: int = 0, *, ones: bool = False) -> list[NDArray[Any]]:
    """What may cross the cut of a tail.

    Args:
        manifest: What the tail is.
        batch: Number of samples.
        seed: Seed of the symbols.
        ones: Whether whole numbers are 1 at every other place.

    Returns:
        Random symbols of each code; then the side tensors: masks that are true at every other place, since one that is
        all true hides nothing in one network and everything in another; whole numbers that are zero, which every
        vocabulary has; and others from 0 to 1, since zeros would not show what is done with them.
    """
    random = np.random.default_rng(seed)
    symbols: list[NDArray[Any]] = [
        random.integers(code.num_centers, size=(batch, *code.latent_shape)).astype(np.uint8) for code in manifest.codes
    ]

    def side(spec: TensorSpec) -> NDArray[Any]:
        shape, dtype = spec.sized(batch), np.dtype(spec.dtype)
        if dtype.kind == "f":
            return random.random(shape).astype(dtype)
        return every_other(shape).astype(dtype) if ones or dtype.kind == "b" else np.zeros(shape, dtype)

    return [*symbols, *map(side, manifest.sides)]


def check_agreement(
    manifest: Manifest,
    backend: str,
    expected: Callable[[list[NDArray[Any]]], list[NDArray[Any]]],
    found: Callable[[list[NDArray[Any]]], list[NDArray[Any]]],
    most_deviation: float,
) -> float:
    """Compare a compiled program with the program, on batches of different sizes and several of each.

    Args:
        manifest: What the tail is.
        backend: Name of the backend, for messages.
        expected: Runs the program.
        found: Runs what was compiled from it.
        most_deviation: Most that an output may differ, relative to its largest value.

    Returns:
        The largest difference of an output, relative to its largest value.

    Raises:
        BackendError: They do not agree, or what was compiled fails.
    """
    compared = _compared(manifest, expected)
    try:
        agreed = agreement([(answers, found(parts)) for parts, answers in compared])
    except BackendError:
        raise
    except Exception as error:  # a runtime raises many types for one fact, such as too little memory
        raise BackendError(
            f"the tail compiled for '{backend}' fails where it first runs ({told(error)}); run it with backend='eager'"
        ) from error
    if not (agreed.symbols >= _LEAST_SYMBOLS and agreed.deviation <= most_deviation):
        raise BackendError(
            f"the tail compiled for '{backend}' does not agree with PyTorch: outputs differ by {agreed.deviation:.2g} "
            f"of the largest and {agreed.symbols:.2%} of the whole numbers are equal, expected at most "
            f"{most_deviation:.2g} and at least {_LEAST_SYMBOLS:.2%}; run it with backend='eager'"
        )
    return agreed.deviation


def _compared(
    manifest: Manifest, expected: Callable[[list[NDArray[Any]]], list[NDArray[Any]]]
) -> list[tuple[list[NDArray[Any]], list[NDArray[Any]]]]:
    """Batches and what is expected of them: with whole numbers of which half are 1, where the program takes them.

    A mask of zeros may hide everything. What is computed from nothing is NaN, and two programs agree about that
    whatever else they do.
    """
    # Each size twice, with other symbols: a recorded program that gives its first answer again agrees once.
    runs = [(min(batch, manifest.max_batch), seed) for batch in _BATCHES for seed in (0, 1)]
    if any(np.dtype(side.dtype).kind in "iu" for side in manifest.sides):
        with contextlib.suppress(Exception):  # of many types for one fact: the program has no entry 1
            tried = [(parts, expected(parts)) for parts in (sample_parts(manifest, *run, ones=True) for run in runs)]
            if all(bool(np.isfinite(answer).all()) for _, answers in tried for answer in answers):
                return tried
    return [(parts, expected(parts)) for parts in (sample_parts(manifest, *run) for run in runs)]
