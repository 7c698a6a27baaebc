"""A tail's program under PyTorch as it was exported: what every other backend is built from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compoff.programs import TorchProgram

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compoff.artifact import Folder
    from compoff.weights import WeightPool

__all__ = ["PROGRAM", "EagerBackend"]

PROGRAM = "tail.pt2"
"""Name of the program in a tail's folder."""


class EagerBackend:
    """Runs a tail with PyTorch.

    Args:
        program: The tail's program.
    """

    def __init__(self, program: TorchProgram) -> None:
        self._program = program

    @classmethod
    def load(cls, folder: Folder, device: str = "cpu", pool: WeightPool | None = None) -> EagerBackend:
        """Read the program of a checked folder.

        Args:
            folder: The folder, read and checked.
            device: Where to run it, such as ``"cuda"``.
            pool: Holds the weights that it has in common with other tails.

        Returns:
            The backend.

        Raises:
            ArtifactError: The folder has no such program, or PyTorch cannot read it.
        """
        return cls(TorchProgram.load(folder.file(PROGRAM), str(folder.path / PROGRAM), device, pool))

    @property
    def files(self) -> dict[str, bytes]:
        """The program as files of an artifact, by name."""
        return {PROGRAM: self._program.to_bytes()}

    def run(self, parts: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Turn what crossed the cut into the leaves of the model's output.

        Args:
            parts: Of one batch, the symbols of each code, then the side tensors.

        Returns:
            One array a leaf.
        """
        return self._program.run(parts)
