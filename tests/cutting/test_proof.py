"""Models whose parts would answer otherwise than they do are refused when they are exported, and left as they were."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.cutting.inputs import ExampleInputs
from compoff.cutting.proof import _alike, _mixes, check_sizes, prove
from compoff.errors import SplitError
from tests.small_networks import Plain, tiny_decoder, tiny_encoder

if TYPE_CHECKING:
    from collections.abc import Callable


class Net(nn.Module):
    """Two layers, and what a test puts behind or between them."""

    seen: Tensor

    def __init__(
        self, between: Callable[[Tensor], Tensor] | None = None, behind: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.between, self.behind = between or (lambda z: z), behind or (lambda z: z)
        self.register_buffer("seen", torch.zeros(512))

    def forward(self, x: Tensor) -> Tensor:
        z = self.between(self.a(x))
        return self.behind(self.b(z).flatten(1))


def exported(
    net: nn.Module,
    split: str = "b",
    max_batch: int = 256,
    *,
    calibrated: bool = True,
    codec: Literal["transform", "deepcod", "tiny"] = "transform",
    drawn: Callable[..., Tensor] = torch.randn,
) -> tuple[compoff.Head, compoff.Tail]:
    torch.manual_seed(0)
    how: dict[str, Any] = {"encoder": tiny_encoder, "decoder": tiny_decoder} if codec == "tiny" else {"codec": codec}
    wrapped = compoff.wrap(net.eval(), split, example_input=drawn(2, 3, 8, 8), **how)
    if calibrated and codec == "transform":
        compoff.calibrate(wrapped, [drawn(64, 3, 8, 8), drawn(64, 3, 8, 8)])
    return compoff.export(wrapped, split, max_batch=max_batch)


BRANCHES = {
    "one": lambda z: z * 3 if z.shape[0] == 1 else z,
    "several": lambda z: z * 3 if z.shape[0] > 1 else z,
    "many": lambda z: z * 3 if z.shape[0] > 100 else z,
    "every fourth": lambda z: z * 3 if z.shape[0] % 4 == 0 else z,
}


@pytest.mark.parametrize("branch", BRANCHES.values(), ids=BRANCHES.keys())
@pytest.mark.parametrize("place", ["between", "behind"])
def test_code_that_looks_at_the_size_of_the_batch_is_refused(branch: Callable[[Tensor], Tensor], place: str) -> None:
    with pytest.raises(SplitError, match=r"answer a batch of .* otherwise than it does as a whole"):
        exported(Net(**{place: branch}), codec="tiny" if place == "behind" else "transform")


class Fourth(nn.Module):
    """Does something else with every fourth size of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 3 if x.shape[0] % 4 == 0 else x


def test_the_largest_batch_is_among_the_sizes() -> None:
    free = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(Fourth(), (torch.zeros(2, 3),), dynamic_shapes=free, strict=False)
    check_sizes(program, 3, "b")
    with pytest.raises(SplitError, match="would answer a batch of 4 otherwise"):
        check_sizes(program, 4, "b")


def test_what_is_not_finite_in_one_only_is_not_alike() -> None:
    numbers, spoilt = torch.tensor([0.0, 1.0]), torch.tensor([math.nan, 1.0])
    assert _alike([numbers], [numbers], None, 0.0)
    assert _alike([spoilt], [spoilt], None, 0.0)
    assert not _alike([spoilt], [numbers], None, 0.0)
    assert not _alike([numbers], [spoilt], None, 0.0)


def test_a_tail_that_answers_otherwise_every_time_is_not_said_to_mix() -> None:
    symbols = [torch.arange(24.0).reshape(3, 8)]
    for tail, mixes in (
        (lambda z: [z - z.mean(0)], True),
        (lambda z: [z + torch.randn_like(z) * 9], False),
        (lambda z: [z], False),
    ):
        assert _mixes(tail, symbols, 1, tail(*symbols)) is mixes


def test_what_a_tail_reads_in_another_order_than_it_arrives_in_is_refused() -> None:
    def tail(symbols: Tensor, side: Tensor) -> list[Tensor]:
        return [symbols + side.as_strided((len(side), 8), (8, 1))]  # as it lies in memory

    nothing = torch.fx.symbolic_trace(nn.Identity())
    for swap in (True, False):

        def head(x: Tensor, swap: bool = swap) -> list[Tensor]:
            side = x.unflatten(1, (2, 4))
            return [x, side.transpose(1, 2) if swap else side]

        def run(given: ExampleInputs, head: Callable[..., list[Tensor]] = head) -> tuple[list[Tensor], list[Tensor]]:
            parts = head(*given.tensors)
            return parts[:1], tail(*parts)

        example = ExampleInputs((torch.randn(2, 8),), batched=(True,))
        with pytest.raises(SplitError, match="otherwise than it does as a whole") if swap else contextlib.nullcontext():
            prove("b", example, run, head, tail, source=nothing, most=4, crossing=[True], leaves=[True])


