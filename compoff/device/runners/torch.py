"""A head's program under PyTorch: the exported ``.pt2``, as it was saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compoff.device.runners.runner import channels_by_quality, fits
from compoff.device.runners.tensors import from_numpy, to_numpy
from compoff.errors import ArtifactError
from compoff.programs import TorchProgram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from compoff.artifact import Folder
    from compoff.manifest import CodeSpec, TensorSpec

__all__ = ["PROGRAM", "TorchRunner"]

PROGRAM = "head.pt2"
"""Name of the program in a head's folder."""


class TorchRunner:
    """Runs a head with PyTorch.

    Args:
        program: The head's program.
        codes: What it codes, as its manifest says.
    """

    def __init__(self, program: TorchProgram, codes: Sequence[CodeSpec] = ()) -> None:
        self._program = program
        self._channels = channels_by_quality(codes)

    @classmethod
    def load(cls, folder: Folder) -> TorchRunner:
        """Read the program of a checked folder.

        Args:
            folder: The folder, read and checked.

        Returns:
            The runner.

        Raises:
            ArtifactError: The folder has no such program, PyTorch cannot read it, or it does not take what the manifest
                says.
        """
        name = str(folder.path / PROGRAM)
        program = TorchProgram.load(folder.file(PROGRAM), name)
        expected, found = [(spec.sized("batch"), spec.dtype) for spec in folder.manifest.taken], program.inputs
        if len(expected) != len(found) or not all(map(_fits, folder.manifest.taken, found)):
            raise ArtifactError(f"{name} takes {found!s:.200}, the manifest says {expected!s:.200}; export again")
        return cls(program, folder.manifest.codes)

    @property
    def files(self) -> dict[str, bytes]:
        """The program as files of an artifact, by name."""
        return {PROGRAM: self._program.to_bytes()}

    def run(self, inputs: Sequence[NDArray[Any]], quality: int | None = None) -> list[NDArray[Any]]:
        """Turn inputs into what crosses the cut.

        Args:
            inputs: One array an input, one batch.
            quality: Index of the quality whose channels are wanted; None for all channels.

        Returns:
            The symbols of each code, then the side tensors, then what the program says of the samples; see `Runner`.
        """
        return self._program.run(inputs, None if quality is None else self._channels.get(quality))

    def to_numpy(self, value: Any) -> NDArray[Any] | None:
        """The array behind a tensor.

        Args:
            value: Anything.

        Returns:
            Its array, or None if it is no tensor.

        Raises:
            FeatureError: Numpy has no array like it.
        """
        return to_numpy(value)

    def from_numpy(self, array: NDArray[Any]) -> Any:
        """An array as a tensor.

        Args:
            array: The array.

        Returns:
            A tensor of its own memory, since what comes off the wire cannot be written to.
        """
        return from_numpy(array)


def _fits(expected: TensorSpec, found: tuple[tuple[int | None, ...], str]) -> bool:
    """Whether a tensor of the program is what the manifest says; for one sample the batch may be written into it."""
    shape, dtype = found
    free = (None, *shape[1:]) if expected.batched and shape else shape
    return fits(expected.sized("batch"), free) and dtype == expected.dtype
