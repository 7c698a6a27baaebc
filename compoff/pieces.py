"""A program's file without its weights, which several programs may have in common; and the file put together again.

A ``.pt2`` is a zip archive in which each tensor is stored as it is. Knows nothing of where the weights go.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zipfile
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LEAST_BYTES", "place_of", "put_back", "take_out"]

LEAST_BYTES = 4096
"""Shorter tensors stay with the program: a file of their own would take more than they do."""

_FORMAT = 1
_FOLDERS = re.compile("/data/(weights|constants)/")
_NAME = re.compile("[0-9a-f]{64}")
_MOST_BYTES = 1 << 40
_MOST_HEADER = 1 << 26
_UNFIT = "a program does not fit its weights; it is damaged: save the tails again"
_MOST_TIMES = 4
_MOST_REPEATED = 1 << 26  # bytes: so many repeats of the same weights are left out beside the first of each


def take_out(data: bytes, where: str = "") -> tuple[bytes, dict[str, memoryview]]:
    """Part a program's file from its weights.

    Args:
        data: The file.
        where: Where the weights will be, for whoever puts it together again.

    Returns:
        What is left, with a line before it that says what is missing; and the weights by their SHA-256.

    Examples:
        >>> archive = io.BytesIO()
        >>> with zipfile.ZipFile(archive, "w") as file:
        ...     file.writestr("archive/data/weights/weight_0", bytes(10_000))
        >>> rest, weights = take_out(archive.getvalue())
        >>> whole = put_back(rest, lambda _, name, __: weights[name])
        >>> [len(weight) for weight in weights.values()], whole == archive.getvalue()
        ([10000], True)

    Source: this project.
    """
    view, weights, pieces, kept = memoryview(data), dict[str, memoryview](), list[tuple[int, int, str]](), 0
    repeated = 0
    left: list[memoryview] = []
    for start, length in _tensors(data):
        piece = view[start : start + length]
        name = sha256(piece).hexdigest()
        if name in weights:
            repeated += length
            if repeated > _MOST_REPEATED:
                continue
        weights[name] = piece
        pieces.append((start, length, name))
        left.append(view[kept:start])
        kept = start + length
    head = {"format": _FORMAT, "where": where, "bytes": len(data), "sha256": sha256(data).hexdigest(), "pieces": pieces}
    return json.dumps(head).encode() + b"\n" + b"".join([*left, view[kept:]]), weights


def put_back(rest: bytes, weight: Callable[[str, str, int], bytes | memoryview]) -> bytes:
    """Put a program's file together again.

    Args:
        rest: What `take_out` left.
        weight: Finds the bytes of a weight: where, their SHA-256, and how many.

    Returns:
        The file, to the last bit.

    Raises:
        ArtifactError: `rest` is damaged, or a weight is not what its name says.

    Source: this project.
    """
    line, _, plain = rest.partition(b"\n")
    where, size, digest, pieces = _checked(line)
    lengths = {name: length for _, length, name in pieces}
    given = sum(length for _, length, _ in pieces)
    # A small file that names one weight many times would else become one that no memory holds.
    if given > _MOST_TIMES * sum(lengths.values()) + _MOST_REPEATED:
        raise ArtifactError("what is left of a program names the same weights too often; it is damaged: export again")
    if size != len(plain) + given:
        raise ArtifactError(_UNFIT)
    weights: dict[str, bytes | memoryview] = {}
    for name, length in lengths.items():
        weights[name] = weight(where, name, length)
        if len(weights[name]) != length or sha256(weights[name]).hexdigest() != name:
            raise ArtifactError(f"the weight {name[:12]} has other bytes than its name says; save the tails again")
    kept, parts = memoryview(plain), list[bytes | memoryview]()
    place, taken, hashed = 0, 0, sha256()
    for start, length, name in pieces:
        if length != lengths[name]:
            raise ArtifactError(_UNFIT)
        gap = start - place
        parts += [kept[taken : taken + gap], weights[name]]
        place, taken = start + length, taken + gap
    parts.append(kept[taken:])
    for part in parts:
        hashed.update(part)
    if hashed.hexdigest() != digest:
        raise ArtifactError(_UNFIT)
    return b"".join(parts)


def place_of(rest: bytes) -> str:
    """Where the weights of a program are.

    Args:
        rest: What `take_out` left.

    Returns:
        What `take_out` was told.

    Raises:
        ArtifactError: `rest` is damaged.

    Examples:
        >>> place_of(take_out(b"no archive", "../weights")[0])
        '../weights'

    Source: this project.
    """
    return _checked(rest.partition(b"\n")[0])[0]


def _tensors(data: bytes) -> list[tuple[int, int]]:
    """Start and length of each long tensor that is stored as it is, in order; none for what is no archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if entry.compress_type == zipfile.ZIP_STORED]
    except zipfile.BadZipFile:
        return []
    long = [entry for entry in entries if entry.file_size >= LEAST_BYTES and _FOLDERS.search(entry.filename)]
    return sorted((_start(data, entry.header_offset), entry.file_size) for entry in long)


def _start(data: bytes, header: int) -> int:
    """Where the bytes of an entry begin: behind its header, whose name and extra field have lengths of their own."""
    name, extra = struct.unpack_from("<HH", data, header + 26)
    return header + 30 + name + extra


def _checked(line: bytes) -> tuple[str, int, str, list[tuple[int, int, str]]]:
    """Where the weights are, length and digest of the whole, and the pieces in order, none over another."""
    try:
        if len(line) > _MOST_HEADER:
            raise ValueError(f"its first line has {len(line)} bytes")
        head: dict[str, Any] = json.loads(line)
        if head["format"] != _FORMAT:
            raise ValueError(f"format is {head['format']}, this compoff reads format {_FORMAT}")
        pieces = [(int(start), int(length), str(name)) for start, length, name in head["pieces"]]
        place = 0
        for start, length, name in pieces:
            if _NAME.fullmatch(name) is None:
                raise ValueError(f"{name!r:.20} names no weight")
            if not place <= start <= start + length <= _MOST_BYTES:
                raise ValueError("its pieces overlap")
            place = start + length
        where = str(head["where"])
        os.fsencode(where)  # half a surrogate pair is in no path, and no message with one can be printed
        return where, int(head["bytes"]), str(head["sha256"]), pieces
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:  # JSON has an Infinity
        raise ArtifactError(f"what is left of a program is damaged ({error}); save the tails again") from error
