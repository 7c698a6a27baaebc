"""Folders made to do harm: right checksums over wrong content. Still an ArtifactError that names the file."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as save_arrays

from compoff.artifact import read_folder, write_folder
from compoff.device.binding import CallForm
from compoff.errors import ArtifactError, FeatureError, PayloadError
from compoff.manifest import Manifest, manifest_bytes, parse_manifest
from compoff.structure import importable, unflatten
from tests.small_artifacts import MANIFEST, PROGRAM, TABLES, checked, forge, refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "saved"
    write_folder(path, MANIFEST, TABLES, {"head.pt2": PROGRAM})
    return path


def forge_text(folder: Path, text: str) -> None:
    (folder / "manifest.yaml").write_bytes(checked(text))


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


BOMB = "format: 2\na: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "format: 2\na: &a [*a]\n",
        "format: 2\nkind: " + "[" * 100_000,
        "format: 2\nkind: !!python/object/apply:os.system ['true']\n",
        "format: 2\nkind: 'unclosed\n",
        "format: 2\n\ttab: 1\n",
        "format: 2\n? [a, b]\n: c\n",
        "format: 2\n--- \nsecond: document\n",
        "format: 2\nkind: 2026-99-99\n",
        "format: 2\nkind: !!bool foo\n",
        "format: 2\nkind: !!int ''\n",
        "format: 2\nkind: !!timestamp foo\n",
        "format: 2\nreport: {when: 2026-01-02}\n",
        "format: 2\nmax_batch: 0x" + "f" * 5000 + "\n",
        "format: 2\nkind: " + '["",' * 50_000,
        "format: 2\nmax_batch: 1" + ":1" * 300 + ".5\n",
        "format: 2\nmax_batch: 1" + ":1" * 100_000 + "\n",
        "format: 2\n" + "".join(f"{index}:\n" for index in range(1000)),
        "format: 2\n",
        "format: 2\n\x00\n",
        "format: 2\nfiles: \ud7ff\n",
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
CODE = {"latent_shape": [2, 4, 4], "num_centers": 4, "qualities": [1, 2], "steps": []}
SECOND = {"latent_shape": [1, 9], "num_centers": 2, "qualities": [1, 1], "steps": []}
PIXELS = {"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1], "layout": "hwc", "input": 0}
CALL = {"parameters": ["x"], "call": {"list": [{"list": [{"leaf": 0}]}, {"dict": [["y", {"leaf": 1}]]}]}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, 3.5) for key in MANIFEST.__dataclass_fields__),
        *((key, None) for key in MANIFEST.__dataclass_fields__ if key != "pixels"),
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
        ("codes", []),
        ("codes", [3]),
        ("codes", [CODE, {}]),
        ("codes", [{**CODE, "more": 1}]),
        ("codes", [{**CODE, "latent_shape": [2, 4, "4"]}]),
        ("codes", [{**CODE, "latent_shape": [2, -4, 4]}]),
        ("codes", [{**CODE, "latent_shape": {"a": 1}}]),
        ("codes", [{**CODE, "qualities": [True]}]),
        ("codes", [{**CODE, "num_centers": "4"}]),
        ("codes", [{**CODE, "steps": 1}]),
        ("codes", [{key: value for key, value in CODE.items() if key != "steps"}]),
        ("quality", -2),
        ("quality", "0"),
        ("codes", [{**CODE, "num_centers": True}]),
        ("sides", [{**SPEC, "dtype": "uint16"}]),
        ("sides", {}),
        ("max_batch", "64"),
        ("pixels", {}),
        ("pixels", [PIXELS]),
        ("pixels", {**PIXELS, "more": 1}),
        ("pixels", {**PIXELS, 3: 1}),
        ("pixels", {**PIXELS, "mean": 0.5}),
        ("pixels", {**PIXELS, "mean": [0.5, 0.5]}),
        ("pixels", {**PIXELS, "mean": [0.5, 0.5, 10**400]}),
        ("pixels", {**PIXELS, "std": [1, 1, 0]}),
        ("pixels", {**PIXELS, "layout": ["hwc"]}),
        ("pixels", {**PIXELS, "input": 2}),
        ("pixels", {**PIXELS, "input": 1, "mean": [0.5], "std": [1]}),
        ("pixels", {**PIXELS, "input": -1}),
        ("pixels", {**PIXELS, "input": True}),
        ("call", {"parameters": []}),
        ("call", {**CALL, "more": 1}),
        ("call", {**CALL, "parameters": "x"}),
        ("call", {**CALL, "parameters": [1]}),
        ("call", {**CALL, "call": {"list": []}}),
        ("call", {**CALL, "call": {"list": [{"list": []}, {"list": []}]}}),
        ("call", {**CALL, "call": {"list": [{"list": []}, {"dict": [["x", {"leaf": 2}]]}]}}),
        ("call", {**CALL, "call": {"list": [{"list": [{"leaf": 0}]}, {"dict": []}]}}),
        ("call", {**CALL, "call": {"list": [{"list": [{"leaf": 0}, {"leaf": 0}]}, {"dict": [["y", {"leaf": 1}]]}]}}),
        ("call", {**CALL, "call": {"list": [{"list": [{"leaf": 1}]}, {"dict": [["y", {"leaf": 0}]]}]}}),
        ("call", {**CALL, "call": {"list": [{"list": [{"leaf": 0}]}, {"dict": [[1, {"leaf": 1}]]}]}}),
        ("call", {**CALL, "call": {"value": 1}}),
        ("call", {**CALL, "call": 3}),
        ("factory", "shop"),
        ("factory", "shop:make()"),
        ("factory", "../shop:make"),
        ("factory", ":make"),
        ("factory", "shop:make\n"),
        ("base", "0" * 63),
        ("base", "g" * 64),
        ("max_reply_bytes", 0),
        ("max_reply_bytes", -1),
        ("max_reply_bytes", True),
        ("max_reply_bytes", 1 << 40),
        ("report", []),
        ("versions", "1"),
        ("versions", {"torch": 2.11}),
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
        ("codes", [CODE]),
        ("codes", [CODE, SECOND, copy.deepcopy(SECOND)]),
        ("quality", 2),
        ("codes", [SECOND, CODE]),
        *(
            ("codes", [{**CODE, key: wrong}, SECOND])
            for key, wrong in [
                ("latent_shape", [3, 4, 4]),
                ("latent_shape", [2, 0, 4]),
                ("latent_shape", []),
                ("qualities", []),
                ("qualities", [2, 1]),
                ("qualities", [1, 1]),
                ("qualities", [1, 3]),
                ("qualities", [1]),
                ("num_centers", 5),
                ("steps", [1]),
                ("steps", [1, 2]),
                ("steps", [2, 1]),
            ]
        ),
        ("sides", [{"shape": [0, 1 << 39, 1 << 39], "dtype": "bool", "batched": False}]),
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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bytes", float("inf")),
        ("pieces", [[float("inf"), 1, "a" * 64]]),
        ("where", "a" * 5000),
        ("where", "\ud800"),
        ("where", "a\0b"),
    ],
)
def test_what_is_left_of_a_program_may_say_anything_and_can_be_saved_over(
    folder: Path, tmp_path: Path, key: str, value: Any
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data/weights/weight_0", bytes(10_000))
    files = {"head.pt2": buffer.getvalue()}
    write_folder(folder, MANIFEST, TABLES, files, weights=tmp_path / "weights")
    path = folder / "head.pt2.parts"
    line, _, rest = path.read_bytes().partition(b"\n")
    data = json.dumps({**json.loads(line), key: value}).encode() + b"\n" + rest
    path.write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    forge(folder, lambda content: content["files"].update({path.name: entry}))
    told = refused(folder)
    assert told.startswith(f"{path}: ")
    assert told.isprintable() or value == "a\0b"
    write_folder(folder, MANIFEST, TABLES, files)
    assert read_folder(folder, "head").files == files


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
        save_arrays({"weights": TABLES[0].weights}),
        save_arrays({"weights.0": TABLES[0].weights}),
        save_arrays({"weights.0": TABLES[1].weights, "weights.1": TABLES[0].weights}),
        save_arrays({f"weights.{index}": TABLES[index > 0].weights for index in range(3)}),
    ],
)
def test_tables_that_are_none_are_named(folder: Path, data: bytes) -> None:
    path = folder / "tables.safetensors"
    path.write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    forge(folder, lambda content: content["files"].update({path.name: entry}))
    assert refused(folder).startswith(f"{path}: weights do not fit the manifest")


# -- forged at random: an ArtifactError, or a manifest that everything behind it can work with

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["leaf", "a:b", "bool"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["leaf", "value", "list", "dict", "dataclass", "class", "fields", "shape"]), inner
        )
        | st.fixed_dictionaries({"class": inner, "fields": inner, "empty": inner})
    ),
    max_leaves=8,
)


def changed(content: Any, data: st.DataObject) -> Any:
    """The content with one place in it removed, replaced or doubled."""
    inside = isinstance(content, (dict, list)) and len(content) > 0
    if not inside or data.draw(st.integers(0, 5)) == 0:
        return data.draw(json_values)
    places = list(content) if isinstance(content, dict) else range(len(content))
    place = data.draw(st.sampled_from(places))
    match data.draw(st.integers(0, 8)):
        case 0:
            content.pop(place)
        case 1 if isinstance(content, list):
            content.append(copy.deepcopy(content[place]))
        case _:
            content[place] = changed(content[place], data)
    return content


def use(manifest: Manifest) -> None:
    """What head, tail, remote and command line do with a manifest, short of running it."""
    with contextlib.suppress(ArtifactError):
        payloads = manifest.payload_format(TABLES)
        assert payloads.max_bytes(manifest.max_batch) > 0
        with contextlib.suppress(PayloadError):
            payloads.decode(bytes(20))
    if manifest.call:
        form = CallForm(manifest.call, manifest.inputs)
        assert repr(form).startswith("(")
        with contextlib.suppress(FeatureError):
            assert form.bind([object()] * len(manifest.inputs), {}) is not None
        with contextlib.suppress(FeatureError):
            form.bind([], {"x": 1})
    if manifest.structure:
        repr(unflatten(manifest.structure, manifest.outputs, importable))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_manifest_forged_at_random_is_refused_or_can_be_used(data: st.DataObject) -> None:
    content = yaml.safe_load(manifest_bytes(MANIFEST, {}).decode().rpartition("checksum: ")[0])
    version, files = content.pop("format"), content.pop("files")
    for _ in range(data.draw(st.integers(1, 3))):
        if isinstance(content, dict):
            content = changed(content, data)
    body = {"format": version, **(content if isinstance(content, dict) else {"content": content}), "files": files}
    text = yaml.safe_dump(json.loads(json.dumps(body)), sort_keys=False, allow_unicode=True)
    try:
        manifest, _ = parse_manifest(checked(text), Path("manifest.yaml"))
    except ArtifactError:
        return
    use(manifest)


def test_a_manifest_as_it_is_can_be_used() -> None:
    use(parse_manifest(manifest_bytes(MANIFEST, {}), Path("manifest.yaml"))[0])
