"""Label-free fitting: the two-phase loop, its checkpoint and its report."""

from __future__ import annotations

from compoff.fitting.calibrating import calibrate
from compoff.fitting.finishing import finish
from compoff.fitting.fit import fit
from compoff.fitting.report import FitReport, SplitReport

__all__ = ["FitReport", "SplitReport", "calibrate", "finish", "fit"]
