"""A wrapped model trained in several processes, as a user's own loop would with DistributedDataParallel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

DISTRIBUTED = """
import sys, torch, torch.distributed as dist, compoff
from tests.small_networks import Plain
rank, size, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", store=dist.FileStore(meeting, size), rank=rank, world_size=size)
torch.manual_seed(0)
x = torch.randn(4, 3, 8, 8)
wrapped = compoff.wrap(Plain(), "block1", example_input=x, codec="deepcod")
before = {name: value.clone() for name, value in wrapped.base.state_dict().items()}
share = x[rank * 4 // size : (rank + 1) * 4 // size]
parallel = torch.nn.parallel.DistributedDataParallel(wrapped, find_unused_parameters=True)
encoder = wrapped.bottleneck("block1").encoder.layer
for _ in range(2):
    with wrapped.at("block1"):
        loss = (parallel(share) - 1.0).square().mean()
    encoder.weight.grad = None
    loss.backward()
assert all(torch.equal(value, before[name]) for name, value in wrapped.base.state_dict().items())
torch.save(encoder.weight.grad, f"{meeting}.{size}.{rank}")
dist.destroy_process_group()
"""


def gradients(folder: Path, size: int) -> list[Tensor]:
    meeting = folder / f"meeting{size}"
    root, script = Path(__file__).parent.parent, [sys.executable, "-W", "ignore", "-c", DISTRIBUTED]
    commands = [[*script, str(rank), str(size), str(meeting)] for rank in range(size)]
    processes = [subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors
    return [torch.load(f"{meeting}.{size}.{rank}") for rank in range(size)]


def test_trains_in_several_processes_as_in_one(tmp_path: Path) -> None:
    (alone,) = gradients(tmp_path, 1)
    together = gradients(tmp_path, 2)
    assert alone.abs().max() > 0
    assert torch.equal(together[0], together[1])
    # The decoder's singular vectors move with each training pass, the same in every process.
    torch.testing.assert_close(together[0], alone, rtol=1e-4, atol=1e-6)
