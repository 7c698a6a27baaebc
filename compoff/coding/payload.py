"""What travels for one batch: a short header, the coded symbols and the side tensors, a checksum.

    byte 0      format version 1 in the high four bits, coding of the first code in the low four (0 raw, 1 range,
                2 Huffman, 5 range under a context model; 3, 4 and 6 range, raw and 5 with the end cut off)
    byte 1      quality index, the same for all codes
    1-5 bytes   batch size, LEB128
    parts       the codes in order, then the side tensors in order; each but the last after its length, LEB128
    4 bytes     CRC-32, big-endian, over artifact id + all bytes above; the id itself is not sent

The part of a code is its symbols (`compoff.coding.body`); from the second on, a byte with its coding comes before them.
The part of a side tensor is in `compoff.coding.side`. A payload of one code and no side tensor has no lengths.
The file knows shapes and bytes; it does not know networks, centers or sockets.
"""

from __future__ import annotations

import zlib
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from compoff.checks import check_whole
from compoff.coding.body import CODINGS, CUT, Code, Coding
from compoff.coding.message import Decoded, Payload, payload_bytes
from compoff.coding.numbers import leb128, read_leb128
from compoff.coding.side import Side, decode_side, encode_side, max_side_bytes
from compoff.coding.tensors import checked_tensors
from compoff.errors import ArtifactError, FeatureError, PayloadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike
    from typing_extensions import Buffer

__all__ = ["PayloadFormat"]

_VERSION = 1
_ID_LENGTH = 32
_CRC_LENGTH = 4
_SHORTEST = 2 + 1 + _CRC_LENGTH
_MOST_NUMBER_BYTES = 5  # of a batch size or a length

_T = TypeVar("_T")


