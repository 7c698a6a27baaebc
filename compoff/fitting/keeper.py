"""When a fit's state goes to disk, and how a fit goes on from there. What the file holds is `state`'s."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compoff.fingerprint import fingerprint
from compoff.fitting.randomness import random_states
from compoff.fitting.state import load_state, save_state
from compoff.mounting import device_of

if TYPE_CHECKING:
    from pathlib import Path

    from compoff.fitting.fitter import Fitter
    from compoff.fitting.state import RandomState

__all__ = ["Keeper"]

_log = logging.getLogger("compoff.fit")

_SAVE_EVERY = 200  # steps between two states on disk
_SAVE_SECONDS = 60.0  # no more than that is lost to a kill where steps are slow


class Keeper:
    """Writes the state of a fit to disk now and then, and reads it back at the start.

    Args:
        path: The file.
        seed: Seed of the fit.
        fitter: The fit's steps.
    """

    def __init__(self, path: Path, seed: int, fitter: Fitter) -> None:
        self.path = path
        self.fitter = fitter
        self._saved = -math.inf  # the first step is worth a file: looking at the data may have taken longer than it
        target = fitter.aim.target_bytes
        self.settings: dict[str, Any] = {
            "model": fingerprint(fitter.wrapped.base.state_dict()),
            "split_points": list(fitter.wrapped.split_points),
            "steps": fitter.total,
            "recipe": vars(fitter.recipe),
            "rate": fitter.rate,
            "lr": fitter.lr,
            "target_bytes": dict(target) if isinstance(target, Mapping) else target,
            "seed": seed,
        }

    def restore(self) -> RandomState | None:
        """Go on from the file if there is one.

        Returns:
            The random state to go on with; None without a file.

        Raises:
            FitError: The file is damaged or belongs to another fit.
        """
        if not self.path.exists():
            return None
        fitter, lrs = self.fitter, self.fitter.state.lrs
        fitter.state, rng = load_state(self.path, self.settings, fitter.wrapped.bottlenecks, fitter.optimizer)
        fitter.state.lrs = fitter.state.lrs or lrs  # a file of an older version has none
        fitter.keep()
        _log.info("going on from step %d of %s", fitter.state.step, self.path)
        return rng

    @property
    def due(self) -> bool:
        """Whether a kill would lose too much."""
        step = self.fitter.state.step
        enough = step % _SAVE_EVERY == 0 or step == self.fitter.total
        return enough or time.monotonic() - self._saved >= _SAVE_SECONDS

    def save(self, began: RandomState) -> None:
        """Write the file.

        Args:
            began: The random state at the start of the round.
        """
        self._saved = time.monotonic()
        fitter = self.fitter
        rng = replace(began, now=random_states(device_of(fitter.wrapped.base)))
        save_state(self.path, fitter.state, self.settings, fitter.wrapped.bottlenecks, fitter.optimizer, rng)
