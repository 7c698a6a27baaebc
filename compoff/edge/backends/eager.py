"""A tail's program under PyTorch as it was exported: needs nothing else, and is what every other backend is built from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compoff.programs import TorchProgram

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

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
    def load(cls, folder: Path, device: str = "cpu") -> EagerBackend:
        """Read the program of a checked folder.

        Args:
            folder: The folder.
            device: Where to run it, such as ``"cuda"``.

        Returns:
            The backend.

        Raises:
            ArtifactError: PyTorch cannot read the program.
        """
        path = folder / PROGRAM
        return cls(TorchProgram.load(path.read_bytes(), str(path), device))

    @property
    def files(self) -> dict[str, bytes]:
        """The program as files of an artifact, by name."""
        return {PROGRAM: self._program.to_bytes()}

    def run(self, symbols: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """Turn symbols into the leaves of the model's output.

        Args:
            symbols: Symbols of one batch.

        Returns:
            One array a leaf.
        """
        return self._program.run([symbols])