class PayloadFormat:
    """Codes and decodes the payloads of one export; holds no state of a call, so threads may share it.

    Args:
        artifact_id: the 32-byte name of the export; payloads of another one fail their checksum.
        codes: the coded features, at least one, all with the same number of qualities.
        sides: the tensors that are sent beside them as they are.
        max_batch: the most samples that one payload may hold; bounds the memory a payload can claim.

    Raises:
        ArtifactError: the parts do not fit together.

    Examples:
        >>> import numpy as np
        >>> from compoff.coding import Code, PayloadFormat, Side, SymbolTables
        >>> tables = SymbolTables.from_probabilities([[0.9, 0.05, 0.05]] * 4)
        >>> payloads = PayloadFormat(bytes(32), [Code(tables, (4, 5, 5), qualities=(1, 4))], [Side((8,), "bool")])
        >>> payload = payloads.encode([np.zeros((2, 4, 5, 5), np.uint8)], [np.ones((2, 8), np.bool_)])
        >>> len(payload), payloads.max_bytes(batch=2)
        (11, 61)
        >>> decoded = payloads.decode(payload)
        >>> decoded.symbols[0].shape, decoded.sides[0].shape
        ((2, 4, 5, 5), (2, 8))

    Source: this project.
    """

    __slots__ = ("_crc_of_id", "artifact_id", "codes", "max_batch", "sides")

    artifact_id: bytes
    codes: tuple[Code, ...]
    sides: tuple[Side, ...]
    max_batch: int

    def __init__(
        self, artifact_id: bytes, codes: Sequence[Code], sides: Sequence[Side] = (), max_batch: int = 1024
    ) -> None:
        self.codes = _all_of("codes", codes, Code)
        self.sides = _all_of("sides", sides, Side)
        _check_parts(artifact_id, self.codes, max_batch)
        self.artifact_id = artifact_id
        self.max_batch = int(max_batch)
        self._crc_of_id = zlib.crc32(artifact_id)

    @property
    def num_qualities(self) -> int:
        """How many qualities there are."""
        return len(self.codes[0].qualities)

    def encode(
        self,
        symbols: Sequence[ArrayLike],
        sides: Sequence[ArrayLike] = (),
        *,
        quality: int | None = None,
        coding: Coding = "range",
    ) -> Payload:
        """Code the symbols of a batch, and pack its side tensors.

        Args:
            symbols: for each code, indices of centers, whole numbers.
            sides: the side tensors.
            quality: index of the quality; the last, with the most channels, by default.
            coding: how; raw packing replaces it where it is not longer, so `max_bytes` always holds.

        Returns:
            The payload.

        Shapes:
            symbols: each ``(batch, *code.shape(quality))``.
            sides: each ``side.full_shape(batch)``.

        Raises:
            FeatureError: the tensors do not fit this export, or there is no such quality or coding.

        Examples:
            >>> from compoff.coding import Code, PayloadFormat, SymbolTables
            >>> payloads = PayloadFormat(bytes(32), [Code(SymbolTables([[2**23, 2**23]]), latent_shape=(1, 16))])
            >>> payloads.encode([[[[0, 1] * 8]]], coding="raw").data[:-4].hex()
            '1000015555'

        Source: this project.
        """
        quality = self.check_choice(quality, coding)
        latents, others = checked_tensors(symbols, sides, self.codes, self.sides, quality)
        batch = len(latents[0])
        if not 1 <= batch <= self.max_batch:
            raise FeatureError(f"a payload holds 1 to {self.max_batch} samples, not {batch}; split the batch")
        (first, body), *more = [
            code.encode(latent, quality, CODINGS[coding]) for code, latent in zip(self.codes, latents, strict=True)
        ]
        parts = [body, *(bytes((taken,)) + body for taken, body in more), *map(encode_side, others)]
        lengths = [leb128(len(part)) for part in parts[:-1]]
        framed = b"".join(piece for pair in zip([*lengths, b""], parts, strict=True) for piece in pair)
        covered = bytes((_VERSION << 4 | first, quality)) + leb128(batch) + framed
        return Payload(covered + self._crc(covered), self.artifact_id, quality, batch)

    def check_choice(self, quality: int | None = None, coding: Coding = "range") -> int:
        """Refuse a quality or a coding that there is not.

        Args:
            quality: index of the quality; the last by default.
            coding: how the symbols are to be coded.

        Returns:
            The index of the quality.

        Raises:
            FeatureError: there is no such quality or coding.
        """
        if not (isinstance(coding, str) and coding in CODINGS):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise FeatureError(f"there is no coding {coding!r}; choose one of {', '.join(map(repr, CODINGS))}")
        return self._checked_quality(quality)

    def decode(self, data: Buffer | Payload) -> Decoded:
        """Decode a payload, after checking every byte of it.

        Args:
            data: a payload of this export, from anywhere: the object, or its bytes in anything that holds bytes.

        Returns:
            What it holds.

        Raises:
            PayloadError: the bytes are damaged, truncated, of another export or of another format version.

        Examples:
            >>> from compoff.coding import Code, PayloadFormat, SymbolTables
            >>> payloads = PayloadFormat(bytes(32), [Code(SymbolTables([[2**23, 2**23]]), latent_shape=(1, 16))])
            >>> payloads.decode(payloads.encode([[[[0, 1] * 8]]])).symbols[0][0, 0, :5].tolist()
            [0, 1, 0, 1, 0]

        Source: this project.
        """
        covered, coding, quality, batch, start = self._checked(data)
        parts = self._parts(covered, start)
        bodies = [(coding, parts[0]), *map(_opened, parts[1 : len(self.codes)])]
        symbols = tuple(
            code.decode(body, batch, quality, taken) for code, (taken, body) in zip(self.codes, bodies, strict=True)
        )
        sides = tuple(
            decode_side(part, side.full_shape(batch), side.dtype)
            for side, part in zip(self.sides, parts[len(self.codes) :], strict=True)
        )
        return Decoded(symbols, sides, quality, batch)

    def shortened(self, payload: Payload, max_bytes: int) -> Payload:
        """Cut a payload so that it fits; what is left decodes to the channels that are whole in it.

        Args:
            payload: a payload of this export with one code, not Huffman coded, and no side tensors.
            max_bytes: the most bytes that the result may have.

        Returns:
            The payload itself where it fits; else a shorter one, with a checksum of its own.

        Raises:
            FeatureError: the payload cannot be cut, or not so short.
            PayloadError: it is no payload, damaged, or of another export.

        Examples:
            >>> import numpy as np
            >>> from compoff.coding import Code, PayloadFormat, SymbolTables
            >>> payloads = PayloadFormat(bytes(32), [Code(SymbolTables.from_counts([[1, 2, 1]] * 4), (4, 16))])
            >>> payload = payloads.encode([np.ones((1, 4, 16), np.uint8)])
            >>> shorter = payloads.shortened(payload, max_bytes=12)
            >>> len(payload), len(shorter), payloads.decode(shorter).symbols[0].shape
            (16, 12, (1, 2, 16))

        Source: this project.
        """
        check_whole("max_bytes", max_bytes)
        if not isinstance(payload, Payload):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise PayloadError(f"a {type(payload).__name__} was given; expected the payload that a Head returns")
        # What is damaged, or another export's, would come out of here with a checksum that is right.
        covered, coding, quality, batch, start = self._checked(payload)
        if len(payload) <= max_bytes:
            return payload
        if coding not in CUT or not self._can_be_cut:
            raise FeatureError(self._uncut(len(payload), batch, quality, max_bytes))
        if max_bytes < start + _CRC_LENGTH:
            raise FeatureError(f"max_bytes is {max_bytes}; header and checksum alone take {start + _CRC_LENGTH}")
        kept = bytes((_VERSION << 4 | CUT[coding],)) + covered[1 : max_bytes - _CRC_LENGTH]
        return Payload(kept + self._crc(kept), self.artifact_id, quality, batch, cut=True)

    @property
    def _can_be_cut(self) -> bool:
        return len(self.codes) == 1 and not self.sides

    def _uncut(self, length: int, batch: int, quality: int, max_bytes: int) -> str:
        """What to say of a payload that is too long and stays so."""
        why, ways = "it is Huffman coded", ['coding="range"']
        if not self._can_be_cut:
            why = "more crosses the cut than one coded feature"
            ways = ["fewer samples at once"] if batch > 1 else []
        ways += ["a lower quality"] if quality else []
        always = self.max_bytes(batch, quality)
        ways.append(f"max_bytes={always}, which is enough for any input at this quality")
        return (
            f"max_bytes is {max_bytes}, but the payload takes {length} bytes at quality {quality} and cannot be cut, "
            f"since {why}; give {', or '.join(ways)}"
        )

    def packed_bytes(self, batch: int, quality: int | None = None) -> int:
        """Count the bytes of the symbols packed raw: the most that they can take.

        Args:
            batch: how many samples.
            quality: index of the quality; the last by default.

        Returns:
            Bytes of all codes, without side tensors, lengths, header and checksum.

        Raises:
            FeatureError: there is no such quality, or the batch is no number of samples.

        Examples:
            >>> from compoff.coding import Code, PayloadFormat, SymbolTables
            >>> payloads = PayloadFormat(bytes(32), [Code(SymbolTables([[2**23, 2**23]]), latent_shape=(1, 16))])
            >>> payloads.packed_bytes(batch=3)
            6

        Source: this project.
        """
        quality = self._checked_quality(quality)
        return sum(code.packed_bytes(batch, quality) for code in self.codes)

    def max_bytes(self, batch: int, quality: int | None = None) -> int:
        """Count the most bytes that the payload of a batch can take, whatever it holds.

        Args:
            batch: how many samples.
            quality: index of the quality; the last, with the most channels, by default.

        Returns:
            Bytes, with the header and the checksum.

        Raises:
            FeatureError: there is no such quality, or the batch is no number of samples.

        Examples:
            >>> from compoff.coding import Code, PayloadFormat, SymbolTables
            >>> payloads = PayloadFormat(bytes(32), [Code(SymbolTables([[2**23, 2**23]]), latent_shape=(1, 16))])
            >>> payloads.max_bytes(batch=3)
            13

        Source: this project.
        """
        check_whole("batch", batch, FeatureError, 0)
        batch, quality = int(batch), self._checked_quality(quality)
        bodies = [code.packed_bytes(batch, quality) for code in self.codes]
        parts = [bodies[0], *(1 + body for body in bodies[1:])]
        parts += [max_side_bytes(side.full_shape(batch), side.dtype) for side in self.sides]
        lengths = sum(len(leb128(part)) for part in parts[:-1])
        return 2 + len(leb128(batch)) + lengths + sum(parts) + _CRC_LENGTH

    def __repr__(self) -> str:
        return (
            f"PayloadFormat(artifact_id={self.artifact_id.hex()[:12]}…, codes={self.codes}, sides={self.sides}, "
            f"max_batch={self.max_batch})"
        )

    def _crc(self, covered: bytes) -> bytes:
        return zlib.crc32(covered, self._crc_of_id).to_bytes(_CRC_LENGTH, "big")

    def _checked_quality(self, quality: int | None) -> int:
        if quality is None:
            return self.num_qualities - 1
        check_whole("quality", quality)
        if not 0 <= quality < self.num_qualities:
            raise FeatureError(f"there is no quality {quality}; this export has 0 to {self.num_qualities - 1}")
        return int(quality)  # one of numpy's would overflow in a byte

    def _checked(self, data: Buffer | Payload) -> tuple[bytes, int, int, int, int]:
        """What the checksum of a payload covers, once that is right: with its coding, quality, batch and first part."""
        if isinstance(data, Payload) and data.artifact_id != self.artifact_id:
            raise PayloadError(
                f"this payload was made by export {data.artifact_id.hex()[:12]}, not {self.artifact_id.hex()[:12]}; "
                "use head and tail of one export"
            )
        received = payload_bytes(data)
        header = self._checked_header(received)
        covered, checksum = received[:-_CRC_LENGTH], received[-_CRC_LENGTH:]
        if self._crc(covered) != checksum:
            raise PayloadError("the payload's checksum is wrong: its bytes are damaged or of another export's head")
        return (covered, *header)

    def _checked_header(self, data: bytes) -> tuple[int, int, int, int]:
        """Read coding, quality and batch size; return them with the place where the parts start."""
        longest = self.max_bytes(self.max_batch)
        if not _SHORTEST <= len(data) <= longest:
            raise PayloadError(f"a payload of this export has {_SHORTEST} to {longest} bytes, not {len(data)}")
        version, coding, quality = data[0] >> 4, data[0] & 15, data[1]
        if version != _VERSION:
            raise PayloadError(f"the payload has format version {version}; this compoff reads version {_VERSION}")
        if coding not in CODINGS.values() and not (coding in CUT.values() and self._can_be_cut):
            raise PayloadError(f"the payload names coding {coding}, which does not exist; its bytes are damaged")
        if quality >= self.num_qualities:
            raise PayloadError(f"the payload has quality {quality}; this export has 0 to {self.num_qualities - 1}")
        batch, start = read_leb128(data[:-_CRC_LENGTH], 2, _MOST_NUMBER_BYTES, "batch size")
        if not 1 <= batch <= self.max_batch:
            raise PayloadError(f"the payload claims {batch} samples; this export takes 1 to {self.max_batch}")
        if not start + _CRC_LENGTH <= len(data) <= self.max_bytes(batch, quality):
            raise PayloadError(f"a payload of {len(data)} bytes cannot hold {batch} samples at quality {quality}")
        return coding, quality, batch, start

    def _parts(self, covered: bytes, place: int) -> list[bytes]:
        """Take the parts apart; the lengths before them must lead exactly to the last."""
        parts: list[bytes] = []
        for _ in range(len(self.codes) + len(self.sides) - 1):
            length, place = read_leb128(covered, place, _MOST_NUMBER_BYTES, "part length")
            if length > len(covered) - place:
                raise PayloadError(f"a part of {length} bytes does not fit the payload's last {len(covered) - place}")
            parts.append(covered[place : place + length])
            place += length
        return [*parts, covered[place:]]


