"""The folder on disk that holds a head or a tail: a manifest, integer tables, a program; checked at every load.

The manifest names every other file with its length and SHA-256 and ends with a checksum of itself, so that a folder is
either the one that was saved or an error. Knows neither torch nor what the programs do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from compoff.coding import PayloadFormat, SymbolTables
from compoff.errors import ArtifactError, CompoffError
from compoff.structure import unflatten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["DTYPES", "FORMAT", "Folder", "Manifest", "TensorSpec", "find_part", "read_folder", "write_folder"]

FORMAT = 1
"""Version of the folder's format; counted apart from the package's."""

DTYPES = ("float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
"""What tensors may hold: what numpy, torch and the wire all know."""

_MANIFEST = "manifest.yaml"
_TABLES = "tables.safetensors"
_MANIFEST_LIMIT = 1 << 18  # bytes; a manifest is about 2 KB
_LAYOUT = re.compile(rb"(format: .*\n)checksum: ([0-9a-f]{64})\n", re.DOTALL)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_FIRST_LINE = re.compile(rb"format: ([0-9]{1,9})\n")


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
        files: Its other files, by name.
    """

    path: Path
    manifest: Manifest
    tables: SymbolTables
    files: dict[str, bytes]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its other files."""
        return tuple(self.files)

    def file(self, name: str) -> bytes:
        """One of its other files.

        Args:
            name: Its name.

        Returns:
            Its bytes, as they were saved.

        Raises:
            ArtifactError: The manifest lists no such file.
        """
        if name not in self.files:
            raise ArtifactError(
                f"{self.path / _MANIFEST}: files lists no '{name}', but {', '.join(self.files) or 'none'}"
            )
        return self.files[name]


def write_folder(path: str | Path, manifest: Manifest, tables: SymbolTables, files: dict[str, bytes]) -> None:
    """Write a folder; the manifest comes last, so that a half-written folder is none.

    Args:
        path: The folder; made if need be.
        manifest: What it says of itself.
        tables: The coder's tables.
        files: Its other files, by name.

    Raises:
        ArtifactError: The folder holds something else than an earlier artifact of this kind.

    Examples:
        >>> import tempfile
        >>> from compoff.coding import SymbolTables
        >>> manifest = Manifest("head", "00" * 32, "layer1", "Net", (), (), {"value": 0}, (1, 2), 2, (1,), 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_folder(folder, manifest, SymbolTables.from_probabilities([[0.5, 0.5]]), {"head.bin": b"program"})
        ...     read_folder(folder, "head").manifest.split
        'layer1'
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"'{folder}' is a file; give a folder to save the {manifest.kind} in")
    contents = {_TABLES: save_arrays({"weights": np.ascontiguousarray(tables.weights)}), **files}
    listed = {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in contents.items()}
    body = yaml.safe_dump(
        {"format": FORMAT, **_plain(asdict(manifest)), "files": listed}, sort_keys=False, allow_unicode=True
    ).encode()
    if len(body) > _MANIFEST_LIMIT - 100:
        raise ArtifactError(f"the manifest takes {len(body)} bytes, at most {_MANIFEST_LIMIT} fit; shorten the report")
    _check_free(folder, manifest.kind, contents)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MANIFEST).unlink(missing_ok=True)
    for name, data in contents.items():
        _write(folder / name, data)
    _write(folder / _MANIFEST, body + f"checksum: {_sha256(body)}\n".encode())


def _check_free(folder: Path, kind: str, contents: dict[str, bytes]) -> None:
    """Refuse to write among files that are not of an earlier artifact of this kind, whole or cut short."""
    present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set[str]()
    foreign = sorted(name for name in present - {*contents} if not name.endswith(".part"))
    if _MANIFEST in present:
        found = _read_manifest(folder / _MANIFEST)[0].kind
        if found != kind:
            raise ArtifactError(f"'{folder}' holds a {found}; save the {kind} in a folder of its own")
    elif foreign:
        raise ArtifactError(
            f"'{folder}' holds other files ({', '.join(foreign[:5])}); save the {kind} in an empty or a new folder"
        )


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
    manifest, listed = _read_manifest(folder / _MANIFEST)
    if manifest.kind != kind:
        raise ArtifactError(
            f"{folder / _MANIFEST}: kind is '{manifest.kind}', expected '{kind}'; load it as what it is"
        )
    files = {name: _read_listed(folder, name, entry) for name, entry in listed.items()}
    if _TABLES not in files:
        raise ArtifactError(f"{folder / _MANIFEST}: files lists no '{_TABLES}'; it is damaged: export again")
    tables = _read_tables(folder / _TABLES, files.pop(_TABLES), manifest)
    return Folder(folder, manifest, tables, files)


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


def _read_manifest(path: Path) -> tuple[Manifest, dict[str, Any]]:
    """Parse and check the manifest; returns it and its list of files."""
    content = _parse(path)
    files, known = content.pop("files", None), {entry.name for entry in fields(Manifest)}
    content.pop("format", None)
    wrong = sorted(map(str, content.keys() ^ known))
    if wrong or not isinstance(files, dict):
        keys = ", ".join(wrong) or "files"
        raise ArtifactError(f"{path}: keys {keys} are missing or unknown; not written by this version: export again")
    return _manifest_from(path, content), files  # pyright: ignore[reportUnknownVariableType]


