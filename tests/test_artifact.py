"""The folder on disk: the one that was saved, or an ArtifactError that names the file and what is wrong with it."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save as save_arrays

from compoff.artifact import Manifest, TensorSpec, find_part, read_folder, write_folder
from compoff.coding import SymbolTables
from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MANIFEST = Manifest(
    kind="head",
    artifact_id="0123456789abcdef" * 4,
    split="layer1.0",
    model="Net",
    inputs=(TensorSpec((3, 8, 8), "float32"), TensorSpec((5,), "int64", batched=False)),
    outputs=(TensorSpec((10,), "float32"),),
    structure={"dict": [["größe", {"leaf": 0}], ["none", {"value": None}]]},
    latent_shape=(2, 4, 4),
    num_centers=4,
    qualities=(1, 2),
    max_batch=64,
    report={"bytes": 12.5, "distilled_from": None},
    versions={"compoff": "0.1.0"},
)
TABLES = SymbolTables([[2**22] * 4, [2**23, 2**22, 2**21, 2**21]])
PROGRAM = bytes(range(256))

GOLDEN_MANIFEST = """\
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
GOLDEN_TABLES = (
    "4000000000000000"  # length of the header
    + b'{"weights":{"dtype":"U32","shape":[2,4],"data_offsets":[0,32]}} '.hex()
    + "00004000" * 4
    + "00008000"
    + "00004000"
    + "00002000" * 2
)


def checked(text: str) -> bytes:
    """A manifest's text with its last line, by an independent reading of the format."""
    return (text + f"checksum: {hashlib.sha256(text.encode()).hexdigest()}\n").encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "saved"
    write_folder(path, MANIFEST, TABLES, {"head.pt2": PROGRAM})
    return path


