"""The list of split points, its table and plot, and what "auto" takes of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.errors import SplitError
from tests.small_networks import Plain, Skip, marks, same, values


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


def test_macs_are_those_of_the_layers() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    points = compoff.list_split_points(net, images(5))
    first, second, last = 3 * 8 * 9 * 64, 2 * 8 * 9 * 16, 128 * 10
    assert [(point.path, point.macs) for point in points] == [("0", 0), ("2", first), ("4", first + second)]
    assert points.macs == first + second + last
    assert points[1].share == pytest.approx(first / points.macs)
    assert points[1].raw_bytes == 8 * 64 * 4


def test_recurrent_layers_and_attention_count() -> None:
    rnn = nn.Sequential(nn.Linear(6, 6), nn.LSTM(6, 4, batch_first=True))
    assert compoff.list_split_points(rnn, torch.randn(2, 9, 6)).macs == 9 * (6 * 6 + 4 * 4 * (6 + 4))

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.query(x)
            return nn.functional.scaled_dot_product_attention(y, y, y)

    assert compoff.list_split_points(Attention(), torch.randn(2, 5, 8)).macs == 5 * 8 * 8 + 2 * 5 * 5 * 8


class Masked(nn.Module):
    """Attention over embedded tokens, with an additive mask that is made last."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(tokens)
        hidden = torch.zeros(mask.shape).masked_fill(mask == 0, float("-inf"))
        return self.out((x + self.attend(x, x, x, key_padding_mask=hidden)[0]).mean(1))


def test_a_mask_is_never_what_enters() -> None:
    tokens, mask = torch.ones(2, 16, dtype=torch.long), torch.ones(2, 16, dtype=torch.long)
    points = {point.path: point for point in compoff.list_split_points(Masked(), (tokens, mask))}
    assert points["attend"].shape == (16, 8)
    site = compoff.wrap(Masked(), "attend", example_input=(tokens, mask)).sites["attend"]
    assert [feature.shape for feature in site.features] == [(16, 8)]


def test_only_clean_ones_are_listed_unless_asked() -> None:
    clean = [point.path for point in compoff.list_split_points(Skip(), images())]
    everything = {point.path: point for point in compoff.list_split_points(Skip(), images(), clean=False)}
    assert clean == ["stem", "block1", "classifier"]
    assert everything["block2"].skips == 1
    assert not everything["block2"].clean
    assert everything["block2"].raw_bytes == 2 * 8 * 64 * 4


def test_the_model_is_left_as_it_was() -> None:
    net = Plain()
    flags, before = marks(net), values(net)
    compoff.list_split_points(net, images())
    assert marks(net) == flags
    assert same(values(net), before)


def test_calls_of_one_module_are_told_apart() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x).relu())

    points = compoff.list_split_points(Twice(), torch.randn(2, 32))
    assert [point.path for point in points] == ["layer#0", "layer#1"]
    model = compoff.wrap(Twice(), "layer#1", example_input=torch.randn(2, 32))
    assert model.split_points == ("layer#1",)


def test_the_table_and_the_plot() -> None:
    points = compoff.list_split_points(Plain(), images())
    table = str(points).splitlines()
    assert table[0].startswith("Plain: 4 split points, ")
    assert len({line.index("MACs before") for line in table if "MACs before" in line}) == 1
    assert len(table) == 2 + len(points)
    assert repr(points) == str(points)
    assert len(points.plot().axes[0].patches) == len(points)
    assert points[points[0].path] is points[0]
    with pytest.raises(SplitError, match=f"'nowhere' is not in this list .*; there are '{points[0].path}'"):
        points["nowhere"]
    assert [point.path for point in points[:2]] == ["stem", "block1"]


def test_auto_is_known_at_once_or_after_the_first_batch() -> None:
    chosen = compoff.wrap(Plain(), "auto", example_input=images()).split_points
    assert chosen
    later = compoff.wrap(Plain(), "auto")
    later(images())
    assert later.split_points == chosen


def test_auto_says_where_there_is_nothing_to_choose() -> None:
    with pytest.raises(SplitError, match=r"Linear has no block start .*list_split_points"):
        compoff.wrap(nn.Linear(32, 5), "auto", example_input=torch.randn(2, 32))


def test_a_module_called_auto_is_a_module() -> None:
    net = nn.Sequential()
    net.add_module("first", nn.Linear(32, 32))
    net.add_module("auto", nn.Linear(32, 5))
    assert compoff.wrap(net, "auto", example_input=torch.randn(2, 32)).split_points == ("auto",)


def test_a_wrapped_model_is_refused_since_its_modules_have_other_names() -> None:
    model = compoff.wrap(Plain(), "block1", example_input=torch.randn(2, 3, 16, 16))
    for given in (model, model.base):
        with pytest.raises(SplitError, match=r"wrapped already; list its split points before compoff.wrap"):
            compoff.list_split_points(given, torch.randn(2, 3, 16, 16))
    points = compoff.list_split_points(model.unwrap(), torch.randn(2, 3, 16, 16))
    assert "block1" in [point.path for point in points]


class Named(nn.Module):
    """Has a module by the name of the place before the whole model."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.input = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.input(self.stem(x).relu())


def test_a_module_that_is_called_input_is_listed_by_its_number() -> None:
    points = compoff.list_split_points(Named(), images())
    assert [point.path for point in points] == ["stem", "input#0"]
    wrapped = compoff.wrap(Named(), ["input#0"], example_input=images())
    assert wrapped.sites["input#0"].features[0].shape == points["input#0"].shape == (8, 8, 8)
    assert compoff.wrap(Named(), "input", example_input=images()).sites["input"].features[0].shape == (3, 8, 8)
