"""The folder on disk: the one that was saved, or an ArtifactError that names the file and what is wrong with it."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from compoff.artifact import read_folder, write_folder
from compoff.errors import ArtifactError
from compoff.manifest import TensorSpec
from compoff.parts import find_part, kinds_in
from compoff.pixels import Pixels
from tests.small_artifacts import MANIFEST, PROGRAM, TABLES, checked, refused

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN_MANIFEST = """\
format: 4
kind: head
artifact_id: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
split: layer1.0
model: Net
inputs:
- shape:
  - 3
  - 8
  - 8
  dtype: float32
  batched: true
- shape:
  - 5
  dtype: int64
  batched: false
outputs:
- shape:
  - 10
  dtype: float32
  batched: true
structure:
  dict:
  - - größe
    - leaf: 0
  - - none
    - value: null
codes:
- latent_shape:
  - 2
  - 4
  - 4
  num_centers: 4
  qualities:
  - 1
  - 2
  steps: []
- latent_shape:
  - 1
  - 9
  num_centers: 2
  qualities:
  - 1
  - 1
  steps: []
sides:
- shape:
  - 1
  - 8
  dtype: bool
  batched: true
max_batch: 64
call:
  parameters:
  - x
  - sizes
  call:
    list:
    - list:
      - leaf: 0
    - dict:
      - - sizes
        - leaf: 1
pixels: null
factory: shop.models:make
base: fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210
quality: -1
max_reply_bytes: 16777216
report:
  bytes: 12.5
  distilled_from: null
versions:
  compoff: 0.1.0
files:
  tables.safetensors:
    bytes: 184
    sha256: b73543466ba97ed1fc5a079a8ca52b418ebc0837f87501355ba38e722603b2e0
  head.pt2:
    bytes: 256
    sha256: 40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880
"""
GOLDEN_TABLES = (
    "8800000000000000"  # length of the header
    + (
        b'{"weights.0":{"dtype":"U32","shape":[2,4],"data_offsets":[0,32]},'
        b'"weights.1":{"dtype":"U32","shape":[1,2],"data_offsets":[32,40]}}      '
    ).hex()
    + "00004000" * 4
    + "00008000"
    + "00004000"
    + "00002000" * 2
    + "00008000" * 2
)


FORMAT_1_MANIFEST = """\
format: 1
kind: head
artifact_id: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
split: layer1.0
model: Net
inputs:
- shape:
  - 3
  - 8
  - 8
  dtype: float32
  batched: true
- shape:
  - 5
  dtype: int64
  batched: false
outputs:
- shape:
  - 10
  dtype: float32
  batched: true
structure:
  dict:
  - - größe
    - leaf: 0
  - - none
    - value: null
latent_shape:
- 2
- 4
- 4
num_centers: 4
qualities:
- 1
- 2
max_batch: 64
report:
  bytes: 12.5
  distilled_from: null
versions:
  compoff: 0.1.0
files:
  tables.safetensors:
    bytes: 104
    sha256: 2463c3ef71a0728fb5768c9671fd9072960ec045342c6ab10036093105af9deb
  head.pt2:
    bytes: 256
    sha256: 40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880
