"""A process that cannot import any model's library: it loads heads and tails from their folders and runs them.

python -I benchmarks/zoo/stranger.py JOBS

JOBS is a JSON list of ``{"folder", "inputs", "outputs", "head_only"}``. For each job the inputs, a list of calls that
`torch.save` wrote, go through head, bytes and tail, and the tensors that come out are written to ``outputs``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from pathlib import Path
from typing import Any

BLOCKED = ("accelerate", "benchmarks", "diffusers", "lightning", "tests", "timm", "torchvision", "transformers")


class Refusal:
    """A finder that is asked first and refuses the libraries of models."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuse a blocked module; have no opinion on any other."""
        del path, target
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked in this process", name=name)


def tensors_of(value: Any) -> list[Any]:
    """The tensors of an output, in order, whatever it is made of."""
    from torch import Tensor
    from torch.utils import _pytree as pytree

    from compoff.record import Record

    found: list[Any] = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Record):  # what stands for a class that cannot be imported here
            found += tensors_of([leaf[index] for index in range(len(leaf))])
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_of([getattr(leaf, entry.name) for entry in dataclasses.fields(leaf)])
    return found


def run(job: dict[str, Any]) -> list[int]:
    """Run one job; the lengths of the payloads in bytes."""
    import torch

    import compoff

    head = compoff.Head.load(job["folder"])
    tail = None if job["head_only"] else compoff.Tail.load(job["folder"])
    sizes: list[int] = []
    answers: list[list[Any]] = []
    payloads: list[bytes] = []
    for args, kwargs in torch.load(job["inputs"], weights_only=True):
        payload = bytes(head(*args, **kwargs))
        sizes.append(len(payload))
        payloads.append(payload)
        if tail is not None:
            answers.append(tensors_of(tail(payload)))
    torch.save({"answers": answers, "payloads": payloads}, job["outputs"])
    return sizes


def main() -> None:
    """Run all jobs, one broken one not keeping the others from running."""
    sys.meta_path.insert(0, Refusal())
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    results: list[dict[str, Any]] = []
    for job in jobs:
        try:
            results.append({"bytes": run(job), "error": ""})
        except Exception:
            results.append({"bytes": [], "error": traceback.format_exc(limit=-3)})
    loaded = sorted({name.partition(".")[0] for name in sys.modules} & set(BLOCKED))
    print(json.dumps({"results": results, "loaded": loaded}))


if __name__ == "__main__":
    main()
