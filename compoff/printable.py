"""Text from elsewhere, made safe to show: a name in a forged folder may hold what moves a terminal's cursor."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str, keep: str = "") -> str:
    r"""Put question marks in place of what is not to be seen: control characters, marks of direction, half characters.

    Args:
        text: The text.
        keep: Characters to leave as they are all the same.

    Returns:
        Text of the same length.

    Examples:
        >>> printable("\x1b[2Jnet\nlayer1"), printable("one\ntwo\x07", keep="\n")
        ('?[2Jnet?layer1', 'one\ntwo?')
    """
    return "".join(char if char.isprintable() or char in keep else "?" for char in text)