"""
FORMAT_1_TABLES = (
    "4000000000000000"  # length of the header
    + b'{"weights":{"dtype":"U32","shape":[2,4],"data_offsets":[0,32]}} '.hex()
    + "00004000" * 4
    + "00008000"
    + "00004000"
    + "00002000" * 2
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "saved"
    write_folder(path, MANIFEST, TABLES, {"head.pt2": PROGRAM})
    return path


# -- what was saved comes back


def test_what_would_be_too_deep_to_be_read_is_not_written(tmp_path: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(70):
        deep = {"a": deep}
    with pytest.raises(ArtifactError, match="nested 72 levels deep, at most 64 are read"):
        write_folder(tmp_path, replace(MANIFEST, report=deep), TABLES, {"head.pt2": PROGRAM})


def test_comes_back_as_it_was_saved(folder: Path) -> None:
    read = read_folder(folder, "head")
    assert read.manifest == MANIFEST
    assert read.tables == TABLES
    assert read.files == {"head.pt2": PROGRAM}
    assert read.names == ("head.pt2",)
    assert read.file("head.pt2") == PROGRAM
    assert read.path == folder


def test_bytes_are_golden(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["head.pt2", "manifest.yaml", "tables.safetensors"]
    assert (folder / "tables.safetensors").read_bytes().hex() == GOLDEN_TABLES
    assert (folder / "head.pt2").read_bytes() == PROGRAM
    assert (folder / "manifest.yaml").read_bytes() == checked(GOLDEN_MANIFEST)


def test_a_golden_folder_of_this_format_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.yaml").write_bytes(checked(GOLDEN_MANIFEST))
    (tmp_path / "tables.safetensors").write_bytes(bytes.fromhex(GOLDEN_TABLES))
    (tmp_path / "head.pt2").write_bytes(PROGRAM)
    assert read_folder(tmp_path, "head").manifest == MANIFEST


def test_a_golden_folder_of_format_3_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.yaml").write_bytes(checked(GOLDEN_MANIFEST.replace("format: 4\n", "format: 3\n")))
    (tmp_path / "tables.safetensors").write_bytes(bytes.fromhex(GOLDEN_TABLES))
    (tmp_path / "head.pt2").write_bytes(PROGRAM)
    assert read_folder(tmp_path, "head").manifest == MANIFEST


def test_a_golden_folder_of_format_2_is_still_read(tmp_path: Path) -> None:
    text = GOLDEN_MANIFEST.replace("format: 4\n", "format: 2\n").replace("pixels: null\n", "")
    (tmp_path / "manifest.yaml").write_bytes(checked(text))
    (tmp_path / "tables.safetensors").write_bytes(bytes.fromhex(GOLDEN_TABLES))
    (tmp_path / "head.pt2").write_bytes(PROGRAM)
    assert read_folder(tmp_path, "head").manifest == MANIFEST


def test_pixels_are_golden_and_come_back(tmp_path: Path) -> None:
    with_pixels = replace(MANIFEST, pixels=Pixels((0.5, 0.25, 0.125), (0.5, 0.25, 1)))
    write_folder(tmp_path, with_pixels, TABLES, {"head.pt2": PROGRAM})
    text = """\
pixels:
  mean:
  - 0.5
  - 0.25
  - 0.125
  std:
  - 0.5
  - 0.25
  - 1.0
  layout: hwc
  input: 0
