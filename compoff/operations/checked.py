"""The half of a tail that needs no weights: what a front knows of a tail that runs elsewhere.

It checks payloads and passes them on as they came, which is shorter than what they decode to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compoff.artifact import find_part, read_folder
from compoff.errors import BackendError

if TYPE_CHECKING:
    from pathlib import Path

    from compoff.manifest import TensorSpec

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


class CheckedTail:
    """What a front knows of a tail.

    Args:
        folder: The tail's folder, or the one around head and tail; only the manifest and the tables are used.

    Raises:
        ArtifactError: The folder is damaged or foreign.
        BackendError: The tail's answers say their own structure.
    """

    def __init__(self, folder: str | Path) -> None:
        part = read_folder(find_part(folder, "tail"), "tail")
        if not part.manifest.structure:
            raise BackendError(
                f"the outputs of {part.manifest.model} have no fixed form, which a front needs; serve it without one"
            )
        self.manifest = part.manifest
        self.payload_format = part.manifest.payload_format(part.tables)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.manifest.model} at '{self.split}', id {self.manifest.artifact_id[:8]})"

    @property
    def split(self) -> str:
        """The split point."""
        return self.manifest.split

    @property
    def artifact_id(self) -> bytes:
        """The 32 bytes that head and tail share."""
        return self.manifest.identity

    @property
    def max_payload_bytes(self) -> int:
        """Length that no payload of this export exceeds, in bytes."""
        return self.payload_format.max_bytes(self.manifest.max_batch)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model returns, flat."""
        return self.manifest.outputs

    @property
    def max_batch(self) -> int:
        """Samples that one run takes."""
        return self.manifest.max_batch

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
