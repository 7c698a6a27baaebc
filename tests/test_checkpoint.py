"""Fitted bottlenecks in a file, tied to the model that they were fitted for."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

import compoff
from compoff.errors import ArtifactError, FeatureError, SplitError
from compoff.fingerprint import fingerprint
from tests.small_networks import OptionalInputs, Plain, Skip


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


def student(wrapped: compoff.Wrapped, split: str, x: Tensor) -> Tensor:
    with wrapped.at(split), torch.no_grad():
        return wrapped(x)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, compoff.Wrapped]:
    wrapped = compoff.wrap(
        Plain(),
        ["input", "stem.2", "block1"],
        example_input=images(),
        channels=4,
        num_centers=5,
        stride=2,
        codec="deepcod",
    ).eval()
    wrapped.reports["block1"] = {"bytes": 12.5}
    path = tmp_path / "new" / "folder" / "fitted.safetensors"
    wrapped.save(path)
    return path, wrapped


def test_comes_back_with_a_fresh_model_of_the_same_weights(saved: tuple[Path, compoff.Wrapped]) -> None:
    path, wrapped = saved
    net = Plain()
    net.load_state_dict(wrapped.base.state_dict())
    again = compoff.load(path, net).eval()
    assert again.split_points == wrapped.split_points
    assert again.options == wrapped.options
    assert again.reports == {"block1": {"bytes": 12.5}}
    assert again.built
    x = images(3)
    for split in again.split_points:
        assert torch.equal(student(again, split, x), student(wrapped, split, x))


def test_file_holds_no_weight_of_the_model(saved: tuple[Path, compoff.Wrapped]) -> None:
    path, wrapped = saved
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name]
    stored = safetensors.torch.load_file(path)
    assert set(stored) == set(wrapped.bottlenecks.state_dict())
    assert {name.split(".")[0] for name in stored} == {"input", "stem/2", "block1"}


def test_description_is_golden(saved: tuple[Path, compoff.Wrapped]) -> None:
    with safe_open(saved[0], framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "compoff-bottlenecks-3"
    assert metadata["base"] == fingerprint(saved[1].base.state_dict())
    assert json.loads(metadata["description"]) == {
        "options": {"channels": 4, "num_centers": 5, "stride": 2, "codec": "deepcod"},
        "shapes": {"input": [[3, 8, 8]], "stem.2": [[8, 8, 8]], "block1": [[8, 8, 8]]},
        "skips": "encode",
        "reports": {"block1": {"bytes": 12.5}},
        "inputs": [[[2, 3, 8, 8], "float32", True]],
        "call": {"list": [{"list": [{"leaf": 0}]}, {"dict": []}]},
    }


def rewrite(path: Path, **changes: Any) -> None:
    """Change the file's metadata; ``description`` is merged into what is there."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    if isinstance(changes.get("description"), dict):
        description = {**json.loads(metadata["description"]), **changes["description"]}
        changes["description"] = json.dumps({key: value for key, value in description.items() if value != "gone"})
    text, tensors = changes.get("description", metadata["description"]), safetensors.torch.load_file(path)
    changes["checksum"] = hashlib.sha256(f"{text}|{fingerprint(tensors)}".encode()).hexdigest()
    safetensors.torch.save_file(tensors, path, {**metadata, **changes})


@pytest.mark.parametrize("version", ["compoff-bottlenecks-1", "compoff-bottlenecks-2"])
def test_files_of_older_versions_are_still_read(version: str, saved: tuple[Path, compoff.Wrapped]) -> None:
    path, wrapped = saved
    rewrite(path, format=version, description={"inputs": [[[2, 3, 8, 8], "float32"]], "call": "gone"})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    del metadata["checksum"]
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata)
    net, x = wrapped.unwrap(), images()
    assert student(compoff.load(path, net).eval(), "block1", x).shape == (2, 5)


def test_figures_are_those_of_the_quality_that_is_chosen(tmp_path: Path) -> None:
    x = torch.randn(16, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(512, 5))
    wrapped = compoff.wrap(net, "input", example_input=x)
    curve = compoff.fit(wrapped, [x], steps=2, max_drop=0.5).splits["input"].curve
    chosen = (wrapped.bottleneck("input").chosen + 2) % len(curve)
    wrapped.bottleneck("input").choose(chosen)
    wrapped.save(tmp_path / "fitted")
    head, _ = compoff.export(compoff.load(tmp_path / "fitted", wrapped.unwrap()), "input")
    assert head.quality == chosen
    assert head.manifest.report["quality"] == chosen
    assert head.manifest.report["aim_met"] is None
    for name in ("bytes", "agreement", "output_error", "encoder_macs"):
        assert head.manifest.report[name] == curve[chosen][name]


