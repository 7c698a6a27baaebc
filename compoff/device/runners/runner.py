"""What a head asks of a runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from compoff.manifest import CodeSpec

__all__ = ["Runner", "channels_by_quality", "fits"]


class Runner(Protocol):
    """A runtime that holds a head's program."""

    @property
    def files(self) -> dict[str, bytes]:
        """The program as files of an artifact, by name."""
        ...

    def run(self, inputs: Sequence[NDArray[Any]], quality: int | None = None) -> list[NDArray[Any]]:
        """Inputs to what crosses the cut, one batch: the symbols of each code, then the side tensors.

        Behind these, for each code, which samples its symbols stand for, where the program says it: ``(batch,)``, bool.
        Of each code at least the channels that this quality sends; all of them without a quality.
        """
        ...

    def to_numpy(self, value: Any) -> NDArray[Any] | None:
        """The array behind one of the runtime's own tensors; None if `value` is none of them."""
        ...

    def from_numpy(self, array: NDArray[Any]) -> Any:
        """An array as the runtime's own tensor."""
        ...


def channels_by_quality(codes: Sequence[CodeSpec]) -> dict[int, tuple[int, ...]]:
    """The channels of each code that a quality sends, for the qualities that do not send all of them.

    Args:
        codes: What the manifest says of each code.

    Returns:
        One entry a quality that needs less than the whole latent.

    Examples:
        >>> from compoff.manifest import CodeSpec
        >>> channels_by_quality([CodeSpec((8, 4, 4), num_centers=255, qualities=(3, 5, 8))])
        {0: (3,), 1: (5,)}
    """
    if not codes:
        return {}
    whole = tuple(code.latent_shape[0] for code in codes)
    sent = zip(*(code.qualities for code in codes), strict=True)
    return {quality: channels for quality, channels in enumerate(sent) if channels != whole}


def fits(wanted: Sequence[int | str], found: Sequence[int | None]) -> bool:
    """Whether a tensor of a program has the shape that the manifest says.

    Args:
        wanted: The shape by the manifest, with a word for the batch.
        found: The shape by the program; None for a free size, which is any size.

    Returns:
        Whether it does.

    Examples:
        >>> fits(("batch", 3, 8), (None, 3, 8)), fits(("batch", 3, 8), (None, 3, 9))
        (True, False)
    """
    return len(wanted) == len(found) and all(
        size is None or size == expected for expected, size in zip(wanted, found, strict=True)
    )
