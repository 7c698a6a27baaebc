"""Random numbers of a fit's own: the caller's go on afterwards as if nothing had been drawn."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["own_random_numbers"]


@contextlib.contextmanager
def own_random_numbers(seed: int, device: torch.device | None) -> Generator[None]:
    """Seed what a block draws, loaders included; the caller's random numbers go on as if nothing had been drawn.

    Args:
        seed: The seed.
        device: Where the model is; None for the CPU.

    Yields:
        Nothing.

    Examples:
        >>> import torch
        >>> before = torch.get_rng_state()
        >>> with own_random_numbers(0, None):
        ...     _ = torch.rand(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    accelerators = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=accelerators):
        # torch.manual_seed would seed every accelerator, the caller's other ones too.
        torch.default_generator.manual_seed(seed)
        for accelerator in accelerators:
            with torch.cuda.device(accelerator):
                torch.cuda.manual_seed(seed)
        yield
