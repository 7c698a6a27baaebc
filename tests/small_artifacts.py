"""A small artifact that the tests save, damage and forge, and its checksum by an independent reading of the format."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from compoff.artifact import read_folder
from compoff.coding import SymbolTables
from compoff.errors import ArtifactError
from compoff.manifest import CodeSpec, Manifest, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["MANIFEST", "PROGRAM", "TABLES", "checked", "forge", "refused"]

MANIFEST = Manifest(
    kind="head",
    artifact_id="0123456789abcdef" * 4,
    split="layer1.0",
    model="Net",
    inputs=(TensorSpec((3, 8, 8), "float32"), TensorSpec((5,), "int64", batched=False)),
    outputs=(TensorSpec((10,), "float32"),),
    structure={"dict": [["größe", {"leaf": 0}], ["none", {"value": None}]]},
    codes=(CodeSpec((2, 4, 4), num_centers=4, qualities=(1, 2)), CodeSpec((1, 9), num_centers=2, qualities=(1, 1))),
    sides=(TensorSpec((1, 8), "bool"),),
    max_batch=64,
    call={
        "parameters": ["x", "sizes"],
        "call": {"list": [{"list": [{"leaf": 0}]}, {"dict": [["sizes", {"leaf": 1}]]}]},
    },
    factory="shop.models:make",
    base="fedcba9876543210" * 4,
    report={"bytes": 12.5, "distilled_from": None},
    versions={"compoff": "0.1.0"},
)
TABLES = (SymbolTables([[2**22] * 4, [2**23, 2**22, 2**21, 2**21]]), SymbolTables([[2**23, 2**23]]))
PROGRAM = bytes(range(256))


def checked(text: str) -> bytes:
    """A manifest's text with its last line, by an independent reading of the format."""
    return (text + f"checksum: {hashlib.sha256(text.encode()).hexdigest()}\n").encode()


def forge(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a manifest and give it the checksum that belongs to it, as someone who means harm would."""
    text = (folder / "manifest.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text.rpartition("checksum: ")[0])
    change(content)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / "manifest.yaml").write_bytes(checked(text))


def refused(folder: Path, kind: str = "head") -> str:
    with pytest.raises(ArtifactError) as caught:
        read_folder(folder, kind)
    return str(caught.value)
