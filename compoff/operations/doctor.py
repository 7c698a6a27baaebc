"""`compoff doctor`: what works on this machine: the runtimes of heads and tails, the coder, and what each extra needs.

Looks at what is installed, and imports what it tells of; needs no torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import itertools
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from compoff import __version__
from compoff.coding import range_constriction
from compoff.operations.fit_figures import table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

__all__ = ["Finding", "as_json", "examine", "show"]

_PACKAGE = "compoff"
_OF_THE_REPOSITORY = ("bench", "docs", "test", "zoo")  # extras for whoever works on compoff itself
_STATES = {"works": "works", "missing": "not here", "wrong": "WRONG"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        part: What it is a part of: ``"machine"``, ``"head"``, ``"tail"``, ``"coder"`` or ``"extra"``.
        name: Its name there.
        state: ``"missing"`` is nothing bad where nobody needs it; ``"wrong"`` is a package that is installed and does
            not import, or of a version that compoff does not take.
        told: Versions, or what is missing and how to get it.
    """

    part: str
    name: str
    state: Literal["works", "missing", "wrong"]
    told: str


def examine() -> list[Finding]:
    """Look at this machine.

    Returns:
        What was found, the machine first.

    Examples:
        >>> [found.name for found in examine() if found.part == "head"]
        ['torch', 'onnx', 'executorch']
    """
    return [*_machine(), *_heads(), *_tails(), _coder(), *_extras()]


def show(findings: Sequence[Finding], console: Console) -> None:
    """Print what `examine` found.

    Args:
        findings: What it found.
        console: Where to.
    """
    rows = [(found.part, found.name, _STATES[found.state], found.told) for found in findings]
    console.print(table(f"compoff {__version__}", ("part", "name", "state", "what there is, or what it lacks"), rows))


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [asdict(found) for found in findings]


def _machine() -> Iterator[Finding]:
    system = f"{platform.system()} on {platform.machine()}, {os.cpu_count()} cores"
    yield Finding("machine", "Python", "works", f"{platform.python_version()}, {system}")
    found = _imported("machine", "torch", "torch", "a head in onnxruntime does without it")
    if found.state == "works":
        import torch

        cards = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found = replace(found, told=f"{found.told}, {', '.join(cards) or 'no CUDA device'}")
    yield found


def _heads() -> Iterator[Finding]:
    yield _imported("head", "torch", "torch", "a head in onnxruntime does without it")
    yield _imported("head", "onnx", "onnxruntime", 'pip install "compoff[onnx]"')
    yield _imported("head", "executorch", "executorch", 'pip install "compoff[executorch]"')


def _tails() -> Iterator[Finding]:
    eager = _imported("tail", "eager", "torch", "a tail needs it")
    yield eager
    if eager.state != "works":
        return
    from compoff.edge.backends.choosing import missing_of

    for name, missing in missing_of().items():
        if missing:
            yield Finding("tail", name, "missing", missing)
        elif name == "inductor":
            yield replace(eager, name=name, told=f"{eager.told}, {_compiler()}")
        else:
            yield _imported("tail", name, {"onnx": "onnxruntime", "tensorrt": "torch_tensorrt"}[name], "")


def _compiler() -> str:
    """The C++ compiler that inductor looks for; only compiling needs it, not running what was compiled."""
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return f"compiles with {found}" if (found := shutil.which(name)) else f"no {name} to compile with"


def _coder() -> Finding:
    if range_constriction.find() is None:
        told = "pure Python: the same bytes as constriction's, some twenty times slower"
        return Finding("coder", "range", "works", told)
    return _imported("coder", "range", "constriction", "")


def _extras() -> Iterator[Finding]:
    try:
        metadata = importlib.metadata.metadata(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        told = f"{_PACKAGE} is not installed as a package, so what its extras need is not known"
        yield Finding("extra", "all", "missing", told)
        return
    for extra in sorted({*(metadata.get_all("Provides-Extra") or [])} - {*_OF_THE_REPOSITORY}):
        yield _extra(extra)


def _extra(name: str) -> Finding:
    needed = {one: _version_of(one) for one in _requirements(name)}
    unfit = [
        one for one, version in needed.items() if version and not one.specifier.contains(version, prereleases=True)
    ]
    lacking = ", ".join(f"{one.name}{one.specifier}" for one, version in needed.items() if version is None)
    told = [f"needs {one.name}{one.specifier}, and {needed[one]} is installed" for one in unfit]
    told += [f"lacks {lacking}"] if lacking else []
    told = told or [", ".join(f"{one.name} {version}" for one, version in needed.items())]
    return Finding("extra", name, "wrong" if unfit else "missing" if lacking else "works", "; ".join(told))


def _requirements(extra: str) -> list[Requirement]:
    """What an extra needs here, and what the extras need that it names."""
    found: dict[str, Requirement] = {}
    for line in importlib.metadata.requires(_PACKAGE) or []:
        one = Requirement(line)
        if one.marker is None or not one.marker.evaluate({"extra": extra}) or one.marker.evaluate({"extra": ""}):
            continue
        its_own = canonicalize_name(one.name) == _PACKAGE  # as an extra names others
        for needed in itertools.chain(*map(_requirements, one.extras)) if its_own else [one]:
            found[needed.name] = needed
    return list(found.values())


def _version_of(requirement: Requirement) -> str | None:
    try:
        return importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _imported(part: str, name: str, package: str, without: str) -> Finding:
    """Whether a package is here and imports, which a broken installation does not."""
    if importlib.util.find_spec(package) is None:
        return Finding(part, name, "missing", f"{package} is not installed: {without}")
    try:
        module = importlib.import_module(package)
    except Exception as error:
        told = f"{package} is installed and does not import: {type(error).__name__}: {error}"
        return Finding(part, name, "wrong", told)
    return Finding(part, name, "works", f"{package} {getattr(module, '__version__', '')}".rstrip())
