"""Wrapped: teacher and student in one model, and what is known of them: the loss, the figures, a file.

The teacher is the model with its bottlenecks off, the student the same weights with one on. Knows nothing of training
loops (`fitting`) and of programs (`cutting.capture`).
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import torch

from compoff.batch import batch_of
from compoff.checkpoint import save_bottlenecks
from compoff.checks import check_flag, check_weight
from compoff.codec.limits import check_quality
from compoff.cutting.inputs import require_known
from compoff.distilling import student_pass
from compoff.errors import FitError, SplitError
from compoff.fingerprint import fingerprint
from compoff.gates import only_at
from compoff.hooks import stop_listening
from compoff.mounted import Mounted
from compoff.mounting import build_bottlenecks, require_gradients, sizes_of
from compoff.recipe import Recipe, recipe_for
from compoff.teaching import teacher_pass

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from compoff.codec_options import CodecOptions
    from compoff.cutting.sites import Skips
    from compoff.gates import Gate

__all__ = ["Wrapped"]

_log = logging.getLogger("compoff.save")
_OF_A_QUALITY = ("bytes", "ceiling_bytes", "agreement", "output_error", "encoder_macs")


class Wrapped(Mounted):
    """The user's model with a bottleneck at each split point.

    Called as it is, it is the teacher: the model, unchanged. Inside ``with wrapped.at(split):`` it is the student. The
    base stays frozen and in eval mode whatever the script calls, since BatchNorm would otherwise drift. One thread at a
    time may use `at`; to serve, `compoff.export`.

    Copies, pickles, moves between devices and dtypes, and compiles like any module.

    Args:
        base: The model.
        split_points: Module paths, or ``"input"``.
        options: How the bottlenecks are made.
        skips: What happens to further floating-point tensors that cross; see `compoff.wrap`.

    Examples:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1))
        >>> x = torch.randn(2, 3, 16, 16)
        >>> wrapped = compoff.wrap(net, ["1"], example_input=x)
        >>> torch.equal(wrapped(x), net(x))
        True
        >>> with wrapped.at("1"):
        ...     wrapped(x).shape
        torch.Size([2, 8, 16, 16])

    Source: DeepCOD (SenSys 2020), Sec. 3.2-3.3, Fig. 2.
    """

    _told_of_eval_mode = False

    def __init__(
        self,
        base: torch.nn.Module,
        split_points: Sequence[str],
        options: CodecOptions | None = None,
        skips: Skips = "encode",
    ) -> None:
        super().__init__(base, split_points, options, skips)
        self.reports: dict[str, dict[str, Any]] = {}
        self._measured_with: dict[str, str] = {}  # by split point: the weights that its report speaks of
        self._student: Gate | None = None  # the gate of `at`

    @contextlib.contextmanager
    def at(self, split: str, *, quality: int | None = None, bypass: bool = False) -> Generator[Wrapped]:
        """Make this model the student: the bottlenecks at `split` are on inside the block.

        In eval mode it answers as an export does; in training mode with noise for the rounding.

        Args:
            split: The split point.
            quality: Index of the quality to answer at, as the export's head takes it; None for the one that is sent
                where none is asked for. For eval mode only.
            bypass: Whether features are handed on as they are in place of being coded: what is different then is what
                the cut alone changes.

        Yields:
            This model.

        Raises:
            SplitError: `split` is not one of this model's split points, or shapes are not known yet; or `bypass` is no
                truth value, or a quality is named in training mode.
            FeatureError: There is no such quality.
        """
        self._check(split)
        check_flag("bypass", bypass, SplitError)
        if quality is not None:
            self._check_quality(split, quality)
        gates, before = self._gates(), self._student
        with only_at(gates, split), gates[split].bypassing(bypass), gates[split].answering_at(quality):
            self._student = gates[split]
            try:
                yield self
            finally:
                self._student = before
                if not torch.compiler.is_compiling():
                    stop_listening(self.base)

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """Run the model: the teacher, or the student inside `at`.

        Args:
            *inputs: What the model takes.
            **keywords: What the model takes.

        Returns:
            What the model returns.

        Raises:
            SplitError: Shapes were not known before and a split point turns out to be unusable, or this model has been
                unwrapped, or inside `at` the inputs went another way than past the split point.
            FeatureError: A feature has another size than the model was wrapped with.
        """
        if not self.sites:
            self.build(*inputs, **keywords)
        base = self.base  # looked up once: PyTorch finds a module's modules slowly
        self._check_hung(base)
        self._frozen.keep()
        output = base(*inputs, **keywords)
        if not torch.compiler.is_compiling() and self._student is not None and not self._student.was_cut:
            raise SplitError(
                f"this batch did not pass the split point '{self._student.split}', so the answer would be the model's "
                "own; choose one that every input passes, such as the block around it"
            )
        return output

    def distillation_loss(
        self,
        *inputs: Any,
        keywords: dict[str, Any] | None = None,
        split: str | None = None,
        recipe: str | Recipe | None = None,
        rate: float | None = None,
        distill: bool = True,
    ) -> torch.Tensor:
        """The objective for a loop of your own: call it, then ``backward`` and an optimizer step.

        Args:
            *inputs: One batch, as the model takes it; labels are not needed.
            keywords: Keyword inputs of the batch.
            split: The split point to train; None for the only one, or the one that is on inside `at`.
            recipe: Weights of the terms; None for those of the codec that the model was wrapped with.
            rate: Weight of the rate; None for the recipe's.
            distill: False for the first phase (Eq. 10 alone), True to add Eq. 11.

        Returns:
            The loss, a scalar that reaches the bottleneck's parameters only.

        Raises:
            SplitError: `split` is not one of this model's split points, or is needed and not given.
            FitError: The transform codec has no directions yet: call `compoff.calibrate` first; or `recipe` is for
                another codec, or `rate` is negative or not finite, or the inputs hold no tensor, or one that the model
                was not wrapped with, such as a label, or `keywords` is no dict.

        Examples:
            >>> import torch, compoff
            >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))
            >>> model = compoff.wrap(net, "1", example_input=torch.zeros(2, 3, 18, 18))
            >>> images = torch.randn(4, 3, 18, 18)
            >>> compoff.calibrate(model, [images])
            >>> optimizer = torch.optim.Adam(model.bottleneck_parameters(), lr=1e-3)
            >>> loss = model.distillation_loss(images)
            >>> loss.backward()
            >>> optimizer.step()

        Source: DeepCOD (SenSys 2020), Eq. 10-11.
        """
        check_flag("distill", distill, FitError)
        batch = batch_of(inputs, keywords)
        if not self.built:
            self.build(*batch.args, **batch.kwargs)
        split, chosen = split or self._the_split(), recipe_for(self.options.codec, recipe)
        rate = chosen.rate if rate is None else rate
        check_weight("rate", rate, FitError)
        gates = {split: self.gate(split)}
        self._warn_of_eval_mode(gates[split])
        require_gradients(self.base)
        self.freeze()
        if not torch.compiler.is_compiling():
            require_known(self.base, self._example, batch.args, batch.kwargs)
        with only_at(self._gates(), None):  # inside `at`, the teacher must still be the model without bottlenecks
            record = teacher_pass(self.base, gates, self.sites, batch, blocks=distill)
            terms = student_pass(self.base, gates[split], self.sites[split], record, batch, chosen, distill=distill)
        return terms.total(chosen, rate)

    def _warn_of_eval_mode(self, gate: Gate) -> None:
        """Say once that a step in eval mode, as a script leaves it after an evaluation, does not train an encoder."""
        if torch.compiler.is_compiling() or self._told_of_eval_mode or not torch.is_grad_enabled():
            return
        for bottleneck in gate.bottlenecks:
            if not bottleneck.training and any(one.requires_grad for one in bottleneck.encoder.parameters()):
                self._told_of_eval_mode = True
                logging.getLogger("compoff.fit").warning(
                    "the bottleneck at '%s' is in eval mode, in which numbers are rounded and what is restored has no "
                    "gradient for its encoder; call model.train() before you train on, or compute this loss under "
                    "torch.no_grad()",
                    gate.split,
                )
                return

    def _the_split(self) -> str:
        """The split point that goes without saying."""
        active = [path for path, gate in self._gates().items() if gate.on]
        chosen = active or list(self.split_points)
        if len(chosen) != 1:
            names = ", ".join(f"'{path}'" for path in self.split_points)
            raise SplitError(f"this model has the split points {names}; say which one with split=")
        return chosen[0]

    def note_figures(self, split: str, figures: dict[str, Any], base: str) -> None:
        """Keep what was measured at a split point with the weights as they are.

        Args:
            split: The split point.
            figures: What was measured.
            base: Fingerprint of the base.
        """
        self.reports[split] = figures
        self._measured_with[split] = self._weights(split, base)

    def figures_of(self, split: str, base: str) -> dict[str, Any] | None:
        """What was measured at a split point, as long as the weights are still those.

        Args:
            split: The split point.
            base: Fingerprint of the base.

        Returns:
            The figures, of the quality that is chosen now; empty where there are none, None where they are those of
            other weights.
        """
        measured, figures = self._measured_with.get(split), self.reports.get(split, {})
        if figures and measured and measured != self._weights(split, base):
            return None
        chosen, curve = self.bottleneck(split).chosen, figures.get("curve", [])
        if chosen == figures.get("quality") or chosen >= len(curve):
            return figures
        of_it = {name: curve[chosen][name] for name in _OF_A_QUALITY if name in curve[chosen]}
        return {**figures, "quality": chosen, "aim_met": None, **of_it}  # what the fit was aimed at was another one

    def _weights(self, split: str, base: str) -> str:
        """A name for all that the figures of a split point depend on; some buffers move with every pass."""
        parts = [fingerprint(dict(bottleneck.named_parameters())) for bottleneck in self.bottlenecks_at(split)]
        return " ".join([base, *parts])

    def save(self, path: str | Path) -> None:
        """Write the fitted bottlenecks to one safetensors file; the base's weights are not in it.

        Figures that were measured with other weights are not written, and a warning says so.

        Args:
            path: The file.

        Raises:
            SplitError: Shapes are not known yet, or an own encoder or decoder is in use and cannot be described.
            ArtifactError: The model was called with something else than tensors and plain constants.
        """
        self._check(self.split_points[0])
        shapes = {split: [list(one.shape) for one in site.features] for split, site in self.sites.items()}
        base = fingerprint(self.base.state_dict())
        reports = {split: self.figures_of(split, base) for split in self.reports if split in self.sites}
        if stale := [split for split, figures in reports.items() if figures is None]:
            _log.warning(
                "the figures at %s were measured with other weights and are not saved; measure again with "
                "compoff.finish",
                ", ".join(f"'{split}'" for split in stale),
            )
        reports = {split: figures for split, figures in reports.items() if figures is not None}
        fitted = {"options": self.options.describe(), "shapes": shapes, "skips": self.skips, "reports": reports}
        save_bottlenecks(path, base, self.bottlenecks, {**fitted, **self._sizes(), **self._example.describe()})

    def _check_quality(self, split: str, quality: int) -> None:
        if self.training:
            raise SplitError(
                f"quality is {quality}, but the model is in training mode, where rounding at every rate is imitated by "
                "noise; call model.eval() first, or leave quality out"
            )
        for bottleneck in self.bottlenecks_at(split):
            check_quality(quality, len(bottleneck.qualities()))

    def _sizes(self) -> dict[str, Any]:
        """Sizes of the bottlenecks for `save`, where they were chosen for inputs of another size than these."""
        sizes = sizes_of({split: self.bottlenecks_at(split) for split in self.sites})
        plain = sizes_of(build_bottlenecks(self.options, self.sites, "meta"))
        return {} if sizes == plain else {"sizes": sizes}
