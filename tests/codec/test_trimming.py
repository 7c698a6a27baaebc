"""A trimmed codec: the same symbols, bytes and answers from fewer weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compoff.codec import Adapter, Bottleneck, Geometry, TransformBottleneck, code_of, trimmed
from compoff.coding import PayloadFormat
from tests.small_networks import same, tiny_decoder

WAVES = (520, 3, 3)  # 4680 elements: a tile too wide to find directions among all of them
CHANNELS, SENT, KEPT = 45, 5, 32


def counted(shape: tuple[int, ...]) -> tuple[TransformBottleneck, Tensor]:
    """A bottleneck whose last channels no quality sends, and some features."""
    bottleneck = TransformBottleneck(Geometry(shape, stride=4), CHANNELS).eval()
    for value in (*bottleneck.encoder.parameters(), *bottleneck.decoder.parameters()):
        nn.init.normal_(value, std=0.1)  # as trained; the last layer starts as zeros
    counts = torch.zeros(CHANNELS, 255)
    counts[:, 127] = 1e7
    counts[:SENT] += torch.linspace(1, 2, SENT)[:, None] * 1e5
    bottleneck.prior.count(counts)
    bottleneck.choose(4)
    bottleneck.calibrated.fill_(True)
    return bottleneck, torch.randn(4, *shape)


@pytest.mark.parametrize("shape", [(3, 9, 11), (12, 16), (50,), WAVES])
@torch.no_grad()
def test_is_the_same_codec(shape: tuple[int, ...]) -> None:
    bottleneck, y = counted(shape)
    before = {name: value.clone() for name, value in bottleneck.state_dict().items()}
    narrow = trimmed(bottleneck)
    assert narrow.latent_shape == (KEPT, *bottleneck.latent_shape[1:])
    assert (narrow.qualities(), narrow.chosen) == (bottleneck.qualities(), bottleneck.chosen)
    symbols = bottleneck.encode(y)
    assert torch.equal(narrow.encode(y), symbols[:, :KEPT])
    for quality in (0, 4, 10):
        torch.testing.assert_close(narrow(y, quality), bottleneck(y, quality), rtol=1e-4, atol=1e-4)
    # Where one is folded into its weights, and what the coder makes of both.
    narrow.fold()
    torch.testing.assert_close(narrow(y), bottleneck(y), rtol=1e-4, atol=1e-4)
    mine, its = (PayloadFormat(bytes(32), [code_of(one)]) for one in (narrow, bottleneck))
    for quality in (0, 4, 10):
        few, all_of_them = (
            one.codes[0].sent(values.numpy(), quality) for one, values in ((mine, symbols[:, :KEPT]), (its, symbols))
        )
        payload = its.encode([all_of_them], quality=quality)
        assert bytes(mine.encode([few], quality=quality)) == bytes(payload)
        (decoded,) = mine.decode(payload).symbols
        assert np.array_equal(decoded, few)
    assert same(bottleneck.state_dict(), before)
    assert not any(value.is_meta for value in (*narrow.parameters(), *narrow.buffers()))


def test_shares_no_memory() -> None:
    bottleneck, _ = counted((3, 8, 12))
    bottleneck.adapter = Adapter([(8, 1)])
    narrow = trimmed(bottleneck)
    assert narrow.adapter is not None
    own = {value.data_ptr() for value in (*narrow.parameters(), *narrow.buffers())}
    assert own.isdisjoint(value.data_ptr() for value in (*bottleneck.parameters(), *bottleneck.buffers()))


@pytest.mark.parametrize("training", [False, True])
def test_keeps_the_mode(*, training: bool) -> None:
    assert trimmed(counted((3, 8, 12))[0].train(training)).training == training


def test_leaves_all_channels_where_all_are_sent_or_the_decoder_is_the_users() -> None:
    geometry = Geometry((3, 8, 12), stride=4)
    uncounted = TransformBottleneck(geometry, CHANNELS)
    own = TransformBottleneck(geometry, CHANNELS, decoder=tiny_decoder)
    own.prior.logits.copy_(counted((3, 8, 12))[0].prior.logits)
    assert own.qualities()[-1].channels == SENT
    for bottleneck in (uncounted, own, Bottleneck(geometry, CHANNELS)):
        whole = trimmed(bottleneck)
        assert whole is not bottleneck
        assert whole.latent_shape == bottleneck.latent_shape
        assert same(whole.state_dict(), bottleneck.state_dict())
