"""Accelerate's own loop trains the bottlenecks, in one process and in two."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

_ROOT = Path(__file__).parent.parent.parent

SCRIPT = """
import sys, torch, compoff
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
from tests.small_networks import Plain, same, values
accelerator = Accelerator(cpu=True, mixed_precision=sys.argv[2])
torch.manual_seed(0)
x = torch.randn(32, 3, 8, 8)
model = compoff.wrap(Plain(), ["block1", "block2"], example_input=x[:2], codec="deepcod")
base = values(model.base)
loss = compoff.DistillationLoss(model)
loss.calibrate(x[:8])
optimizer = torch.optim.Adam(model.bottleneck_parameters(), lr=3e-3)
loss, optimizer, loader = accelerator.prepare(loss, optimizer, DataLoader(TensorDataset(x), batch_size=8))
losses, seen = [], 0
for _ in range(6):
    for (images,) in loader:
        optimizer.zero_grad()
        value = loss(images)
        accelerator.backward(value)
        accelerator.clip_grad_norm_(model.bottleneck_parameters(), 1.0)
        optimizer.step()
        losses.append(float(value.detach()))
        seen += len(images)
assert same(values(model.base), base)
parameters = torch.nn.utils.parameters_to_vector(model.bottleneck_parameters()).detach()
report = {"parameters": parameters, "losses": losses, "seen": seen, "processes": accelerator.num_processes}
torch.save(report, f"{sys.argv[1]}.{accelerator.process_index}")
accelerator.end_training()
"""


def run(folder: Path, count: int, precision: str) -> list[dict[str, Any]]:
    pytest.importorskip("accelerate")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes: list[subprocess.Popen[str]] = []
    for rank in range(count):
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1}
        together = {name: str(value) for name, value in (meeting | ranks).items()} if count > 1 else {}
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder / "report"), precision]
        environment = {**os.environ, **together}
        processes.append(subprocess.Popen(command, cwd=_ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
    return [torch.load(folder / f"report.{rank}") for rank in range(count)]


def test_two_processes_stay_equal(tmp_path: Path) -> None:
    first, second = run(tmp_path, 2, "no")
    assert first["processes"] == 2
    assert first["seen"] == second["seen"] == 6 * 32 // 2
    assert torch.equal(first["parameters"], second["parameters"])
    assert first["losses"] != second["losses"]
    assert sum(first["losses"][-2:]) < 0.95 * sum(first["losses"][:2])


def test_one_process_in_mixed_precision(tmp_path: Path) -> None:
    (report,) = run(tmp_path, 1, "bf16")
    assert report["seen"] == 6 * 32
    assert sum(report["losses"][-4:]) < 0.95 * sum(report["losses"][:4])
    assert report["parameters"].dtype == torch.float32
