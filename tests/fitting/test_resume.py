"""A fit that was killed goes on to the very numbers of one that was not; a file that is not its own is refused."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

import compoff
from compoff.errors import FitError
from compoff.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS = 14


class Killed(Exception):
    """Stands for the end of the process."""


class Noisy(nn.Module):
    """An encoder of the user's own that draws random numbers in every step."""

    def __init__(self, given: tuple[int, ...], expected: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(torch.Size(given).numel(), expected[0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Loader:
    """Shuffles each round, draws noise with each batch, and can break down at a batch."""

    def __init__(self, breaks_at: int | None = None, *, kill: bool = False) -> None:
        self.x = torch.randn(24, 32, generator=torch.Generator().manual_seed(5))
        self.left = breaks_at
        self.kill = kill

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[tuple[Tensor, str]]:
        for indices in torch.randperm(24).view(4, 6):
            if self.left == 0:
                if self.kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise Killed
            if self.left is not None:
                self.left -= 1
            yield self.x[indices] + 0.1 * torch.randn(6, 32), "label"


def wrapped(*splits: str, seed: int = 3, weights: int = 11, **options: Any) -> compoff.Wrapped:
    torch.manual_seed(weights)
    net = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5))
    torch.manual_seed(seed)
    options = {"codec": "deepcod", **options}
    return compoff.wrap(net, list(splits or ("input",)), example_input=torch.zeros(2, 32), **options)


def fit(model: compoff.Wrapped, loader: Any, path: Path | None, **options: Any) -> compoff.FitReport:
    settings: dict[str, Any] = {"steps": STEPS, "seed": 1, "recipe": Recipe(reconstruction_share=0.4), **options}
    return compoff.fit(model, loader, resume=path, **settings)


def assert_same(first: compoff.Wrapped, second: compoff.Wrapped) -> None:
    ours, theirs = first.bottlenecks.state_dict(), second.bottlenecks.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(autouse=True)
def _saves_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("compoff.fitting.keeper"), "_SAVE_EVERY", 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fits" / "state.safetensors"


# After 2 batches only the first step is saved; 4 and 8 end a round; 6 is a step that saves; 12 saves and ends a round.
@pytest.mark.parametrize(
    ("breaks_at", "options"),
    [
        *((breaks_at, {}) for breaks_at in (2, 4, 6, 8, 12, 13)),
        *((b, {"encoder": Noisy, "channels": 4}) for b in (5, 12)),
    ],
)
def test_a_fit_that_broke_down_ends_where_an_unbroken_one_does(
    breaks_at: int, options: dict[str, Any], path: Path
) -> None:
    splits = ("input", "2") if not options else ("input",)
    unbroken = wrapped(*splits, **options)
    report = fit(unbroken, Loader(), None)

    first = wrapped(*splits, **options)
    with pytest.raises(Killed):
        fit(first, Loader(breaks_at), path)
    resumed = wrapped(*splits, seed=99, **options)
    again = fit(resumed, Loader(), path)
    assert_same(unbroken, resumed)
    for split in splits:
        assert again.splits[split].figures() == report.splits[split].figures()
        assert again.splits[split].loss == report.splits[split].loss
    assert again.steps == STEPS


class Breaking(DataLoader[Tensor]):
    """A loader of PyTorch's with random numbers of its own, which can break down at a batch."""

    def __init__(self, breaks_at: int | None = None) -> None:
        x = torch.randn(24, 32, generator=torch.Generator().manual_seed(5))
        super().__init__(x, 6, shuffle=True, generator=torch.Generator().manual_seed(3))  # pyright: ignore[reportArgumentType]
        object.__setattr__(self, "left", breaks_at)

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            if self.left == 0:
                raise Killed
            if self.left is not None:
                object.__setattr__(self, "left", self.left - 1)
            yield batch


@pytest.mark.parametrize("breaks_at", [4, 6, 9, 13])
@pytest.mark.parametrize("codec", ["transform", "deepcod"])
def test_a_loader_with_a_generator_of_its_own_goes_on_as_it_shuffled(codec: str, breaks_at: int, path: Path) -> None:
    breaks_at += 4 * (codec == "transform")  # a round goes before the first step
    unbroken, first, resumed = (wrapped(codec=codec, seed=seed) for seed in (3, 3, 99))
    report = fit(unbroken, Breaking(), None, recipe=None)
    with pytest.raises(Killed):
        fit(first, Breaking(breaks_at), path, recipe=None)
    again = fit(resumed, Breaking(), path, recipe=None)
    assert_same(unbroken, resumed)
    assert again.splits["input"].loss == report.splits["input"].loss


class Masked(nn.Module):
    """A mask crosses beside the feature, in more bytes or fewer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)) * mask)


class MaskedLoader(Loader):
    """Gives a mask with each batch, of one value or of many."""

    def __iter__(self) -> Iterator[Any]:
        for x, _ in super().__iter__():
            yield (x, torch.randint(1, 2 ** int(torch.randint(1, 9, ())), (6, 32))), "label"


def test_bytes_are_held_alike_where_tensors_cross_beside(path: Path) -> None:
    example = (torch.zeros(2, 32), torch.zeros(2, 32, dtype=torch.long))

    def masked() -> compoff.Wrapped:
        torch.manual_seed(3)
        return compoff.wrap(Masked(), "first", example_input=example)

    def held(model: compoff.Wrapped, loader: Loader, state: Path | None) -> compoff.FitReport:
        return fit(model, loader, state, recipe=None, target_bytes=40)

    unbroken, resumed = masked(), masked()
    report = held(unbroken, MaskedLoader(), None)
    with pytest.raises(Killed):
        held(masked(), MaskedLoader(12), path)
    assert held(resumed, MaskedLoader(), path).splits["first"].loss == report.splits["first"].loss
    assert_same(unbroken, resumed)


def test_a_fit_that_breaks_down_again_and_again(path: Path) -> None:
    unbroken = wrapped()
    fit(unbroken, Loader(), None)
    for _ in range(3):
        with pytest.raises(Killed):
            fit(wrapped(), Loader(8), path)  # counts the batches that are skipped
    resumed = wrapped()
    fit(resumed, Loader(), path)
    assert_same(unbroken, resumed)


def test_a_generator_of_the_same_batches_goes_on_too(path: Path) -> None:
    given = [torch.randn(6, 32) for _ in range(STEPS)]
    unbroken, resumed = wrapped(), wrapped()
    figures = fit(unbroken, iter(given), None).splits["input"].figures()

    def broken() -> Iterator[Tensor]:
        yield from given[:8]
        raise Killed

    with pytest.raises(Killed):
        fit(wrapped(), broken(), path)
    for _ in range(2):  # the second time nothing is left but to measure
        assert fit(resumed, iter(given), path).splits["input"].figures() == figures
        assert_same(unbroken, resumed)  # the tables, too


@pytest.mark.parametrize("given", ["loader", "generator"])
def test_a_finished_fit_returns_at_once(given: str, path: Path) -> None:
    first, second = wrapped(), wrapped(seed=99)
    report = fit(first, Loader(), path)
    again = fit(second, Loader() if given == "loader" else iter(list(Loader())), path, progress=False)
    assert again.splits["input"].loss == report.splits["input"].loss
    assert again.seconds == report.seconds
    assert min(again.measuring_seconds, report.measuring_seconds) > 0
    if given == "loader":
        assert_same(first, second)
        report.measuring_seconds = again.measuring_seconds  # which it does anew
        assert again.to_dict() == report.to_dict()


def test_a_real_kill(path: Path) -> None:
    """A process of its own kills itself in the middle of a round; this one goes on from what it left."""
    script = textwrap.dedent("""
        import importlib, runpy, sys
        from pathlib import Path
        tests = runpy.run_path(sys.argv[1])
        importlib.import_module("compoff.fitting.keeper")._SAVE_EVERY = 3
        tests["fit"](tests["wrapped"](), tests["Loader"](8, kill=True), Path(sys.argv[2]))
    """)
    paths = f"{Path(compoff.__file__).parents[1]}{os.pathsep}{os.environ['PYTHONPATH']}"
    environment = {**os.environ, "PYTHONPATH": paths}
    killed = subprocess.run([sys.executable, "-c", script, __file__, path], env=environment, timeout=100, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert json.loads(stored(path)[0]["state"])["step"] == 6
    unbroken, resumed = wrapped(), wrapped(seed=99)
    expected, report = fit(unbroken, Loader(), None), fit(resumed, Loader(), path)
    assert_same(unbroken, resumed)
    assert report.splits["input"].loss == expected.splits["input"].loss


def test_after_resuming_the_last_good_state_is_the_resumed_one(path: Path) -> None:
    with pytest.raises(Killed):
        fit(wrapped(), Loader(8), path)
    resumed = wrapped(seed=99)
    with pytest.raises(FitError, match="NaN"):
        fit(resumed, [torch.full((6, 32), torch.nan)] * 8, path)
    expected = stored(path)[1]
    for name, tensor in resumed.bottlenecks.state_dict().items():
        assert torch.equal(tensor, expected[f"bottlenecks.{name}"]), name


# -- files that do not belong to the fit -----------------------------------------------------------------------------


def stored(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def refused(model: compoff.Wrapped, path: Path, words: str, **options: Any) -> None:
    before = {name: tensor.clone() for name, tensor in model.bottlenecks.state_dict().items()}
    content = path.read_bytes()
    with pytest.raises(FitError, match=words):
        fit(model, Loader(), path, **options)
    for name, tensor in model.bottlenecks.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 2}, "seed=1, and this one has seed=2"),
        ({"steps": 15}, "steps=14, and this one has steps=15"),
        ({"lr": 0.5}, "lr=0.003, and this one has lr=0.5"),
        ({"rate": 0.5}, "rate=0.0, and this one has rate=0.5"),
        (
            {"recipe": Recipe(distillation=2.0)},
            r"recipe\.distillation=1\.0, and this one has recipe\.distillation=2\.0",
        ),
    ],
)
def test_the_file_of_a_fit_with_other_arguments_is_refused(options: dict[str, Any], words: str, path: Path) -> None:
    fit(wrapped(), Loader(), path)
    refused(wrapped(), path, words, **options)


@pytest.mark.parametrize(
    ("splits", "options", "words"),
    [
        (("2",), {}, "split_points="),
        (("input", "2"), {}, "split_points="),
        (("input",), {"weights": 12}, "model="),
        (("input",), {"channels": 7}, r"shape \(64, 2\) for input\.decoder.*and this fit has shape \(64, 7\)"),
        (("input",), {"num_centers": 4}, r"input\.prior\.logits"),
        (("input",), {"encoder": Noisy}, "input.encoder.layer"),
    ],
)
def test_the_file_of_a_fit_of_another_model_is_refused(
    splits: tuple[str, ...], options: dict[str, Any], words: str, path: Path
) -> None:
    fit(wrapped(), Loader(), path)
    refused(wrapped(*splits, **options), path, words)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "header", "flipped", "foreign", "loss"])
def test_a_damaged_file_is_refused(damage: str, path: Path) -> None:
    fit(wrapped(), Loader(), path)
    content = bytearray(path.read_bytes())
    if damage == "empty":
        content.clear()
    elif damage == "text":
        content[:] = b"not a checkpoint"
    elif damage == "truncated":
        del content[-100:]
    elif damage == "header":
        content[20] ^= 0xFF
    elif damage == "flipped":
        content[-1000] ^= 1
    if damage == "foreign":
        save_file({"weight": torch.zeros(3)}, path)
    elif damage == "loss":
        metadata, tensors = stored(path)
        metadata["state"] = metadata["state"].replace('"step": 14', '"step": 13')
        save_file(tensors, path, metadata)
    else:
        path.write_bytes(content)
    refused(wrapped(), path, "is not the state of a fit|is damaged")


def test_a_folder_in_the_place_of_the_file_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(FitError, match=r"resume is '.*', which cannot be written; give the path of a file"):
        fit(wrapped(), Loader(), path)


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FitError, match="whose folder cannot be made"):
        compoff.fit(wrapped(), [], steps=1, resume=tmp_path / "file" / "state")


def test_a_file_of_the_first_version_still_goes_on(path: Path) -> None:
    unbroken, resumed = wrapped(), wrapped(seed=99)
    fit(unbroken, Loader(), None)
    with pytest.raises(Killed):
        fit(wrapped(), Loader(8), path)
    metadata, tensors = stored(path)
    settings = json.loads(metadata["settings"])
    del settings["model"], tensors["rng_now"]
    save_file(tensors, path, {"settings": json.dumps(settings), "state": metadata["state"]})
    fit(resumed, Loader(), path)
    assert_same(unbroken, resumed)


def test_the_file_of_another_codec_is_refused_by_its_name(path: Path) -> None:
    fit(wrapped(), Loader(), path)
    refused(
        wrapped(codec="transform"), path, "recipe.codec=deepcod, and this one has recipe.codec=transform", recipe=None
    )


def test_no_draft_is_left_behind(path: Path) -> None:
    fit(wrapped(), Loader(), path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
