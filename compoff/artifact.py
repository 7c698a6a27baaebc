"""The folder on disk that holds a head or a tail: a manifest, integer tables, a program; checked at every load.

A folder is either the one that was saved or an error. Knows neither what a manifest says (`manifest`), nor torch, nor
what the programs do.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from compoff.checks import check_path, reaching
from compoff.coding.stored import arrays_of, tables_of
from compoff.drafts import drafts, read_together, write_draft
from compoff.errors import ArtifactError, BackendError, CompoffError
from compoff.manifest import MANIFEST_LIMIT, Manifest, manifest_bytes, parse_manifest, sha256
from compoff.pieces import place_of, put_back, take_out

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from compoff.coding import SymbolTables

__all__ = ["ENGINE", "MANIFEST", "Folder", "read_folder", "read_manifest", "write_folder"]

ENGINE = "engine."
"""How the names of files begin that are made from a program for one machine. They are read only when they are used."""

MANIFEST = "manifest.yaml"
"""Name of the file that makes a folder one of ours."""

_TABLES = "tables.safetensors"
_PROGRAM = ".pt2"
_PARTED = ".parts"
_LEFT = {
    "head": re.compile(r"head\.(pt2|onnx|pte)|.*\.part"),
    "tail": re.compile(r"(tail|decoders)\.pt2(\.parts)?|places\.json|engine\..*|.*\.part"),
}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Folder:
    """A folder that passed its checks.

    Args:
        path: Where it is.
        manifest: What it says of itself.
        tables: The coder's tables, one a code.
        files: Its other files, by name.
        engines: What the manifest lists of engines, by name; see `engine`.
    """

    path: Path
    manifest: Manifest
    tables: tuple[SymbolTables, ...]
    files: dict[str, bytes]
    engines: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its other files."""
        return tuple(self.files)

    def engine(self, name: str) -> bytes:
        """A file of an engine, compared with the manifest now.

        Args:
            name: Its name; it begins with `ENGINE`.

        Returns:
            Its bytes, as they were saved.

        Raises:
            BackendError: The manifest lists no such file, or not these bytes; an engine is native code, so such bytes
                are never run.
        """
        if name not in self.engines:
            raise BackendError(f"'{self.path}' has no file '{name}'; make it with compoff compile {self.path}")
        try:
            return _read_listed(self.path, name, self.engines[name])
        except ArtifactError as error:
            raise BackendError(
                f"{error}. An engine that is not the manifest's is never run: make it anew with "
                f"compoff compile {self.path}, or load the tail without it (backend='eager')"
            ) from error

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
                f"{self.path / MANIFEST}: files lists no '{name}', but {', '.join(self.files) or 'none'}"
            )
        return self.files[name]


def write_folder(
    path: str | Path,
    manifest: Manifest,
    tables: Sequence[SymbolTables],
    files: dict[str, bytes],
    *,
    weights: str | Path | None = None,
) -> None:
    """Write a folder; the manifest comes last, so that a half-written folder is none.

    Args:
        path: The folder; made if need be.
        manifest: What it says of itself.
        tables: The coder's tables, one a code.
        files: Its other files, by name. Engines of the same artifact that the folder has stay there, unless they are
            among these.
        weights: A folder for the weights of its programs, by their content, which several artifacts may share; None
            for the one that the folder has them in already, where it holds this artifact, else to leave them in the
            programs.

    Raises:
        ArtifactError: The folder holds something else than an earlier artifact of this kind, there is no way from it
            to `weights`, or the files cannot be written; what was there is there still. Or something else was saved
            there at the same time, and what is there now is not to be relied on.

    Examples:
        >>> import tempfile
        >>> from compoff.coding import SymbolTables
        >>> from compoff.manifest import CodeSpec, Manifest
        >>> code = CodeSpec((1, 2), num_centers=2, qualities=(1,))
        >>> manifest = Manifest("head", "00" * 32, "layer1", "Net", (), (), {"value": 0}, (code,), (), max_batch=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_folder(folder, manifest, [SymbolTables([[2**23, 2**23]])], {"head.bin": b"program"})
        ...     read_folder(folder, "head").manifest.split
        'layer1'
    """
    folder = check_path("path", path, ArtifactError)
    weights = None if weights is None else check_path("weights", weights, ArtifactError)
    with reaching(folder, ArtifactError):
        if folder.exists() and not folder.is_dir():
            raise ArtifactError(f"'{folder}' is a file; give a folder to save the {manifest.kind} in")
    shared: dict[str, memoryview] = {}
    weights = _weights_of(folder, manifest) if weights is None else weights
    if weights is not None:
        files, shared = _without_weights(files, _way(folder, weights))
    contents = {_TABLES: save_arrays(arrays_of(tables)), **files}
    try:
        earlier, listed = _check_free(folder, manifest.kind, contents)
        same = earlier is not None and earlier.artifact_id == manifest.artifact_id
        kept = {name: listed[name] for name in listed.keys() - contents.keys() if same and name.startswith(ENGINE)}
        text = manifest_bytes(manifest, contents, kept)
        folder.mkdir(parents=True, exist_ok=True)
        if weights is not None:
            _write_weights(weights, shared)
        with drafts(folder, [*contents, MANIFEST]) as made:  # a full disk leaves what was there
            for name, data in (*contents.items(), (MANIFEST, text)):
                write_draft(made[name], data, folder / name)
            ours = {name: draft.stat().st_ino for name, draft in made.items()}
            _put_in_place(folder, made, listed.keys() - contents.keys() - kept.keys())
        written = {**contents, MANIFEST: text}
        if not all(_is_still(folder / name, number, written[name]) for name, number in ours.items()):
            raise ArtifactError(f"something else was saved in '{folder}' at the same time; save again")
    except OSError as error:
        raise ArtifactError(
            f"the {manifest.kind} cannot be saved in '{error.filename or folder}' ({error.strerror or error}); make "
            "room, or give another folder"
        ) from error


