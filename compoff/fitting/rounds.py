"""One round of a fit through its batches, from where a kill left it; and the last of those that come only once."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from compoff.batch import Batch
from compoff.errors import FitError
from compoff.fitting.batches import to_batch
from compoff.fitting.randomness import set_random_states

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from compoff.fitting.state import FitState, RandomState
    from compoff.wrapped import Wrapped

__all__ = ["Recent", "one_round"]

_RECENT = 8  # batches that are kept of what can be gone through only once


class Recent:
    """The last batches of what can be gone through only once; of anything else none, since it gives them again.

    Args:
        given: What the fit was given.
        wrapped: The wrapped model.
        device: Where the batches go.
    """

    def __init__(self, given: Iterable[Any], wrapped: Wrapped, device: torch.device | None) -> None:
        self.batches = deque[Batch](maxlen=_RECENT if isinstance(given, Iterator) else 0)
        self._wrapped, self.device = wrapped, device

    @property
    def wanted(self) -> bool:
        """Whether any are kept."""
        return self.batches.maxlen != 0

    def keep(self, batch: Batch) -> None:
        """Keep a batch as it is now: a loader may fill the same memory again.

        Args:
            batch: The batch.
        """
        if self.wanted:
            self.batches.append(batch.copy())

    def pass_by(self, items: Iterator[Any], count: int) -> None:
        """Draw batches that were used up before a kill, the last of which are kept all the same.

        Args:
            items: The round's batches.
            count: How many were used up.
        """
        for place, item in enumerate(itertools.islice(items, count)):
            if self.wanted and count - place <= _RECENT:
                self.keep(to_batch(item, self._wrapped, self.device))


def one_round(batches: Iterable[Any], state: FitState, rng: RandomState | None, recent: Recent) -> Iterator[Any]:
    """The batches of one round from where the state stands, which moves on with each.

    Those that were used up before a kill are drawn once more, so that the loader shuffles as it did; from there on the
    random numbers are those that followed.

    Args:
        batches: What the fit was given.
        state: Where the fit stands.
        rng: The random state that a file held, in the first round after it; else None.
        recent: Keeps those that were used up before, too.

    Yields:
        One batch after the other, as the loader gave it.

    Raises:
        FitError: There was none.
    """
    items = iter(batches)
    recent.pass_by(items, state.position)
    if rng is not None and rng.now:
        set_random_states(rng.now, recent.device)
    for item in items:
        state.position += 1
        yield item
    if state.position == 0:
        raise FitError(
            "the batches gave nothing, or were used up before the last step; give a list, a DataLoader, or anything "
            "that can be gone through again and again, or ask for fewer steps"
        )
    state.position = 0
