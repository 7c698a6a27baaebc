"""What a user gives for numbers or a path, refused by its name where it is of another kind.

Knows no ranges but a least one, and that of a weight; what a number is for says more.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from compoff.errors import CompoffError, FeatureError

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray

__all__ = [
    "NEARLY",
    "check_array",
    "check_flag",
    "check_number",
    "check_path",
    "check_sizes",
    "check_weight",
    "check_whole",
    "is_number",
    "plain",
    "reaching",
]

NEARLY = 1e-6
"""What a share may be missed by: a mean of shares in single precision misses its value by less, and no count of samples
is so fine."""

_LONGEST = 200


def is_number(value: Any) -> bool:
    """Whether something is a real number; a truth value is none.

    Args:
        value: Anything.

    Examples:
        >>> [is_number(value) for value in (1, 0.5, np.float32(2), True, "1", None)]
        [True, True, True, False, False, False]
    """
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """A number or a truth value of numpy's as Python's own, which JSON and PyTorch take.

    Args:
        value: Anything; what is neither stays as it is.

    Examples:
        >>> import json
        >>> json.dumps([plain(value) for value in (np.float32(0.5), np.int64(3), np.bool_(True), None)])
        '[0.5, 3, true, null]'
    """
    if isinstance(value, np.bool_):
        return bool(cast("bool", value))
    if isinstance(value, np.integer):
        return int(cast("int", value))
    # item() of a longdouble is a longdouble.
    return float(cast("float", value)) if isinstance(value, np.floating) else value


def check_flag(name: str, value: Any, error: type[CompoffError], *, or_none: bool = False) -> None:
    """Refuse what is no truth value: of text, as a file or a form has it, ``"no"`` and ``"false"`` count as true.

    Args:
        name: Name of the argument.
        value: What was given.
        error: What to raise.
        or_none: Whether None will do, too.

    Examples:
        >>> check_flag("insecure", "false", FeatureError)
        Traceback (most recent call last):
        compoff.errors.FeatureError: insecure is 'false'; expected True or False
    """
    if not (isinstance(value, (bool, np.bool_)) or (or_none and value is None)):
        raise error(f"{name} is {value!r:.80}; expected True or False{', or None' if or_none else ''}")


def check_number(
    name: str, value: Any, error: type[CompoffError], expected: str = "a number", *, or_none: bool = False
) -> None:
    """Refuse what is no number.

    Args:
        name: Name of the argument.
        value: What was given.
        error: What to raise.
        expected: What it should have been.
        or_none: Whether None passes, too.

    Examples:
        >>> check_number("lr", "0.1", FeatureError)
        Traceback (most recent call last):
        compoff.errors.FeatureError: lr is '0.1'; expected a number
    """
    if not (is_number(value) or (or_none and value is None)):
        raise error(f"{name} is {value!r:.80}; expected {expected}")


def check_weight(name: str, value: Any, error: type[CompoffError], expected: str = "a weight of 0 or more") -> None:
    """Refuse what no term of a sum can be multiplied by.

    Args:
        name: Name of the argument.
        value: What was given.
        error: What to raise.
        expected: What it should have been.

    Examples:
        >>> check_weight("rate", -1, FeatureError)
        Traceback (most recent call last):
        compoff.errors.FeatureError: rate is -1; expected a weight of 0 or more
    """
    if not (is_number(value) and math.isfinite(value) and value >= 0):
        raise error(f"{name} is {value!r:.80}; expected {expected}")


def check_whole(
    name: str,
    value: Any,
    error: type[CompoffError] = FeatureError,
    least: int | None = None,
    *,
    or_none: bool = False,
) -> None:
    """Refuse what is no whole number, or too small.

    Args:
        name: Name of the argument.
        value: What was given.
        error: What to raise.
        least: The smallest that is right; None for no such bound.
        or_none: Whether None passes, too.

    Examples:
        >>> check_whole("epochs", 1.5, FeatureError)
        Traceback (most recent call last):
        compoff.errors.FeatureError: epochs is 1.5; expected a whole number
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    right = whole and (least is None or cast("int", value) >= least)
    if not right and not (or_none and value is None):
        bound = "" if least is None else f" of at least {least}"
        raise error(f"{name} is {value!r:.80}; expected a whole number{bound}")


