"""A user's own word on what counts as an answer that is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.errors import FitError
from compoff.fitting.agreeing import shares_of

if TYPE_CHECKING:
    from pathlib import Path

    from compoff.wrapping import Wrapped


class Segments(nn.Module):
    """Scores for each pixel, in a dict as such models return them, and an output that does not depend on the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.stem(x).relu()
        return {"mean": x.mean((1, 2, 3)), "out": self.head(y)}


def pixels_agree(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    return (student["out"].argmax(1) == teacher["out"].argmax(1)).float().mean((1, 2))


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def wrapped() -> Wrapped:
    torch.manual_seed(0)
    return compoff.wrap(Segments().eval(), "head", example_input=images(2))


def test_the_curve_and_the_export_have_it(tmp_path: Path) -> None:
    model = wrapped()
    held = images(24, seed=1)
    report = compoff.fit(model, [images(32)], steps=8, max_drop=0.3, agreement=pixels_agree, validation=[held])
    (split,) = report.splits.values()
    assert split.agreement is not None
    assert 0.7 <= split.agreement < 1
    assert split.aim_met
    kept = [point["agreement"] for point in split.curve]
    assert split.quality == next(index for index, share in enumerate(kept) if 1 - share <= 0.3)
    head, tail = compoff.export(model, "head")
    head.save(tmp_path)
    assert compoff.Head.load(tmp_path).manifest.report["agreement"] == split.agreement
    with torch.no_grad():
        theirs = model(held)["out"].argmax(1).numpy()
    ours = tail(head(held))["out"].argmax(1).numpy()
    assert float(np.mean(ours == theirs)) == pytest.approx(split.agreement, abs=1e-3)


def test_without_it_such_a_model_has_none() -> None:
    model = wrapped()
    compoff.calibrate(model, [images(8)])
    assert compoff.finish(model, [images(8)]).splits["head"].agreement is None
    report = compoff.finish(model, [images(8)], agreement=pixels_agree, max_drop=0.5)
    assert report.splits["head"].agreement is not None
    with pytest.raises(FitError, match="say with agreement= what counts"):
        compoff.finish(model, [images(8)], max_drop=0.5)


@pytest.mark.parametrize(
    ("agreement", "told"),
    [
        (0.9, "expected a function of two answers"),
        (lambda ours, theirs: (ours["out"] - theirs["out"]).square().mean((1, 2, 3)), "gives 0 for an answer beside"),
        (
            lambda ours, theirs: pixels_agree(ours, theirs).mean(),
            r"gives \(\) for a batch of 2; expected a tensor of 2",
        ),
        (lambda ours, theirs: pixels_agree(ours, theirs).tolist(), r"gives \[1.0, 1.0\] for a batch of 2"),
        (
            lambda ours, theirs: 100 * pixels_agree(ours, theirs),
            "gives 100 for a sample; expected a tensor of 2 shares",
        ),
        (lambda ours, theirs: pixels_agree(ours, theirs) * torch.nan, "gives nan for a sample"),
    ],
)
def test_what_is_no_share_is_refused_before_the_first_step(agreement: Any, told: str) -> None:
    model = wrapped()
    before = {name: tensor.clone() for name, tensor in model.bottlenecks.state_dict().items()}
    with pytest.raises(FitError, match=told):
        compoff.fit(model, [images(8)], steps=2, agreement=agreement)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.bottlenecks.state_dict().items())


def test_what_rounding_adds_is_no_error() -> None:
    found = shares_of(lambda ours, theirs: torch.tensor([1 + 1e-7, -1e-8]), 0, 0, 2)
    assert found.tolist() == [1.0, 0.0]
    assert shares_of(lambda ours, theirs: torch.tensor([True, False]), 0, 0, 2).tolist() == [1.0, 0.0]