def _put_in_place(folder: Path, made: dict[str, Path], gone: Iterable[str]) -> None:
    """Give drafts their names, and leave none of the files `gone`; where that fails, put back what was there."""
    with drafts(folder, [MANIFEST, *made, *gone]) as earlier:
        away: list[str] = []
        placed: list[str] = []
        try:
            for name in earlier:  # the manifest first: without it, the folder is none
                path = folder / name
                if path.is_symlink() or (path.exists() and not path.is_dir()):
                    with contextlib.suppress(FileNotFoundError):  # another took it
                        path.rename(earlier[name])
                        away.append(name)
            for name, draft in made.items():
                draft.replace(folder / name)
                placed.append(name)
        except BaseException:
            for name in {*placed} - {*away}:
                (folder / name).unlink(missing_ok=True)
            for name in reversed(away):
                earlier[name].replace(folder / name)
            raise


def _is_still(path: Path, number: int, data: bytes) -> bool:
    """Whether a path leads to the file of this number, or, since some systems number anew what is renamed, its like."""
    try:
        return path.stat().st_ino == number or path.read_bytes() == data
    except FileNotFoundError:
        return False


def _way(folder: Path, weights: Path) -> str:
    """How to get from a folder to the one with the weights, which are copied together."""
    try:
        way = Path(os.path.relpath(weights.resolve(), folder.resolve())).as_posix()
    except ValueError as error:  # another drive of Windows
        raise ArtifactError(f"weights are to be in '{weights}', on another drive than '{folder}'") from error
    return way


def _weights_of(folder: Path, manifest: Manifest) -> Path | None:
    """The folder that this artifact shares its weights in, as it was saved before; None where it does not."""
    try:
        earlier, listed = read_manifest(folder)
        if (earlier.kind, earlier.artifact_id) != (manifest.kind, manifest.artifact_id):
            return None
        parted = [name for name in listed if str(name).endswith(_PARTED)]
        weights = [folder / place_of(_read_listed(folder, name, listed[name])) for name in parted]
        return weights[0] if weights and weights[0].is_dir() else None
    except (ArtifactError, OSError):  # nothing is there, what is there is to be replaced, or it names no folder
        return None


def _without_weights(files: dict[str, bytes], way: str) -> tuple[dict[str, bytes], dict[str, memoryview]]:
    """Programs without their weights, and these by their content."""
    left: dict[str, bytes] = {}
    shared: dict[str, memoryview] = {}
    for name, data in files.items():
        if name.endswith(_PROGRAM) and not name.startswith(ENGINE):
            left[name + _PARTED], found = take_out(data, way)
            shared |= found
        else:
            left[name] = data
    return left, shared


