"""Two processes train one model with DistributedDataParallel: equal weights, from the mean of both gradients."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import compoff
from compoff.errors import SplitError
from tests.small_networks import Plain

_ROOT = Path(__file__).parent.parent.parent


class Named(torch.nn.Module):
    """Takes its inputs by name only."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer, self.scores = torch.nn.Embedding(9, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)

    def forward(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        y = self.layer(self.words(input_ids)) * attention_mask[..., None]
        return self.scores(y.mean(1))


def test_a_batch_of_keywords_is_taken_as_the_model_takes_it() -> None:
    batch = {"input_ids": torch.randint(0, 9, (4, 16)), "attention_mask": torch.ones(4, 16)}
    model = compoff.wrap(Named().eval(), "layer", example_input=batch, codec="deepcod")
    loss = compoff.DistillationLoss(model)
    loss.calibrate(**batch)
    assert model.bottleneck("layer").calibrated
    loss.eval()  # in training each pass sharpens the spectral norms
    found = loss(**batch)
    assert torch.equal(found, model.distillation_loss(keywords=batch))
    found.backward()
    assert all(parameter.grad is not None for parameter in model.bottleneck_parameters())


SCRIPT = """
import sys, torch, torch.distributed as dist, compoff
from tests.small_networks import Plain, same, values
rank, meeting = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", store=dist.FileStore(meeting, 2), rank=rank, world_size=2)

def trained(calibrated):
    torch.manual_seed(0)
    model = compoff.wrap(Plain(), ["block1", "block2"], example_input=torch.zeros(2, 3, 8, 8), codec="deepcod").train()
    before = values(model.base)
    torch.manual_seed(rank)
    shares = [torch.randn(4, 3, 8, 8) * (1 + rank) for _ in range(3)]
    loss = compoff.DistillationLoss(model)
    if calibrated:
        loss.calibrate(shares[0])
    parallel = torch.nn.parallel.DistributedDataParallel(loss)
    optimizer = torch.optim.SGD(model.bottleneck_parameters(), lr=1e-2)
    for share in shares:
        optimizer.zero_grad()
        parallel(share).backward()
        first = [parameter.grad.clone() for parameter in model.bottleneck_parameters()] if share is shares[0] else first
        optimizer.step()
    assert same(values(model.base), before)
    return {"share": shares[0], "gradients": first, "state": model.bottlenecks.state_dict()}

found = trained(True)
try:
    trained(False)
    found["error"] = ""
except compoff.FitError as error:
    found["error"] = str(error)
torch.save(found, f"{meeting}.{rank}")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What became of two models in both processes, one calibrated and one not; only to be read."""
    meeting = tmp_path_factory.mktemp("processes") / "meeting"
    commands = [[sys.executable, "-W", "ignore", "-c", SCRIPT, str(rank), str(meeting)] for rank in range(2)]
    processes = [subprocess.Popen(command, cwd=_ROOT, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors
    return [torch.load(f"{meeting}.{rank}") for rank in range(2)]


def test_processes_stay_equal_and_take_the_mean_of_their_gradients(both: list[dict[str, Any]]) -> None:
    first, second = both
    assert list(first["state"]) == list(second["state"])
    trained = [name for name in first["state"] if not name.endswith(".u")]  # copied at the start of the next step
    for name in trained:
        torch.testing.assert_close(first["state"][name], second["state"][name], rtol=0, atol=0, msg=name)
    # The same first step in one process, share by share.
    torch.manual_seed(0)
    model = compoff.wrap(Plain(), ["block1", "block2"], example_input=torch.zeros(2, 3, 8, 8), codec="deepcod").train()
    loss = compoff.DistillationLoss(model)
    loss.calibrate(first["share"])
    start = {name: value.clone() for name, value in model.bottlenecks.state_dict().items()}
    alone = []
    for share in (first["share"], second["share"]):
        model.bottlenecks.load_state_dict(start)
        model.zero_grad()
        loss(share).backward()
        alone.append([parameter.grad.clone() for parameter in model.bottleneck_parameters()])
    for together, one, other in zip(first["gradients"], *alone, strict=True):
        torch.testing.assert_close(together, (one + other) / 2, rtol=1e-4, atol=1e-6)


def test_processes_that_would_start_from_units_of_their_own_say_so(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert "call compoff.DistillationLoss(model).calibrate(batch) before" in found["error"]


def test_the_module_is_the_sum_of_the_losses() -> None:
    x = torch.randn(4, 3, 8, 8)
    model = compoff.wrap(Plain(), ["block1", "block2"], example_input=x, codec="deepcod").eval()
    loss = compoff.DistillationLoss(model, rate=0.1)
    loss.calibrate(x)
    assert all(model.bottleneck(split).calibrated for split in model.split_points)
    alone = [model.distillation_loss(x, split=split, rate=0.1) for split in model.split_points]
    torch.testing.assert_close(loss(x), alone[0] + alone[1])
    torch.testing.assert_close(compoff.DistillationLoss(model, "block2", rate=0.1)(x), alone[1])
    loss.distill = False
    reconstruction = [model.distillation_loss(x, split=split, rate=0.1, distill=False) for split in model.split_points]
    torch.testing.assert_close(loss(x), reconstruction[0] + reconstruction[1])
    assert loss(x) < alone[0] + alone[1]
    trained = {id(parameter) for parameter in loss.parameters() if parameter.requires_grad}
    assert trained == {id(parameter) for parameter in model.bottleneck_parameters()}


def test_calibrating_again_changes_nothing() -> None:
    x = torch.randn(4, 3, 8, 8)
    model = compoff.wrap(Plain(), "block1", example_input=x, codec="deepcod")
    loss = compoff.DistillationLoss(model)
    loss.calibrate(x)
    before = {name: value.clone() for name, value in model.bottlenecks.state_dict().items()}
    loss.calibrate(5 * x)
    assert all(torch.equal(value, before[name]) for name, value in model.bottlenecks.state_dict().items())


def test_an_unknown_split_point_is_refused() -> None:
    model = compoff.wrap(Plain(), "block1", example_input=torch.zeros(2, 3, 8, 8), codec="deepcod")
    with pytest.raises(SplitError, match="'block7' is not a split point"):
        compoff.DistillationLoss(model, "block7")
