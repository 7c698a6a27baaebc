"""A head's program under ExecuTorch with XNNPACK: the ``.pte`` that an app on a phone runs.

Here it runs through ExecuTorch's Python binding, which speaks torch tensors, so this runner needs torch; the file does
not.
"""

from __future__ import annotations

import importlib
import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from compoff.device.runners.tensors import from_numpy, to_numpy
from compoff.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from compoff.artifact import Folder
    from compoff.manifest import Manifest

__all__ = ["OWNER", "PROGRAM", "ExecuTorchRunner"]

PROGRAM = "head.pte"
"""Name of the program in a head's folder."""

OWNER = "compoff_artifact_id"
"""The method of a program that says which export it belongs to."""


class ExecuTorchRunner:
    """Runs a head with ExecuTorch, sample by sample, since its program holds memory for one.

    Args:
        data: The bytes of the program.
        manifest: What the head is.
        others: The other programs of the same head, as files of the artifact by name; kept, not run.
        name: The program's name, for messages.

    Raises:
        BackendError: executorch is not installed, cannot read the program, or it is another head's.
    """

    def __init__(
        self, data: bytes, manifest: Manifest, *, others: Mapping[str, bytes] | None = None, name: str = PROGRAM
    ) -> None:
        self._data, self._name = data, name
        self._others = {other: kept for other, kept in (others or {}).items() if other != PROGRAM}
        self._batched = [spec.batched for spec in manifest.taken]
        codes = [True] * len(manifest.codes)
        self._joined = [*codes, *(spec.batched for spec in manifest.sides), *codes]
        self._lock = threading.Lock()  # a method has one set of inputs and outputs
        try:
            self._program = _loaded(data)  # the method reads from it
            self._method: Any = self._program.load_method("forward")
            names: set[str] = self._program.method_names
            owner = bytes(self._program.load_method(OWNER).execute([])[0].numpy()) if OWNER in names else b""
        except (RuntimeError, ValueError) as error:
            raise BackendError(
                f"ExecuTorch cannot load {name} ({error}): it is damaged, or was made for another version; compile "
                "it again"
            ) from error
        if owner != manifest.identity:
            raise BackendError(
                f"{name} is the program of export {owner.hex()[:8] or 'unknown'}, and this head is of export "
                f"{manifest.artifact_id[:8]}; compile the head again"
            )

    @classmethod
    def load(cls, folder: Folder) -> ExecuTorchRunner:
        """Read the program of a checked folder.

        Args:
            folder: The folder, read and checked.

        Returns:
            The runner.

        Raises:
            ArtifactError: The folder has no such program.
            BackendError: executorch is not installed, cannot read the program, or it is another head's.
        """
        return cls(folder.file(PROGRAM), folder.manifest, others=folder.files, name=str(folder.path / PROGRAM))

    @property
    def files(self) -> dict[str, bytes]:
        """The programs as files of an artifact, by name; first the one that this runs."""
        return {PROGRAM: self._data, **self._others}

    def run(self, inputs: Sequence[NDArray[Any]], quality: int | None = None) -> list[NDArray[Any]]:
        """Turn inputs into what crosses the cut.

        Args:
            inputs: One array an input, one batch.
            quality: Index of a quality; all channels are computed for each, since a method has one size of output.

        Returns:
            The symbols of each code, then the side tensors, then what the program says of the samples; see `Runner`.

        Raises:
            BackendError: The program fails.
        """
        del quality
        sizes = [len(array) for array, batched in zip(inputs, self._batched, strict=True) if batched]
        samples = [self._sample(inputs, index) for index in range(max(sizes, default=1))]
        columns = zip(*samples, strict=True)
        return [
            np.concatenate(column) if joined else column[0]
            for column, joined in zip(columns, self._joined, strict=False)  # older programs give less
        ]

    def _sample(self, inputs: Sequence[NDArray[Any]], index: int) -> list[NDArray[Any]]:
        """One sample of a batch."""
        given = [
            from_numpy(array[index : index + 1] if batched else array)
            for array, batched in zip(inputs, self._batched, strict=True)
        ]
        with self._lock:
            try:
                return [np.array(output.numpy()) for output in self._method.execute(given)]
            except RuntimeError as error:
                raise BackendError(f"ExecuTorch failed in {self._name}: {error}") from error

    def to_numpy(self, value: Any) -> NDArray[Any] | None:
        """The array behind a tensor of PyTorch; None if `value` is none."""
        return to_numpy(value)

    def from_numpy(self, array: NDArray[Any]) -> Any:
        """An array as PyTorch's tensor."""
        return from_numpy(array)


def _loaded(data: bytes) -> Any:
    """The program, its structure checked."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runtime: Any = importlib.import_module("executorch.runtime")  # an extra, not always installed
    except ImportError as error:
        raise BackendError(f'a .pte needs executorch ({error}): pip install "compoff[executorch]"') from error
    return runtime.Runtime.get().load_program(data, verification=runtime.Verification.InternalConsistency)
