"""What a measurement has to say of where it was made: the machine, without its name, and the installed versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["describe_machine", "describe_versions"]

_PACKAGES = ("compoff", "torch", "numpy", "constriction", "scikit-learn", "pillow")


def describe_machine() -> dict[str, Any]:
    """Describe the machine; no host name, user name or folder is in it.

    Returns:
        Processor, cores that this process may use, memory in GB, operating system.

    Examples:
        >>> sorted(describe_machine())
        ['cores', 'cpu', 'memory_gb', 'system']

    Source: this project.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"{platform.system()} {platform.machine()}"
    return {"cpu": _cpu(), "cores": allowed, "memory_gb": _memory_gb(), "system": system}


def describe_versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """List the versions that a figure may depend on, without importing anything.

    Args:
        packages: The packages to look for; those of the demonstration unless told.

    Returns:
        Version by package, those that are installed, and Python's.

    Examples:
        >>> "python" in describe_versions()
        True

    Source: this project.
    """
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
