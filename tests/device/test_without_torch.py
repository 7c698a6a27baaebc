"""A device on which nothing is installed but what requirements/device.txt lists, played by a process of its own."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.golden_head import GOLDEN, golden_head, golden_inputs, golden_tail

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
REQUIREMENTS = ROOT / "requirements" / "device.txt"

DEVICE = """
import importlib.abc, json, sys

allowed = set(json.loads(sys.argv[1])) | sys.stdlib_module_names

class OnlyTheDevice(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, OnlyTheDevice())
try:
    import torch
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("torch could be imported: this proves nothing")

import numpy as np
import compoff

head = compoff.Head.load(sys.argv[2], threads=1)
x = np.load(sys.argv[4])
said = {"payloads": [bytes(head(x[:1])).hex(), bytes(head(x)).hex()]}
try:
    compoff.Head.load(sys.argv[2], runtime="torch")
except compoff.BackendError as error:
    said["torch"] = str(error)
try:
    head.compile("onnx")
except compoff.BackendError as error:
    said["compiled"] = str(error)
with compoff.connect(head, sys.argv[3]) as remote:
    answer = remote(x)
    said["answer"] = {key: [type(value).__name__, value.tolist()] for key, value in answer.items()}
    said["sent"] = remote.last.payload_bytes
said["loaded"] = [name for name in ("torch", "onnx", "tqdm", "typing_extensions") if name in sys.modules]
print(json.dumps(said))
"""


def installed_with(names: set[str]) -> Iterator[str]:
    """Top-level modules of some distributions and of all that they require."""
    seen: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # needed on another system only
            continue
        required = (re.match(r"[\w.-]+", line) for line in distribution.requires or () if "extra ==" not in line)
        waiting |= {found[0] for found in required if found}
        yield from {
            file.parts[0].partition(".")[0] for file in distribution.files or () if file.suffix in (".py", ".so")
        }


def required() -> list[str]:
    return [line for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]


def test_the_list_is_a_part_of_what_the_package_requires() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{line}"' in project for line in required())
    assert not any(line.startswith("torch") for line in required())


def test_a_device_without_torch_runs_a_head_and_asks_the_edge(tmp_path: Path) -> None:
    names = {match[0] for line in required() if (match := re.match(r"[\w.-]+", line))}
    golden_head().compile("onnx").save(tmp_path / "export" / "head")
    tail = golden_tail()
    np.save(tmp_path / "x.npy", golden_inputs(3))
    allowed = json.dumps(["compoff", *installed_with(names)])
    with tail.serve("127.0.0.1:0") as server:
        arguments = [allowed, str(tmp_path / "export"), server.address, str(tmp_path / "x.npy")]
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", DEVICE, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["payloads"] == [GOLDEN["range"][1], GOLDEN["range"][3]]
    assert said["answer"] == {"sums": ["ndarray", tail(bytes.fromhex(GOLDEN["range"][3]))["sums"].tolist()]}
    assert said["sent"] == len(GOLDEN["range"][3]) // 2
    assert "needs torch, which is not installed" in said["torch"]
    assert said["compiled"].startswith("compiling a head needs torch, which is not installed; compile and save it")
    assert said["loaded"] == []


@pytest.mark.parametrize("name", ["numpy", "onnxruntime"])
def test_the_list_names_what_a_device_imports(name: str) -> None:
    assert any(line.startswith(name) for line in required())
