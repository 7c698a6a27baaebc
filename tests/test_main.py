"""The command before its modules are read: what is missing, and who stops it there."""

from __future__ import annotations

import subprocess
import sys


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_the_command_without_its_extra_says_what_to_install() -> None:
    done = _python(
        "import sys; sys.modules['typer'] = None; sys.modules['rich'] = None\nfrom compoff.__main__ import main; main()"
    )
    assert done.returncode == 1
    assert 'pip install "compoff[cli]"' in done.stderr


def test_an_interrupt_while_the_modules_are_read_is_no_traceback() -> None:
    done = _python(
        """
import sys

class Interrupted:
    @staticmethod
    def find_spec(name, *_):
        if name == "compoff.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted)
from compoff.__main__ import main
main()
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
