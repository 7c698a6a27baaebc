"""Random numbers of a fit's own: the caller's go on afterwards as if nothing had been drawn."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from torch import Tensor

__all__ = ["own_generators", "own_random_numbers", "random_states", "set_random_states"]


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
    kind = _kind_of(device)
    name = "cuda" if device is None or kind is None else device.type
    with torch.random.fork_rng(devices=[] if kind is None else [device], device_type=name):
        # torch.manual_seed would seed every accelerator, the caller's other ones too.
        torch.default_generator.manual_seed(seed)
        if kind is not None:  # of which there may be one only
            with kind.device(device) if hasattr(kind, "device") else contextlib.nullcontext():
                kind.manual_seed(seed)
        yield


def random_states(device: torch.device | None) -> tuple[Tensor, ...]:
    """Where PyTorch's random numbers stand that a fit draws from.

    Args:
        device: Where the model is; None for the CPU.

    Returns:
        State of the CPU's generator, and of the device's where that is another.
    """
    cpu, kind = torch.get_rng_state(), _kind_of(device)
    return (cpu,) if kind is None else (cpu, kind.get_rng_state(device))


def set_random_states(states: Sequence[Tensor], device: torch.device | None) -> None:
    """Go on with random numbers from where they stood.

    Args:
        states: What `random_states` gave; a device whose state is not among them is left as it is.
        device: Where the model is; None for the CPU.

    Examples:
        >>> import torch
        >>> states = random_states(None)
        >>> first = torch.rand(3)
        >>> set_random_states(states, None)
        >>> torch.equal(torch.rand(3), first)
        True
    """
    torch.set_rng_state(states[0])
    if len(states) > 1 and (kind := _kind_of(device)) is not None:
        kind.set_rng_state(states[1], device)


def _kind_of(device: torch.device | None) -> Any:
    """The module of PyTorch with the random numbers of such devices; None for the CPU, and where there are none."""
    module = None if device is None or device.type == "cpu" else torch.get_device_module(device)
    return module if hasattr(module, "manual_seed") and hasattr(module, "get_rng_state") else None


def own_generators(batches: Any) -> list[torch.Generator]:
    """The generators of random numbers that a loader, or the sampler in it, has of its own.

    Args:
        batches: The loader, or anything else that gives batches.

    Returns:
        Each of them once.

    Examples:
        >>> loader = torch.utils.data.DataLoader(torch.zeros(8, 3), generator=torch.Generator())
        >>> len(own_generators(loader)), own_generators([torch.zeros(8, 3)])
        (1, [])
    """
    batched = getattr(batches, "batch_sampler", None)
    holders = (batches, getattr(batches, "sampler", None), batched, getattr(batched, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return [*dict.fromkeys(one for one in found if isinstance(one, torch.Generator))]
