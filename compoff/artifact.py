"""The folder on disk that holds a head or a tail: a manifest, integer tables, a program; checked at every load.

The manifest names every other file with its length and SHA-256 and carries a checksum of itself, so that a folder is
either the one that was saved or an error. Knows neither torch nor what the programs do.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from compoff.coding import PayloadFormat, SymbolTables
from compoff.errors import ArtifactError, CompoffError

__all__ = ["FORMAT", "Folder", "Manifest", "TensorSpec", "find_part", "read_folder", "write_folder"]

FORMAT = 1
"""Version of the folder's format; counted apart from the package's."""

DTYPES = ("float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
"""What tensors may hold: what numpy, torch and the wire all know."""

_MANIFEST = "manifest.yaml"
_TABLES = "tables.safetensors"
_MANIFEST_LIMIT = 1 << 20  # bytes; a manifest is about 2 KB, and YAML is slow on what a stranger may have written


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one tensor.

    Args:
        shape: Shape without the batch axis.
        dtype: Name of the dtype as numpy has it.
        batched: Whether the first axis is the batch.
    """

    shape: tuple[int, ...]
    dtype: str
    batched: bool = True


@dataclass(frozen=True)
class Manifest:
    """What a folder says of itself.

    Args:
        kind: ``"head"`` or ``"tail"``.
        artifact_id: 64 hexadecimal digits that head and tail of one export share, and no others.
        split: The split point.
        model: Class name of the model, for people.
        inputs: What the model takes.
        outputs: Tensors that the model returns.
        structure: How they are nested; see `compoff.structure`.
        latent_shape: Shape of one sample's symbols.
        num_centers: Number of symbols.
        qualities: Channels that are sent at each quality.
        max_batch: Largest number of samples in one payload.
        report: Figures of the fit, for people: bytes, agreement, the guarantee's terms.
        versions: Versions that made the folder.
    """

    kind: str
    artifact_id: str
    split: str
    model: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    structure: dict[str, Any]
    latent_shape: tuple[int, ...]
    num_centers: int
    qualities: tuple[int, ...]
    max_batch: int
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    versions: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def identity(self) -> bytes:
        """The artifact id as the 32 bytes that payload and wire use."""
        return bytes.fromhex(self.artifact_id)

    def payload_format(self, tables: SymbolTables) -> PayloadFormat:
        """How payloads of this export are written and read.

        Args:
            tables: The tables of the same folder.

        Returns:
            The format.
        """
        return PayloadFormat(
            self.identity, tables, self.latent_shape, qualities=self.qualities, max_batch=self.max_batch
        )


@dataclass(frozen=True)
class Folder:
    """A folder that passed its checks.

    Args:
        path: Where it is.
        manifest: What it says of itself.
        tables: The coder's tables.
        names: Names of its other files.
    """

    path: Path
    manifest: Manifest
    tables: SymbolTables
    names: tuple[str, ...]


