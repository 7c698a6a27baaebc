"""The half of a tail that needs no weights: what a front knows of a tail that runs elsewhere.

It checks payloads and passes them on as they came, which is shorter than what they decode to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from compoff.artifact import read_folder
from compoff.edge.described import Described
from compoff.errors import BackendError
from compoff.parts import find_part
from compoff.wire.tensors import pack

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Checked", "CheckedTail"]


class Checked:
    """A payload that decodes, and its number of samples.

    Args:
        payload: The payload as it came.
        samples: Its number of samples.
    """

    def __init__(self, payload: bytes, samples: int) -> None:
        self.payload = payload
        self._samples = samples

    def __len__(self) -> int:
        return self._samples


class CheckedTail(Described, ABC):
    """What a front knows of a tail, and how it passes payloads on.

    Args:
        folder: The tail's folder, or the one around head and tail; only the manifest and the tables are used.

    Raises:
        ArtifactError: The folder is damaged or foreign.
        BackendError: The tail's answers say their own structure.
    """

    elsewhere = True
    """That it has to be waited for, however prompt it was: the server never does that in its event loop."""

    def __init__(self, folder: str | Path) -> None:
        part = read_folder(find_part(folder, "tail"), "tail")
        if not part.manifest.structure:
            raise BackendError(
                f"the outputs of {part.manifest.model} have no fixed form, which a front needs; serve it without one"
            )
        super().__init__(part.manifest, part.tables)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.manifest.model} at '{self.split}', id {self.manifest.artifact_id[:8]})"

    def decode(self, payload: bytes) -> Checked:
        """Check one payload.

        Args:
            payload: The bytes that arrived.

        Returns:
            The payload; its length is its number of samples.

        Raises:
            PayloadError: The bytes are damaged or of another export.
        """
        return Checked(payload, len(self.payload_format.decode(payload)))

    @abstractmethod
    def run(self, decoded: Sequence[Checked]) -> list[list[NDArray[Any]]]:
        """Have several requests answered where the tail is.

        Args:
            decoded: What `decode` made of each.

        Returns:
            The leaves of the output of each.

        Raises:
            BackendError: No answer came in time, or there could be none.
        """

    def answer(self, payload: bytes) -> bytes:
        """Answer one request from the wire.

        Args:
            payload: The bytes that arrived.

        Returns:
            The leaves of the output, packed.

        Raises:
            PayloadError: The bytes are damaged or of another export.
            BackendError: As for `run`.
        """
        return pack(self.run([self.decode(payload)])[0])
