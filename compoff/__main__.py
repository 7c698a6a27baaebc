"""The `compoff` command: hands over to `cli`, or says what to install."""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: Always; the status is 0 when the command succeeded, 130 when it was interrupted, which
            for a server that serves is the way to succeed.
    """
    if sys.argv[1:2] == ["serve"] and hasattr(signal, "SIGHUP"):
        # It would end the process until the server takes it: it waits, and what it asks for is done then.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        _run()
    except KeyboardInterrupt:  # while the modules are read; what comes after it says the same
        raise SystemExit(130) from None


def _run() -> None:
    try:
        from compoff.cli import run  # typer and rich are an extra
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.stderr.write(f'compoff: the command line needs {error.name}: pip install "compoff[cli]"\n')
        raise SystemExit(1) from None
    run()


if __name__ == "__main__":
    main()
