"""Exported PyTorch programs as bytes, and run on numpy arrays: what head and tail share where torch is present."""

from __future__ import annotations

import io
import os
import threading
import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from compoff.autocast import no_autocast
from compoff.errors import ArtifactError, BackendError
from compoff.narrowing import narrowed
from compoff.printable import first_line
from compoff.threads import work_without_lost_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch.export import ExportedProgram

    from compoff.weights import WeightPool

__all__ = ["DEVICE_ERRORS", "TorchProgram", "device_trouble", "read_program", "settled", "to_tensor"]

DEVICE_ERRORS = (RuntimeError, AssertionError, NotImplementedError, TypeError)
"""What PyTorch raises, by the kind of the device, where there is no such one or it cannot be used."""


def device_trouble(device: Any) -> str:
    """Why nothing can be computed on a device.

    Args:
        device: What was given as one.

    Returns:
        The reason in a line; nothing where it can be used.

    Examples:
        >>> device_trouble("cpu"), device_trouble("meta")
        ('', 'it holds no numbers')
    """
    try:
        return "it holds no numbers" if settled(device).type == "meta" else ""
    except DEVICE_ERRORS as error:
        return first_line(error)


def settled(device: Any) -> torch.device:
    """A device with its number: ``"cuda"`` alone is whichever card is the current one of the thread that asks.

    Args:
        device: What was given as one.

    Returns:
        The device as tensors say it.

    Examples:
        >>> settled("cpu")
        device(type='cpu')
    """
    return torch.empty(0, device=device).device


# torch.export.load notes in a global of the process what it is at; what warns is a global, too. A fork waits until
# nobody loads: the child would find it at what a thread of its parent had begun.
_LOADING = threading.RLock()
if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_LOADING.acquire, after_in_parent=_LOADING.release, after_in_child=_LOADING.release)


def read_program(data: bytes) -> ExportedProgram:
    """A program as `torch.export` has it, which raises many types where it cannot read one.

    Args:
        data: The bytes of a ``.pt2`` file.

    Returns:
        The program.
    """
    # Files hold programs for the CPU, whatever device torch.set_default_device has chosen.
    with _LOADING, warnings.catch_warnings(), torch.device("cpu"):
        warnings.simplefilter("ignore")  # deprecations inside torch.export.load
        return torch.export.load(io.BytesIO(data))


