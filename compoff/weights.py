"""Weights in memory once, however many programs have them."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compoff.errors import BackendError
from compoff.pieces import put_back, take_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.export import ExportedProgram

__all__ = ["WeightPool", "exchange_weights"]


class WeightPool:
    """Holds weights by their content, so that the tails loaded with it share those that are the same.

    Pass one to several calls of `Tail.load`. It keeps what it holds as long as it lives; a tail, once loaded, can do
    without it.

    Examples:
        >>> import torch
        >>> pool = WeightPool()
        >>> one, other = (pool.share(torch.arange(4.0)) for _ in range(2))
        >>> one.data_ptr() == other.data_ptr(), pool.nbytes
        (True, 16)

    Source: this project.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all that it holds."""
        return sum(held.numel() for held in self._held.values())

    def share(self, tensor: Tensor) -> Tensor:
        """The tensor, in memory that others with the same bytes have, too.

        Args:
            tensor: A tensor, which nobody may write to from now on.

        Returns:
            One of the same values, shape, dtype and device; the given one where its layout is unusual.
        """
        if not isinstance(tensor, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance] - a user's mistake all the same
            raise BackendError(f"a {type(tensor).__name__} was given; expected a tensor")
        if tensor.layout is not torch.strided or not tensor.is_contiguous() or not tensor.numel():
            return tensor
        plain = tensor.detach().reshape(-1).view(torch.uint8)
        held = self._held.setdefault((_digest(plain), str(tensor.device)), plain)
        shared = held.view(tensor.dtype).view(tensor.shape)
        return nn.Parameter(shared, requires_grad=False) if isinstance(tensor, nn.Parameter) else shared

    def share_program(self, program: ExportedProgram) -> None:
        """Put shared weights into a program.

        Args:
            program: The program; changed.
        """
        exchange_weights(program, self.share)

    def keep(self, data: bytes) -> Callable[[], bytes]:
        """Keep a program's file without its weights a second time.

        Args:
            data: The file.

        Returns:
            Gives the file, to the last bit.
        """
        rest, weights = take_out(data)
        for name, weight in weights.items():
            if (name, "cpu") not in self._held:
                self._held[name, "cpu"] = torch.frombuffer(bytearray(weight), dtype=torch.uint8)
        held = {name: self._held[name, "cpu"] for name in weights}
        return lambda: put_back(rest, lambda _, name, __: _bytes(held[name]))


def exchange_weights(program: ExportedProgram, exchange: Callable[[Tensor], Tensor]) -> None:
    """Put other tensors in the place of a program's weights.

    Args:
        program: The program; changed.
        exchange: Gives what shall stand in the place of each.
    """
    for weights in (program.state_dict, program.constants):
        for name, value in weights.items():
            if isinstance(value, Tensor):
                weights[name] = exchange(value)


def _digest(plain: Tensor) -> str:
    return sha256(_bytes(plain.cpu())).hexdigest()


def _bytes(plain: Tensor) -> memoryview:
    array: Any = plain.numpy()
    return memoryview(array)
