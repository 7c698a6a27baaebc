"""Inside autocast the codec computes what it does outside, to the last bit: a fine step is below bfloat16's last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from compoff.codec import Bottleneck, Geometry, TileMoments, TransformBottleneck, WaveMoments
from compoff.codec.encoder import semi_orthogonality_error
from compoff.codec.spectral import largest_singular_value

if TYPE_CHECKING:
    from collections.abc import Callable

GEOMETRY = Geometry((3, 8, 8), stride=4)


def feature() -> Tensor:
    return torch.randn(64, *GEOMETRY.shape)


def of_moments(kind: type[TileMoments] | type[WaveMoments]) -> tuple[Tensor, ...]:
    moments = kind(GEOMETRY)
    moments.add(feature(), feature())
    found = moments.directions(6)
    return found.analysis, found.synthesis, found.mean, found.deviation


def measured() -> Tensor:
    with torch.autocast("cpu", enabled=False):
        moments, y = TileMoments(GEOMETRY), feature()
        moments.add(y, feature())
        directions = moments.directions(6)
    return directions.measure(GEOMETRY, y)


def paper(run: Callable[[Bottleneck, Tensor], Any]) -> Any:
    bottleneck, y = Bottleneck(GEOMETRY).eval(), feature()
    with torch.autocast("cpu", enabled=False):
        bottleneck.calibrate(y)
    return run(bottleneck, y)


def transform(run: Callable[[TransformBottleneck, Tensor], Any]) -> Any:
    bottleneck, y = TransformBottleneck(GEOMETRY, 6).eval(), feature()
    with torch.autocast("cpu", enabled=False):
        moments = TileMoments(GEOMETRY)
        moments.add(y, feature())
        bottleneck.start(moments.directions(6), 0.1, y)
    return run(bottleneck, y)


def started() -> Any:
    bottleneck, y = TransformBottleneck(GEOMETRY, 6), feature()
    with torch.autocast("cpu", enabled=False):
        moments = TileMoments(GEOMETRY)
        moments.add(y, feature())
        directions = moments.directions(6)
    bottleneck.start(directions, 0.1, y)
    return list(bottleneck.state_dict().values())


def calibrated() -> Any:
    bottleneck = Bottleneck(GEOMETRY)
    bottleneck.calibrate(feature())
    return list(bottleneck.state_dict().values())


WAYS: dict[str, Callable[[], Any]] = {
    "semi-orthogonality": lambda: semi_orthogonality_error(torch.randn(6, 3, 4, 4)),
    "singular value": lambda: largest_singular_value(torch.randn(6, 48), torch.randn(6)),
    "moments of tiles": lambda: of_moments(TileMoments),
    "moments of waves": lambda: of_moments(WaveMoments),
    "measured": measured,
    "calibrated": calibrated,
    "started": started,
    "paper: encoded": lambda: paper(lambda one, y: one.encode(y)),
    "paper: encoded and checked": lambda: paper(lambda one, y: one.encode_checked(y)),
    "paper: decoded": lambda: paper(lambda one, y: one.decode(torch.zeros(2, *one.latent_shape, dtype=torch.uint8))),
    "paper: run": lambda: paper(lambda one, y: one.run(y).y_hat),
    "paper: forward": lambda: paper(lambda one, y: one(y)),
    "transform: run": lambda: transform(lambda one, y: one.run(y).y_hat),
    "transform: forward": lambda: transform(lambda one, y: one(y)),
    "transform: decoded at a step": lambda: transform(lambda one, y: one.decode_at(y, 3)),
    "transform: values at a step": lambda: transform(lambda one, y: one.values_at(y, 3)),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_same_inside_autocast(way: str) -> None:
    found: list[Any] = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(WAYS[way]())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
