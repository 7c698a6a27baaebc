"""Tails of several split points of one model: their weights once on disk and once in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import compoff
from compoff.errors import ArtifactError
from compoff.operations.settings import Settings, TailPlace
from compoff.operations.worker import Worker
from tests.small_networks import tiny_decoder, tiny_encoder

if TYPE_CHECKING:
    from pathlib import Path

Pairs = dict[str, tuple[compoff.Head, compoff.Tail]]
SPLITS = ("2", "4")


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    torch.manual_seed(0)
    layers = [
        nn.Linear(16, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 96),
        nn.ReLU(),
        nn.Linear(96, 3),
    ]
    model = compoff.wrap(
        nn.Sequential(*layers).eval(),
        SPLITS,
        example_input=torch.zeros(2, 16),
        encoder=tiny_encoder,
        decoder=tiny_decoder,
    )
    return {split: compoff.export(model, split) for split in SPLITS}


@pytest.fixture
def folder(pairs: Pairs, tmp_path: Path) -> Path:
    for split, (_, tail) in pairs.items():
        tail.save(tmp_path / split / "tail", weights=tmp_path / "weights")
    return tmp_path


def pointers(tail: compoff.Tail) -> set[int]:
    program = tail.backend._program  # type: ignore[attr-defined]
    return {tensor.data_ptr() for tensor in program.exported.state_dict.values()}


def test_weights_are_on_disk_once_and_everything_comes_back(pairs: Pairs, folder: Path, tmp_path: Path) -> None:
    stored = sorted(path.stat().st_size for path in (folder / "weights").iterdir())
    assert stored == sorted(4 * size for size in (64 * 64, 64 * 96))
    for split, (head, tail) in pairs.items():
        again = compoff.Tail.load(folder / split)
        payload = head(torch.randn(3, 16))
        assert torch.equal(again(payload), tail(payload))
        assert again.backend.files == tail.backend.files
        again.save(tmp_path / "whole" / split)
        assert (tmp_path / "whole" / split / "tail.pt2").read_bytes() == tail.backend.files["tail.pt2"]


def test_a_tail_that_is_saved_again_where_it_was_still_shares_its_weights(pairs: Pairs, folder: Path) -> None:
    names = ["manifest.yaml", "tables.safetensors", "tail.pt2.parts"]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for split in SPLITS:
        compoff.Tail.load(folder / split).save(folder / split / "tail")
        assert sorted(path.name for path in (folder / split / "tail").iterdir()) == names
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    next((folder / "weights").iterdir()).unlink()
    pairs["2"][1].save(folder / "2" / "tail")  # what is missing is made again
    compoff.Tail.load(folder / "2")


def test_another_tail_in_its_place_has_everything_in_its_folder(pairs: Pairs, folder: Path) -> None:
    pairs["4"][1].save(folder / "2" / "tail")
    assert sorted(path.name for path in (folder / "2" / "tail").iterdir()) == [
        "manifest.yaml", "tables.safetensors", "tail.pt2",
    ]  # fmt: skip
    assert compoff.Tail.load(folder / "2").manifest == pairs["4"][1].manifest


def test_weights_that_have_gone_do_not_keep_a_tail_from_being_saved(pairs: Pairs, folder: Path) -> None:
    for path in (folder / "weights").iterdir():
        path.unlink()
    (folder / "weights").rmdir()
    pairs["2"][1].save(folder / "2" / "tail")
    assert compoff.Tail.load(folder / "2").manifest == pairs["2"][1].manifest


def test_a_folder_that_is_moved_with_its_weights_still_loads(pairs: Pairs, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in (*SPLITS, "weights"):
        (folder / name).rename(tmp_path / "elsewhere" / name)
    assert compoff.Tail.load(tmp_path / "elsewhere" / "4").manifest == pairs["4"][1].manifest


@pytest.mark.parametrize("damage", ["missing", "flipped", "short", "long", "folder"])
def test_a_weight_that_is_not_what_was_saved_is_refused_and_saved_anew(pairs: Pairs, folder: Path, damage: str) -> None:
    for path in (folder / "weights").iterdir():
        data = path.read_bytes()
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage != "missing":
            path.write_bytes(
                {"flipped": data[:-1] + bytes([data[-1] ^ 1]), "short": data[:-1], "long": data + b"0"}[damage]
            )
    with pytest.raises(ArtifactError, match=r"tail\.pt2\.parts: .*again|copy the whole folder|not a regular file"):
        compoff.Tail.load(folder / "2")
    if damage != "folder":
        pairs["2"][1].save(folder / "2" / "tail", weights=folder / "weights")
        compoff.Tail.load(folder / "2")


def test_tails_that_are_loaded_with_one_pool_share_memory(pairs: Pairs, folder: Path) -> None:
    pool = compoff.WeightPool()
    one, other = (compoff.Tail.load(folder / split, pool=pool) for split in SPLITS)
    alone = compoff.Tail.load(folder / "4")
    shared = pointers(one) & pointers(other)
    assert len(shared) >= 4  # weights and biases of the two layers behind the later split
    assert not pointers(alone) & pointers(other)
    before = pool.nbytes
    compoff.Tail.load(folder / "4", pool=pool)
    assert pool.nbytes == before
    for split, tail in zip(SPLITS, (one, other), strict=True):
        payload = pairs[split][0](torch.randn(3, 16))
        assert torch.equal(tail(payload), pairs[split][1](payload))
        assert tail.backend.files == pairs[split][1].backend.files


def test_a_server_shares_what_its_tails_have_in_common(folder: Path) -> None:
    worker = Worker(Settings(tuple(TailPlace(folder / split) for split in SPLITS), "127.0.0.1:0"))
    try:
        one, other = worker._tails
        assert pointers(one) & pointers(other)
    finally:
        worker.stop()


def test_dtypes_and_odd_layouts_keep_what_they_are() -> None:
    pool = compoff.WeightPool()
    for tensor in (
        torch.tensor([True, False]),
        torch.tensor(3.0),
        torch.zeros(0),
        torch.randn(3, 4).T,
        torch.randn(2, 3, dtype=torch.float64),
        torch.randn(4, dtype=torch.bfloat16),
        nn.Parameter(torch.randn(3)),
    ):
        shared = pool.share(tensor)
        assert type(shared) is type(tensor)
        assert (shared.dtype, shared.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(shared, tensor)
    ints, floats = pool.share(torch.zeros(4, dtype=torch.int32)), pool.share(torch.zeros(2, 2))
    assert ints.data_ptr() == floats.data_ptr()
