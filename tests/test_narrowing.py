"""Programs of fewer channels; heads of each runtime are in `tests/device/test_quality.py`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compoff.narrowing import narrowed


def test_the_weights_of_a_narrow_program_are_not_copied() -> None:
    whole = torch.export.export(_Rounding(), (torch.zeros(1, 2, 4),)).module(check_guards=False)
    part = narrowed(whole, [3])
    assert part is not None
    (weight,) = [buffer for name, buffer in part.named_buffers() if "weight" in name]
    assert weight.shape[0] == 3
    assert weight.data_ptr() == whole.get_parameter("layer.weight").data_ptr()


def test_the_whole_program_stays_as_it_was() -> None:
    x = torch.randn(1, 2, 4)
    whole = torch.export.export(_Rounding(), (x,)).module(check_guards=False)
    parts = narrowed(whole, [3]), narrowed(whole, [5])
    for part, count in zip(parts, (3, 5), strict=True):
        assert part is not None
        assert torch.equal(part(x), whole(x)[:, :count])


class _Rounding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x).round().clamp(-3, 3) + 3).to(torch.uint8)


class _Shared(_Rounding):
    """Its layer is also read by something else."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        z = self.layer(x)
        return (z.round().clamp(-3, 3) + 3).to(torch.uint8), z.mean((1, 2))


class _Computed(_Rounding):
    """The weights of its layer follow from others."""

    def forward(self, x: Tensor) -> Tensor:
        z = nn.functional.conv1d(x, self.layer.weight * 2, self.layer.bias)
        return (z.round().clamp(-3, 3) + 3).to(torch.uint8)


class _Nearest(_Rounding):
    """As the paper's codec: what comes behind the layer is no rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x).unsqueeze(-1) - torch.arange(3.0)).abs().argmin(-1).to(torch.uint8)


@pytest.mark.parametrize("model", [_Shared(), _Computed(), _Nearest()])
def test_what_cannot_be_narrowed_stays_whole(model: nn.Module) -> None:
    program = torch.export.export(model, (torch.zeros(1, 2, 4),)).module(check_guards=False)
    assert narrowed(program, [3]) is None
