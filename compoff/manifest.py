"""The manifest of a head or a tail: what it is, what it takes and returns, and every other file with its SHA-256.

Written as YAML that ends with a checksum of itself. Knows no folders: `artifact` reads and writes the bytes.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar, cast

from compoff.coding import Code, PayloadFormat, Side
from compoff.coding.side import DTYPES
from compoff.errors import ArtifactError, FeatureError
from compoff.pixels import Pixels
from compoff.plain_yaml import dump_yaml, load_yaml
from compoff.structure import leaf_places, unflatten

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from compoff.coding import SymbolTables

__all__ = [
    "DTYPES",
    "FORMAT",
    "MANIFEST_LIMIT",
    "CodeSpec",
    "Manifest",
    "TensorSpec",
    "manifest_bytes",
    "parse_manifest",
    "sha256",
]

FORMAT = 4
"""Version of the folder's format that is written; counted apart from the package's. Formats 1 to 3 are read, too."""

MANIFEST_LIMIT = 1 << 18
"""Bytes that no manifest exceeds; it has about 2 KB."""

_Size = TypeVar("_Size", int, str)
_LAYOUT = re.compile(rb"(format: .*\n)checksum: ([0-9a-f]{64})\n", re.DOTALL)
_FIRST_LINE = re.compile(rb"format: ([0-9]{1,9})\n")
_DIGITS = re.compile("[0-9a-f]{64}")
_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_MOST_REPLY_BYTES = 1 << 32


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

    def sized(self, batch: _Size) -> tuple[int | _Size, ...]:
        """The whole shape.

        Args:
            batch: Number of samples, or a word for it.

        Returns:
            The shape, the batch first where there is such an axis.

        Examples:
            >>> TensorSpec((3, 8), "float32").sized("batch"), TensorSpec((3,), "int64", batched=False).sized("batch")
            (('batch', 3, 8), (3,))
        """
        return (batch, *self.shape) if self.batched else self.shape


@dataclass(frozen=True)
class CodeSpec:
    """One coded feature.

    Args:
        latent_shape: Shape of one sample's symbols.
        num_centers: Number of symbols.
        qualities: Channels that are sent at each quality.
        steps: Step of the symbols at each quality; empty where it is always the finest.
    """

    latent_shape: tuple[int, ...]
    num_centers: int
    qualities: tuple[int, ...]
    steps: tuple[int, ...] = ()


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
        structure: How they are nested; see `compoff.structure`. Empty where that is not known beforehand: the reply
            says it, and there are no `outputs`.
        codes: The features that cross the cut coded.
        sides: The tensors that cross it as they are.
        max_batch: Largest number of samples in one payload.
        call: How the model was called: names of its positional ``parameters``, and under ``call`` how the inputs are
            nested in ``[args, keywords]``. Empty where that is not known: inputs are given in order.
        pixels: How the head makes one of the inputs from 8-bit pixels; None where it takes them as the model does.
        factory: ``"package.module:function"`` that makes the user's own model, which the tail then runs as it is; empty
            where the tail is a program.
        base: 64 hexadecimal digits that name the model's weights; empty where they are not known.
        quality: Index of the quality that is sent by default; -1 for the last.
        max_reply_bytes: The most bytes of a reply that says its own structure.
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
    codes: tuple[CodeSpec, ...]
    sides: tuple[TensorSpec, ...]
    max_batch: int
    call: dict[str, Any] = field(default_factory=dict[str, Any])
    pixels: Pixels | None = None
    factory: str = ""
    base: str = ""
    quality: int = -1
    max_reply_bytes: int = 1 << 24
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    versions: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def identity(self) -> bytes:
        """The artifact id as the 32 bytes that payload and wire use."""
        return bytes.fromhex(self.artifact_id)

    @property
    def taken(self) -> tuple[TensorSpec, ...]:
        """What the head takes: the model's inputs, with pixels in the place of the one that it makes from them."""
        if self.pixels is None:
            return self.inputs
        specs = [*self.inputs]
        specs[self.pixels.input] = TensorSpec(self.pixels.shape(specs[self.pixels.input].shape), "uint8")
        return tuple(specs)

    def payload_format(self, tables: Sequence[SymbolTables]) -> PayloadFormat:
        """How payloads of this export are written and read.

        Args:
            tables: The tables of the same folder, one a code.

        Returns:
            The format.

        Raises:
            ArtifactError: They do not fit together.
        """
        if [table.num_symbols for table in tables] != [code.num_centers for code in self.codes]:
            raise ArtifactError(
                f"the tables are for {[table.num_symbols for table in tables]} symbols, num_centers is "
                f"{[code.num_centers for code in self.codes]}"
            )
        codes = [
            Code(table, code.latent_shape, code.qualities, code.steps or None)
            for table, code in zip(tables, self.codes, strict=True)
        ]
        if self.quality >= len(self.codes[0].qualities):
            raise ArtifactError(f"quality is {self.quality}, but there are {len(self.codes[0].qualities)} qualities")
        sides = [Side(spec.shape, spec.dtype, spec.batched) for spec in self.sides]
        return PayloadFormat(self.identity, codes, sides, self.max_batch)