def _opened(part: bytes) -> tuple[int, bytes]:
    """Coding and symbols of a further code."""
    if not part or part[0] not in CODINGS.values():
        raise PayloadError(f"a code of the payload begins with {part[:1].hex() or 'nothing'}, which is no coding")
    return part[0], part[1:]


def _all_of(name: str, given: Sequence[_T], kind: type[_T]) -> tuple[_T, ...]:
    if not (isinstance(given, (list, tuple)) and all(isinstance(one, kind) for one in given)):
        raise ArtifactError(f"{name} is {given!r:.80}; expected a list of {kind.__name__}, one for each")
    return tuple(given)


def _check_parts(artifact_id: bytes, codes: Sequence[Code], max_batch: int) -> None:
    check_whole("max_batch", max_batch, ArtifactError)
    if not isinstance(artifact_id, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArtifactError(f"an artifact id is {_ID_LENGTH} bytes; a {type(artifact_id).__name__} was given")
    if len(artifact_id) != _ID_LENGTH:
        raise ArtifactError(f"an artifact id has {_ID_LENGTH} bytes, not {len(artifact_id)}")
    qualities = [code.qualities for code in codes]
    # More channels or a finer step; neither the other way in any code, which the codes themselves see to.
    totals = [
        sum(channels) - sum(steps)
        for channels, steps in zip(
            zip(*qualities, strict=False), zip(*(code.steps for code in codes), strict=False), strict=True
        )
    ]
    if len({len(channels) for channels in qualities}) != 1 or any(low >= high for low, high in pairwise(totals)):
        raise ArtifactError(
            f"codes with qualities {qualities} cannot be used: expected one code or more, with the same number of "
            "qualities, each of which sends more channels, or finer steps, than the last"
        )
    if not 1 <= max_batch < 1 << 7 * _MOST_NUMBER_BYTES:
        raise ArtifactError(f"max_batch must be between 1 and {(1 << 7 * _MOST_NUMBER_BYTES) - 1}, not {max_batch}")
