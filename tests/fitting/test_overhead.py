"""What of a payload is no symbols, against payloads whose symbols are packed as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import compoff
from compoff.batch import Batch
from compoff.coding import Code, PayloadFormat, Side
from compoff.errors import FitError
from compoff.fitting.measure import features_of
from compoff.fitting.overhead import overhead_bytes, sides_at, sides_of, symbol_bytes
from tests.fitting.test_calibrating import Ids


def test_of_tensors_that_cross_as_they_are_the_mean_counts() -> None:
    ids = torch.randint(0, 30_000, (16, 64))
    ids[8:, 32:] = 0  # some take fewer bytes
    batch = Batch((torch.randn(16, 64, 16), ids))
    model = compoff.wrap(Ids().eval(), "body", example_input=batch.args)
    features_of(model, "body", batch)
    codes, sides = [Code(one.prior.tables(), one.latent_shape) for one in model.bottlenecks_at("body")], [ids.numpy()]
    payloads = PayloadFormat(bytes(32), codes, sides_of(model, "body"))
    nothing = [np.zeros((1, *code.latent_shape), np.uint8) for code in codes]
    lengths = [
        len(payloads.encode(nothing, sides_at(place, sides, payloads.sides), coding="raw")) for place in range(16)
    ]
    assert len(set(lengths)) > 1
    # The length of many symbols takes a byte more than that of few.
    assert overhead_bytes(model, "body") == pytest.approx(np.mean(lengths) - payloads.packed_bytes(1), abs=1)


def test_what_is_one_for_all_samples_goes_with_each() -> None:
    values, sides = [np.arange(4), np.arange(4)], [Side((), "int64", True), Side((4,), "int64", False)]
    assert [part.tolist() for part in sides_at(2, values, sides)] == [[2], [0, 1, 2, 3]]


def test_less_than_a_byte_for_symbols_is_refused() -> None:
    model = compoff.wrap(nn.Linear(32, 4), "input", example_input=torch.zeros(2, 32))
    assert symbol_bytes(model, "input", 8) == 1
    with pytest.raises(FitError, match=r"target_bytes is 7\.5, but 7 bytes of a payload at 'input' are no symbols"):
        symbol_bytes(model, "input", 7.5)
