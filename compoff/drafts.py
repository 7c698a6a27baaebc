"""Files that are written under other names and renamed when they are whole: what was there stays until then.

And how to read several of them that belong together, while another process may be putting others in their place.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from pathlib import Path

__all__ = ["drafts", "read_together", "write_draft", "write_whole"]

_MOST_READS = 5
_PAUSE = 0.05  # seconds; files are renamed in far less

_T = TypeVar("_T")


@contextlib.contextmanager
def drafts(folder: Path, names: Iterable[str]) -> Generator[dict[str, Path]]:
    """Give files names of their own, since others may write the same ones now, and leave none of these behind.

    Args:
        folder: Where the files are to be.
        names: What they will be called.

    Yields:
        Where to write each, by name; whoever has written them renames them.

    Examples:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder = pathlib.Path(place)
        ...     with drafts(folder, ["a", "b"]) as made:
        ...         for draft in made.values():
        ...             _ = draft.write_bytes(b"whole")
        ...         _ = made["a"].replace(folder / "a")
        ...     [path.name for path in folder.iterdir()]
        ['a']
    """
    made = {name: folder / f"{name}.{secrets.token_hex(4)}.part" for name in names}
    try:
        yield made
    finally:
        for draft in made.values():
            draft.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, or leave what was there, as on a full disk; who may read that may read this.

    Args:
        path: The file; a pipe or a device is written to as it is, under its names in ``/dev``, too.
        data: Its bytes.

    Raises:
        OSError: It cannot be written.

    Examples:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as place:
        ...     path = pathlib.Path(place, "a.h")
        ...     write_whole(path, b"whole")
        ...     path.read_bytes(), len(list(path.parent.iterdir()))
        (b'whole', 1)
    """
    place = path.resolve()  # a link stays one
    try:
        # The path itself is asked first: that of /dev/stdout to a pipe leads to a name under which nothing is.
        if path.exists() and not place.is_file():
            path.write_bytes(data)
            return
        with drafts(place.parent, [place.name]) as made:
            write_draft(made[place.name], data, place)
            made[place.name].replace(place)
    except OSError as error:
        error.filename = str(path)  # the user knows the file, not its draft
        raise


def write_draft(draft: Path, data: bytes | memoryview, place: Path) -> None:
    """Write a draft that belongs to whom the file in its place belongs to, and is open to the same users.

    Args:
        draft: Where to write.
        data: Its bytes.
        place: Where it will go; where nothing is there yet, it is open to whom any new file is.

    Raises:
        OSError: It cannot be written.

    Examples:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     place, draft = pathlib.Path(folder, "a"), pathlib.Path(folder, "a.part")
        ...     place.touch(mode=0o600)
        ...     write_draft(draft, b"whole", place)
        ...     oct(draft.stat().st_mode & 0o777)
        '0o600'
    """
    if not place.exists():
        draft.write_bytes(data)
        return
    earlier = place.stat()
    draft.touch(mode=0o600, exist_ok=False)  # at no moment open to more
    draft.write_bytes(data)
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):  # only an administrator may give files away
            os.chown(draft, earlier.st_uid, earlier.st_gid)
    draft.chmod(stat.S_IMODE(earlier.st_mode))


def read_together(last: Path, read: Callable[[], _T], error: type[Exception]) -> _T:
    """Read files that belong together; once more where that failed because others were just put in their place.

    Args:
        last: The one of them that is taken away first and renamed last, and belongs to no others.
        read: Reads them all.
        error: What it raises where they do not fit each other.

    Returns:
        What `read` returned.

    Raises:
        Exception: `error`, where nothing was put in their place meanwhile, or every time that they were read.

    Examples:
        >>> import pathlib
        >>> read_together(pathlib.Path("nowhere"), lambda: "all of it", ValueError)
        'all of it'
    """
    for _ in range(_MOST_READS - 1):
        seen = _stamp(last)
        try:
            return read()
        except error:
            drafted = any(last.parent.glob(f"{last.name}.*.part"))
            now = _stamp(last)
            # Between two names it is under none; a draft that a save left behind when it was cut off costs a moment.
            if now == seen and not (now is None and drafted):
                raise
        time.sleep(_PAUSE)
    return read()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from the one that had its name before; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
