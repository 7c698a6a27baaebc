"""The second process of the demo: loads the tails of some folders, serves them, and ends when its parent does.

``python -m compoff.demo.edge_process --threads 1 FOLDER...`` prints one line with its address. It ends at the end of
its standard input, which the system closes when the parent dies, however it dies: no orphan is left.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from compoff.demo.whole import is_whole, load_whole
from compoff.edge.server import serve
from compoff.edge.tail import Tail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compoff.edge.server import Servable

__all__ = ["GREETING", "main"]

GREETING = "serving on "
"""What stands before the address in the line that is printed."""

_DRAIN_SECONDS = 1.0
_IDLE_SECONDS = 7 * 86400.0  # a slow machine computes for hours between two pictures; the parent's end ends all of it


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until standard input ends.

    Args:
        arguments: The command line; None for this process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m compoff.demo.edge_process")
    parser.add_argument("folders", nargs="+", type=Path, help="folders of tails, and of the whole network")
    parser.add_argument("--threads", type=int, default=1, help="threads that PyTorch may use")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    tails = [tail for folder in options.folders for tail in _load(folder)]
    with serve(tails, "127.0.0.1:0", idle_timeout=_IDLE_SECONDS, drain_timeout=_DRAIN_SECONDS) as server:
        sys.stdout.write(f"{GREETING}{server.address}\n")
        sys.stdout.flush()
        sys.stdin.buffer.read()


def _load(folder: Path) -> Sequence[Servable]:
    return load_whole(folder) if is_whole(folder) else [Tail.load(folder)]


if __name__ == "__main__":
    main()
