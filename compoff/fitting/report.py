"""What a fit leaves behind: loss curves, bytes, agreement with the teacher, and how near the guarantee's terms are."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from compoff.canvas import empty_figure, log_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FitReport", "SplitReport"]


@dataclass
class SplitReport:
    """What was measured at one split point.

    Args:
        loss: Loss of every step.
        distilled_from: Step at which Eq. 11 was added, or None where it never was.
        curve: Each quality from the fewest bytes to the most: ``channels`` and ``step`` that it sends, mean ``bytes``
            of a payload, ``static_bytes`` without context models where there are some, ``ceiling_bytes`` that none
            exceeds, ``agreement``, ``output_error`` and ``encoder_macs``.
        quality: Index of the quality that the export sends by default; the figures below are its.
        aim_met: Whether that quality keeps to the `target_bytes` of the fit, give or take 2 %, or to its `max_drop`; if
            not, it is the nearest. None where the fit had neither.
        bytes: Mean length of one sample's payload, side tensors, header and checksum included, in bytes.
        ceiling_bytes: Length that no input's payload exceeds at that quality, in bytes.
        raw_bytes: Size of the floating-point tensors that cross, one sample, as they are, in bytes.
        agreement: Share of samples on which student and teacher choose the same class, or the mean of what the fit's
            own `agreement` says of them; None where the output is no table of scores and the fit had none.
        output_error: Squared distance of the student's output from the teacher's, in units of what samples differ by:
            1 for a student that always answers the same. Over all measured samples; where the model returns several
            tensors, of the first that depends on what is coded, and so is `agreement`.
        semi_orthogonality_error: ‖EᵀE − I‖ of the encoder (Eq. 7), the largest where several tensors cross; 0 for an
            encoder of your own.
        lipschitz_bound: Upper bound of the decoder's gain over its convolutions (Eq. 8-9); None for a decoder of your
            own.
        local_gain: Largest gain of the whole decoder found at the measured samples.
        encoder_macs: Multiply-accumulates that the encoder adds on the device, per sample, for the channels that are
            sent; None for one of your own.
        adapter_bytes: Size of the adapter of the layers behind, in bytes; 0 where they stay as they are (``strict``).
        measured_on: Number of samples that all of this was measured on.
        held_out: Whether they were held out; otherwise they are training inputs. An export takes both along.

    Examples:
        >>> split = SplitReport(bytes=200.0, raw_bytes=65536)
        >>> f"1/{split.raw_bytes / split.bytes:.0f} of the feature"
        '1/328 of the feature'

    Source: DeepCOD (SenSys 2020), Sec. 3.2.2 (the guarantee's terms); the rest, this project.
    """

    loss: list[float] = field(default_factory=list[float])
    distilled_from: int | None = None
    curve: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    quality: int = 0
    aim_met: bool | None = None
    bytes: float = 0.0
    ceiling_bytes: int = 0
    raw_bytes: int = 0
    agreement: float | None = None
    output_error: float = 0.0
    semi_orthogonality_error: float = 0.0
    lipschitz_bound: float | None = None
    local_gain: float = 0.0
    encoder_macs: int | None = None
    adapter_bytes: int = 0
    measured_on: int = 0
    held_out: bool = False

    @property
    def answer_lost(self) -> bool:
        """Whether the student's output is no nearer to the teacher's than a constant would be.

        Examples:
            >>> SplitReport(output_error=0.02).answer_lost, SplitReport(output_error=5e3).answer_lost
            (False, True)
        """
        return self.output_error >= 1

    def figures(self) -> dict[str, Any]:
        """Everything but the losses of the steps.

        Returns:
            Plain numbers by name, and the curve as a list of them.

        Examples:
            >>> SplitReport(loss=[0.5, 0.25], bytes=200.0).figures()["bytes"]
            200.0
        """
        return {name: copy.deepcopy(value) for name, value in vars(self).items() if name != "loss"}


@dataclass(repr=False)
class FitReport:
    """The record of one fit.

    Args:
        splits: What was measured, by split point.
        steps: Number of optimizer steps; 0 where they were those of a loop of your own.
        seconds: Wall-clock time of the steps and of finding where they start, in seconds.
        measured_on: Number of samples that bytes and agreement were measured on.
        held_out: Whether those samples came from `validation`; otherwise they are training inputs.
        measuring_seconds: Wall-clock time of counting symbols and measuring every quality afterwards, in seconds.

    Examples:
        >>> split = SplitReport(bytes=200.0, raw_bytes=65536, agreement=0.99)
        >>> print(FitReport({"layer1": split}, 10, 1.0, 64, True, 4.0))
        compoff.fit: 10 steps in 1 s, measured on 64 held-out samples in 4 s
          layer1: 200 B of 65536 B raw, agreement 99.0 %
    """

    splits: dict[str, SplitReport]
    steps: int
    seconds: float
    measured_on: int
    held_out: bool
    measuring_seconds: float = 0.0

    def __str__(self) -> str:
        origin = "held-out" if self.held_out else "training"
        measured = f"measured on {self.measured_on} {origin} samples in {self.measuring_seconds:.0f} s"
        trained = f"fit: {self.steps} steps in {self.seconds:.0f} s, " if self.steps else "finish: "
        lines = [f"compoff.{trained}{measured}"]
        for name, split in self.splits.items():
            told = (
                f"agreement {100 * split.agreement:.1f} %"
                if split.agreement is not None
                else f"output error {split.output_error:.4f}"
            )
            aimed = "; THE AIM IS MISSED: no quality keeps to it, this one is the nearest"
            missed = aimed if split.aim_met is False else ""
            lost = "; THE ANSWER IS LOST: its error is as large as what it varies by" if split.answer_lost else ""
            lines.append(f"  {name}: {split.bytes:.0f} B of {split.raw_bytes} B raw, {told}{missed}{lost}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)  # at the end of a notebook's cell, not the loss of every step

    def to_dict(self) -> dict[str, Any]:
        """The report as plain numbers, for JSON.

        Returns:
            A nested dict.

        Examples:
            >>> import json
            >>> report = FitReport({"input": SplitReport(loss=[0.5])}, 1, 0.5, 8, False)
            >>> json.loads(json.dumps(report.to_dict()))["splits"]["input"]["loss"]
            [0.5]
        """
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "measured_on": self.measured_on,
            "held_out": self.held_out,
            "measuring_seconds": self.measuring_seconds,
            "splits": {name: {"loss": [*split.loss], **split.figures()} for name, split in self.splits.items()},
        }

    def rows(self) -> list[dict[str, Any]]:
        """Every quality of every split point as a row of a table, for `csv.DictWriter` or `pandas.DataFrame`.

        Returns:
            Rows with ``split``, ``quality``, whether it is the ``default``, and what `SplitReport.curve` says of it.

        Examples:
            >>> curve = [{"bytes": 90.0, "agreement": 0.97}, {"bytes": 200.0, "agreement": 0.99}]
            >>> rows = FitReport({"layer1": SplitReport(curve=curve, quality=1)}, 10, 1.0, 64, True).rows()
            >>> rows[1]
            {'split': 'layer1', 'quality': 1, 'default': True, 'bytes': 200.0, 'agreement': 0.99}
        """
        return [
            {"split": name, "quality": index, "default": index == split.quality, **point}
            for name, split in self.splits.items()
            for index, point in enumerate(split.curve)
        ]

    def plot_rates(self) -> Figure:
        """Draw bytes against what they keep: one curve a split point, one mark a quality, a large one for the default.

        Returns:
            A matplotlib figure: agreement in per cent where every output is a table of scores, else the output's error.

        Raises:
            BackendError: matplotlib is not installed.

        Examples:
            >>> curve = [{"bytes": 90.0, "agreement": 0.97}, {"bytes": 200.0, "agreement": 0.99}]
            >>> figure = FitReport({"layer1": SplitReport(curve=curve, quality=1)}, 10, 1.0, 64, True).plot_rates()
            >>> figure.axes[0].get_ylabel()
            'agreement (%)'
        """
        figure = empty_figure(7, 4)
        axes = figure.subplots()
        scores = all(point["agreement"] is not None for row in self.splits.values() for point in row.curve)
        for name, split in self.splits.items():
            sizes = [point["bytes"] for point in split.curve]
            kept = [100 * point["agreement"] if scores else point["output_error"] for point in split.curve]
            (line,) = axes.plot(sizes, kept, ".-", label=name, linewidth=1)
            if split.curve:
                axes.plot(sizes[split.quality], kept[split.quality], "o", color=line.get_color())
        axes.set(xlabel="bytes of a payload", ylabel="agreement (%)" if scores else "output error", xscale="log")
        log_ticks(axes.xaxis)
        if not scores:
            axes.set_yscale("log")
            log_ticks(axes.yaxis)
        axes.legend()
        return figure

    def plot(self) -> Figure:
        """Draw the loss curves.

        Returns:
            A matplotlib figure: one curve per split point, with a mark where distillation sets in.

        Raises:
            BackendError: matplotlib is not installed.

        Examples:
            >>> figure = FitReport({"input": SplitReport(loss=[0.5, 0.25])}, 2, 0.5, 8, False).plot()
            >>> figure.axes[0].get_xlabel()
            'step'
        """
        figure = empty_figure(7, 4)
        axes = figure.subplots()
        for name, split in self.splits.items():
            (line,) = axes.plot(split.loss, label=name, linewidth=1)
            if split.distilled_from is not None:
                axes.axvline(split.distilled_from, color=line.get_color(), linestyle=":", linewidth=1)
        axes.set(xlabel="step", ylabel="loss (dotted: distillation sets in)", yscale="log")
        log_ticks(axes.yaxis)
        axes.legend()
        return figure
