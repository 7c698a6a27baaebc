"""Text from elsewhere, made safe to show: a name in a forged folder may hold what moves a terminal's cursor."""

from __future__ import annotations

__all__ = ["first_line", "printable", "told"]


_SIGNATURES = ", but expected one of:"  # PyTorch's, before a list of everything that a function takes


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


def first_line(error: BaseException, most: int = 300) -> str:
    r"""What an error says first; some of PyTorch's go on for a hundred lines.

    Args:
        error: The error.
        most: The most characters.

    Returns:
        One line without a stop at its end, and the next one where it announces that; the error's type where it says
        nothing.

    Examples:
        >>> first_line(RuntimeError("\nnot so.\nCPU: registered at …"))
        'not so'
        >>> first_line(RuntimeError("f() got a list, but expected one of:\n * (Tensor x)\n * (Tensor x, int dim)"))
        'f() got a list'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0].removesuffix(_SIGNATURES) if lines else type(error).__name__
    if line.endswith(":"):
        line = f"{line} {lines[1]}" if lines[1:] else line[:-1]
    line = line.rstrip(".")
    return line if len(line) <= most else f"{line[:most]}…"


def told(error: BaseException, most: int = 300) -> str:
    """Type and first line of an error, for those whose words alone would not say what they are.

    Args:
        error: The error.
        most: The most characters of its line.

    Returns:
        One line without a stop at its end.

    Examples:
        >>> told(KeyError("w"), 20), told(TimeoutError())
        ("KeyError: 'w'", 'TimeoutError')
    """
    kind, line = type(error).__name__, first_line(error, most)
    return kind if line == kind else f"{kind}: {line}"
