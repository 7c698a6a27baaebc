"""A head's program under PyTorch: the exported ``.pt2``, as it was saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compoff.device.runners.tensors import from_numpy, to_numpy
from compoff.programs import TorchProgram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from compoff.artifact import Folder

__all__ = ["PROGRAM", "TorchRunner"]

PROGRAM = "head.pt2"
"""Name of the program in a head's folder."""


class TorchRunner:
    """Runs a head with PyTorch.

    Args:
        program: The head's program.
    """

    def __init__(self, program: TorchProgram) -> None:
        self._program = program

    @classmethod
    def load(cls, folder: Folder) -> TorchRunner:
        """Read the program of a checked folder.

        Args:
            folder: The folder, read and checked.

        Returns:
            The runner.

        Raises:
            ArtifactError: The folder has no such program, or PyTorch cannot read it.
        """
        return cls(TorchProgram.load(folder.file(PROGRAM), str(folder.path / PROGRAM)))

    @property
    def files(self) -> dict[str, bytes]:
        """The program as files of an artifact, by name."""
        return {PROGRAM: self._program.to_bytes()}

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Turn inputs into what crosses the cut.

        Args:
            inputs: One array an input, one batch.

        Returns:
            The symbols of each code, then the side tensors.
        """
        return self._program.run(inputs)

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