"""
    assert (tmp_path / "manifest.yaml").read_bytes() == checked(GOLDEN_MANIFEST.replace("pixels: null\n", text))
    found = read_folder(tmp_path, "head").manifest
    assert found == with_pixels
    assert found.taken == (TensorSpec((8, 8, 3), "uint8"), MANIFEST.inputs[1])


def test_a_golden_folder_of_format_1_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.yaml").write_bytes(checked(FORMAT_1_MANIFEST))
    (tmp_path / "tables.safetensors").write_bytes(bytes.fromhex(FORMAT_1_TABLES))
    (tmp_path / "head.pt2").write_bytes(PROGRAM)
    read = read_folder(tmp_path, "head")
    assert read.manifest == replace(MANIFEST, codes=MANIFEST.codes[:1], sides=(), call={}, factory="", base="")
    assert read.tables == TABLES[:1]
    write_folder(tmp_path / "again", read.manifest, read.tables, read.files)
    assert read_folder(tmp_path / "again", "head").manifest == read.manifest


def test_saving_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "again", MANIFEST, TABLES, {"head.pt2": PROGRAM})
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_line_ends_of_another_system_do_no_harm(folder: Path) -> None:
    path = folder / "manifest.yaml"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_folder(folder, "head").manifest == MANIFEST


def test_a_link_to_the_same_file_does_no_harm(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "head.pt2", tmp_path / "elsewhere")
    (folder / "head.pt2").symlink_to(tmp_path / "elsewhere")
    assert read_folder(folder, "head").files == {"head.pt2": PROGRAM}


def test_other_files_do_no_harm(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    assert read_folder(folder, "head").names == ("head.pt2",)


def test_parts_are_found_in_the_folder_around_them(folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "both" / "tail", replace(MANIFEST, kind="tail"), TABLES, {})
    assert find_part(folder, "head") == folder
    assert find_part(tmp_path / "both", "tail") == tmp_path / "both" / "tail"
    with pytest.raises(ArtifactError, match="holds a tail and no head; copy the head there, too"):
        find_part(tmp_path / "both", "head")
    with pytest.raises(ArtifactError, match=r"is around exports \(.*both.*\); name the folder of one of them"):
        find_part(tmp_path, "head")
    (tmp_path / "empty").mkdir()
    assert "is empty; expected a folder that Head.save wrote" in refused(find_part(tmp_path / "empty", "head"))


# -- where it may be saved


def test_an_earlier_artifact_of_the_kind_is_replaced(folder: Path) -> None:
    write_folder(folder, replace(MANIFEST, split="layer2"), TABLES, {"head.pt2": b"new"})
    read = read_folder(folder, "head")
    assert (read.manifest.split, read.files) == ("layer2", {"head.pt2": b"new"})


def test_who_may_read_its_files_stays_so(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o600)
    write_folder(folder, MANIFEST, TABLES, {"head.pt2": b"new"})
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_save_that_was_cut_short_is_no_artifact_and_can_be_repeated(folder: Path) -> None:
    (folder / "manifest.yaml").unlink()
    (folder / "head.pt2.part").write_bytes(b"half")
    assert "manifest.yaml: cannot be read (No such file" in refused(folder)
    write_folder(folder, MANIFEST, TABLES, {"head.pt2": PROGRAM})
    assert read_folder(folder, "head").manifest == MANIFEST


@pytest.mark.parametrize("full", ["head.pt2", "manifest.yaml", "tables.safetensors"])
def test_a_full_disk_leaves_the_earlier_artifact(folder: Path, monkeypatch: pytest.MonkeyPatch, full: str) -> None:
    write = Path.write_bytes

    def until_full(path: Path, data: bytes) -> int:
        if path.name.startswith(full):
            write(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device", str(path))
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", until_full)
        with pytest.raises(ArtifactError, match="No space left on device"):
            write_folder(folder, replace(MANIFEST, split="layer2"), TABLES, {"head.pt2": b"new", "other.bin": b"x"})
    assert read_folder(folder, "head").files == {"head.pt2": PROGRAM}
    assert sorted(path.name for path in folder.iterdir()) == ["head.pt2", "manifest.yaml", "tables.safetensors"]


def test_weights_that_are_a_file_leave_the_earlier_artifact(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        with pytest.raises(ArtifactError, match="cannot be saved in"):
            write_folder(folder, MANIFEST, TABLES, {"other.bin": b"x"}, weights=tmp_path / place)
    with pytest.raises(ArtifactError, match="cannot be saved in"):
        write_folder(tmp_path / "file" / "below", MANIFEST, TABLES, {})
    assert read_folder(folder, "head").files == {"head.pt2": PROGRAM}


def test_saves_at_once_into_the_same_weights_do_not_take_each_others_drafts(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data/weights/weight_0", bytes(1_000_000))

    def save(turn: int) -> None:
        for number in range(5):
            weights = tmp_path / f"weights.{number}"
            write_folder(tmp_path / f"{turn}", MANIFEST, TABLES, {"head.pt2": buffer.getvalue()}, weights=weights)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(8)))
    for turn in range(8):
        assert read_folder(tmp_path / f"{turn}", "head").files == {"head.pt2": buffer.getvalue()}


def numbered_by_name(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
    """As a file system tells of a file that numbers it by where it is, as FAT and some in user space do."""
    told = os.stat(path, follow_symlinks=follow_symlinks)  # noqa: PTH116 - it stands for Path.stat
    return os.stat_result((told.st_mode, zlib.crc32(os.fsencode(path)), *told[2:]))


@pytest.mark.parametrize("renumbers", [False, True])
def test_two_saves_at_once_into_one_folder_are_not_both_told_that_all_is_well(
    folder: Path, monkeypatch: pytest.MonkeyPatch, renumbers: bool
) -> None:
    if renumbers:
        monkeypatch.setattr(Path, "stat", numbered_by_name)
    replace_file, others = Path.replace, [{"head.pt2": b"the other program"}]

    def meanwhile(draft: Path, target: Path) -> Path:
        placed = replace_file(draft, target)
        if others and target.name == "head.pt2":
            write_folder(folder, MANIFEST, TABLES, others.pop())
        return placed

    monkeypatch.setattr(Path, "replace", meanwhile)
    with pytest.raises(ArtifactError, match=r"something else was saved in '.*' at the same time; save again"):
        write_folder(folder, MANIFEST, TABLES, {"head.pt2": b"this program"})
    write_folder(folder, MANIFEST, TABLES, {"head.pt2": b"this program"})
    assert read_folder(folder, "head").file("head.pt2") == b"this program"


@pytest.mark.parametrize("after", ["manifest.yaml", "tables.safetensors"])
def test_a_folder_that_is_saved_over_while_it_is_read_is_not_called_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    read_bytes, others = Path.read_bytes, [{"head.pt2": b"the other program"}]

    def meanwhile(path: Path) -> bytes:
        data = read_bytes(path)
        if others and path.name == after:
            write_folder(folder, replace(MANIFEST, artifact_id="ff" * 32), TABLES, others.pop())
        return data

    monkeypatch.setattr(Path, "read_bytes", meanwhile)
    read = read_folder(folder, "head")
    assert (read.manifest.artifact_id, read.files) == ("ff" * 32, {"head.pt2": b"the other program"})


def test_other_files_are_not_written_among(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"holds other files \(thesis.txt\)"):
        write_folder(tmp_path, MANIFEST, TABLES, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_other_kind_is_not_overwritten(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="holds a head; save the tail in a folder of its own"):
        write_folder(folder, replace(MANIFEST, kind="tail"), TABLES, {})
    assert read_folder(folder, "head").manifest == MANIFEST


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ArtifactError, match="is a file; give a folder"):
        write_folder(path, MANIFEST, TABLES, {})
    assert f"'{path}' is not a folder" in refused(path)


def test_a_manifest_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="manifest takes"):
        write_folder(tmp_path / "new", replace(MANIFEST, report={"text": "x" * 300_000}), TABLES, {})
    assert not (tmp_path / "new").exists()


# -- damage


def test_every_flipped_byte_of_the_manifest_is_found(folder: Path) -> None:
    path = folder / "manifest.yaml"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        assert str(path) in refused(folder), place


@pytest.mark.parametrize("name", ["tables.safetensors", "head.pt2"])
def test_flipped_bytes_of_another_file_are_found(folder: Path, name: str) -> None:
    path = folder / name
    data = path.read_bytes()
    for place in range(0, len(data), 2):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place // 2 % 8]) + data[place + 1 :])
        assert refused(folder).startswith(f"{path}: its SHA-256 is not the manifest's"), place


@pytest.mark.parametrize("name", ["manifest.yaml", "tables.safetensors", "head.pt2"])
def test_truncations_are_found(folder: Path, name: str) -> None:
    path = folder / name
    data = path.read_bytes()
    for length in [*range(0, len(data) - 10, 17), *range(len(data) - 10, len(data))]:
        path.write_bytes(data[:length])
        assert str(path) in refused(folder), length
    path.write_bytes(data + b"\n")
    assert str(path) in refused(folder)


@pytest.mark.parametrize("name", ["manifest.yaml", "tables.safetensors", "head.pt2"])
def test_missing_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refused(folder).startswith(f"{folder / name}: cannot be read (No such file or directory)")


def test_files_of_another_export_are_found(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_folder(other, replace(MANIFEST, artifact_id="ff" * 32), TABLES, {"head.pt2": PROGRAM[::-1]})
    shutil.copy(other / "head.pt2", folder / "head.pt2")
    assert "head.pt2: its SHA-256 is not the manifest's" in refused(folder)
    shutil.copy(other / "manifest.yaml", folder / "manifest.yaml")
    assert read_folder(folder, "head").manifest.artifact_id == "ff" * 32


def test_the_other_kind_is_named(folder: Path) -> None:
    assert "manifest.yaml: kind is 'head', expected 'tail'; load it as what it is" in refused(folder, "tail")


@pytest.mark.parametrize("number", [0, 5, 99])
def test_another_format_is_named_even_if_all_else_is_unknown(folder: Path, number: int) -> None:
    (folder / "manifest.yaml").write_bytes(f"format: {number}\nsomething: new\n".encode())
    assert f"manifest.yaml: format is {number}, this compoff reads formats 1 to 4" in refused(folder)


@pytest.mark.parametrize(
    "path",
    ["a" * 300, "a" * 5000, "a\0b", "a\ud800"],
    ids=["long name", "long path", "null byte", "half a character"],
)
def test_a_path_that_cannot_be_is_refused(path: str, tmp_path: Path) -> None:
    uses: list[Callable[[], object]] = [
        lambda: find_part(path, "head"),
        lambda: kinds_in(path),
        lambda: read_folder(path, "head"),
        lambda: write_folder(tmp_path / path, MANIFEST, TABLES, {"head.pt2": PROGRAM}),
        lambda: write_folder(tmp_path, MANIFEST, TABLES, {"head.pt2": PROGRAM}, weights=tmp_path / path),
    ]
    for use in uses:
        with pytest.raises(ArtifactError, match=r"cannot be|null byte|cannot encode"):
            use()


def test_a_folder_that_may_not_be_looked_into_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path, **_: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", forbidden)  # as for another user; root may look into everything
    told = r"cannot be looked at .Permission denied.; give another path"
    uses = [lambda: find_part(tmp_path, "head"), lambda: kinds_in(tmp_path), lambda: read_folder(tmp_path, "head")]
    for use in [*uses, lambda: write_folder(tmp_path, MANIFEST, TABLES, {"head.pt2": PROGRAM})]:
        with pytest.raises(ArtifactError, match=told):
            use()


@pytest.mark.parametrize("method", ["rename", "replace"])
@pytest.mark.parametrize("number", range(1, 4))
def test_a_rename_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, number: int
) -> None:
    write_folder(tmp_path, MANIFEST, TABLES, {"head.pt2": PROGRAM, "head.onnx": b"the old one"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real, counted = getattr(Path, method), iter(range(1, 100))

    def failing(self: Path, target: Path) -> Path:
        if next(counted) == number:  # as Windows says of a file that is open elsewhere
            raise PermissionError(errno.EACCES, "it is used by another process", str(target))
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, method, failing)
        with pytest.raises(ArtifactError, match="it is used by another process"):
            write_folder(tmp_path, MANIFEST, TABLES, {"head.pt2": b"the new one", "head.pte": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    write_folder(tmp_path, MANIFEST, TABLES, {"head.pt2": b"the new one"})
    assert read_folder(tmp_path, "head").files == {"head.pt2": b"the new one"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.pt2", "manifest.yaml", "tables.safetensors"]


def test_a_folder_in_which_a_save_was_cut_off_can_be_saved_in(tmp_path: Path) -> None:
    write_folder(tmp_path, MANIFEST, TABLES, {"head.pt2": PROGRAM, "head.onnx": b"onnx"})
    (tmp_path / "manifest.yaml").unlink()
    (tmp_path / "manifest.yaml.0123abcd.part").write_bytes(b"half")
    write_folder(tmp_path, MANIFEST, TABLES, {"head.pt2": PROGRAM})
    assert read_folder(tmp_path, "head").files == {"head.pt2": PROGRAM}
    assert (tmp_path / "head.onnx").read_bytes() == b"onnx"  # it might be a user's after all
