"""What a server is run with: read from a file or from the command line, and the same for every process of it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from compoff.errors import CompoffError, ConfigError, LocalProtocolError
from compoff.operations.system_errors import told

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    from compoff.wire.security import Tokens
    from compoff.wire.tls import TLS

__all__ = [
    "MOST_PROCESSES",
    "TOKEN_VARIABLE",
    "Relay",
    "Settings",
    "TailPlace",
    "placed",
    "read_tokens",
    "token_of_environment",
]

TOKEN_VARIABLE = "COMPOFF_TOKEN"
MOST_PROCESSES = 1024
"""Server processes, or fronts, that one server has at most; more is a typing error that would take the machine."""


@dataclass(frozen=True)
class TailPlace:
    """Where a tail lies and runs.

    Args:
        folder: The folder that it was saved to, or the one around head and tail.
        device: Where it runs, such as ``"cuda"``.
        factory: ``"package.module:function"`` that makes the model, for a tail that runs the model itself.
        backend: The runtime that it runs in, as for `compoff.Tail.load`.
        written: Where it is written, such as ``"serve.yaml, line 3"``; empty for the command line.
    """

    folder: Path
    device: str = "cpu"
    factory: str | None = None
    backend: Literal["eager", "inductor", "onnx", "tensorrt", "auto"] = "eager"
    written: str = field(default="", compare=False)


@dataclass(frozen=True)
class Relay:
    """Where the process is that holds the tails of all fronts.

    Args:
        address: ``"host:port"`` on this machine.
        token: Its token, which nobody else knows.
    """

    address: str
    token: str


@dataclass(frozen=True)
class Settings:
    """How to run a server.

    Args:
        tails: What to serve.
        address: ``"host:port"`` for devices.
        token_file: File with one token a line; None for the environment variable, if that is set.
        tls: Certificates, or None.
        insecure: Whether other machines may connect in plain TCP.
        options: Further arguments of ``compoff.serve``, by name.
        processes: Server processes, all on one port.
        metrics: ``"host:port"`` for metrics, health and the page; None for none.
        fronts: Processes that speak to devices for one process that holds the tails; 0 where each holds its own.
        relay: For a front, where that process is.
        secret: A token in place of the file's and the variable's.
        written: For ``token_file`` and the names in `options`, where they are written.
    """

    tails: tuple[TailPlace, ...]
    address: str = "127.0.0.1:7878"
    token_file: Path | None = None
    tls: TLS | None = None
    insecure: bool = False
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    processes: int = 1
    metrics: str | None = None
    fronts: int = 0
    relay: Relay | None = None
    secret: str = field(default="", repr=False)
    written: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)

    @property
    def tokens(self) -> Tokens:
        """The tokens as the file holds them now.

        Raises:
            LocalProtocolError: The file holds none, or no text, or cannot be read; or the variable is set, but empty.
            ConfigError: The same, where the file is named in a file of settings; the message says where.
        """
        if self.secret:
            return self.secret
        if self.token_file is None:
            return token_of_environment()
        with placed(self.written.get("token_file", "")):
            return read_tokens(self.token_file)


@contextlib.contextmanager
def placed(written: str) -> Generator[None]:
    """Put before an error where that is written which it is about.

    Args:
        written: Such as ``"serve.yaml, line 3"``; empty to leave errors as they are.

    Raises:
        ConfigError: In place of an error of compoff or of the system.

    Examples:
        >>> with placed("serve.yaml, line 3"):
        ...     raise LocalProtocolError("'tokens' holds no token; write one a line")
        Traceback (most recent call last):
        compoff.errors.ConfigError: serve.yaml, line 3: 'tokens' holds no token; write one a line

    Source: this project.
    """
    try:
        yield
    except (CompoffError, OSError) as error:
        if not written:
            raise
        raise ConfigError(f"{written}: {told(error) if isinstance(error, OSError) else error}") from error


def token_of_environment() -> str | None:
    """The token of the environment variable.

    Returns:
        The token, without space around it; None where the variable is not set.

    Raises:
        LocalProtocolError: It is set, but empty, as where a script got no secret: a server would let everyone in.
    """
    token = os.environ.get(TOKEN_VARIABLE)
    token = token if token is None else token.removeprefix("\ufeff").strip()  # as a line of a file is read
    if token is not None and not token:
        raise LocalProtocolError(
            f"the variable {TOKEN_VARIABLE} is set, but empty; give it a token, or unset it for none"
        )
    return token


def read_tokens(path: Path) -> list[str]:
    """Tokens from a file, one a line; empty lines, space around a token and a byte order mark do not count.

    Args:
        path: The file.

    Returns:
        The tokens, at least one.

    Raises:
        LocalProtocolError: The file holds none, is no UTF-8 text, or cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise LocalProtocolError(f"the token file '{path}' cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError:  # its words would show bytes of the file
        raise LocalProtocolError(f"'{path}' is not UTF-8 text; give a file that holds the token") from None
    tokens = [line.strip() for line in lines if line.strip()]
    if not tokens:
        raise LocalProtocolError(f"'{path}' holds no token; write one a line")
    return tokens