def write_folder(path: str | Path, manifest: Manifest, tables: SymbolTables, files: dict[str, bytes]) -> None:
    """Write a folder; the manifest comes last, so that a half-written folder is none.

    Args:
        path: The folder; made if need be.
        manifest: What it says of itself.
        tables: The coder's tables.
        files: Its other files, by name.

    Raises:
        ArtifactError: The folder holds something else than an earlier artifact of this kind.

    Example:
        >>> import tempfile
        >>> from compoff.coding import SymbolTables
        >>> manifest = Manifest("head", "00" * 32, "layer1", "Net", (), (), {"leaf": 0}, (1, 2), 2, (1,), 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_folder(folder, manifest, SymbolTables.from_probabilities([[0.5, 0.5]]), {"head.bin": b"program"})
        ...     read_folder(folder, "head").manifest.split
        'layer1'
    """
    folder = Path(path)
    others = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if others and _MANIFEST not in others:
        raise ArtifactError(
            f"'{folder}' holds other files ({', '.join(others[:5])}); give an empty or a new folder to save the {manifest.kind} in"
        )
    if others and _read_manifest(folder / _MANIFEST)[0].kind != manifest.kind:
        raise ArtifactError(f"'{folder}' holds an artifact of another kind; save the {manifest.kind} in a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MANIFEST).unlink(missing_ok=True)
    contents = {_TABLES: save_arrays({"weights": np.ascontiguousarray(tables.weights)}), **files}
    for name, data in contents.items():
        _write(folder / name, data)
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    body = {"format": FORMAT, **_plain(asdict(manifest)), "files": listed}
    text = yaml.safe_dump({**body, "checksum": _checksum(body)}, sort_keys=False, allow_unicode=True)
    _write(folder / _MANIFEST, text.encode())


def read_folder(path: str | Path, kind: str) -> Folder:
    """Read a folder and check all of it: format, keys, types, lengths, hashes, tables.

    Args:
        path: The folder.
        kind: ``"head"`` or ``"tail"``.

    Returns:
        The folder's contents.

    Raises:
        ArtifactError: Anything is not as it was saved; the message names the file and the key.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ArtifactError(f"'{folder}' is not a folder; expected one that {kind.capitalize()}.save wrote")
    manifest, files = _read_manifest(folder / _MANIFEST)
    if manifest.kind != kind:
        raise ArtifactError(f"{folder / _MANIFEST}: kind is '{manifest.kind}', expected '{kind}'; load it as what it is")
    for name, entry in files.items():
        _check_file(folder / name, name, entry)
    return Folder(folder, manifest, _read_tables(folder / _TABLES, manifest), tuple(n for n in files if n != _TABLES))


def find_part(path: str | Path, kind: str) -> Path:
    """The folder of a head or a tail: the given one, or its subfolder of that name.

    Args:
        path: A folder that `save` wrote, or the folder around ``head`` and ``tail``.
        kind: ``"head"`` or ``"tail"``.

    Returns:
        The folder to read.
    """
    folder = Path(path)
    return folder if (folder / _MANIFEST).exists() or not (folder / kind).is_dir() else folder / kind


def _read_manifest(path: Path) -> tuple[Manifest, dict[str, dict[str, Any]]]:
    """Parse and check the manifest; returns it and its list of files."""
    content = _parse(path)
    if content.get("format") != FORMAT:
        raise ArtifactError(
            f"{path}: format is {content.get('format')!r}, this compoff reads format {FORMAT}; export again, or install the "
            "version that wrote it"
        )
    checksum = content.pop("checksum", None)
    if checksum != _checksum(content):
        raise ArtifactError(f"{path}: checksum does not fit the rest of the file; it was changed or damaged: export again")
    files, known = content.pop("files", None), {entry.name for entry in fields(Manifest)}
    content.pop("format")
    if set(content) != known or not isinstance(files, dict) or _TABLES not in files:
        wrong = sorted({*content} ^ known) or ["files"]
        raise ArtifactError(f"{path}: keys {wrong} are missing or unknown; it was not written by this version: export again")
    return _manifest_from(path, content), files  # pyright: ignore[reportUnknownVariableType]


def _parse(path: Path) -> dict[str, Any]:
    """The manifest's YAML as a dict."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); expected the manifest of a head or a tail") from error
    if len(data) > _MANIFEST_LIMIT:
        raise ArtifactError(f"{path}: {len(data)} bytes long; a manifest has at most {_MANIFEST_LIMIT}")
    try:
        content = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: is not YAML ({str(error).splitlines()[0]}); it is damaged: export again") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: holds a {type(content).__name__}, expected keys and values; it is damaged: export again")
    return content  # pyright: ignore[reportUnknownVariableType]


def _manifest_from(path: Path, content: dict[str, Any]) -> Manifest:
    """A manifest from checked keys, with every type checked."""
    try:
        specs = {
            key: tuple(TensorSpec(tuple(map(int, entry["shape"])), entry["dtype"], entry["batched"]) for entry in content[key])
            for key in ("inputs", "outputs")
        }
        for spec in (*specs["inputs"], *specs["outputs"]):
            np.dtype(spec.dtype)
        shape, qualities = (tuple(map(int, content[key])) for key in ("latent_shape", "qualities"))
        manifest = Manifest(**{**content, **specs, "latent_shape": shape, "qualities": qualities})
        if len(manifest.identity) != 32 or manifest.kind not in ("head", "tail"):
            raise ValueError("artifact_id or kind")  # noqa: TRY301 - turned into an ArtifactError below
    except (TypeError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path}: a value has the wrong form ({error}); it is damaged: export again") from error
    return manifest


def _check_file(path: Path, name: str, entry: Any) -> None:
    """Compare one file with its line in the manifest."""
    if Path(name).name != name or not isinstance(entry, dict):
        raise ArtifactError(f"{path.parent / _MANIFEST}: files names '{name}', expected plain names in the same folder")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}), but the manifest lists it: copy the whole folder") from error
    if len(data) != entry.get("bytes"):  # pyright: ignore[reportUnknownMemberType]
        raise ArtifactError(f"{path}: {len(data)} bytes, the manifest says {entry.get('bytes')}; it was cut short or replaced")  # pyright: ignore[reportUnknownMemberType]
    if hashlib.sha256(data).hexdigest() != entry.get("sha256"):  # pyright: ignore[reportUnknownMemberType]
        raise ArtifactError(f"{path}: its SHA-256 is not the manifest's; it was changed or damaged: export again")


def _read_tables(path: Path, manifest: Manifest) -> SymbolTables:
    """The coder's tables, checked against the manifest."""
    try:
        weights = load_arrays(path.read_bytes())["weights"]
        tables = SymbolTables(weights)
        manifest.payload_format(tables)
    except (SafetensorError, KeyError, OSError, CompoffError, ValueError) as error:
        raise ArtifactError(f"{path}: weights do not fit the manifest ({error}); it is damaged: export again") from error
    if tables.num_symbols != manifest.num_centers:
        raise ArtifactError(f"{path}: weights have {tables.num_symbols} symbols, the manifest says {manifest.num_centers}")
    return tables


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(path.name + ".part")
    draft.write_bytes(data)
    os.replace(draft, path)  # noqa: PTH105 - atomic, and says so


def _plain(value: Any) -> Any:
    """Tuples as lists, so that YAML and JSON agree."""
    return json.loads(json.dumps(value))


def _checksum(content: dict[str, Any]) -> str:
    """SHA-256 of the content, whatever the order and layout of the file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