def test_a_file_keeps_its_channels_whatever_is_chosen_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def described(path: Path) -> dict[str, Any]:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["description"])

    path, x = tmp_path / "fitted.safetensors", images()
    with monkeypatch.context() as then:
        then.setattr("compoff.codec_options.default_channels", lambda _: 5)
        wrapped = compoff.wrap(Skip(), "block1", example_input=x).eval()
        wrapped.save(path)
    answer = student(wrapped, "block1", x)
    assert "sizes" not in described(path)  # they were what would be chosen
    again = compoff.load(path, wrapped.unwrap()).eval()
    assert {one.latent_shape[0] for one in again.bottlenecks_at("block1")} == {5}
    assert torch.equal(student(again, "block1", x), answer)
    again.save(path)
    assert {size[0] for size in described(path)["sizes"]["block1"]} == {5}
    third = compoff.load(path, again.unwrap()).eval()
    assert torch.equal(student(third, "block1", x), answer)


def test_the_default_quality_of_an_older_file_is_that_of_its_report(tmp_path: Path) -> None:
    wrapped, path = compoff.wrap(nn.Linear(32, 5), "input", example_input=torch.zeros(2, 32)), tmp_path / "fitted"
    wrapped.bottleneck("input").choose(2)
    wrapped.save(path)
    assert compoff.load(path, wrapped.unwrap()).bottleneck("input").chosen == 2
    tensors = safetensors.torch.load_file(path)
    del tensors["input.quality"], tensors["input.served"]
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(tensors, path, metadata)
    for reports, chosen in (
        ({}, 6),
        ({"input": {"bytes": 2.5}}, 6),
        ({"input": {"quality": 3}, "gone": {"quality": 1}}, 3),
    ):
        rewrite(path, description={"reports": reports})
        net = nn.Linear(32, 5)
        net.load_state_dict(wrapped.base.state_dict())
        again = compoff.load(path, net)
        assert again.bottleneck("input").chosen == chosen
        net = again.unwrap()
    rewrite(path, description={"reports": {"input": {"quality": 77}}})
    with pytest.raises(ArtifactError, match="there is no quality 77"):
        compoff.load(path, net)


def test_a_file_from_before_there_was_a_choice_holds_the_papers_codec(saved: tuple[Path, compoff.Wrapped]) -> None:
    path, wrapped = saved
    rewrite(path, description={"options": {"channels": 4, "num_centers": 5, "stride": 2}})
    again = compoff.load(path, wrapped.unwrap())
    assert again.options.codec == "deepcod"


def test_constants_and_keywords_of_the_call_come_back(tmp_path: Path) -> None:
    wrapped = compoff.wrap(OptionalInputs(), "block1", codec="deepcod")
    wrapped(images(), scale=torch.ones(8), double=True)
    wrapped.save(tmp_path / "fitted")
    example = compoff.load(tmp_path / "fitted", wrapped.unwrap()).example_inputs()
    assert [None if value is None else tuple(value.shape) for value in example.args] == [(2, 3, 8, 8), None, (8,)]
    assert example.keywords == {"double": True}
    assert example.batched == (True, False)


# -- another size of input -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    path = tmp_path_factory.mktemp("once") / "fitted"
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    wrapped = compoff.wrap(net, ["input", "2"], example_input=torch.zeros(2, 3, 32, 32))
    compoff.fit(wrapped, [torch.randn(8, 3, 32, 32) for _ in range(4)], steps=2)
    wrapped.save(path)
    return path, wrapped.unwrap()


@pytest.fixture
def fitted(fitted_once: tuple[Path, nn.Module], tmp_path: Path) -> tuple[Path, nn.Module]:
    path, net = fitted_once
    return Path(shutil.copy(path, tmp_path)), copy.deepcopy(net)


@pytest.mark.parametrize("shape", [(2, 3, 48, 40), (2, 3, 35, 64)])
def test_one_fit_serves_inputs_of_another_size(fitted: tuple[Path, nn.Module], shape: tuple[int, ...]) -> None:
    path, net = fitted
    x, as_fitted = torch.randn(shape), compoff.load(path, net)
    before = {name: tensor.clone() for name, tensor in as_fitted.bottlenecks.state_dict().items()}
    assert set(as_fitted.reports) == {"input", "2"}
    larger = compoff.load(path, as_fitted.unwrap(), example_input=x).eval()
    assert larger.reports == {}  # bytes and agreement were measured at another size
    after = larger.bottlenecks.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    larger.save(path.with_name("larger"))
    with torch.no_grad():
        expected = student(larger, "2", x)
    larger = compoff.load(path.with_name("larger"), larger.unwrap()).eval()
    assert torch.equal(student(larger, "2", x), expected)
    report = compoff.finish(larger, [torch.randn(4, *shape[1:]) for _ in range(2)])
    for split in ("input", "2"):
        head, tail = compoff.export(larger, split)
        assert head.manifest.report["curve"] == report.splits[split].curve
        assert torch.allclose(tail(head(x)), student(larger, split, x), atol=1e-5)