def forge(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a manifest and give it the checksum that belongs to it, as someone who means harm would."""
    text = (folder / "manifest.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text.rpartition("checksum: ")[0])
    change(content)
    forge_text(folder, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def forge_text(folder: Path, text: str) -> None:
    (folder / "manifest.yaml").write_bytes(checked(text))


def refused(folder: Path, kind: str = "head") -> str:
    with pytest.raises(ArtifactError) as caught:
        read_folder(folder, kind)
    return str(caught.value)


# -- what was saved comes back


def test_comes_back_as_it_was_saved(folder: Path) -> None:
    read = read_folder(folder, "head")
    assert read.manifest == MANIFEST
    assert np.array_equal(read.tables.weights, TABLES.weights)
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
    assert find_part(tmp_path / "both", "head") == tmp_path / "both"
    assert "manifest.yaml: cannot be read" in refused(find_part(tmp_path / "both", "head"))


# -- where it may be saved


def test_an_earlier_artifact_of_the_kind_is_replaced(folder: Path) -> None:
    write_folder(folder, replace(MANIFEST, split="layer2"), TABLES, {"head.pt2": b"new"})
    read = read_folder(folder, "head")
    assert (read.manifest.split, read.files) == ("layer2", {"head.pt2": b"new"})


def test_a_save_that_was_cut_short_is_no_artifact_and_can_be_repeated(folder: Path) -> None:
    (folder / "manifest.yaml").unlink()
    (folder / "head.pt2.part").write_bytes(b"half")
    assert "manifest.yaml: cannot be read (No such file" in refused(folder)
    write_folder(folder, MANIFEST, TABLES, {"head.pt2": PROGRAM})
    assert read_folder(folder, "head").manifest == MANIFEST


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


@pytest.mark.parametrize("number", [0, 2, 99])
def test_another_format_is_named_even_if_all_else_is_unknown(folder: Path, number: int) -> None:
    (folder / "manifest.yaml").write_bytes(f"format: {number}\nsomething: new\n".encode())
    assert f"manifest.yaml: format is {number}, this compoff reads format 1" in refused(folder)


# -- harm


def test_a_forged_manifest_passes_where_nothing_is_wrong(folder: Path) -> None:
    forge(folder, lambda content: content.update(model="Other"))
    assert read_folder(folder, "head").manifest.model == "Other"


@pytest.mark.parametrize(
    "name",
    ["../secret", "..", ".", "", "a/b", "a\\b", "C:x", "a\0b", ".hidden", "x" * 300, "line\nbreak", 3, None, True],
)
def test_names_that_lead_elsewhere_are_refused(folder: Path, tmp_path: Path, name: Any) -> None:
    (tmp_path / "secret").write_bytes(PROGRAM)
    entry = {"bytes": len(PROGRAM), "sha256": hashlib.sha256(PROGRAM).hexdigest()}
    forge(folder, lambda content: content["files"].update({name: entry}))
    assert "manifest.yaml: files names " in refused(folder)


def test_absolute_names_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(PROGRAM)
    entry = {"bytes": len(PROGRAM), "sha256": hashlib.sha256(PROGRAM).hexdigest()}
    forge(folder, lambda content: content["files"].update({str(tmp_path / "secret"): entry}))
    assert "manifest.yaml: files names " in refused(folder)


@pytest.mark.parametrize("name", ["manifest.yaml", "tables.safetensors", "head.pt2"])
@pytest.mark.parametrize("what", ["zero", "pipe", "folder", "nowhere", "loop", "other"])
def test_links_to_anything_else_are_refused(folder: Path, tmp_path: Path, name: str, what: str) -> None:
    path = folder / name
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)  # reading one that nobody writes to would never end
    else:
        (tmp_path / "other").write_bytes(b"something else entirely")
        target = {"zero": "/dev/zero", "folder": tmp_path, "nowhere": tmp_path / "none", "loop": path}
        path.symlink_to(target.get(what, tmp_path / "other"))
    assert refused(folder).startswith(f"{path}: ")


BOMB = "format: 1\na: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "format: 1\na: &a [*a]\n",
        "format: 1\nkind: " + "[" * 100_000,
        "format: 1\nkind: !!python/object/apply:os.system ['true']\n",
        "format: 1\nkind: 'unclosed\n",
        "format: 1\n\ttab: 1\n",
        "format: 1\n? [a, b]\n: c\n",
        "format: 1\n--- \nsecond: document\n",
        "format: 1\nkind: 2026-99-99\n",
        "format: 1\n",
        "format: 1\n\x00\n",
        "format: 1\nfiles: \ud7ff\n",
    ],
)
def test_hostile_yaml_is_refused(folder: Path, text: str) -> None:
    forge_text(folder, text)
    message = refused(folder)
    assert message.startswith(f"{folder / 'manifest.yaml'}: ")
    assert len(message) < 1000


def test_a_huge_manifest_is_not_read(folder: Path) -> None:
    with (folder / "manifest.yaml").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: takes no space on disk, but would take all memory
    assert "manifest.yaml: has 1099511627776 bytes, expected at most" in refused(folder)


def test_a_huge_file_is_not_read(folder: Path) -> None:
    with (folder / "head.pt2").open("r+b") as file:
        file.truncate(1 << 40)
    assert "head.pt2: has 1099511627776 bytes, expected at most 256" in refused(folder)


@pytest.mark.parametrize("key", [*MANIFEST.__dataclass_fields__, "files"])
def test_missing_keys_are_named(folder: Path, key: str) -> None:
    forge(folder, lambda content: content.pop(key))
    assert f"manifest.yaml: keys {key} are missing or unknown" in refused(folder)


@pytest.mark.parametrize("key", ["extra", 7, "Kind"])
def test_unknown_keys_are_named(folder: Path, key: Any) -> None:
    forge(folder, lambda content: content.update({key: 1}))
    assert f"manifest.yaml: keys {key} are missing or unknown" in refused(folder)


SPEC = {"shape": [3], "dtype": "float32", "batched": True}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, wrong) for key in MANIFEST.__dataclass_fields__ for wrong in (None, 3.5)),
        ("kind", "body"),
        ("artifact_id", "0" * 63),
        ("artifact_id", "0" * 62 + "  "),
        ("artifact_id", "g" * 64),
        ("artifact_id", 10**63),
        ("inputs", [3]),
        ("inputs", [{}]),
        ("inputs", [{**SPEC, "more": 1}]),
        ("inputs", [{**SPEC, "shape": "3"}]),
        ("inputs", [{**SPEC, "shape": [-1]}]),
        ("inputs", [{**SPEC, "shape": [1.5]}]),
        ("inputs", [{**SPEC, "shape": [True]}]),
        ("inputs", [{**SPEC, "dtype": "object"}]),
        ("inputs", [{**SPEC, "dtype": ["float32"]}]),
        ("inputs", [{**SPEC, "dtype": None}]),
        ("outputs", [{**SPEC, "batched": 1}]),
        ("structure", {"leaf": 1}),
        ("structure", {"dict": [["a"]]}),
        ("structure", {}),
        ("latent_shape", [2, 4, "4"]),
        ("latent_shape", [2, -4, 4]),
        ("latent_shape", {"a": 1}),
        ("qualities", [True]),
        ("num_centers", "4"),
        ("num_centers", True),
        ("max_batch", "64"),
        ("report", []),
        ("versions", "1"),
    ],
)
def test_values_of_the_wrong_form_are_named(folder: Path, key: str, value: Any) -> None:
    forge(folder, lambda content: content.update({key: value}))
    message = refused(folder)
    assert message.startswith(f"{folder / 'manifest.yaml'}: ")
    assert key in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("latent_shape", [3, 4, 4]),
        ("latent_shape", [2, 0, 4]),
        ("latent_shape", []),
        ("qualities", []),
        ("qualities", [2, 1]),
        ("qualities", [3]),
        ("num_centers", 5),
        ("max_batch", 0),
        ("max_batch", -1),
        ("max_batch", 1 << 60),
    ],
)
def test_values_that_do_not_fit_the_tables_are_named(folder: Path, key: str, value: Any) -> None:
    forge(folder, lambda content: content.update({key: value}))
    assert refused(folder).startswith(f"{folder / 'tables.safetensors'}: weights ")


@pytest.mark.parametrize("entry", [None, 3, [], {}, {"bytes": "256"}, {"bytes": -1}, {"bytes": True}, {"bytes": 1.0}])
def test_files_without_a_length_are_named(folder: Path, entry: Any) -> None:
    forge(folder, lambda content: content["files"].update({"head.pt2": entry}))
    assert "manifest.yaml: files has no length for 'head.pt2'" in refused(folder)


@pytest.mark.parametrize("digest", [None, "", "0" * 64, 3])
def test_files_with_a_wrong_hash_are_named(folder: Path, digest: Any) -> None:
    forge(folder, lambda content: content["files"]["head.pt2"].update(sha256=digest))
    assert "head.pt2: its SHA-256 is not the manifest's" in refused(folder)


def test_tables_must_be_listed(folder: Path) -> None:
    forge(folder, lambda content: content["files"].pop("tables.safetensors"))
    assert "manifest.yaml: files lists no 'tables.safetensors'" in refused(folder)


def test_a_file_that_is_not_listed_is_not_handed_out(folder: Path) -> None:
    forge(folder, lambda content: content["files"].pop("head.pt2"))
    read = read_folder(folder, "head")
    with pytest.raises(ArtifactError, match=r"manifest\.yaml: files lists no 'head\.pt2', but none"):
        read.file("head.pt2")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 100,
        (1 << 60).to_bytes(8, "little") + b"{}",
        save_arrays({"other": np.ones(3)}),
        save_arrays({"weights": np.ones((2, 4))}),
        save_arrays({"weights": np.full((2, 4), 2**22, np.uint32)[:, :3].copy()}),
        save_arrays({"weights": np.full((1, 4), 2**22, np.uint32)}),
        save_arrays({"weights": np.full(4, 2**22, np.uint32)}),
    ],
)
def test_tables_that_are_none_are_named(folder: Path, data: bytes) -> None:
    path = folder / "tables.safetensors"
    path.write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    forge(folder, lambda content: content["files"].update({path.name: entry}))
    assert refused(folder).startswith(f"{path}: weights do not fit the manifest")
