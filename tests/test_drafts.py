"""Files that are whole or not there, and what was there before them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from compoff.drafts import write_whole


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "export.h"
    write_whole(path, b"the old one")
    write_bytes = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        write_bytes(self, data[:3])
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"the new one")
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"export.h": b"the old one"}


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "file")
    write_whole(link, b"text")
    assert link.is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"text"


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="this system has no such device")
def test_a_device_is_written_to() -> None:
    write_whole(Path("/dev/null"), b"text")
    assert not Path(os.devnull).is_file()