def test_a_size_with_other_tiles_is_refused_and_nothing_is_touched(fitted: tuple[Path, nn.Module]) -> None:
    path, net = fitted
    with pytest.raises(FeatureError, match=r"a tile at 'input' is 6 × 8 elements, and one of 8 × 8 was fitted"):
        compoff.load(path, net, example_input=torch.zeros(2, 3, 6, 32))
    with pytest.raises(FeatureError):
        compoff.load(path, net, example_input=torch.zeros(2, 4, 32, 32))
    with pytest.raises(SplitError):
        compoff.load(path, net, example_input="a picture")
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


def refused(path: Path, net: nn.Module) -> str:
    """The message of a refusal that leaves the model as it was."""
    modes = {name: module.training for name, module in net.named_modules()}
    wanted = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    with pytest.raises(ArtifactError) as caught:
        compoff.load(path, net)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == wanted
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert not hasattr(net, "_compoff_wrapped")
    return str(caught.value)


def test_who_may_read_the_file_stays_so(saved: tuple[Path, compoff.Wrapped]) -> None:
    path, wrapped = saved
    plain = path.with_name("plain")
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode, "a new one is as open as any new file"
    path.chmod(0o640)
    wrapped.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_bottlenecks_of_another_model_are_refused(saved: tuple[Path, compoff.Wrapped]) -> None:
    path, wrapped = saved
    assert "base is " in refused(path, Plain())
    assert "fitted for a model with other weights" in refused(path, nn.Linear(2, 2))
    net = wrapped.unwrap()
    with torch.no_grad():
        net.block2[0].weight[0, 0, 0, 0] += 1e-3
    assert "fitted for a model with other weights" in refused(path, net)


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 100, (1 << 60).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{}"]
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert f"'{path}'" in refused(path, Plain())
    assert "cannot be read" in refused(tmp_path / "nowhere", Plain())
    assert "cannot be read" in refused(tmp_path, Plain())


