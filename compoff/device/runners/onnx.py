"""A head's program in ONNX under onnxruntime: for devices without torch, and the faster one for those with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from compoff.device.runners.runner import fits
from compoff.device.runners.tensors import from_numpy, to_numpy
from compoff.errors import BackendError
from compoff.onnx_narrowing import QUALITY
from compoff.onnx_session import OnnxSession, OnnxTensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from compoff.artifact import Folder
    from compoff.manifest import Manifest, TensorSpec

__all__ = ["OWNER", "PROGRAM", "OnnxRunner"]

PROGRAM = "head.onnx"
"""Name of the program in a head's folder."""

OWNER = "compoff.artifact_id"
"""Under which a program says which export it belongs to."""


class OnnxRunner:
    """Runs a head with onnxruntime.

    Args:
        data: The bytes of the program.
        manifest: What the head is.
        others: The other programs of the same head, as files of the artifact by name; kept, not run.
        threads: Threads that work on one run; None for one a core.
        name: The program's name, for messages.

    Raises:
        BackendError: onnxruntime is not installed, cannot read the program, or it is another head's.
    """

    def __init__(
        self,
        data: bytes,
        manifest: Manifest,
        *,
        others: Mapping[str, bytes] | None = None,
        threads: int | None = None,
        name: str = PROGRAM,
    ) -> None:
        self._data = data
        self._others = {name: other for name, other in (others or {}).items() if name != PROGRAM}
        self._session = OnnxSession(data, name, threads=threads)
        _check_owner(self._session, manifest, name)
        self._by_quality = self._session.names[-1:] == (QUALITY,)
        self._all = np.array(len(manifest.codes[0].qualities), np.int64)  # beyond the last quality

    @classmethod
    def load(cls, folder: Folder, threads: int | None = None) -> OnnxRunner:
        """Read the program of a checked folder.

        Args:
            folder: The folder, read and checked.
            threads: Threads that work on one run; None for one a core.

        Returns:
            The runner.

        Raises:
            ArtifactError: The folder has no such program.
            BackendError: onnxruntime is not installed, cannot read the program, or it is another head's.
        """
        name = str(folder.path / PROGRAM)
        return cls(folder.file(PROGRAM), folder.manifest, others=folder.files, threads=threads, name=name)

    @property
    def version(self) -> str:
        """The version of onnxruntime."""
        return self._session.version

    @property
    def files(self) -> dict[str, bytes]:
        """The programs as files of an artifact, by name; first the one that this runs."""
        return {PROGRAM: self._data, **self._others}

    def run(self, inputs: Sequence[NDArray[Any]], quality: int | None = None) -> list[NDArray[Any]]:
        """Turn inputs into what crosses the cut.

        Args:
            inputs: One array an input, one batch.
            quality: Index of the quality whose channels are wanted; None for all channels.

        Returns:
            The symbols of each code, then the side tensors, then what the program says of the samples; see `Runner`.
        """
        if not self._by_quality:
            return self._session.run(inputs)
        known = quality is not None and 0 <= quality < self._all
        return self._session.run([*inputs, np.array(quality, np.int64) if known else self._all])

    def to_numpy(self, value: Any) -> NDArray[Any] | None:
        """The array behind a tensor of PyTorch, which may be loaded all the same; None if `value` is none."""
        return to_numpy(value)

    def from_numpy(self, array: NDArray[Any]) -> Any:
        """An array as PyTorch's tensor, for a caller who gave such; where PyTorch is not loaded, as it is."""
        return from_numpy(array)


def _check_owner(session: OnnxSession, manifest: Manifest, name: str) -> None:
    """Refuse a program that was made for another export, whatever the folder says of it."""
    owner = session.metadata.get(OWNER, "nobody's")
    if owner != manifest.artifact_id:
        raise BackendError(
            f"{name} is the program of export {owner[:8]}, and this head is of export {manifest.artifact_id[:8]}; "
            "compile the head again"
        )
    crossing = [(("batch", *code.latent_shape), "uint8") for code in manifest.codes] + list(map(_form, manifest.sides))
    finite = [(("batch",), "bool")] * len(manifest.codes)  # older programs do not give it, nor most in integers
    if len(session.outputs) > len(crossing):
        crossing += finite
    taken = list(map(_form, manifest.taken))
    for kind, expected, found in (
        ("takes", [*taken, ((), "int64")] if session.names[-1:] == (QUALITY,) else taken, session.inputs),
        ("gives", crossing, session.outputs),
    ):
        if len(expected) != len(found) or not all(map(_fits, expected, found)):
            raise BackendError(f"{name} {kind} {found}, the manifest says {expected}; compile the head again")


def _form(spec: TensorSpec) -> tuple[tuple[int | str, ...], str]:
    return spec.sized("batch"), spec.dtype


def _fits(expected: tuple[tuple[int | str, ...], str], found: OnnxTensor) -> bool:
    """Whether a tensor of the program is what the manifest says."""
    shape, dtype = expected
    return fits(shape, found.shape) and dtype == found.dtype