def test_a_branch_beyond_the_largest_batch_does_no_harm() -> None:
    head, tail = exported(Net(behind=BRANCHES["many"]), max_batch=100, codec="tiny")
    assert tail(head(torch.randn(100, 3, 8, 8))).shape == (100, 512)


@pytest.mark.parametrize("mixing", [lambda z: z - z.mean(0), lambda z: z / z.shape[0], lambda z: z.cumsum(0)])
def test_samples_that_know_of_each_other_behind_the_cut_are_refused(mixing: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(SplitError, match="depends on the other samples of its batch"):
        exported(Net(behind=mixing), codec="tiny")


def test_statistics_of_the_batch_are_refused() -> None:
    norm = nn.BatchNorm1d(512, track_running_stats=False)
    with pytest.raises(SplitError, match="depends on the other samples of its batch"):
        exported(Net(behind=norm), codec="tiny")


@pytest.mark.parametrize(
    "mixing",
    [
        lambda z: 293 + 10 * (z - z.mean(0)),
        lambda z: 293 + 10 * z / z.shape[0],
        lambda z: torch.cat([1000 * z, z.cumsum(0)], 1),
        lambda z: (z - z.mean(0)).argmax(1),
    ],
    ids=["beside an offset", "by the size, beside an offset", "in a column of small numbers", "whole numbers"],
)
@pytest.mark.parametrize("max_batch", [2, 256])
def test_a_neighbor_is_seen_however_large_the_answers_are(mixing: Callable[[Tensor], Tensor], max_batch: int) -> None:
    with pytest.raises(SplitError, match="depends on the other samples of its batch"):
        exported(Net(behind=mixing), max_batch=max_batch, codec="deepcod")


def test_a_branch_is_seen_however_large_the_answers_are() -> None:
    with pytest.raises(SplitError, match=r"answer a batch of 1 otherwise than it does as a whole"):
        exported(Net(behind=lambda z: 293 + 10 * z * (3 if z.shape[0] == 1 else 1)), codec="deepcod")


def test_a_model_of_positive_numbers_is_tried_with_such() -> None:
    class Log(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.log())

    def positive(*shape: int) -> Tensor:
        return torch.rand(shape) + 0.1

    with pytest.raises(SplitError, match="depends on the other samples of its batch"):
        exported(Log(behind=lambda z: z - z.mean(0)), drawn=positive, codec="deepcod")
    exported(Log(), drawn=positive, codec="deepcod")


def test_token_ids_of_which_none_are_known_are_tried_with_two_sorts() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.b = nn.Embedding(4, 8), nn.Linear(8, 8)

        def forward(self, ids: Tensor) -> Tensor:
            z = self.b(self.embedding(ids)).mean(1)
            return z - z.mean(0)

    wrapped = compoff.wrap(Tokens().eval(), "b", example_input=torch.zeros(2, 16, dtype=torch.long), codec="deepcod")
    with pytest.raises(SplitError, match="depends on the other samples of its batch"):
        compoff.export(wrapped, "b")


@pytest.mark.parametrize(
    "fine",
    [
        lambda z: 293 + 0.01 * z,
        lambda z: (z.bfloat16() * 3).float() + 293,
        lambda z: z + 0.1 * torch.randn_like(z),
        lambda z: torch.zeros_like(z),
        lambda z: (z > 0, z.argmax(1), z),
        lambda z: z + torch.randn_like(z),
        lambda z: torch.where(z > 0, z, torch.nan),
        lambda z: z.softmax(1),
        lambda z: z.sort(1).values,
        lambda z: z.half(),
    ],
    ids=["offset", "half inside", "noise", "alike", "whole", "random", "not finite", "softmax", "sorted", "half"],
)
def test_what_is_the_same_but_for_rounding_or_chance_is_exported(fine: Callable[[Tensor], Tensor]) -> None:
    head, tail = exported(Net(behind=fine), calibrated=False)
    answer = tail(head(torch.randn(3, 3, 8, 8)))
    assert (answer[-1] if isinstance(answer, tuple) else answer).shape == (3, 512)


def test_what_could_not_be_tried_is_said(caplog: pytest.LogCaptureFixture) -> None:
    exported(Net(behind=lambda z: z.where(z > 0, torch.nan)), calibrated=False)
    assert "could not be tried with several samples" in caplog.text
    caplog.clear()
    exported(Net(), calibrated=False)
    assert "could not be tried" not in caplog.text


def test_an_answer_about_the_whole_batch_is_one_of_a_request_of_its_own() -> None:
    head, tail = exported(Net(behind=lambda z: (z, z.mean(0))))
    assert [(spec.shape, spec.batched) for spec in tail.manifest.outputs] == [((512,), True), ((512,), False)]
    each, mean = tail(head(torch.randn(3, 3, 8, 8)))
    torch.testing.assert_close(mean, each.mean(0), atol=1e-5, rtol=1e-5)


def test_a_model_that_remembers_is_refused_and_left_as_it_was() -> None:
    class Remembers(Net):
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            self.seen.mul_(0.5).add_(0.5 * z.detach().mean(0))
            return z - self.seen

    net = Remembers().eval()
    compoff.list_split_points(net, torch.randn(2, 3, 8, 8))
    wrapped = compoff.wrap(net, "b", example_input=torch.randn(2, 3, 8, 8))
    with pytest.raises(SplitError, match="changes its own buffer 'seen'") as caught:
        compoff.export(wrapped, "b")
    assert "tail_factory" not in str(caught.value), "a tail that runs the model itself would mix what devices send"
    assert not net.seen.any()


class Attending(nn.Module):
    """Takes a mask of whole numbers, under zeros of which it sees nothing at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(32, 32), nn.TransformerEncoderLayer(32, 2, 32, batch_first=True))
        self.score = nn.Linear(32, 4)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        y = self.layers[1](self.layers[0](x), src_key_padding_mask=attention_mask == 0)
        return self.score(y.mean(1))


def test_a_mask_that_hides_everything_says_nothing_of_the_halves() -> None:
    net, mask = Attending().eval(), torch.ones(2, 8, dtype=torch.long)
    wrapped = compoff.wrap(net, "layers.1", example_input=(torch.randn(2, 8, 32), mask), codec="deepcod")
    head, tail = compoff.export(wrapped, "layers.1")
    assert tail(head(torch.randn(2, 8, 32), mask)).shape == (2, 4)


FIXED: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (lambda z: torch.stack([one + 1.0 for one in z]), ""),
    (lambda z: z.reshape(len(z), -1) + 1.0, " or before"),  # no function of PyTorch
]


@pytest.mark.parametrize(("behind", "when"), FIXED, ids=["loop", "len"])
def test_a_batch_that_becomes_a_number_is_explained(behind: Callable[[Tensor], Tensor], when: str) -> None:
    place = rf"\(\S*test_proof.py:{behind.__code__.co_firstlineno}{when}\)"
    causes = r"a loop over the samples .*len\(x\).*use x.shape\[0\].*first axis .* is not the batch"
    with pytest.raises(SplitError, match=f"{place}: the size of the batch becomes a fixed number .*{causes}"):
        exported(Net(behind=behind), calibrated=False)


def test_the_numbers_of_the_caller_are_left_alone() -> None:
    net = Net()
    wrapped = compoff.wrap(net.eval(), "b", example_input=torch.randn(2, 3, 8, 8))
    before = torch.get_rng_state()
    compoff.export(wrapped, "b")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:.*[Ss]parse invariant:UserWarning")
@pytest.mark.parametrize("sort", ["sparse", "meta", "of inference mode"])
def test_buffers_of_every_sort_are_looked_past(sort: str) -> None:
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode(mode=sort == "of inference mode"):
        net = Net().eval()
    if sort == "sparse":
        net.register_buffer("other", torch.eye(3).to_sparse())
    if sort == "meta":
        net, x = net.to("meta"), x.to("meta")
    assert [point.path for point in compoff.list_split_points(net, x)] == ["a", "b"]


class Halves(Plain):
    """Computes in half precision inside, and takes and returns single precision."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


@pytest.mark.parametrize(("seed", "split"), [(1, "block2"), (3, "classifier")])
def test_a_model_that_computes_in_half_precision_inside_is_exported(seed: int, split: str) -> None:
    torch.manual_seed(seed)
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wrapped = compoff.wrap(Halves().eval(), split, example_input=x[:2])
    compoff.calibrate(wrapped, [x, x])
    head, tail = compoff.export(wrapped, split)
    assert tail(head(x[:3])).shape == (3, 5)
