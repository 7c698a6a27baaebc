"""Whole numbers as LEB128: seven bits a byte, the lowest first; one number has one writing."""

from __future__ import annotations

from compoff.errors import PayloadError

__all__ = ["leb128", "read_leb128"]


def leb128(value: int) -> bytes:
    """Write a number.

    Args:
        value: the number, not negative.

    Returns:
        Its bytes.

    Examples:
        >>> leb128(5).hex(), leb128(300).hex()
        ('05', 'ac02')

    Source: the LEB128 of DWARF.
    """
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*result, value))


def read_leb128(data: bytes, start: int, most_bytes: int, what: str) -> tuple[int, int]:
    """Read a number in its shortest form.

    Args:
        data: the bytes that hold it.
        start: where it begins.
        most_bytes: the most bytes it may take.
        what: its name, for messages.

    Returns:
        The number, and where it ends.

    Raises:
        PayloadError: it does not end within the bytes, or takes a byte more than it needs.

    Examples:
        >>> read_leb128(bytes.fromhex("ac02ff"), 0, 5, "length")
        (300, 2)

    Source: the LEB128 of DWARF.
    """
    value = 0
    for index, byte in enumerate(data[start : start + most_bytes]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if index and not byte:
                raise PayloadError(f"the payload's {what} is written with a byte too many; its bytes are damaged")
            return value, start + index + 1
    raise PayloadError(f"the payload's {what} does not end; its bytes are damaged")
