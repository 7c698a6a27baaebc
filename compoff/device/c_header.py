"""What a device in C has to know of an export, as a header: identity, shapes and the tables of one quality.

`examples/c/device.c` makes payloads and frames with it. Knows no compiler.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from compoff.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from compoff.coding import PayloadFormat
    from compoff.manifest import Manifest

__all__ = ["c_header"]

_WIDTH = 12  # numbers in a line
_MOST_BATCH = 255


def c_header(manifest: Manifest, payloads: PayloadFormat, quality: int) -> str:
    """Write a C99 header for one quality of an export.

    Args:
        manifest: What the head is.
        payloads: How its payloads are written.
        quality: Index of the quality that the device sends.

    Returns:
        The text of the header.

    Raises:
        BackendError: More crosses than one coded feature.
        FeatureError: There is no such quality.

    Examples:
        >>> from compoff.coding import SymbolTables
        >>> from compoff.manifest import CodeSpec, Manifest
        >>> code, tables = CodeSpec((1, 9), num_centers=2, qualities=(1,)), [SymbolTables([[2**23, 2**23]])]
        >>> manifest = Manifest("head", "ab" * 32, "layer1", "Net", (), (), {}, (code,), (), max_batch=8)
        >>> print(c_header(manifest, manifest.payload_format(tables), quality=0).splitlines()[13])
        #define COMPOFF_BITS 1
    """
    if len(payloads.codes) != 1 or payloads.sides:
        raise BackendError(
            f"at '{manifest.split}' {len(payloads.codes)} coded features and {len(payloads.sides)} side tensors cross; "
            "the C header is for one feature and no side tensor: choose a split point where nothing else crosses"
        )
    quality = payloads.check_choice(quality)
    (code,) = payloads.codes
    channels, tables = code.qualities[quality], code.tables_at(quality)
    latent_symbols, symbols = code.tables.num_symbols, tables.num_symbols
    numbers = {
        "QUALITY": quality,
        "LATENT_CHANNELS": code.latent_shape[0],
        "LATENT_SYMBOLS": latent_symbols,
        "CHANNELS": channels,
        "POSITIONS": math.prod(code.latent_shape[1:]),
        "SYMBOLS": symbols,
        "BITS": (symbols - 1).bit_length(),
        "MAX_BATCH": min(manifest.max_batch, _MOST_BATCH),
    }
    every = np.arange(latent_symbols, dtype=np.uint8).reshape(1, 1, -1).repeat(code.latent_shape[0], axis=1)
    starts = [[0, *accumulate(row)] for row in tables.weights[:channels].tolist()]
    return "\n".join(
        [
            f"/* {_plain(manifest.model)} at '{_plain(manifest.split)}', export {manifest.artifact_id[:8]}, quality "
            f"{quality}: written by compoff, do not edit. */",
            "#ifndef COMPOFF_EXPORT_H",
            "#define COMPOFF_EXPORT_H",
            "",
            "#include <stddef.h>",
            "#include <stdint.h>",
            "",
            *(f"#define COMPOFF_{name} {value}" for name, value in numbers.items()),
            "/* Bytes that the payload of a batch never exceeds. */",
            "#define COMPOFF_MAX_PAYLOAD(batch) \\",
            "    (8 + ((size_t)(batch) * COMPOFF_CHANNELS * COMPOFF_POSITIONS * COMPOFF_BITS + 7) / 8)",
            "",
            f"static const uint8_t compoff_artifact_id[32] = {_array(manifest.identity)};",
            "/* The symbol that is sent, for each symbol of the latent. */",
            f"static const uint8_t compoff_sent[COMPOFF_LATENT_SYMBOLS] = {_array(code.sent(every, quality)[0, 0])};",
            "/* Where each symbol's share of 2^24 begins; the last entry is the end of the last one's. */",
            f"static const uint32_t compoff_starts[COMPOFF_CHANNELS][COMPOFF_SYMBOLS + 1] = {{{_rows(starts)}}};",
            "",
            "#endif",
            "",
        ]
    )


def _rows(rows: list[list[int]]) -> str:
    return ",\n".join(map(_array, rows))


def _array(values: Iterable[int]) -> str:
    """Numbers in braces, a few in a line."""
    words = [str(int(value)) for value in values]
    lines = [", ".join(words[begin : begin + _WIDTH]) for begin in range(0, len(words), _WIDTH)]
    return "{\n    " + ",\n    ".join(lines) + "}"


def _plain(text: str) -> str:
    """A name without what could end a comment."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in ".-#") else "_" for letter in text)
