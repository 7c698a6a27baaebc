"""What goes wrong between a device and a server, one class a kind: brought about at a random moment, and mended again.

Each works on a ``Site``, one server behind one cable. How the calls meanwhile are judged is for ``faults``.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cable import Cable
from compoff.edge.server import Server, serve
from compoff.errors import (
    ArtifactMismatch,
    AuthenticationError,
    ConnectionLost,
    ConnectTimeout,
    ReadTimeout,
    RemoteProtocolError,
    ServerBusy,
    WireError,
)
from compoff.operations.certificates import Authority
from compoff.wire.tensors import pack
from compoff.wire.tls import TLS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ID", "KINDS", "DigestTail", "Site", "digest"]

ID = bytes(range(32))
LINK_ERRORS: tuple[type[WireError], ...] = (
    ConnectionLost,
    ConnectTimeout,
    ReadTimeout,
    RemoteProtocolError,
    ServerBusy,
)
_HOST = "edge.test"
_SERVER = """
import sys
from benchmarks.fault_kinds import DigestTail
from compoff.edge.server import serve
with serve(DigestTail(), sys.argv[1]) as server:
    print(server.address, flush=True)
    sys.stdin.read()
"""


def digest(payload: bytes) -> bytes:
    """The one right answer to a payload."""
    return hashlib.sha256(payload).digest()


class DigestTail:
    """Answers with the digest of the payload, after as many tenths of a millisecond as its first byte says."""

    max_payload_bytes = 4096

    def __init__(self, artifact_id: bytes = ID) -> None:
        """Answer for one export."""
        self.artifact_id = artifact_id

    def answer(self, payload: bytes) -> bytes:
        """The reply, as a tail with one output of 32 bytes packs it."""
        time.sleep(payload[0] / 10_000 / 8)
        return pack([np.frombuffer(digest(payload), np.uint8)[None]])


class Site:
    """A server, and the cable that devices reach it by.

    Args:
        folder: For certificates.
        seed: Of everything random.
    """

    tls: TLS | None = None
    errors = LINK_ERRORS

    def __init__(self, folder: Path, seed: int) -> None:
        """Serve."""
        self.random = random.Random(seed)
        self.folder = folder
        self.server = self.start()
        self.cable = Cable(self.server_address, seed=seed)

    @property
    def server_address(self) -> str:
        """Of the server itself."""
        assert self.server is not None
        return self.server.address

    @property
    def address(self) -> str:
        """Where devices connect."""
        return self.cable.address

    def start(self) -> Server | None:
        """Start the server."""
        return serve(DigestTail(), workers=2, insecure=False)

    def fault(self) -> None:
        """Bring the fault about, and mend it."""
        raise NotImplementedError

    def close(self) -> None:
        """End everything."""
        self.cable.close()
        if self.server is not None:
            self.server.close()

    def between(self, least: float, most: float) -> None:
        """Wait for a random time, in seconds."""
        time.sleep(self.random.uniform(least, most))


class Cut(Site):
    """The connection is reset."""

    def fault(self) -> None:
        """Once."""
        self.cable.cut()


class Stall(Site):
    """Nothing passes for a while, and then everything."""

    def fault(self) -> None:
        """For 0.05 to 0.6 s."""
        self.cable.hold()
        self.between(0.05, 0.6)
        self.cable.release()


class Delay(Site):
    """Every piece takes a while of its own."""

    def fault(self) -> None:
        """Up to 100 ms each, for a while."""
        self.cable.delay = self.random.uniform(0.01, 0.1)
        self.between(0.2, 0.5)
        self.cable.delay = 0.0


class Split(Site):
    """Messages come in pieces of one to seven bytes."""

    def fault(self) -> None:
        """For a while."""
        self.cable.split = True
        self.between(0.2, 0.5)
        self.cable.split = False


class Reorder(Site):
    """Connections are reset again and again, and the fresh ones overtake each other."""

    def fault(self) -> None:
        """Three resets, close together."""
        self.cable.shuffle = 0.1
        for _ in range(3):
            self.cable.cut()
            self.between(0.0, 0.1)
        self.cable.shuffle = 0.0


class Flip(Site):
    """One bit of a message is another."""

    def fault(self) -> None:
        """In the next piece that passes, either way."""
        self.cable.flip()


class LinkGone(Site):
    """The link is gone for 0.3 to 3 s, for old and new connections."""

    def fault(self) -> None:
        """Once."""
        self.cable.hold()
        self.between(0.3, 3.0)
        self.cable.release()


class HalfOpen(Site):
    """The connection is dead and neither end knows."""

    def fault(self) -> None:
        """For good; a fresh connection is whole."""
        self.cable.swallow()


class ServerKilled(Site):
    """The server's process is killed and started again."""

    def start(self) -> None:
        """Start the process, on the port it had before."""
        self._process: subprocess.Popen[str]
        self._run("127.0.0.1:0")

    @property
    def server_address(self) -> str:
        """Of the process."""
        return self._address

    def _run(self, address: str) -> None:
        command = [sys.executable, "-c", _SERVER, address]
        root = Path(__file__).resolve().parent.parent
        self._process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._process.stdout is not None
        self._address = self._process.stdout.readline().strip()
        if not self._address:
            raise RuntimeError("the server's process did not start")

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def fault(self) -> None:
        """SIGKILL, and a new process."""
        self._kill()
        self._run(self._address)

    def close(self) -> None:
        """End cable and process."""
        self.cable.close()
        self._kill()


