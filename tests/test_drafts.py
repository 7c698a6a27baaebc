"""Files that are whole or not there, and what was there before them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from compoff.drafts import drafts, read_together, write_whole


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


@pytest.mark.skipif(os.name != "posix", reason="this system has other permissions")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666], ids=oct)
def test_who_may_read_a_file_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    path = tmp_path / "private"
    path.write_bytes(b"the old one")
    path.chmod(mode)
    seen: list[int] = []
    write_bytes = Path.write_bytes

    def watched(self: Path, data: bytes) -> int:
        written = write_bytes(self, data)
        seen.append(stat.S_IMODE(self.stat().st_mode))
        return written

    monkeypatch.setattr(Path, "write_bytes", watched)
    write_whole(path, b"the new one")
    assert (path.read_bytes(), oct(stat.S_IMODE(path.stat().st_mode))) == (b"the new one", oct(mode))
    assert [oct(one) for one in seen] == ["0o600"], "at no moment open to more"


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="this system names no open files")
def test_a_pipe_is_written_to_by_its_name_among_the_open_files() -> None:
    reading, writing = os.pipe()
    try:
        write_whole(Path(f"/dev/fd/{writing}"), b"text")
        assert os.read(reading, 10) == b"text"
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="this system has no such device")
def test_a_device_is_written_to() -> None:
    write_whole(Path("/dev/null"), b"text")
    assert not Path(os.devnull).is_file()


def test_what_does_not_fit_is_read_again_only_where_something_was_saved_meanwhile(tmp_path: Path) -> None:
    last, turns = tmp_path / "last", list[int]()
    last.write_bytes(b"old")

    def read(saved_over: int) -> int:
        turns.append(len(turns))
        if len(turns) <= saved_over:
            with drafts(tmp_path, ["last"]) as made:
                made["last"].write_bytes(b"new")
                made["last"].replace(last)
        raise ValueError(f"damaged, read {len(turns)} times")

    for saved_over, times in ((0, 1), (2, 3), (100, 5)):
        turns.clear()
        with pytest.raises(ValueError, match=f"read {times} times"):
            read_together(last, lambda saved_over=saved_over: read(saved_over), ValueError)
    with pytest.raises(KeyError):  # any other error is not one of files that do not fit
        read_together(last, lambda: {}["key"], ValueError)


def test_files_on_the_way_from_one_name_to_another_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = tmp_path / "last"
    with pytest.raises(FileNotFoundError):  # nobody saves there: said at once
        read_together(last, last.read_bytes, FileNotFoundError)
    with drafts(tmp_path, ["last"]) as made:
        made["last"].write_bytes(b"new")
        monkeypatch.setattr("compoff.drafts.time.sleep", lambda _: made["last"].replace(last))
        assert read_together(last, last.read_bytes, FileNotFoundError) == b"new"