def manifest_bytes(manifest: Manifest, files: Mapping[str, bytes], kept: Mapping[str, Any] | None = None) -> bytes:
    """Write a manifest.

    Args:
        manifest: What to say.
        files: The other files of the folder, by name.
        kept: What an earlier manifest lists of files that stay as they are, by name; None for none.

    Returns:
        The file's bytes.

    Raises:
        ArtifactError: It would be longer or deeper than a manifest may be.
    """
    listed = {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in files.items()}
    content = {"format": FORMAT, **asdict(manifest), "files": {**listed, **(kept or {})}}
    try:
        body = dump_yaml(content)
    except ValueError as error:
        raise ArtifactError(f"the manifest: {error}; nest the model's inputs and outputs less") from error
    if len(body) > MANIFEST_LIMIT - 100:
        raise ArtifactError(f"the manifest takes {len(body)} bytes, at most {MANIFEST_LIMIT} fit; shorten the report")
    return body + f"checksum: {sha256(body)}\n".encode()


def parse_manifest(data: bytes, path: Path) -> tuple[Manifest, dict[str, Any]]:
    """Read a manifest and check every key and value of it.

    Args:
        data: The file's bytes.
        path: Its name, for messages.

    Returns:
        The manifest, and what it lists of other files.

    Raises:
        ArtifactError: It is damaged, foreign or of another format; the message names the key.
    """
    content = _upgraded(_parse(data, path))
    files, known = content.pop("files", None), {entry.name for entry in fields(Manifest)}
    content.pop("format", None)
    wrong = sorted(map(str, content.keys() ^ known))
    if wrong or not isinstance(files, dict):
        keys = ", ".join(wrong) or "files"
        raise ArtifactError(
            f"{path}: keys {keys:.200} are missing or unknown; not written by this version: export again"
        )
    return _manifest_from(path, content), files  # pyright: ignore[reportUnknownVariableType]


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    """The YAML as a dict, once its format and checksum are right."""
    data = data.replace(b"\r\n", b"\n")  # git may have changed the line ends
    first = _FIRST_LINE.match(data)
    if first is None:
        raise ArtifactError(f"{path}: does not begin with its format; it is damaged, or no manifest: export again")
    if not 1 <= int(first[1]) <= FORMAT:
        told = f"format is {int(first[1])}, this compoff reads formats 1 to {FORMAT}"
        raise ArtifactError(f"{path}: {told}; export again, or install the version that wrote it")
    whole = _LAYOUT.fullmatch(data)
    if whole is None or sha256(whole[1]).encode() != whole[2]:
        raise ArtifactError(
            f"{path}: checksum does not fit the rest of the file; it was changed or damaged: export again"
        )
    try:
        content = load_yaml(whole[1])
    except ValueError as error:
        raise ArtifactError(f"{path}: is not the YAML of a manifest ({error}); it is damaged: export again") from error
    return content if isinstance(content, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """The keys of this format, from those of any format that is read."""
    if content.get("format") in (1, 2):
        content = {"pixels": None, **content}
    if content.get("format") != 1:
        return content
    code = {key: content.pop(key) for key in ("latent_shape", "num_centers", "qualities") if key in content}
    code["steps"] = []
    defaults = {entry.name: entry.default for entry in fields(Manifest) if entry.name in ("factory", "base")}
    return {**content, **defaults, "codes": [code], "sides": [], "call": {}, "quality": -1, "max_reply_bytes": 1 << 24}


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

    def nested(key: str, check: Callable[[Any], None]) -> dict[str, Any]:
        try:
            check(value(key, dict))
        except (ArtifactError, RecursionError) as error:
            raise ArtifactError(f"{path}: {key} is damaged ({error}); export again") from error
        return content[key]

    inputs, outputs = specs("inputs"), specs("outputs")
    value("codes", list, lambda entries: bool(entries) and all(map(_is_code, entries)))
    return Manifest(
        kind=value("kind", str, lambda kind: kind in ("head", "tail")),
        artifact_id=value("artifact_id", str, lambda digits: _DIGITS.fullmatch(digits) is not None),
        split=value("split", str),
        model=value("model", str),
        inputs=inputs,
        outputs=outputs,
        structure=nested("structure", lambda structure: _check_structure(structure, outputs)),
        codes=tuple(
            CodeSpec(
                tuple(entry["latent_shape"]), entry["num_centers"], tuple(entry["qualities"]), tuple(entry["steps"])
            )
            for entry in content["codes"]
        ),
        quality=value("quality", int, lambda index: index >= -1),
        sides=specs("sides"),
        max_batch=value("max_batch", int),
        call=nested("call", lambda call: _check_call(call, inputs)),
        pixels=_pixels(path, content["pixels"], inputs),
        factory=value("factory", str, lambda name: not name or _FACTORY.fullmatch(name) is not None),
        base=value("base", str, lambda digits: not digits or _DIGITS.fullmatch(digits) is not None),
        max_reply_bytes=value("max_reply_bytes", int, lambda size: 0 < size <= _MOST_REPLY_BYTES),
        report=value("report", dict),
        versions=value("versions", dict, lambda found: all(isinstance(name, str) for name in found.values())),
    )


def _pixels(path: Path, entry: Any, inputs: tuple[TensorSpec, ...]) -> Pixels | None:
    """How pixels become one of the inputs; an input that is no picture is refused."""
    if entry is None:
        return None
    try:
        found = Pixels(**entry)
        spec = inputs[found.input]
        found.shape(spec.shape)
    except (FeatureError, TypeError, IndexError) as error:
        raise ArtifactError(f"{path}: pixels is damaged ({error}); export again") from error
    if not (spec.batched and spec.dtype.startswith("float")):
        raise ArtifactError(f"{path}: pixels is damaged (tensor {found.input} is {spec.dtype}); export again")
    return found


def _check_structure(structure: dict[str, Any], outputs: tuple[TensorSpec, ...]) -> None:
    if structure or outputs:  # without either, each reply says its own
        unflatten(structure, outputs)


def _check_call(call: dict[str, Any], inputs: tuple[TensorSpec, ...]) -> None:
    """Refuse a call that is not of the form that `Head` reads."""
    if not call:
        return
    names = call.get("parameters")
    if call.keys() != {"parameters", "call"} or not isinstance(names, list):
        raise ArtifactError("it holds other keys than parameters and call")
    nested = unflatten(call["call"], inputs)
    shape = list(map(type, cast("list[object]", nested))) if isinstance(nested, list) else []
    if shape != [list, dict] or not all(isinstance(name, str) for name in cast("list[object]", [*names, *nested[1]])):
        raise ArtifactError("it holds no arguments and keywords with their names")
    if list(leaf_places(call["call"])) != list(range(len(inputs))):
        raise ArtifactError("it does not hold each input once, in order")


def _is_code(entry: Any) -> bool:
    """Whether this is a coded feature as `write_folder` writes it."""
    return (
        isinstance(entry, dict)
        and entry.keys() == {"latent_shape", "num_centers", "qualities", "steps"}  # pyright: ignore[reportUnknownMemberType]
        and _are_sizes(entry["latent_shape"])
        and type(entry["num_centers"]) is int  # pyright: ignore[reportUnknownArgumentType]
        and _are_sizes(entry["qualities"])
        and _are_sizes(entry["steps"])
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


def sha256(data: bytes) -> str:
    """The SHA-256 of bytes.

    Args:
        data: The bytes.

    Returns:
        64 hexadecimal digits.

    Examples:
        >>> sha256(b"")[:8]
        'e3b0c442'
    """
    return hashlib.sha256(data).hexdigest()
