"""The whole network on the edge: the answer to raw pixels, PNG and JPEG, which every row of the table is held against.

A folder holds the network as an exported program and the shape of its pictures; `PictureTail` answers one form of
picture from it, in the place of a `Tail`. Knows no sockets.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from compoff.demo.pictures import FORMS, Pictures, decode_pixels
from compoff.programs import TorchProgram
from compoff.wire.tensors import pack

if TYPE_CHECKING:
    from pathlib import Path

    from compoff.demo.pictures import Form
    from compoff.demo.tasks import Task

__all__ = ["PictureTail", "is_whole", "load_whole", "picture_id", "save_whole"]

_PROGRAM = "network.pt2"
_PICTURES = "pictures.json"
_SPARE_BYTES = 4096  # what headers and tables add to the pixels of a PNG or JPEG, and more


class PictureTail:
    """Answers pictures of one form with the output of the whole network.

    Args:
        form: How a picture is written.
        program: The network.
        pictures: What a picture looks like.
        artifact_id: 32 bytes that a client must name to get here.
    """

    def __init__(self, form: Form, program: TorchProgram, pictures: Pictures, artifact_id: bytes) -> None:
        self.form: Form = form
        self.program = program
        self.pictures = pictures
        self.artifact_id = artifact_id

    @property
    def max_payload_bytes(self) -> int:
        """Longest picture that is read, in bytes."""
        values = 1
        for size in self.pictures.shape:
            values *= size
        return 2 * values + _SPARE_BYTES

    def answer(self, payload: bytes) -> bytes:
        """Answer one picture.

        Args:
            payload: Its bytes.

        Returns:
            The network's output, packed.

        Raises:
            PayloadError: The bytes are no such picture.
        """
        pixels = decode_pixels(payload, self.form, self.pictures.shape)
        return pack(self.program.run([self.pictures.to_input(pixels[None])]))


def save_whole(task: Task, folder: Path) -> bytes:
    """Write the whole network to a folder.

    Args:
        task: The network, and what its pictures look like.
        folder: The folder; made if need be.

    Returns:
        The program's SHA-256, to make ids from.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own deprecations inside export; errors still raise
        program = TorchProgram(torch.export.export(task.net, (task.test[:1],), strict=False))
        data = program.to_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _PROGRAM).write_bytes(data)
    (folder / _PICTURES).write_text(json.dumps(asdict(task.pictures)), encoding="utf-8")
    return hashlib.sha256(data).digest()


def is_whole(folder: Path) -> bool:
    """Whether `save_whole` wrote this folder.

    Args:
        folder: The folder.

    Returns:
        Whether the program is there.
    """
    return (folder / _PROGRAM).is_file()


def load_whole(folder: Path) -> list[PictureTail]:
    """Read the whole network, once for every form of picture.

    Args:
        folder: What `save_whole` wrote.

    Returns:
        One tail a form.

    Raises:
        ArtifactError: PyTorch cannot read the program.
    """
    data = (folder / _PROGRAM).read_bytes()
    stored = json.loads((folder / _PICTURES).read_text(encoding="utf-8"))
    pictures = Pictures(*(tuple(stored[name]) for name in ("shape", "mean", "std")))
    program, digest = TorchProgram.load(data, _PROGRAM), hashlib.sha256(data).digest()
    return [PictureTail(form, program, pictures, picture_id(form, digest)) for form in FORMS]


def picture_id(form: Form, program_digest: bytes) -> bytes:
    """The id under which pictures of one form are answered.

    Args:
        form: How a picture is written.
        program_digest: What `save_whole` returned.

    Returns:
        32 bytes.
    """
    return hashlib.sha256(form.encode() + program_digest).digest()
