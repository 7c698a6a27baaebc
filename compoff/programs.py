"""Exported PyTorch programs as bytes, and run on numpy arrays: what head and tail share where torch is present."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import torch

from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch.export import ExportedProgram

__all__ = ["TorchProgram"]


class TorchProgram:
    """A program ready to run.

    Args:
        program: The exported program.
        data: The same as the bytes of a ``.pt2`` file; None to make them when they are asked for.
        device: Where to run it.
    """

    def __init__(self, program: ExportedProgram, data: bytes | None = None, device: str = "cpu") -> None:
        self._program = program
        self._data = data
        self._device = torch.device(device)
        self._module = program.module(check_guards=False).to(self._device)

    @classmethod
    def load(cls, data: bytes, name: str, device: str = "cpu") -> TorchProgram:
        """Read a ``.pt2`` file.

        Args:
            data: Its bytes, already checked against a manifest.
            name: Its name, for messages.
            device: Where to run it.

        Returns:
            The program.

        Raises:
            ArtifactError: PyTorch cannot read it.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecations inside torch.export.load
                program = torch.export.load(io.BytesIO(data))
        except Exception as error:  # torch.export raises many types for one fact
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ArtifactError(
                f"{name}: torch {torch.__version__} cannot load this program ({reason}); export again with this torch, or "
                "install the one named under versions in the manifest"
            ) from error
        return cls(program, data, device)

    def to_bytes(self) -> bytes:
        """The program as the bytes of a ``.pt2`` file.

        Returns:
            The bytes.
        """
        if self._data is None:
            buffer = io.BytesIO()
            torch.export.save(self._program, buffer)
            self._data = buffer.getvalue()
        return self._data

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Run on arrays.

        Args:
            inputs: One array an input.

        Returns:
            One array an output.
        """
        with torch.inference_mode():
            tensors = [torch.from_numpy(array).to(self._device) for array in inputs]
            outputs = self._module(*tensors)
            leaves = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
            return [leaf.cpu().numpy() for leaf in leaves]
