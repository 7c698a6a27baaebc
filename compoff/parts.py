"""Which heads and tails lie in a folder, or in the folders inside it. Reads no more than a manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compoff.artifact import MANIFEST, read_manifest
from compoff.checks import check_path, reaching
from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["exports_in", "find_part", "kinds_in"]


def find_part(path: str | Path, kind: str) -> Path:
    """The folder of a head or a tail: the given one, or its subfolder of that name.

    Args:
        path: A folder that `save` wrote, or the folder around ``head`` and ``tail``.
        kind: ``"head"`` or ``"tail"``.

    Returns:
        The folder to read.

    Raises:
        ArtifactError: It is around exports, one of which is to be named, or only the other part is there.
    """
    folder = check_path("path", path, ArtifactError)
    with reaching(folder, ArtifactError):
        if (folder / MANIFEST).exists():
            return folder
        if (folder / kind).is_dir():
            return folder / kind
        inside = [one.name for one in exports_in(folder)]
        if inside and inside != ["tail" if kind == "head" else "head"]:
            told = ", ".join(inside[:5])
            raise ArtifactError(f"'{folder}' is around exports ({told}); name the folder of one of them")
        if inside:
            raise ArtifactError(f"'{folder}' holds a {inside[0]} and no {kind}; copy the {kind} there, too")
        return folder


def exports_in(folder: Path) -> list[Path]:
    """The folders of heads and tails, or around such a pair, that a folder holds.

    Args:
        folder: The folder; it need not be there.

    Returns:
        Them, in the order of their names.
    """
    with reaching(folder, ArtifactError):
        places = sorted(folder.iterdir()) if folder.is_dir() else []
        return [one for one in places if any((one / name / MANIFEST).exists() for name in ("", "head", "tail"))]


def kinds_in(path: str | Path) -> list[str]:
    """Which parts a folder holds.

    Args:
        path: A folder that `save` wrote, or the folder around ``head`` and ``tail``.

    Returns:
        ``"head"``, ``"tail"``, or both; what `find_part` and `read_folder` can be asked for.

    Raises:
        ArtifactError: It holds neither, or its manifest is damaged.
    """
    folder = check_path("path", path, ArtifactError)
    with reaching(folder, ArtifactError):
        if (folder / MANIFEST).exists():
            return [read_manifest(folder)[0].kind]
        found = [kind for kind in ("head", "tail") if (folder / kind).is_dir()]
    if not found:
        raise ArtifactError(
            f"'{folder}' holds no head and no tail; expected a folder that Head.save or Tail.save wrote"
        )
    return found