class Named(Site):
    """A site that devices know by name and reach over mutual TLS; this is its certificates' home."""

    def start(self) -> Server | None:
        """Make certificates, serve."""
        authority = Authority(self.folder)
        authority.issue_server("edge", [_HOST, "127.0.0.1"])
        authority.issue_server("expired", [_HOST, "127.0.0.1"], days=-0.5)
        authority.issue_device("device")
        for name in ("edge.pem", "edge.key"):
            shutil.copy(self.folder / name, self.folder / f"serving-{name}")
        self.tls = self._tls("device")
        return serve(DigestTail(), workers=2, tls=self._tls("serving-edge"))

    def _tls(self, name: str) -> TLS:
        return TLS(certificate=self.folder / f"{name}.pem", key=self.folder / f"{name}.key", ca=self.folder / "ca.pem")


class DnsChange(Named):
    """The server moves to another address; its name follows, and the old address swallows everything."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Take the place of the name server for one name."""
        super().__init__(folder, seed)
        self._name = f"lane{seed}.{_HOST}"
        self._numbers = 1
        self._resolve: Callable[..., Any] = socket.getaddrinfo
        socket.getaddrinfo = self._look_up

    def start(self) -> Server | None:
        """A certificate with the name of this lane, too."""
        authority = Authority(self.folder)
        server = super().start()
        lane = self.folder.name.rsplit("-", 1)[-1]
        authority.issue_server("edge", [f"lane{lane}.{_HOST}"], renew=True)
        for name in ("edge.pem", "edge.key"):
            shutil.copy(self.folder / name, self.folder / f"serving-{name}")
        if server is not None:
            server.reload_certificates()
        return server

    @property
    def address(self) -> str:
        """By name."""
        return f"{self._name}:{self.cable.port}"

    def _look_up(self, host: Any, *args: Any, **keywords: Any) -> Any:
        return self._resolve(self.cable.host if host == self._name else host, *args, **keywords)

    def fault(self) -> None:
        """Move on by one address."""
        self._numbers = self._numbers % 250 + 1
        self.cable.move(f"127.0.1.{self._numbers}")

    def close(self) -> None:
        """Give the name server its place back."""
        socket.getaddrinfo = self._resolve
        super().close()


class CertificateExpired(Named):
    """The server comes back with a certificate that has expired, until somebody renews it."""

    errors = (*LINK_ERRORS, AuthenticationError)

    def fault(self) -> None:
        """For a while."""
        assert self.server is not None
        for name in ("expired", "edge"):
            for suffix in (".pem", ".key"):
                shutil.copy(self.folder / (name + suffix), self.folder / f"serving-edge{suffix}")
            self.server.reload_certificates()
            self.server.readmit()
            if name == "expired":
                self.between(0.05, 0.4)


class ArtifactSwapped(Site):
    """The artifact is swapped under open connections: for the same made anew, or for another and back."""

    errors = (*LINK_ERRORS, ArtifactMismatch)

    def fault(self) -> None:
        """One or the other."""
        assert self.server is not None
        if self.random.random() < 0.5:
            self.server.swap(DigestTail(bytes(32)))
            self.between(0.05, 0.4)
        self.server.swap(DigestTail())


KINDS: dict[str, type[Site]] = {
    "connection cut": Cut,
    "stalled 0.05-0.6 s": Stall,
    "delayed": Delay,
    "split in pieces": Split,
    "connections reordered": Reorder,
    "bit flipped": Flip,
    "server killed and restarted": ServerKilled,
    "link gone 0.3-3 s": LinkGone,
    "half-open": HalfOpen,
    "DNS change": DnsChange,
    "certificate expired": CertificateExpired,
    "artifact swapped": ArtifactSwapped,
}
"""Every kind of fault, by the name in the results."""
