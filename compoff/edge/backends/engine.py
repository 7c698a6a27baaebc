"""Engines: programs compiled for one machine, stored beside the program as a cache; and when one of them may be run.

An engine is native code, or decides what native code does. It is run only where the folder's manifest vouches for its
bytes and its key says that it was made from this program, for this machine, with these versions.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from compoff.artifact import ENGINE
from compoff.edge.backends.eager import PROGRAM
from compoff.errors import BackendError

if TYPE_CHECKING:
    from compoff.artifact import Folder
    from compoff.manifest import Manifest

__all__ = ["Engine", "describe_processor", "engine_key", "has_engine", "read_engine"]

_MOST_KEY_BYTES = 1 << 16
_FORMAT = "1"  # of what is stored; counted up where engines made before must be made anew


@dataclass(frozen=True)
class Engine:
    """A compiled program and what it was compiled from.

    Args:
        backend: Name of the backend that runs it.
        key: What it is good for: program, machine, versions.
        data: The compiled program.
        source: The ``.pt2`` file that it was compiled from, always kept to compile it again.
    """

    backend: str
    key: dict[str, str]
    data: bytes
    source: bytes

    @property
    def files(self) -> dict[str, bytes]:
        """The files of an artifact that hold it, by name; the program first."""
        key = json.dumps(self.key, indent=1).encode()
        return {PROGRAM: self.source, f"{ENGINE}{self.backend}.json": key, f"{ENGINE}{self.backend}.bin": self.data}


def engine_key(manifest: Manifest, source: bytes, device: str, versions: dict[str, str]) -> dict[str, str]:
    """What an engine made here and now is good for.

    Args:
        manifest: What the tail is: the shapes that the engine is compiled for.
        source: The program with its weights.
        device: Where the engine runs.
        versions: Versions of what compiles and runs it.

    Returns:
        Words by name; an engine fits where all of them are the same.
    """
    parts = [[list(code.latent_shape), "uint8", True] for code in manifest.codes]
    parts += [[list(spec.shape), spec.dtype, spec.batched] for spec in manifest.sides]
    return {
        "format": _FORMAT,
        "program": hashlib.sha256(source).hexdigest(),
        "inputs": json.dumps([manifest.max_batch, *parts]),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.device(device).type,
        "processor": describe_processor(device),
        **versions,
    }


def describe_processor(device: str) -> str:
    """Name a processor so that code compiled for it runs wherever the name is the same.

    Args:
        device: ``"cpu"``, or a GPU as PyTorch names it.

    Returns:
        For a GPU its name and compute capability; for a CPU its name and a digest of the instructions that it has.
    """
    if torch.device(device).type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
    lines = _cpu_lines()
    names = sorted({value for key, value in lines if key in ("model name", "CPU part")})
    flags = sorted({value for key, value in lines if key in ("flags", "Features")})
    digest = hashlib.sha256("\n".join(flags).encode()).hexdigest()[:12]
    return f"{', '.join(names) or platform.processor()}, {torch.backends.cpu.get_cpu_capability()}, {digest}"


def _cpu_lines() -> list[tuple[str, str]]:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]


def has_engine(folder: Folder, backend: str) -> bool:
    """Whether a folder has an engine of a backend, good or not.

    Args:
        folder: The folder.
        backend: Name of the backend.

    Returns:
        Whether it has one.
    """
    return f"{ENGINE}{backend}.json" in folder.engines


def read_engine(folder: Folder, backend: str, key: dict[str, str]) -> tuple[Engine | None, str]:
    """Read the engine of a folder, where it may be run here.

    Args:
        folder: The folder, read and checked.
        backend: Name of the backend.
        key: What an engine made here and now would be good for.

    Returns:
        The engine and no words; or None, and why it may not be run: it is stale or of another machine.

    Raises:
        BackendError: Its bytes are not those that the manifest lists, so they are neither run nor replaced in silence.
    """
    if not has_engine(folder, backend):
        return None, "the folder has none"
    name = f"{ENGINE}{backend}.json"
    data, found = folder.engine(f"{ENGINE}{backend}.bin"), _read_key(folder.engine(name), folder.path / name)
    different = [
        f"{word} is {found.get(word, 'not named'):.80}, here {key.get(word, 'not named'):.80}"
        for word in sorted(key.keys() | found.keys())
        if found.get(word) != key.get(word)
    ]
    if different:
        return None, "; ".join(different)
    return Engine(backend, key, data, folder.file(PROGRAM)), ""


def _read_key(data: bytes, path: Path) -> dict[str, str]:
    """The stored key as words by name."""
    try:
        if len(data) > _MOST_KEY_BYTES:
            raise ValueError(f"it has {len(data)} bytes")
        found = json.loads(data)
        return {str(name): str(value) for name, value in found.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise BackendError(f"{path}: is not the key of an engine ({error}); compile the tail again") from error
