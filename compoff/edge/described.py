"""What a tail's folder says of it, whoever runs it: a tail with its program, or a front that passes payloads on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compoff.coding import SymbolTables
    from compoff.manifest import Manifest, TensorSpec

__all__ = ["Described"]


class Described:
    """The half of a tail that needs no program.

    Args:
        manifest: What the tail is.
        tables: The coder's tables, one a code.
    """

    def __init__(self, manifest: Manifest, tables: Sequence[SymbolTables]) -> None:
        self.manifest = manifest
        self.tables = tuple(tables)
        self.payload_format = manifest.payload_format(tables)

    @property
    def split(self) -> str:
        """The split point."""
        return self.manifest.split

    @property
    def artifact_id(self) -> bytes:
        """The 32 bytes that this tail and its head share, and no others."""
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