def check_sizes(name: str, value: Any, error: type[CompoffError]) -> tuple[int, ...]:
    """Whole numbers, from what was given for a shape or the like.

    Args:
        name: Name of the argument.
        value: What was given.
        error: What to raise.

    Returns:
        The numbers as Python's own.

    Examples:
        >>> check_sizes("shape", [3, np.int64(4)], FeatureError)
        (3, 4)
        >>> check_sizes("shape", (3.0, 4), FeatureError)
        Traceback (most recent call last):
        compoff.errors.FeatureError: shape is (3.0, 4); expected whole numbers, as a tuple or a list
    """
    try:
        given = tuple(value)
        for one in given:
            check_whole(name, one, error)
    except (TypeError, CompoffError):
        raise error(f"{name} is {value!r:.80}; expected whole numbers, as a tuple or a list") from None
    return tuple(int(one) for one in given)


def check_array(
    name: str, value: Any, error: type[CompoffError], dtype: type[np.generic] | None = None
) -> NDArray[Any]:
    """An array, from what was given for one.

    Args:
        name: Name of the argument.
        value: What was given.
        error: What to raise.
        dtype: What it is to hold; None for what it holds.

    Returns:
        The array.

    Examples:
        >>> check_array("counts", [[1, 2], [3]], FeatureError)
        Traceback (most recent call last):
        compoff.errors.FeatureError: counts cannot become an array: setting an array element with a sequence. ...
    """
    try:
        return np.asarray(value, dtype)
    except (TypeError, ValueError, OverflowError, RuntimeError) as found:  # the last, of a tensor with a gradient
        reason = str(found).partition("\n")[0].rstrip(".")
        raise error(f"{name} cannot become an array: {reason}; give numbers in rows of one length") from found


def check_path(name: str, value: Any, error: type[CompoffError]) -> Path:
    """A path, from what was given for one.

    Args:
        name: Name of the argument.
        value: What was given.
        error: What to raise.

    Returns:
        The path.

    Examples:
        >>> check_path("path", 3, FeatureError)
        Traceback (most recent call last):
        compoff.errors.FeatureError: path is 3; expected a path, as text or pathlib.Path
    """
    try:
        path = Path(value)
    except TypeError:
        raise error(f"{name} is {value!r:.80}; expected a path, as text or pathlib.Path") from None
    if "\0" in str(path):
        raise error(f"{name} is {str(path)!r:.80}, which holds a null byte; no path does")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # some questions about such a path are answered all the same: no, there is none
        raise error(f"{name} is {str(path)!r:.80}, which the system cannot encode; give another path") from None
    return path


@contextlib.contextmanager
def reaching(path: Path, error: type[CompoffError]) -> Generator[None]:
    """Word what a system says of a path that is too long, or leads through a folder of another user's.

    Args:
        path: The path that is looked at in the block.
        error: What to raise.

    Yields:
        Nothing.

    Examples:
        >>> with reaching(Path("nowhere"), FeatureError):
        ...     Path("nowhere").lstat()
        Traceback (most recent call last):
        compoff.errors.FeatureError: 'nowhere' cannot be looked at (No such file or directory); give another path
    """
    try:
        yield
    except CompoffError:
        raise
    except (OSError, ValueError) as found:
        reason = getattr(found, "strerror", None) or found
        place = str(getattr(found, "filename", None) or path)
        shown = repr(place) if len(place) < _LONGEST else f"{place[:_LONGEST]!r}…"
        raise error(f"{shown} cannot be looked at ({reason}); give another path") from found