def _parse(path: Path) -> dict[str, Any]:
    """The manifest's YAML as a dict, once its format and checksum are right."""
    data = _read(path, _MANIFEST_LIMIT).replace(b"\r\n", b"\n")  # git may have changed the line ends
    first = _FIRST_LINE.match(data)
    if first is None:
        raise ArtifactError(f"{path}: does not begin with its format; it is damaged, or no manifest: export again")
    if int(first[1]) != FORMAT:
        told = f"format is {int(first[1])}, this compoff reads format {FORMAT}"
        raise ArtifactError(f"{path}: {told}; export again, or install the version that wrote it")
    whole = _LAYOUT.fullmatch(data)
    if whole is None or _sha256(whole[1]).encode() != whole[2]:
        raise ArtifactError(
            f"{path}: checksum does not fit the rest of the file; it was changed or damaged: export again"
        )
    try:
        events = cast("Iterable[object]", yaml.parse(whole[1]))
        if any(isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) for event in events):
            raise ValueError("it has aliases or tags")
        content = yaml.safe_load(whole[1])
        json.dumps(content)  # a date, or a number of thousands of digits, is no part of a manifest either
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"{path}: is not the YAML of a manifest ({reason}); it is damaged: export again") from error
    return content if isinstance(content, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def _manifest_from(path: Path, content: dict[str, Any]) -> Manifest:
    """A manifest from checked keys, with every type checked."""

    def value(key: str, kind: type, fits: Callable[[Any], bool] = lambda _: True) -> Any:
        found = content[key]
        if type(found) is not kind or not fits(found):
            raise ArtifactError(f"{path}: {key} is {found!r:.80}, which cannot be; it is damaged: export again")
        return found

    def specs(key: str) -> tuple[TensorSpec, ...]:
        value(key, list, lambda entries: all(map(_is_spec, entries)))
        return tuple(TensorSpec(tuple(entry["shape"]), entry["dtype"], entry["batched"]) for entry in content[key])

    outputs = specs("outputs")
    try:
        unflatten(value("structure", dict), outputs)
    except (ArtifactError, RecursionError) as error:
        raise ArtifactError(f"{path}: structure is damaged ({error}); export again") from error
    return Manifest(
        kind=value("kind", str, lambda kind: kind in ("head", "tail")),
        artifact_id=value("artifact_id", str, lambda digits: re.fullmatch("[0-9a-f]{64}", digits) is not None),
        split=value("split", str),
        model=value("model", str),
        inputs=specs("inputs"),
        outputs=outputs,
        structure=content["structure"],
        latent_shape=tuple(value("latent_shape", list, _are_sizes)),
        num_centers=value("num_centers", int),
        qualities=tuple(value("qualities", list, _are_sizes)),
        max_batch=value("max_batch", int),
        report=value("report", dict),
        versions=value("versions", dict),
    )


def _is_spec(entry: Any) -> bool:
    """Whether this is a tensor's shape and dtype as `write_folder` writes it."""
    return (
        isinstance(entry, dict)
        and entry.keys() == {"shape", "dtype", "batched"}  # pyright: ignore[reportUnknownMemberType]
        and _are_sizes(entry["shape"])
        and entry["dtype"] in DTYPES
        and type(entry["batched"]) is bool  # pyright: ignore[reportUnknownArgumentType]
    )


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 40 for size in value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _read_listed(folder: Path, name: Any, entry: Any) -> bytes:
    """A file that the manifest lists, compared with what it says."""
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        raise ArtifactError(f"{folder / _MANIFEST}: files names {name!r:.80}, expected plain names in the same folder")
    line: dict[str, Any] = entry if isinstance(entry, dict) else {}  # pyright: ignore[reportUnknownVariableType]
    size = line.get("bytes")
    if type(size) is not int or size < 0:
        raise ArtifactError(f"{folder / _MANIFEST}: files has no length for '{name}'; it is damaged: export again")
    path = folder / name
    data = _read(path, size)
    if len(data) != size:
        raise ArtifactError(f"{path}: has {len(data)} bytes, the manifest says {size}; it was cut short or replaced")
    if _sha256(data) != line.get("sha256"):
        raise ArtifactError(f"{path}: its SHA-256 is not the manifest's; it was changed or damaged: export again")
    return data


def _read(path: Path, most: int) -> bytes:
    """A regular file of at most `most` bytes; a link may lead to one, never to a device that has no end."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{path}: is not a regular file; it was replaced: copy or export the folder again")
        if status.st_size > most:
            raise ArtifactError(f"{path}: has {status.st_size} bytes, expected at most {most}; it was replaced")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(
            f"{path}: cannot be read ({reason}), but a head or tail has it: copy the whole folder"
        ) from error


def _read_tables(path: Path, data: bytes, manifest: Manifest) -> SymbolTables:
    """The coder's tables, checked against the manifest."""
    try:
        tables = SymbolTables(load_arrays(data)["weights"])
        manifest.payload_format(tables)
    except (SafetensorError, KeyError, CompoffError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path}: weights do not fit the manifest ({error}); it is damaged: export again"
        ) from error
    if tables.num_symbols != manifest.num_centers:
        raise ArtifactError(
            f"{path}: weights are for {tables.num_symbols} symbols, num_centers is {manifest.num_centers}"
        )
    return tables


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(path.name + ".part")
    draft.write_bytes(data)
    os.replace(draft, path)  # noqa: PTH105 - atomic, and says so


def _plain(value: Any) -> Any:
    """Tuples as lists, as YAML reads them back."""
    return json.loads(json.dumps(value))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
