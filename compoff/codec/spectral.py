"""Spectrally normalised convolutions: every layer's matrix divided by its largest singular value (Eq. 9).

Our own rather than PyTorch's parametrization: a parametrized module cannot be pickled, and a wrapped model must be.
Knows one layer; `decoder` puts them together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import nn

from compoff.codec.precision import full_precision

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["SpectralConv", "largest_singular_value"]

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d}


@full_precision
def largest_singular_value(matrix: Tensor, u: Tensor, iterations: int = 1) -> tuple[Tensor, Tensor]:
    """Estimate σ(W) by power iteration from the last estimate of its left singular vector.

    Args:
        matrix: W.
        u: Unit vector to start from.
        iterations: Number of power iterations; one a training step is enough, since W moves slowly.

    Returns:
        σ(W), differentiable in W, and the improved unit vector.

    Shapes:
        matrix ``(rows, columns)``; u ``(rows,)``; result a scalar and ``(rows,)``.

    Examples:
        >>> import torch
        >>> sigma, _ = largest_singular_value(torch.diag(torch.tensor([3.0, 1.0])), torch.tensor([0.6, 0.8]), 20)
        >>> round(float(sigma), 4)
        3.0

    Source: DeepCOD (SenSys 2020), Sec. 3.2.2, Eq. 9.
    """
    with torch.no_grad():
        for _ in range(iterations):
            v = F.normalize(matrix.T @ u, dim=0)
            u = F.normalize(matrix @ v, dim=0)
        v = F.normalize(matrix.T @ u, dim=0)
    return u @ matrix @ v, u


def _inside_backward() -> bool:
    """Whether gradient checkpointing is computing a pass again, which must give what that pass gave."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue, reportUnknownVariableType] - there is no public way


def _spectral_norm(matrix: Tensor) -> float:
    """σ(W) without estimating."""
    return float(cast("Tensor", torch.linalg.matrix_norm(matrix.cpu().double(), ord=2)))


class SpectralConv(nn.Module):
    """A convolution, plain or transposed, with Eq. 9 applied to its weight.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel: Kernel size along each axis, in elements; empty for a linear layer.
        factor: Up-sampling factor along each axis (transposed convolution), or None for a plain convolution that keeps
            the size.

    Shapes:
        x ``(batch, in_channels, *space)``; result ``(batch, out_channels, *space · factor)``.

    Examples:
        >>> import torch
        >>> SpectralConv(8, 4, (3, 3), factor=(2, 2))(torch.zeros(1, 8, 5, 5)).shape
        torch.Size([1, 4, 10, 10])

    Source: DeepCOD (SenSys 2020), Sec. 3.2.2, Eq. 9.
    """

    u: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, ...], factor: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.factor = factor
        shape = (in_channels, out_channels, *kernel) if factor else (out_channels, in_channels, *kernel)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.orthogonal_(self.weight)
        self.register_buffer("u", F.normalize(torch.ones(len(self._matrix())), dim=0))
        self.folded = False

    def _matrix(self) -> Tensor:
        """The weight as Eq. 9's matrix: one row an output channel."""
        return (self.weight.transpose(0, 1) if self.factor else self.weight).flatten(1)

    def normalized_weight(self) -> Tensor:
        """SN(W) = W / σ(W); in training mode the estimate of σ moves one step on.

        Returns:
            The weight that the layer applies.
        """
        if self.folded:
            return self.weight
        moving = self.training and not _inside_backward()
        sigma, u = largest_singular_value(self._matrix(), self.u, 1 if moving else 0)
        if moving:
            self.u = u.detach()
        return self.weight / sigma

    @torch.no_grad()
    def settle(self) -> None:
        """Bring the estimate of σ to convergence, so that evaluation does not depend on when training stopped."""
        _, self.u = largest_singular_value(self._matrix(), self.u, 100)

    @torch.no_grad()
    def fold(self) -> None:
        """Store SN(W) as the weight: inference then does no power iteration."""
        self.weight.copy_(self.normalized_weight())
        self.folded = True

    @property
    def lipschitz_bound(self) -> float:
        """Upper bound of the layer's gain, for any input size.

        Eq. 9 normalises the kernel as a matrix; the layer applies that matrix to patches, which overlap. Read forward,
        with a row for each output channel, an input element lies in ``prod(kernel)`` patches; read backward (a map and
        its adjoint have the same gain), with a row for each input channel, an output element lies in
        ``prod(ceil(kernel / stride))`` patches. In either reading the gain is at most the matrix's largest singular
        value times the root of that number.
        """
        steps = self.factor or (1,) * len(self.kernel)
        overlap = math.prod(-(-size // step) for size, step in zip(self.kernel, steps, strict=True))
        with torch.no_grad():
            sigma = 1.0 if self.folded else float(largest_singular_value(self._matrix(), self.u, 0)[0])
            backward = (self.weight if self.factor else self.weight.transpose(0, 1)).flatten(1)
            readings = ((self._matrix(), math.prod(self.kernel)), (backward, overlap))
            return min(_spectral_norm(matrix) * math.sqrt(patches) for matrix, patches in readings) / sigma

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: Input, ``(batch, in_channels, *space)``.

        Returns:
            Output, ``(batch, out_channels, *space · factor)``.
        """
        weight = self.normalized_weight()
        if self.factor is None:
            if not self.kernel:
                return F.linear(x, weight, self.bias)
            padding = tuple(size // 2 for size in self.kernel)
            return _CONVOLUTIONS[len(self.kernel)](x, weight, self.bias, padding=padding)
        # Output size must be exactly factor times the input's: factor + 2 * padding - kernel elements are added.
        padding = tuple(max(0, -(-(size - step) // 2)) for size, step in zip(self.kernel, self.factor, strict=True))
        extra = tuple(step + 2 * pad - size for size, step, pad in zip(self.kernel, self.factor, padding, strict=True))
        return _TRANSPOSED[len(self.kernel)](
            x, weight, self.bias, stride=self.factor, padding=padding, output_padding=extra
        )
