"""A model that writes into copies of its buffers for a while: counters and observers stay as they were.

Copies are put in, rather than put back afterwards, because a gradient may still want what the pass has left in them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor, nn

__all__ = ["spare_buffers"]


@contextlib.contextmanager
def spare_buffers(model: nn.Module) -> Generator[None]:
    """Run a block with copies in place of a model's buffers, then give it its own ones back.

    Args:
        model: The model.

    Yields:
        Nothing.

    Examples:
        >>> import torch
        >>> net = torch.nn.BatchNorm1d(2)
        >>> with spare_buffers(net):
        ...     _ = net(torch.ones(4, 2))
        ...     int(net.num_batches_tracked)
        1
        >>> int(net.num_batches_tracked)
        0
    """
    copies: dict[Tensor, Tensor] = {}
    own: list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]] = []
    with torch.inference_mode(mode=False), torch.no_grad():  # a copy made of a tensor of inference mode could not train
        for module in model.modules():
            buffers = module._buffers  # pyright: ignore[reportPrivateUsage] - buffers() leaves out repeated ones
            if not buffers:
                continue
            own.append((buffers, dict(buffers)))
            for name, buffer in buffers.items():
                if buffer is not None:
                    if buffer not in copies:
                        copies[buffer] = buffer.clone()
                    buffers[name] = copies[buffer]
    try:
        yield
    finally:
        for buffers, before in own:
            buffers.clear()
            buffers.update(before)