def _write_weights(folder: Path, weights: dict[str, memoryview]) -> None:
    """Write those that are not there yet, or are there damaged."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in weights.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != bytes(data):
            with drafts(folder, [name]) as made:
                write_draft(made[name], data, path)
                made[name].replace(path)


def _check_free(folder: Path, kind: str, contents: dict[str, bytes]) -> tuple[Manifest | None, dict[str, Any]]:
    """Refuse to write among files that are not of an earlier artifact of this kind; that one, and what it lists."""
    present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set[str]()
    # What is left where a save was cut off is no user's; it is written over, or lies there unlisted.
    foreign = sorted(name for name in present - {*contents} if not _LEFT[kind].fullmatch(name))
    if MANIFEST in present:
        earlier, listed = read_manifest(folder)
        if earlier.kind != kind:
            raise ArtifactError(f"'{folder}' holds a {earlier.kind}; save the {kind} in a folder of its own")
        plain = {name for name in listed if isinstance(name, str) and _PLAIN_NAME.fullmatch(name)}  # pyright: ignore[reportUnnecessaryIsInstance]
        return earlier, {name: listed[name] for name in plain}
    if foreign:
        raise ArtifactError(
            f"'{folder}' holds other files ({', '.join(foreign[:5])}); save the {kind} in an empty or a new folder"
        )
    return None, {}


def read_folder(path: str | Path, kind: str) -> Folder:
    """Read a folder and check all of it but engines: format, keys, types, lengths, hashes, tables.

    Args:
        path: The folder.
        kind: ``"head"`` or ``"tail"``.

    Returns:
        The folder's contents.

    Raises:
        ArtifactError: Anything is not as it was saved; the message names the file and the key.
    """
    folder = check_path("path", path, ArtifactError)
    with reaching(folder, ArtifactError):
        if not folder.is_dir():
            raise ArtifactError(f"'{folder}' is not a folder; expected one that {kind.capitalize()}.save wrote")
        if not any(folder.iterdir()):
            raise ArtifactError(f"'{folder}' is empty; expected a folder that {kind.capitalize()}.save wrote")
    # An export that another process saves there meanwhile is read as a whole, or as a whole not yet.
    return read_together(folder / MANIFEST, lambda: _read_once(folder, kind), ArtifactError)


def _read_once(folder: Path, kind: str) -> Folder:
    """Read a folder into which nobody saves."""
    manifest, listed = read_manifest(folder)
    if manifest.kind != kind:
        raise ArtifactError(f"{folder / MANIFEST}: kind is '{manifest.kind}', expected '{kind}'; load it as what it is")
    engines = {name: entry for name, entry in listed.items() if str(name).startswith(ENGINE)}
    files = {name: _read_listed(folder, name, entry) for name, entry in listed.items() if name not in engines}
    if _TABLES not in files:
        raise ArtifactError(f"{folder / MANIFEST}: files lists no '{_TABLES}'; it is damaged: export again")
    tables = _read_tables(folder / _TABLES, files.pop(_TABLES), manifest)
    for name in [name for name in files if name.endswith(_PARTED)]:
        files[name.removesuffix(_PARTED)] = _whole(folder / name, files.pop(name))
    return Folder(folder, manifest, tables, files, engines)


def read_manifest(folder: Path) -> tuple[Manifest, dict[str, Any]]:
    """A folder's manifest, and what it lists of other files.

    Args:
        folder: The folder.

    Returns:
        The manifest, and the entries of the files beside it by name.

    Raises:
        ArtifactError: There is none, or it is damaged.
    """
    path = folder / MANIFEST
    return parse_manifest(_read(path, MANIFEST_LIMIT), path)


def _read_listed(folder: Path, name: Any, entry: Any) -> bytes:
    """A file that the manifest lists, compared with what it says."""
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        raise ArtifactError(f"{folder / MANIFEST}: files names {name!r:.80}, expected plain names in the same folder")
    line: dict[str, Any] = entry if isinstance(entry, dict) else {}  # pyright: ignore[reportUnknownVariableType]
    size = line.get("bytes")
    if type(size) is not int or size < 0:
        raise ArtifactError(f"{folder / MANIFEST}: files has no length for '{name}'; it is damaged: export again")
    path = folder / name
    data = _read(path, size)
    if len(data) != size:
        raise ArtifactError(f"{path}: has {len(data)} bytes, the manifest says {size}; it was cut short or replaced")
    if sha256(data) != line.get("sha256"):
        raise ArtifactError(f"{path}: its SHA-256 is not the manifest's; it was changed or damaged: export again")
    return data


def _whole(path: Path, rest: bytes) -> bytes:
    """A program with its weights, which are in another folder; whatever is there is compared with what is listed."""
    try:
        return put_back(rest, lambda way, name, length: _read(path.parent / way / name, length))
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def _read(path: Path, most: int) -> bytes:
    """A regular file of at most `most` bytes; a link may lead to one, never to a device that has no end."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{path}: is not a regular file; it was replaced: copy or export the folder again")
        if status.st_size > most:
            told = f"has {status.st_size} bytes, expected at most {most}"
            raise ArtifactError(f"{path}: {told}; it was replaced: copy or export the folder again")
        return path.read_bytes()
    except ArtifactError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(
            f"{path}: cannot be read ({reason}), but a head or tail has it: copy the whole folder"
        ) from error


def _read_tables(path: Path, data: bytes, manifest: Manifest) -> tuple[SymbolTables, ...]:
    """The coder's tables, checked against the manifest."""
    try:
        tables = tables_of(load_arrays(data), [len(code.qualities) for code in manifest.codes])
        manifest.payload_format(tables)
    except (SafetensorError, KeyError, CompoffError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path}: weights do not fit the manifest ({error}); it is damaged: export again"
        ) from error
    return tables
