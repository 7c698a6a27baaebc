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
rank, meeting = int(sys.argv[1]), sys.argv[2]

def gradient(size):
    dist.init_process_group("gloo", store=dist.FileStore(f"{meeting}{size}", size), rank=rank, world_size=size)
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
    # What holds the group goes first. torch ends its threads with whoever lets go last, and only the group's own
    # object lets them have the interpreter's lock meanwhile, which they may still want for what a pass has left them.
    del parallel, loss
    dist.destroy_process_group()
    return encoder.weight.grad

torch.save([gradient(size) for size in ([1, 2] if rank == 0 else [2])], f"{meeting}.{rank}")
"""


def gradients(folder: Path) -> list[list[Tensor]]:
    """Of the first process alone and together with the second, and of the second."""
    meeting = folder / "meeting"
    root, script = Path(__file__).parent.parent, [sys.executable, "-W", "ignore", "-c", DISTRIBUTED]
    commands = [[*script, str(rank), str(meeting)] for rank in range(2)]
    processes = [subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=90)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [torch.load(f"{meeting}.{rank}") for rank in range(2)]


def test_trains_in_several_processes_as_in_one(tmp_path: Path) -> None:
    (alone, first), (second,) = gradients(tmp_path)
    assert alone.abs().max() > 0
    assert torch.equal(first, second)
    # The decoder's singular vectors move with each training pass, the same in every process.
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-6)
