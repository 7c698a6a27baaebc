"""export(): head and tail together are the student, for any model that can be cut."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compoff
from benchmarks.networks import load_cifar_resnet, load_pqf, read_cifar10, read_imagenet_val
from compoff.cutting.capture import capture
from compoff.cutting.inputs import ExampleInputs
from compoff.device.binding import CallForm
from compoff.errors import ArtifactError, FeatureError, SplitError
from compoff.exporting import _call, _missing
from compoff.manifest import TensorSpec
from tests.small_networks import (
    BatchInside,
    DataDependent,
    EarlyOutput,
    FunctionalRelu,
    IdentityBehind,
    IdentitySkip,
    InputSkip,
    Nested,
    Plain,
    Skip,
    TwoInputs,
    assert_close,
    tiny_decoder,
    tiny_encoder,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def images(batch: int = 2, *size: int) -> Tensor:
    return torch.randn(batch, 3, *(size or (8, 8)))


def assert_equal_to_student(
    wrapped: compoff.Wrapped, split: str, pair: tuple[compoff.Head, compoff.Tail], *inputs: Tensor
) -> None:
    head, tail = pair
    with wrapped.eval().at(split), torch.no_grad():
        expected = wrapped(*inputs)
    assert_close(tail(bytes(head(*inputs))), expected)


def tiny(net: nn.Module, *splits: str, example: Any = None) -> compoff.Wrapped:
    """Wrapped with a codec that exports in a moment."""
    example = images() if example is None else example
    return compoff.wrap(net, splits, example_input=example, encoder=tiny_encoder, decoder=tiny_decoder)


@pytest.mark.parametrize("net", [Plain, Skip])
def test_ships_only_the_channels_that_are_sent(net: type[nn.Module], tmp_path: Path) -> None:
    x = images(4)
    wrapped = compoff.wrap(net(), "block1", example_input=x)
    compoff.calibrate(wrapped, [x])
    for bottleneck in wrapped.bottlenecks_at("block1"):
        counts = torch.zeros(bottleneck.latent_shape[0], 255)
        counts[:, 127] = 1e7
        counts[:9, 100:155] = 1e5
        bottleneck.prior.count(counts)
        assert bottleneck.latent_shape[0] > 32
    pair = compoff.export(wrapped, "block1")
    assert_equal_to_student(wrapped, "block1", pair, x)
    for part, folder in zip(pair, (tmp_path / "head", tmp_path / "tail"), strict=True):
        part.save(folder)
        assert {code.latent_shape[0] for code in part.manifest.codes} == {32}
    assert_equal_to_student(
        wrapped, "block1", (compoff.Head.load(tmp_path / "head"), compoff.Tail.load(tmp_path / "tail")), x
    )


@pytest.mark.parametrize("split", ["input", "block2", "classifier"])
def test_head_and_tail_are_the_student(split: str) -> None:
    wrapped = compoff.wrap(Plain(), split, example_input=images(1))
    pair = compoff.export(wrapped, split)
    for batch in (1, 3, 64):
        assert_equal_to_student(wrapped, split, pair, images(batch))


@pytest.mark.parametrize(
    ("make", "split"),
    [
        (Plain, "stem.2"),
        (Skip, "block1"),
        (IdentitySkip, "block1"),
        (IdentityBehind, "block1"),
        (InputSkip, "stem"),
        (FunctionalRelu, "block1"),
        (EarlyOutput, "block1"),
        (Nested, "block1"),
        (BatchInside, "block1"),
    ],
)
def test_head_and_tail_are_the_student_for_any_model(make: Callable[[], nn.Module], split: str) -> None:
    wrapped = tiny(make(), split)
    pair = compoff.export(wrapped, split)
    for batch in (1, 3, 64):
        assert_equal_to_student(wrapped, split, pair, images(batch))


def test_several_inputs() -> None:
    wrapped = tiny(TwoInputs(), "block1", example=(images(), images()))
    pair = compoff.export(wrapped, "block1")
    for batch in (1, 3, 64):
        assert_equal_to_student(wrapped, "block1", pair, images(batch), images(batch))


def test_sizes_that_do_not_fit_the_stride() -> None:
    wrapped = compoff.wrap(Plain(), "input", example_input=images(2, 7, 9))
    pair = compoff.export(wrapped, "input")
    for batch in (1, 3):
        assert_equal_to_student(wrapped, "input", pair, images(batch, 7, 9))


@pytest.mark.parametrize("shape", [(6, 7, 9), (12, 8)])
def test_a_feature_that_is_looked_at_as_a_flat_vector(shape: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.LayerNorm(shape[-1]), nn.Flatten(), nn.Linear(math.prod(shape), 5))
    wrapped = compoff.wrap(net, "1", example_input=torch.randn(2, *shape), codec="deepcod")
    pair = compoff.export(wrapped, "1")
    for batch in (1, 3):
        assert_equal_to_student(wrapped, "1", pair, torch.randn(batch, *shape))


def test_time_series() -> None:
    net = nn.Sequential(nn.Conv1d(2, 8, 5, padding=2), nn.ReLU(inplace=True), nn.Conv1d(8, 3, 5))
    wrapped = compoff.wrap(net, "2", example_input=torch.randn(2, 2, 50))
    pair = compoff.export(wrapped, "2")
    for batch in (1, 3):
        assert_equal_to_student(wrapped, "2", pair, torch.randn(batch, 2, 50))


def test_a_model_in_double_precision() -> None:
    wrapped = tiny(Plain(), "block1").to(torch.float64)
    head, tail = pair = compoff.export(wrapped, "block1")
    assert head.manifest.inputs[0].dtype == tail.manifest.outputs[0].dtype == "float64"
    assert_equal_to_student(wrapped, "block1", pair, images(3).double())


def test_a_fitted_model_from_its_folders_while_training_goes_on(tmp_path: Path) -> None:
    wrapped = compoff.wrap(Plain(), "block1")
    compoff.fit(wrapped, [images(16)], steps=4, progress=False)
    head, tail = compoff.export(wrapped, "block1")
    head.save(tmp_path / "head")
    tail.save(tmp_path / "tail")
    pair = compoff.Head.load(tmp_path), compoff.Tail.load(tmp_path)
    assert pair[0].manifest.report["bytes"] > 0
    for batch in (1, 3, 64):
        assert_equal_to_student(wrapped, "block1", pair, images(batch))
    x = images(3)
    before = tail(head(x))
    compoff.fit(wrapped, [images(16)], steps=2, progress=False)
    assert torch.equal(tail(head(x)), before)
    again = compoff.export(wrapped, "block1")
    assert_equal_to_student(wrapped, "block1", again, x)
    assert again[0].artifact_id != head.artifact_id


def test_export_inside_at_takes_only_its_own_bottleneck() -> None:
    wrapped = tiny(Plain(), "block1", "block2").eval()
    x = images(3)
    with wrapped.at("block1"), torch.no_grad():
        before = wrapped(x)
        pair = compoff.export(wrapped, "block2")
        assert torch.equal(wrapped(x), before)
    assert_equal_to_student(wrapped, "block2", pair, x)


# -- the id


def test_the_same_model_gives_the_same_id() -> None:
    wrapped = tiny(Plain(), "block1")
    first, second = (compoff.export(wrapped, "block1") for _ in range(2))
    assert first[0].artifact_id == first[1].artifact_id == second[0].artifact_id == second[1].artifact_id


def test_any_change_gives_another_id(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = tiny(Plain(), "block1", "block2")
    split, gate, bottleneck = "block1", wrapped.gate("block1"), wrapped.bottleneck("block1")
    programs = capture(wrapped.base, gate, split, wrapped.example_inputs(), most=8)
    monkeypatch.setattr(
        "compoff.exporting.capture", lambda *_, **__: programs
    )  # the id does not depend on the programs
    seen = {compoff.export(wrapped, split)[0].artifact_id}
    changed: list[Any] = [
        wrapped.base.stem[0].weight,
        wrapped.base.classifier.bias,
        wrapped.base.block2[1].running_var,
        bottleneck.encoder.weight,
        bottleneck.decoder.weight,
        bottleneck.quantizer.centers,
        bottleneck.quantizer.gain,
        bottleneck.prior.logits,
    ]
    for number, tensor in enumerate(changed, start=2):
        with torch.no_grad():
            tensor.view(-1)[0] += 1e-3
        seen.add(compoff.export(wrapped, split)[0].artifact_id)
        assert len(seen) == number
    seen.add(compoff.export(wrapped, split, max_batch=7)[0].artifact_id)
    wrapped._example = wrapped._example.map(lambda tensor: tensor.new_zeros(2, 3, 16, 16))
    seen.add(compoff.export(wrapped, split)[0].artifact_id)
    assert len(seen) == len(changed) + 3


# -- what cannot be exported


def everything(model: nn.Module) -> Any:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [
        (
            name,
            id(module),
            module.training,
            sorted(vars(module)),
            list(module._modules),
            list(module._parameters),
            list(module._buffers),
            [len(getattr(module, kind)) for kind in hooks],
        )
        for name, module in model.named_modules()
    ]


class ReturnsBatch(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x.shape[0]


class ReturnsTransposed(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).T


class ReturnsDeque(Plain):
    def forward(self, x: Tensor) -> Any:
        return deque([super().forward(x)])


class ReturnsNothing(Plain):
    def forward(self, x: Tensor) -> Any:
        super().forward(x)


class ReturnsBfloat16(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).bfloat16()


class FoldsTheBatch(Plain):
    def trunk(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = self.block1(y.reshape(-1, 8, 4, 8))
        return self.block2(y.reshape(-1, 8, 8, 8))


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (DataDependent, SplitError, "DataDependent cannot be exported at 'block1'"),
        (ReturnsBatch, SplitError, "a number that depends on the batch"),
        (ReturnsTransposed, SplitError, "where the batch is not the first axis"),
        (
            ReturnsDeque,
            ArtifactError,
            "the model returns a deque; expected tensors and plain constants in tuples, lists, dicts",
        ),
        (ReturnsNothing, SplitError, "returns no tensor|passed 0 times"),
        (ReturnsBfloat16, SplitError, "the model returns bfloat16, which numpy and the wire do not know"),
    ],
)
def test_what_cannot_be_exported_says_why_and_leaves_nothing_behind(
    make: Callable[[], nn.Module], error: type[Exception], reason: str
) -> None:
    wrapped = tiny(make(), "block1")
    before = everything(wrapped)
    state = {name: value.clone() for name, value in wrapped.state_dict().items()}
    with pytest.raises(error, match=reason):
        compoff.export(wrapped, "block1")
    assert everything(wrapped) == before
    assert all(torch.equal(value, state[name]) for name, value in wrapped.state_dict().items())
    gate = wrapped.gate("block1")
    assert (gate.on, gate.replace) == (False, None)


def test_a_batch_that_is_folded_into_another_axis_is_refused_before_anything_is_changed() -> None:
    net = FoldsTheBatch()
    before = everything(net)
    with pytest.raises(SplitError, match=r"crosses at 'block1' .*\(4, 8, 4, 8\); expected a batch of 2"):
        tiny(net, "block1")
    assert everything(net) == before


def test_unknown_shapes_and_names_are_refused() -> None:
    wrapped = compoff.wrap(Plain(), "block1")
    with pytest.raises(SplitError, match="not known yet"):
        compoff.export(wrapped, "block1")
    wrapped(images())
    with pytest.raises(SplitError, match="'block2' is not a split point"):
        compoff.export(wrapped, "block2")


def test_a_batch_limit_out_of_range_is_refused() -> None:
    wrapped = tiny(Plain(), "block1")
    with pytest.raises(ArtifactError, match="max_batch is 0; expected a whole number of at least 1"):
        compoff.export(wrapped, "block1", max_batch=0)


# -- real weights; the bottlenecks are as they start


@pytest.mark.data
@pytest.mark.parametrize("split", ["input", "layer1", "layer2", "layer3"])
def test_cifar_resnet56(data: Path, split: str) -> None:
    pictures, _ = read_cifar10("test", data)
    wrapped = compoff.wrap(load_cifar_resnet(56, data), split, example_input=pictures[:1])
    compoff.calibrate(wrapped, [pictures[:16]])
    pair = compoff.export(wrapped, split)
    for batch in (1, 3, 64):
        assert_equal_to_student(wrapped, split, pair, pictures[100 : 100 + batch])


@pytest.mark.data
@pytest.mark.parametrize("split", ["input", "layer1", "layer2", "layer3", "layer4"])
def test_pqf_resnet18(data: Path, split: str) -> None:
    pictures, _ = next(read_imagenet_val(data, limit=3, batch_size=3))
    net = load_pqf("resnet18", data)
    for batches, inputs in (((1, 3), pictures), ((64,), images(64, 64, 64))):
        wrapped = compoff.wrap(net, split, example_input=inputs[:1], channels=4)
        compoff.calibrate(wrapped, [inputs[:3]])
        pair = compoff.export(wrapped, split)
        for batch in batches:
            assert_equal_to_student(wrapped, split, pair, inputs[:batch])
        wrapped.unwrap()


def test_a_codec_that_was_not_fitted_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = compoff.wrap(Plain(), "block2", example_input=images())
    compoff.export(model, "block2")
    assert "the codec at 'block2' has not been fitted, so its answers are not the model's" in caplog.text


def test_what_was_left_out_at_one_of_several_bottlenecks_is_told() -> None:
    bottlenecks = tiny(Skip(), "block2").bottlenecks_at("block2")
    assert len(bottlenecks) == 2
    bottlenecks[0].calibrated.fill_(True)
    assert _missing("block2", bottlenecks).startswith("the codec at 'block2' has not been fitted")
    bottlenecks[1].calibrated.fill_(True)
    for one in bottlenecks:
        assert "have not been counted, so its payloads are as long as they can be" in _missing("block2", bottlenecks)
        one.prior.count(torch.tensor([[3, *[1] * (one.num_centers - 1)]] * one.latent_shape[0]))
    assert _missing("block2", bottlenecks) == ""


class Gained(nn.Module):
    def forward(self, x: Tensor, gain: float = 2.0, *, shift: Any = 1.0) -> Tensor:
        return x * gain + shift


class OfAnObject(nn.Module):
    def forward(self, x: Tensor, gain: Any = torch) -> Tensor:
        return gain.relu(x)


def test_a_head_knows_the_defaults_of_what_was_left_out_where_they_can_be_written_down() -> None:
    x = images()
    example, given = ExampleInputs((x,), batched=(True,)), [TensorSpec((3, 8, 8), "float32")]
    form = CallForm(_call(Gained(), example), given)
    assert form.bind((x, 2.0), {"shift": 1.0}) == form.bind((), {"gain": 2.0, "x": x}) == [x]
    with pytest.raises(FeatureError, match=r"'gain' is 3\.0 and became the constant 2\.0 at the export"):
        form.bind((x,), {"gain": 3.0})
    plain = CallForm(_call(OfAnObject(), example), given)
    assert plain.bind((), {"x": x}) == [x]
    with pytest.raises(FeatureError, match="there is no 'gain'"):
        plain.bind((x,), {"gain": torch})


def test_a_model_that_is_not_wrapped_says_so() -> None:
    with pytest.raises(SplitError, match=r"Plain is no wrapped model; give what compoff\.wrap"):
        compoff.export(Plain(), "block2")  # type: ignore[arg-type]


def test_an_export_is_its_own_whatever_becomes_of_the_model() -> None:
    net = Plain().eval()
    wrapped = compoff.wrap(net, "input", example_input=images(), encoder=tiny_encoder, decoder=tiny_decoder)
    head, tail = compoff.export(wrapped, "input")
    payload, expected = head(images()), tail(head(images(1))).clone()
    before = tail(payload).clone()
    with torch.no_grad():
        for parameter in wrapped.parameters():
            parameter.mul_(0.5)
    assert torch.equal(tail(payload), before)
    wrapped.half()
    assert torch.equal(tail(payload), before)
    assert tail(head(images(1))).shape == expected.shape


def test_a_model_that_writes_to_its_input_is_exported_as_if_it_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Normalizing(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(0.5).div_(0.5))

    model = tiny(Normalizing().eval(), "stem.2", example=(example := images()))
    before = example.clone()
    # Where the model answers otherwise each time, its halves cannot be compared with it, and are not.
    monkeypatch.setattr("compoff.cutting.proof._random", lambda *_: pytest.fail("the model seems to draw"))
    head, tail = compoff.export(model, "stem.2")
    assert torch.equal(example, before)
    assert not any(tensor.any() for tensor in model.example_inputs().tensors)
    with model.eval().at("stem.2"), torch.no_grad():
        expected = model(before.clone())
    assert_close(tail(bytes(head(example))), expected)
    assert torch.equal(example, before)


def test_inputs_are_known_by_name_whatever_their_order() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g = nn.Linear(32, 5), nn.Linear(32, 5)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.f(a) - self.g(b)

    torch.manual_seed(0)
    batch = {"b": 3 * torch.randn(64, 32), "a": torch.randn(64, 32)}
    answers: list[Tensor] = []
    for order in (("b", "a"), ("a", "b")):
        torch.manual_seed(1)
        named = {name: batch[name] for name in order}
        model = compoff.wrap(Two().eval(), "input", example_input=named)
        compoff.calibrate(model, [named], target_bytes=40)
        model.eval()
        with torch.no_grad(), model.at("input"):
            forms = [model(**batch), model(a=batch["a"], b=batch["b"]), model(batch["a"], batch["b"])]
        assert all(torch.equal(one, forms[0]) for one in forms)
        head, tail = compoff.export(model, "input")
        assert_close(tail(head(**named)), forms[0])
        answers.append(forms[0])
    assert torch.equal(answers[0], answers[1])


@pytest.mark.parametrize("change", ["number", "buffer"])
def test_an_id_is_that_of_what_is_computed_not_only_of_the_weights(change: str) -> None:
    class Scaled(Plain):
        def __init__(self, number: float, buffer: float) -> None:
            super().__init__()
            self.number = number
            self.register_buffer("shift", torch.full((1,), buffer), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.number * super().forward(x) + self.shift

    found: list[str] = []
    for number, buffer in ((2.0, 1.0), (2.0, 1.0), (3.0, 1.0) if change == "number" else (2.0, 3.0)):
        torch.manual_seed(0)
        net = Scaled(number, buffer).eval()
        wrapped = compoff.wrap(net, "input", example_input=images(), encoder=tiny_encoder, decoder=tiny_decoder)
        found.append(compoff.export(wrapped, "input")[0].artifact_id)
    assert found[0] == found[1] != found[2]


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3)).eval()
    wrapped = compoff.wrap(net, "1", example_input=images(), codec="deepcod", channels=np.int64(4), stride=np.int32(2))
    head, tail = compoff.export(wrapped, "1", max_batch=np.int64(8))
    head.save(tmp_path / "head")
    wrapped.save(tmp_path / "bottlenecks.safetensors")
    assert head.manifest.max_batch == 8
    flipped = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)[::-1]
    assert bytes(head(flipped)) == bytes(head(flipped.copy()))
    assert tail(head(flipped)).shape == (1, 8, 6, 6)


class Checked(Plain):
    """Refuses a mask that hides everything, behind the cut, as zeros do."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        z = super().forward(x)
        if not bool(mask.any()):
            raise ValueError("the mask hides everything")
        return z * mask[:, :1]


