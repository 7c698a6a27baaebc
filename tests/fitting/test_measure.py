"""What a report says against the same counted and coded by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff import PayloadFormat, SplitReport
from compoff.batch import Batch
from compoff.codec import Bottleneck, Geometry
from compoff.coding import Code
from compoff.coding.tables import PRECISION
from compoff.errors import FitError
from compoff.fitting.measure import count_symbols, local_gain, measure, symbols_of

SHAPES = [(3, 9, 10), (3, 14), (40,)]


def wrapped(shape: tuple[int, ...], **options: Any) -> compoff.Wrapped:
    net = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 5))
    options = {"codec": "deepcod", "channels": 3, **options}
    model = compoff.wrap(net, "input", example_input=torch.zeros(2, *shape), **options).eval()
    model.bottleneck("input").calibrate(torch.randn(16, *shape))
    for layer in model.bottleneck("input").spectral_layers():
        layer.settle()
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_symbols_are_those_of_the_encoder(shape: tuple[int, ...]) -> None:
    model, x = wrapped(shape), torch.randn(4, *shape)
    assert torch.equal(symbols_of(model, "input", Batch((x,)))[0], model.bottleneck("input").encode(x))
    assert model.gate("input").replace is None


@pytest.mark.parametrize("shape", SHAPES)
def test_the_tables_are_the_frequencies_of_each_channel(shape: tuple[int, ...]) -> None:
    model = wrapped(shape, num_centers=4)
    batches = [torch.randn(size, *shape) for size in (7, 4)]
    count_symbols(model, "input", [Batch((x,)) for x in batches])
    bottleneck = model.bottleneck("input")
    symbols = np.concatenate(
        [
            bottleneck.encode(x).flatten(2).numpy() if x.dim() > 2 else bottleneck.encode(x)[..., None].numpy()
            for x in batches
        ]
    )
    for channel, row in enumerate(bottleneck.prior.tables().weights):
        counts = np.array([(symbols[:, channel] == symbol).sum() for symbol in range(4)]) + 0.5
        np.testing.assert_allclose(row / 2**PRECISION, counts / counts.sum(), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_and_agreement_are_those_of_real_payloads(shape: tuple[int, ...]) -> None:
    model = wrapped(shape)
    batches = [torch.randn(size, *shape) for size in (6, 3)]
    inputs = [Batch((x,)) for x in batches]
    count_symbols(model, "input", inputs)
    report = SplitReport()
    assert measure(model, "input", inputs, report) == 9

    bottleneck, x = model.bottleneck("input"), torch.cat(batches)
    coder = PayloadFormat(bytes(range(32)), [Code(bottleneck.prior.tables(), bottleneck.latent_shape)])
    payloads = [coder.encode([bottleneck.encode(sample[None]).numpy()]) for sample in x]
    assert report.bytes == np.mean([len(bytes(payload)) for payload in payloads])
    assert max(map(len, payloads)) <= report.ceiling_bytes == coder.max_bytes(1)
    assert report.raw_bytes == 4 * x[0].numel()

    decoded = np.concatenate([coder.decode(bytes(payload)).symbols[0] for payload in payloads])
    with torch.no_grad():
        teacher = model.base(x).double().numpy()
        student = model.base(bottleneck.decode(torch.from_numpy(decoded))).double().numpy()
    assert report.agreement == pytest.approx((teacher.argmax(1) == student.argmax(1)).mean())
    assert report.output_error == pytest.approx(((teacher - student) ** 2).mean() / teacher.var(0).mean(), rel=1e-3)


def test_a_fit_and_an_export_send_the_same_bytes() -> None:
    x = torch.randn(12, 3, 14)
    model = compoff.wrap(nn.Sequential(nn.Flatten(), nn.Linear(42, 5)), "input", example_input=x[:2], codec="deepcod")
    report = compoff.fit(model, [x], steps=5)
    head, _ = compoff.export(model.eval(), "input")
    assert report.splits["input"].bytes == np.mean([len(head(sample[None])) for sample in x])
    assert model.reports["input"] == report.splits["input"].figures()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_guarantees_terms(shape: tuple[int, ...]) -> None:
    model = wrapped(shape)
    report = SplitReport()
    measure(model, "input", [Batch((torch.randn(4, *shape),))], report)
    bottleneck = model.bottleneck("input")
    kernel = bottleneck.get_parameter("encoder.layer.weight").detach().flatten(1).double().numpy()
    assert report.semi_orthogonality_error == pytest.approx(np.linalg.norm(kernel @ kernel.T - np.eye(3)), abs=1e-5)
    assert report.encoder_macs == kernel.size * np.prod(bottleneck.latent_shape[1:], dtype=int)
    assert report.lipschitz_bound is not None
    assert 0 < report.local_gain <= report.lipschitz_bound * (1 + 1e-4)  # attention is still off


def test_own_modules_have_no_figures_of_ours() -> None:
    class Own(nn.Module):
        def __init__(self, given: tuple[int, ...], expected: tuple[int, ...]) -> None:
            super().__init__()
            self.layer = nn.Linear(given[0], expected[0])

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    report = SplitReport()
    measure(wrapped((40,), encoder=Own, decoder=Own), "input", [Batch((torch.randn(4, 40),))], report)
    assert (report.lipschitz_bound, report.encoder_macs, report.semi_orthogonality_error) == (None, None, 0.0)
    assert report.local_gain > 0


def test_the_local_gain_is_the_largest_singular_value_of_the_jacobian() -> None:
    bottleneck = Bottleneck(Geometry((4, 6)), channels=2).eval()
    with torch.no_grad():
        bottleneck.get_parameter("decoder.stages.0.gain").fill_(1.0)
    symbols = torch.randint(0, 8, (1, *bottleneck.latent_shape), dtype=torch.uint8)
    z_hat = bottleneck.quantizer.dequantize(symbols).detach()
    jacobian = torch.autograd.functional.jacobian(lambda z: bottleneck.decoder(z), z_hat)
    assert isinstance(jacobian, Tensor)
    matrix = jacobian.reshape(-1, z_hat.numel()).double().numpy()
    assert local_gain(bottleneck, symbols, 100) == pytest.approx(np.linalg.norm(matrix, ord=2), rel=1e-3)
    assert local_gain(bottleneck, symbols, 2) <= np.linalg.norm(matrix, ord=2) * (1 + 1e-5)


def test_a_model_without_scores_cannot_be_measured() -> None:
    class Classes(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).argmax(1)

    model = compoff.wrap(Classes(40, 3), "input", example_input=torch.zeros(2, 40), codec="deepcod").eval()
    with pytest.raises(FitError, match="no floating-point tensor"):
        measure(model, "input", [Batch((torch.randn(4, 40),))], SplitReport())