class TorchProgram:
    """A program ready to run.

    Args:
        program: The exported program, on the CPU.
        data: The same as the bytes of a ``.pt2`` file; None to make them when they are asked for.
        device: Where to run it, such as ``"cuda"``.
        pool: Holds the weights that it has in common with others.

    Raises:
        BackendError: There is no such device here.

    Examples:
        >>> import numpy as np, torch
        >>> exported = torch.export.export(torch.nn.ReLU(), (torch.zeros(3),))
        >>> TorchProgram(exported).run([np.array([-1, 0, 2], np.float32)])
        [array([0., 0., 2.], dtype=float32)]
    """

    def __init__(
        self,
        program: ExportedProgram,
        data: bytes | None = None,
        device: str = "cpu",
        pool: WeightPool | None = None,
    ) -> None:
        self._program = program
        self._data = data
        self._kept: Callable[[], bytes] | None = None
        try:
            self._device = settled(device)
            if self._device.type != "cpu":
                self._data = self.to_bytes()  # before the program moves: files hold programs for the CPU
                program = move_to_device_pass(program, self._device)
            if pool is not None:
                self._kept, self._data = pool.keep(self.to_bytes()), None
                pool.share_program(program)
                pool.share_program(self._program)  # on the CPU, where that is another
        except DEVICE_ERRORS as error:
            raise BackendError(f"the program cannot run on device '{device}' ({error}); choose another") from error
        self._module = program.module(check_guards=False)
        self._narrow: dict[tuple[int, ...], nn.Module] = {}
        self._own = _memory_of(self._module)

    @classmethod
    def load(cls, data: bytes, name: str, device: str = "cpu", pool: WeightPool | None = None) -> TorchProgram:
        """Read a ``.pt2`` file.

        Args:
            data: Its bytes, already checked against a manifest.
            name: Its name, for messages.
            device: Where to run it.
            pool: Holds the weights that it has in common with others.

        Returns:
            The program.

        Raises:
            ArtifactError: PyTorch cannot read it.
            BackendError: There is no such device here, or PyTorch lacks a module to read it with.
        """
        try:
            program = read_program(data)
        except ModuleNotFoundError as error:
            message = f"{name}: to load this program PyTorch needs {error.name}, which is missing here"
            raise BackendError(f"{message}; install it, or use a Python that has it") from error
        except Exception as error:  # torch.export raises many types for one fact
            raise ArtifactError(
                f"{name}: torch {torch.__version__} cannot load this program ({first_line(error)}); export again with "
                "this torch, or install the one named under versions in the manifest"
            ) from error
        return cls(program, data, device, pool)

    @property
    def exported(self) -> ExportedProgram:
        """The program as `torch.export` has it, on the CPU."""
        if self._device.type == "cpu":
            return self._program
        return TorchProgram.load(self.to_bytes(), "the program").exported

    @property
    def inputs(self) -> list[tuple[tuple[int | None, ...], str]]:
        """Shape and dtype of each tensor that it takes; None for a size that is free."""
        names = set(self._program.graph_signature.user_inputs)
        found = [node.meta.get("val") for node in self._program.graph.nodes if node.name in names]
        return [
            (
                tuple(size if isinstance(size, int) else None for size in cast("tuple[Any, ...]", value.shape)),
                str(value.dtype).removeprefix("torch."),
            )
            for value in found
            if isinstance(value, Tensor)
        ]

    def to_bytes(self) -> bytes:
        """The program as the bytes of a ``.pt2`` file.

        Returns:
            The bytes.
        """
        if self._kept is not None:
            return self._kept()
        if self._data is None:
            buffer = io.BytesIO()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecations inside torch.export.save
                torch.export.save(self._program, buffer)
            self._data = buffer.getvalue()
        return self._data

    def run(self, inputs: Sequence[NDArray[Any]], channels: tuple[int, ...] | None = None) -> list[NDArray[Any]]:
        """Run on arrays.

        Args:
            inputs: One array an input.
            channels: Of how many channels the first outputs are wanted (`compoff.narrowing`); None for all. Where the
                program cannot do with fewer, all are given.

        Returns:
            One array an output.
        """
        module = self._module if channels is None else self._narrowed(channels)
        work_without_lost_threads()
        with torch.inference_mode(), no_autocast():
            tensors = [to_tensor(array).to(self._device) for array in inputs]
            outputs: Sequence[Tensor] | Tensor = module(*tensors)
            leaves = [outputs] if isinstance(outputs, Tensor) else outputs
            # What the program returns of its own stays its own, whatever the caller does to an answer.
            own = [leaf.untyped_storage().data_ptr() in self._own for leaf in leaves]
            return [(leaf.clone() if kept else leaf).cpu().numpy() for leaf, kept in zip(leaves, own, strict=True)]

    def _narrowed(self, channels: tuple[int, ...]) -> nn.Module:
        """The program for so many channels, made once."""
        if channels not in self._narrow:
            with _LOADING, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecations inside copies of a graph
                self._narrow[channels] = narrowed(self._module, channels) or self._module
                self._own |= _memory_of(self._narrow[channels])
        return self._narrow[channels]


def _memory_of(module: nn.Module) -> set[int]:
    """Where the weights, buffers and constants of a program lie."""
    return {tensor.untyped_storage().data_ptr() for tensor in _tensors_in(module)}


def _tensors_in(module: nn.Module) -> Iterator[Tensor]:
    for part in module.modules():
        for held in (part._parameters, part._buffers, vars(part)):  # pyright: ignore[reportPrivateUsage] - also what no state has
            yield from (value for value in held.values() if isinstance(value, Tensor))


def to_tensor(array: NDArray[Any]) -> Tensor:
    """An array as a tensor.

    Args:
        array: The array.

    Returns:
        A tensor of the same memory; of a copy where the array cannot be written to, since PyTorch has no such tensors.

    Examples:
        >>> import numpy as np
        >>> to_tensor(np.frombuffer(b"ab", np.uint8)).tolist()
        [97, 98]
    """
    return torch.from_numpy(array if array.flags.writeable else array.copy())  # pyright: ignore[reportUnknownMemberType]
