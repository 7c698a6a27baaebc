"""The words of the system's errors about files: which one, and what to do, in place of an error's number.

Knows no commands; whoever runs one says what comes from here.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ["told"]


def told(error: OSError) -> str:
    """What an error of the system is about, and what to do.

    Args:
        error: What was raised.

    Returns:
        One line.

    Examples:
        >>> try:
        ...     open("nowhere.yaml")
        ... except OSError as error:
        ...     told(error)
        "there is no 'nowhere.yaml'; correct the name"

    Source: this project.
    """
    named = error.filename if error.filename2 is None else error.filename2
    if not isinstance(named, (str, bytes, os.PathLike)):  # none, or a number that says nothing to anybody
        return error.strerror or str(error)
    path = Path(os.fsdecode(named))  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(error, FileNotFoundError):
        if path.parent.is_dir():
            return f"there is no '{path}'; correct the name"
        return f"'{path}' cannot be: there is no folder '{path.parent}'; make it, or correct the name"
    # Windows says of a folder that is opened as a file that it may not be; of one that this user may look into, too.
    if isinstance(error, IsADirectoryError) or (
        isinstance(error, PermissionError) and path.is_dir() and os.access(path, os.R_OK | os.X_OK)
    ):
        return f"'{path}' is a folder; give a file"
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return f"'{_file_above(path)}' is a file; give a folder"
    if isinstance(error, PermissionError):
        return f"'{path}' is not open to this user ({error.strerror}); change who may use it, or give another one"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"'{path}' cannot be written ({error.strerror}); make room, or give another place"
    return f"'{path}' cannot be used ({error.strerror or error}); give another one"


def _file_above(path: Path) -> Path:
    """The first part of a path that is no folder."""
    return next((one for one in (*reversed(path.parents), path) if one.exists() and not one.is_dir()), path)