def checked() -> nn.Module:
    """Make it, always the same."""
    torch.manual_seed(0)
    return Checked().eval()


def test_a_model_that_refuses_zeros_is_named_and_has_the_factory_as_its_way_out() -> None:
    inputs = (images(), torch.ones(len(images()), 8, dtype=torch.bool))
    model = compoff.wrap(checked(), "block1", example_input=inputs, codec="deepcod")
    with pytest.raises(SplitError, match=r"Checked refuses .* samples of zeros .*: the mask hides everything"):
        compoff.export(model, "block1")
    head, tail = compoff.export(model, "block1", tail_factory=f"{__name__}:checked")
    with model.eval().at("block1"), torch.no_grad():
        assert_close(tail(bytes(head(*inputs))), model(*inputs))


def test_a_keyword_that_no_parameter_names_is_named() -> None:
    class Loose(Plain):
        def forward(self, x: Tensor, **options: Any) -> Tensor:
            return super().forward(x) * options.get("gain", 1.0)

    for name in ("gain", "options"):
        wrapped = tiny(Loose().eval(), "block1", example={"x": images(), name: 2.0})
        words = rf"'{name}' reaches Loose\.forward by its \*\*options, and torch.export takes"
        with pytest.raises(SplitError, match=words):
            compoff.export(wrapped, "block1")
    head, tail = compoff.export(tiny(Loose().eval(), "block1", example={"x": images()}), "block1")
    assert tail(head(images(3))).shape[0] == 3
