"""Files that are written under other names and renamed when they are whole: what was there stays until then."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

__all__ = ["drafts", "write_whole"]


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
            _write_like(place, made[place.name], data)
            made[place.name].replace(place)
    except OSError as error:
        error.filename = str(path)  # the user knows the file, not its draft
        raise


def _write_like(place: Path, draft: Path, data: bytes) -> None:
    """Write a draft that belongs to whom the file in its place belongs to, and is open to the same users."""
    if not place.exists():
        draft.write_bytes(data)
        return
    earlier = place.stat()
    draft.touch(mode=0o600)  # at no moment open to more
    draft.write_bytes(data)
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):  # only an administrator may give files away
            os.chown(draft, earlier.st_uid, earlier.st_gid)
    draft.chmod(stat.S_IMODE(earlier.st_mode))
