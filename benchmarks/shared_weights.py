"""What the tails of several split points of one network take on disk and in memory, apart and with shared weights.

    COMPOFF_DATA=FOLDER python -m benchmarks.shared_weights

Each row is a process of its own that loads all tails and answers once with each; its memory is what it then holds more
than before it loaded them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_SPLITS = ("layer1", "layer2", "layer3", "layer4")


def save(folder: Path, model: str, splits: tuple[str, ...]) -> None:
    """Every tail twice: as it is, and with its weights beside it."""
    from benchmarks.engines import make_tail

    for split in splits:
        tail = make_tail(model, split, "transform")
        tail.save(folder / "apart" / split / "tail")
        tail.save(folder / "shared" / split / "tail", weights=folder / "shared" / "weights")


def disk_bytes(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def resident_bytes() -> int:
    """What this process holds in memory now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def load(folder: Path, splits: tuple[str, ...], *, pool: bool) -> dict[str, int]:
    """Load all tails, in this process; for each, what the process then holds more than before the first."""
    import numpy as np

    import compoff
    from compoff.edge.backends.samples import sample_parts

    shared = compoff.WeightPool() if pool else None
    first = compoff.Tail.load(folder / splits[0])  # so that PyTorch is loaded in full
    first.backend.run(sample_parts(first.manifest, 1))
    expected = [leaf.copy() for leaf in first.backend.run(sample_parts(first.manifest, 1))]
    del first
    before, held, tails = resident_bytes(), dict[str, int](), list[Any]()
    for split in splits:
        tails.append(compoff.Tail.load(folder / split, pool=shared))
        tails[-1].backend.run(sample_parts(tails[-1].manifest, 1))
        held[split] = resident_bytes() - before
    again = tails[0].backend.run(sample_parts(tails[0].manifest, 1))
    if not all(np.array_equal(one, other) for one, other in zip(expected, again, strict=True)):
        message = "a tail with shared weights answers otherwise"
        raise RuntimeError(message)
    return held


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("resnet50", "resnet18"), default="resnet50")
    parser.add_argument("--splits", nargs="+", default=list(_SPLITS))
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pool", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    splits = tuple(options.splits)
    if options.load is not None:
        print(json.dumps(load(options.load, splits, pool=options.pool)))
        return
    from benchmarks.record import record

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save(folder, options.model, splits)
        for name in ("apart", "shared"):
            command = [sys.executable, "-m", "benchmarks.shared_weights", "--load", str(folder / name)]
            command += [*(["--pool"] if name == "shared" else []), "--splits", *splits]
            environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0"}  # so that freed memory is seen to be free
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            held = json.loads(done.stdout.splitlines()[-1])
            row = {
                "model": options.model,
                "weights": name,
                "tails": len(splits),
                "disk_bytes": disk_bytes(folder / name),
            }
            rows.append({**row, **{f"memory_bytes_{split}": count for split, count in held.items()}})
            print(rows[-1])
    command = f"python -m benchmarks.shared_weights --model {options.model} --splits {' '.join(splits)}"
    print(record("shared_weights", rows, seed=0, command=command))


if __name__ == "__main__":
    main()