def test_flipped_bytes_are_found(saved: tuple[Path, compoff.Wrapped]) -> None:
    path, wrapped = saved
    net, data = wrapped.unwrap(), path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    names = [data.index(b'"' + name + b'"') + 3 for name in (b"format", b"base", b"description", b"checksum")]
    places = [*names, *range(0, header, 31), header - 1, *range(header, len(data), len(data) // 30)]
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        assert f"'{path}'" in refused(path, net), place


def test_truncations_are_found(saved: tuple[Path, compoff.Wrapped]) -> None:
    path, wrapped = saved
    net, data = wrapped.unwrap(), path.read_bytes()
    for length in [*range(0, len(data), len(data) // 20), len(data) - 1]:
        path.write_bytes(data[:length])
        assert f"'{path}'" in refused(path, net), length


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "compoff-bottlenecks-4"}, "format is 'compoff-bottlenecks-4', expected 'compoff-bottlenecks-3'"),
        ({"description": "[]"}, "format is 'compoff-bottlenecks-3'"),
        ({"description": "{"}, "cannot be read"),
        ({"description": {"options": "gone"}}, "does not fit its tensors"),
        ({"description": {"options": {"channels": 4, "levels": 5}}}, "does not fit its tensors"),
        ({"description": {"options": {"channels": 3, "num_centers": 5, "stride": 2}}}, "does not fit its tensors"),
        ({"description": {"options": {"channels": 4, "num_centers": 0, "stride": 2}}}, "does not fit its tensors"),
        ({"description": {"shapes": {"block1": [8, 8, 8]}}}, "does not fit its tensors"),
        ({"description": {"sizes": {"elsewhere": [[4, 5, 2]]}}}, "does not fit its tensors"),
        ({"description": {"sizes": {one: [[4, 5, 0]] for one in ("input", "stem.2", "block1")}}}, "stride is 0"),
        ({"description": {"options": {"channels": 10**7, "num_centers": 5, "stride": 2}}}, r"is to be \(10000000, "),
        ({"description": {"inputs": [[[2, 3, 10**5, 10**5], "float32"]]}}, "hold more than 268435456 numbers"),
        ({"description": {"inputs": [[[10**6], "float32", False]] * 1000}}, "hold more than 268435456 numbers"),
        ({"description": {"shapes": 3}}, "does not fit its tensors"),
        ({"description": {"inputs": [[[2, 3, 8, 8], "float99"]]}}, "does not fit its tensors"),
        ({"description": {"inputs": [3]}}, "does not fit its tensors"),
        ({"description": {"call": {"leaf": 9}}}, "does not fit its tensors"),
        ({"description": {"reports": 3}}, "does not fit its tensors"),
        ({"description": {"reports": {"block1": 3}}}, "does not fit its tensors"),
        ({"description": {"reports": {"block1": {"quality": "best"}}}}, "a report's quality is 'best'"),
        ({"description": {"skips": ["encode"]}}, "skips is "),
        ({"description": {"shapes": {"input": [[3, 8, 8]], "stem.2": []}}}, "does not fit its tensors"),
        ({"description": {"call": {"list": []}}}, "does not fit its tensors"),
        (
            {"description": {"call": {"list": [{"list": []}, {"dict": []}]}}},
            "does not fit this Plain: the model refuses",
        ),
        ({"description": {"inputs": [[[2, 8, 8], "float32", True]]}}, "this Plain: the model refuses"),
        ({"description": {"options": {"channels": 1 << 70}}}, "does not fit its tensors"),
        ({"description": '{"call": ' + '{"list": [' * 50_000}, "cannot be read"),
        (
            {"description": {"shapes": {"input": [3, 8, 8], "stem.2": [8, 8, 8], "block9": [8, 8, 8]}}},
            "does not fit",
        ),
        (
            {"description": {"shapes": {"input": [3, 8, 8], "stem.2": [8, 8, 8], "block1": [8, 4, 16]}}},
            r"shapes say \[\[8, 4, 16\]\] at 'block1', but this Plain has \[\[8, 8, 8\]\] there",
        ),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(
    saved: tuple[Path, compoff.Wrapped], changes: dict[str, Any], reason: str
) -> None:
    path, wrapped = saved
    rewrite(path, **changes)
    with pytest.raises(ArtifactError, match=reason):
        raise ArtifactError(refused(path, wrapped.unwrap()))


def test_a_wrapped_model_is_refused(saved: tuple[Path, compoff.Wrapped]) -> None:
    path, wrapped = saved
    with pytest.raises(SplitError, match="wrapped already"):
        compoff.load(path, wrapped.base)


def test_an_own_codec_cannot_be_saved(tmp_path: Path) -> None:
    wrapped = compoff.wrap(
        Plain(),
        "block1",
        example_input=images(),
        channels=8,
        stride=1,
        encoder=lambda _y, _z: nn.Identity(),
        decoder=lambda _z, _y: nn.Identity(),
    )
    with pytest.raises(SplitError, match=r"cannot be described in a file; save model\.bottlenecks\.state_dict"):
        wrapped.save(tmp_path / "fitted")
    assert not list(tmp_path.iterdir())


def test_unknown_shapes_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="not known yet"):
        compoff.wrap(Plain(), "block1", codec="deepcod").save(tmp_path / "fitted")


# -- fingerprints


def test_fingerprint_is_golden() -> None:
    state = {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor(True), "c": torch.zeros(0, 3, dtype=torch.int64)}
    # SHA-256 of "a|torch.bool|()|" 01 "b|torch.float32|(2,)|" 0000803f000000c0 "c|torch.int64|(0, 3)|"
    assert fingerprint(state) == "958b9d44637b9bd91cb23cbf06bb0b7a9f605394453f80bf7f71d631d3c95595"
    assert fingerprint(dict(reversed(state.items()))) == fingerprint(state)


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.0])},
        {"b": torch.tensor([1.0, 2.5])},
        {"b": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        {"b": torch.tensor([[1.0, 2.0]])},
        {},
    ],
)
def test_fingerprint_sees_names_values_dtypes_and_shapes(other: dict[str, Tensor]) -> None:
    assert fingerprint(other) != fingerprint({"b": torch.tensor([1.0, 2.0])})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.int8, torch.bool])
def test_fingerprint_takes_any_dtype_and_layout(dtype: torch.dtype) -> None:
    values = torch.arange(6).reshape(2, 3).to(dtype)
    assert fingerprint({"a": values.T.contiguous().T}) == fingerprint({"a": values})


def test_fingerprint_skips_extra_state() -> None:
    state: Any = {"a": torch.ones(1), "_extra_state": {"anything": object()}}
    assert fingerprint(state) == fingerprint({"a": torch.ones(1)})


def test_a_place_that_cannot_be_written_is_named_and_nothing_is_left_there(
    saved: tuple[Path, compoff.Wrapped], tmp_path: Path
) -> None:
    path, wrapped = saved
    for place, message in ((tmp_path / "new", "is a folder"), (path / "below", "cannot be saved in")):
        with pytest.raises(ArtifactError, match=message):
            wrapped.save(place)
    assert not list(tmp_path.rglob("*.part"))
    assert path.is_file()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot be read .it is a folder."):
        compoff.load(tmp_path, nn.Linear(2, 2))
