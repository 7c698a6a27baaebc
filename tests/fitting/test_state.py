"""The state of a fit on disk, without a fit around it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

import compoff
from compoff.codec import Geometry, TransformBottleneck
from compoff.errors import FitError
from compoff.fitting import state as state_module
from compoff.fitting.state import FitState, RandomState, load_state, save_state

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = {"seed": 3, "recipe": {"betas": (0.9, 0.999)}, "rate": 0.0}


def trained(seed: int, steps: int = 2) -> tuple[nn.Module, torch.optim.Adam]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    adam = torch.optim.Adam(net[0].parameters() if steps < 0 else net.parameters(), lr=0.1)
    for _ in range(abs(steps)):
        adam.zero_grad()
        net(torch.randn(5, 3)).square().sum().backward()
        adam.step()
    return net, adam


def rng() -> RandomState:
    one, other, third = (torch.Generator().manual_seed(seed).get_state() for seed in range(3))
    return RandomState((one, torch.arange(16, dtype=torch.uint8)), (other, third))


def test_everything_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "state"
    state = FitState(7, 3, 1.5, {"a": [0.1 + 0.2, 1e-300]}, {"a": [1.0, 2.0]}, {"a": 4})
    (net, adam), (other, fresh) = trained(0), trained(1, steps=0)
    save_state(path, state, SETTINGS, net, adam, rng())
    found, random = load_state(path, SETTINGS, other, fresh)
    assert found == state
    for states, expected in ((random.round, rng().round), (random.now, rng().now)):
        assert all(torch.equal(one, other) for one, other in zip(states, expected, strict=True))
    for ours, theirs in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(adam.state.values(), fresh.state.values(), strict=True):
        assert {key: value.tolist() for key, value in ours.items()} == {
            key: value.tolist() for key, value in theirs.items()
        }
    assert fresh.param_groups[0]["lr"] == 0.1


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    net, adam = trained(0)
    save_state(path, FitState(step=1), SETTINGS, net, adam, rng())

    def disk_full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("compoff.fitting.state.save_file", disk_full)
    with pytest.raises(FitError, match=r"at step 2 \(no space left\)"):
        save_state(path, FitState(step=2), SETTINGS, net, adam, rng())
    assert load_state(path, SETTINGS, net, adam)[0].step == 1


def test_settings_are_compared_as_they_are_stored(tmp_path: Path) -> None:
    net, adam = trained(0)
    save_state(tmp_path / "state", FitState(), SETTINGS, net, adam, rng())
    with pytest.raises(FitError, match=r"rate=0\.0, and this one has rate=1\.0"):
        load_state(tmp_path / "state", {**SETTINGS, "rate": 1.0}, net, adam)


@pytest.mark.parametrize("damage", [{"rng": None}, {"bottlenecks.0.bias": None}, {"adam.9.exp_avg": torch.zeros(2)}])
def test_what_is_missing_or_too_much_is_named(
    damage: dict[str, torch.Tensor | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compoff.fitting import state as module

    write = module.save_file

    def damaged(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        changed = {name: value for name, value in {**tensors, **damage}.items() if value is not None}
        # A checksum of its own: the contents are wrong, not the bytes.
        metadata["checksum"] = module._checksum(metadata, changed)
        write(changed, path, metadata)

    net, adam = trained(0)
    monkeypatch.setattr(module, "save_file", damaged)
    save_state(tmp_path / "state", FitState(), SETTINGS, net, adam, rng())
    with pytest.raises(FitError, match="|".join(name.split(".", 1)[-1] for name in damage)):
        load_state(tmp_path / "state", SETTINGS, net, adam)


def test_a_file_from_before_a_bottleneck_held_its_quality_goes_on(tmp_path: Path) -> None:
    path, old = tmp_path / "state", nn.ModuleDict({"a": TransformBottleneck(Geometry((32,)), 4)})
    new = copy.deepcopy(old)
    del old["a"]._buffers["quality"], old["a"]._buffers["served"]
    save_state(path, FitState(step=1), SETTINGS, old, torch.optim.Adam(old.parameters()), rng())
    assert load_state(path, SETTINGS, new, torch.optim.Adam(new.parameters()))[0].step == 1
    assert int(new["a"].quality) == -1
    assert torch.equal(new["a"].served, new["a"].ladder)


def test_moments_of_another_shape_are_refused(tmp_path: Path) -> None:
    (net, _), (_, foreign) = trained(0), trained(0)
    foreign.state[next(iter(foreign.state))]["exp_avg"] = torch.zeros(9)
    save_state(tmp_path / "state", FitState(), SETTINGS, net, foreign, rng())
    with pytest.raises(FitError, match=r"0\.exp_avg that fits no parameter"):
        load_state(tmp_path / "state", SETTINGS, *trained(0))


def test_a_file_with_other_learning_rates_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    (net, _), (saved, adam) = trained(0), trained(1)
    save_state(tmp_path / "state", FitState(lrs=[0.1, 0.2]), SETTINGS, saved, adam, rng())
    fresh, before = torch.optim.Adam(net.parameters()), copy.deepcopy(net.state_dict())
    with pytest.raises(
        FitError,
        match=r"it knew 2 learning rates where this one knows 1\); go on with that version",
    ):
        load_state(tmp_path / "state", SETTINGS, net, fresh)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_foreign_file_is_not_to_be_deleted(tmp_path: Path) -> None:
    path, (net, adam) = tmp_path / "file", trained(0)
    refusals: list[str] = []

    def refused() -> None:
        before = path.read_bytes()
        with pytest.raises(FitError, match="is not the state of a fit") as refusal:
            load_state(path, SETTINGS, net, adam)
        assert path.read_bytes() == before
        refusals.append(str(refusal.value))

    save_file(net.state_dict(), path)
    refused()
    compoff.wrap(nn.Linear(32, 4), "input", example_input=torch.zeros(2, 32)).save(path)
    refused()
    torch.save(net.state_dict(), path)
    refused()
    assert "it holds something else; give another path" in refusals[0]
    assert "it is what Wrapped.save wrote, which compoff.load reads; give another path" in refusals[1]
    assert "give another path to keep the state in, or, where it was one and is damaged, delete it" in refusals[2]
    assert all("KeyError" not in words for words in refusals)


def test_a_damaged_state_is_told_from_a_foreign_file(tmp_path: Path) -> None:
    path, (net, adam) = tmp_path / "file", trained(0)
    save_file(net.state_dict(), path, {"settings": "{", "state": "{}"})
    with pytest.raises(FitError, match=r"is a damaged state of a fit .*; delete it to start afresh"):
        load_state(path, SETTINGS, net, adam)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "compoff-fit-2"}, r"another version of compoff \(its format is 'compoff-fit-2', expected"),
        ({"settings": '{"recipe": {"betas": [0.9, 0.999], "warmup": 3}}'}, "has no warmup in its recipes"),
        ({"format": None, "net": 1}, r"another version of compoff \(or for other bottlenecks: one of the two has no"),
        ({"format": None}, ""),
    ],
)
def test_the_file_of_another_version_is_told_from_a_mistake(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path, (net, adam) = tmp_path / "state", trained(0)
    save_state(path, FitState(step=2), SETTINGS, nn.Sequential(net) if change.pop("net", 0) else net, adam, rng())
    with safe_open(path, framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata |= change
    metadata["checksum"] = state_module._checksum(metadata, tensors)
    save_file(tensors, path, {name: text for name, text in metadata.items() if text is not None})
    if not words:
        assert load_state(path, SETTINGS, net, adam)[0].step == 2
        return
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(FitError, match=words):
        load_state(path, SETTINGS, net, adam)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_state_that_cannot_be_written_is_said_and_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, (net, adam) = tmp_path / "state", trained(0)
    save_state(path, FitState(step=1), SETTINGS, net, adam, rng())

    def full(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"some of it")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(state_module, "save_file", full)
    with pytest.raises(
        FitError, match=r"cannot be kept in .* at step 9 \(I/O error: No space left on device\); make room"
    ):
        save_state(path, FitState(step=9), SETTINGS, net, adam, rng())
    assert load_state(path, SETTINGS, net, adam)[0].step == 1
    assert [one.name for one in tmp_path.iterdir()] == ["state"]
