"""The second process as its parent sees it: started, asked for its address, and ended, each within a deadline.

A context manager, so that no way out of the demo (an error, Ctrl-C) leaves the process behind.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import tempfile
import threading
from typing import IO, TYPE_CHECKING

from compoff.demo.edge_process import GREETING
from compoff.errors import ConnectTimeout, RemoteError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

__all__ = ["edge_process"]

_START_SECONDS = 180.0  # PyTorch alone takes half a minute on a cold disk
_STOP_SECONDS = 5.0


@contextlib.contextmanager
def edge_process(folders: Sequence[Path], *, threads: int = 1, timeout: float = _START_SECONDS) -> Generator[str]:
    """Run the second process inside the block.

    The folders are read before the address comes: they may be deleted then.

    Args:
        folders: Folders of tails, and of the whole network.
        threads: Threads that PyTorch may use there.
        timeout: Seconds until it must be listening.

    Yields:
        Its address, ``"host:port"``.

    Raises:
        ConnectTimeout: It was not listening in time.
        RemoteError: It ended before it listened; the message holds its last words.

    Source: this project.
    """
    command = [sys.executable, "-m", "compoff.demo.edge_process", "--threads", str(threads), *map(str, folders)]
    with tempfile.TemporaryFile() as words:
        # A session of its own: Ctrl-C reaches the parent alone, which then ends this process in order.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, start_new_session=True
        )
        try:
            yield _address(process, words, timeout)
        finally:
            _end(process)


def _address(process: subprocess.Popen[bytes], words: IO[bytes], timeout: float) -> str:
    """Wait for the line with the address."""
    lines: queue.Queue[str] = queue.Queue()
    stdout = process.stdout
    if stdout is None:
        raise RemoteError("the second process has no output to read; it was started in another way than here")
    reader = threading.Thread(target=lambda: lines.put(stdout.readline().decode(errors="replace")), daemon=True)
    reader.start()  # a pipe cannot be read with a deadline on every system; a thread can be left waiting
    try:
        line = lines.get(timeout=timeout)
    except queue.Empty:
        raise ConnectTimeout(
            f"the second process was not listening within {timeout:g} s; is the machine busy?"
        ) from None
    if not line.startswith(GREETING):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        words.seek(0)
        last = words.read().decode(errors="replace").strip().splitlines() or [line.strip() or "no words"]
        raise RemoteError(f"the second process ended before it served, status {process.returncode}: {last[-1]}")
    return line.removeprefix(GREETING).strip()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process: by the end of its input, by a signal, by force."""
    for stop in (lambda: _close_input(process), process.terminate, process.kill):
        stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
            break
    if process.stdout is not None:
        process.stdout.close()


def _close_input(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
