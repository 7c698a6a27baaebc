"""Wrapped: the user's model with a bottleneck at each split point, through hooks, the model itself untouched.

The teacher is the model with its bottlenecks off, the student the same weights with one on. Knows nothing of training
loops (`fitting`) and of programs (`cutting.capture`).
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compoff.batch import batch_of
from compoff.checkpoint import save_bottlenecks
from compoff.checks import check_flag, check_weight
from compoff.codec import Bottleneck
from compoff.codec_options import CodecOptions
from compoff.cutting.inputs import ExampleInputs, require_known
from compoff.cutting.sites import Site, Skips, check_names, check_skips, locate
from compoff.distilling import student_pass
from compoff.errors import FitError, SplitError
from compoff.fingerprint import fingerprint
from compoff.frozen import Frozen
from compoff.gates import Gate, Work, only_at
from compoff.hooks import heed_hooks, stop_listening
from compoff.mounting import (
    Flags,
    attach,
    build_bottlenecks,
    device_of,
    find_gates,
    is_marked,
    key_of,
    mark,
    refuse_wrapped,
    require_gradients,
    unmark,
)
from compoff.recipe import Recipe, recipe_for
from compoff.teaching import teacher_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch.utils.hooks import RemovableHandle

__all__ = ["Wrapped"]

_log = logging.getLogger("compoff.save")
_OF_A_QUALITY = ("bytes", "ceiling_bytes", "agreement", "output_error", "encoder_macs")


class Wrapped(nn.Module):
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

    base: nn.Module
    _told_of_eval_mode = False
    _unwrapped = False

    def __init__(
        self,
        base: nn.Module,
        split_points: Sequence[str],
        options: CodecOptions | None = None,
        skips: Skips = "encode",
    ) -> None:
        super().__init__()
        refuse_wrapped(base)
        if isinstance(split_points, str):  # a sequence, of letters
            raise SplitError(f"split_points is the text '{split_points:.80}'; expected a list of such names")
        check_names(base, split_points)
        check_skips(skips)
        if options is not None and not isinstance(options, CodecOptions):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SplitError(f"options is a {type(options).__name__}; expected a CodecOptions, as wrap makes it")
        self.split_points = tuple(split_points)  # AUTO alone, until a batch has been seen
        self.options = options or CodecOptions()
        self.skips: Skips = skips
        self.bottlenecks = nn.ModuleDict()
        self.sites: dict[str, Site] = {}
        self.reports: dict[str, dict[str, Any]] = {}
        self._measured_with: dict[str, str] = {}  # by split point: the weights that its report speaks of
        self._example = ExampleInputs()
        self._handles: list[RemovableHandle] = []
        self._hooks = Counter[str]()  # by split point: how many lead to its gate
        self._flags = Flags.of(base)
        self.base = base
        self._frozen = Frozen(base)
        try:
            self.freeze()
        except BaseException:  # where the model's own eval() fails, there is nobody yet who could unwrap it
            self._flags.restore(base)
            raise
        mark(base)
        heed_hooks()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Own the model that was copied or loaded with this object."""
        super().__setstate__(state)
        if is_marked(self.base):
            mark(self.base)
            heed_hooks()

    def __getattr__(self, name: str) -> torch.Tensor | nn.Module:
        """Say where to find what only the model has: handed on, it would have two names in a state."""
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            base = self.__dict__.get("_modules", {}).get("base")
            if not name.startswith("__") and _has(base, name):
                raise AttributeError(f"{error}; it is the model's own: wrapped.base.{name}") from None
            raise

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As for any module; the shapes at the split points have to be known, since bottlenecks are made for them.

        Args:
            state_dict: What `state_dict` gave.
            strict: Whether all keys must be right.
            assign: Whether to take the tensors themselves.

        Returns:
            Missing and unexpected keys.

        Raises:
            SplitError: It holds bottlenecks, and shapes are not known yet.
        """
        if not self.built and any(key.startswith("bottlenecks.") for key in state_dict):
            self._check(self.split_points[0])
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    # -- building ------------------------------------------------------------------------------------------------------

    @property
    def built(self) -> bool:
        """Whether shapes are known and the bottlenecks exist."""
        return bool(self.sites)

    def build(self, *inputs: Any, **keywords: Any) -> None:
        """Learn the shapes from one batch and make the bottlenecks; `fit` and `forward` do this by themselves.

        Args:
            *inputs: Positional inputs of the model.
            **keywords: Keyword inputs of the model.

        Raises:
            SplitError: A split point cannot be used.
            FeatureError: A feature cannot be encoded.
        """
        self._check_hung(self.base)
        if self.built:
            return
        sites = locate(self.base, self.split_points, inputs, keywords, skips=self.skips)
        self.install(sites, build_bottlenecks(self.options, sites), ExampleInputs.of_call(self.base, inputs, keywords))

    def install(self, sites: dict[str, Site], made: dict[str, list[Bottleneck]], example: ExampleInputs) -> None:
        """Hang bottlenecks into the base; for `wrap` and `load`, which check first.

        Args:
            sites: Where, by split point.
            made: The bottlenecks of each split point, one a feature.
            example: Inputs of the shapes that the sites were found with.
        """
        where, work = device_of(self.base), Work()
        placed = {  # before the first hook: there may be no memory for them
            key_of(path, index): bottleneck.to(where).train(self.training)
            for path, bottlenecks in made.items()
            for index, bottleneck in enumerate(bottlenecks)
        }
        self._example = example
        self.bottlenecks.update(placed)
        for path, bottlenecks in made.items():
            features = sites[path].features
            layouts = [feature.layout for feature in features if feature.layout is not None]
            gate = Gate(path, bottlenecks, layouts, [feature.own for feature in features], work)
            self._handles += attach(self.base, sites[path], gate)
        self.sites = sites
        self._hooks = find_gates(self.base, {self.bottlenecks[key_of(path)]: path for path in sites})[1]
        self.split_points = tuple(sites)

    def _gates(self) -> dict[str, Gate]:
        """The gates by split point.

        Raises:
            SplitError: This model has been unwrapped, or a module in which a gate hangs has been replaced.
        """
        self._check_hung(self.base)
        gates, hooks = find_gates(self.base, {self.bottlenecks[key_of(path)]: path for path in self.sites})
        if hooks != self._hooks:
            lost = next(path for path in self.sites if hooks[path] != self._hooks[path])
            raise SplitError(
                f"a module of the base from which '{lost}' takes its tensors has been replaced, or lost its hooks, "
                "since the model was wrapped; unwrap() it, and wrap it again"
            )
        return gates

    @property
    def example(self) -> ExampleInputs:
        """The same as `example_inputs` gives, where it was first seen; none where shapes are not known yet."""
        return self._example

    def example_inputs(self) -> ExampleInputs:
        """Inputs of the shapes that this model was wrapped with: two samples of zeros, where the model is.

        Returns:
            The inputs.

        Raises:
            SplitError: Shapes are not known yet.
        """
        self._check(self.split_points[0])
        where = device_of(self.base)
        return self._example.map(lambda tensor: tensor.to(where))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Wrapped:
        # What ``.to()``, ``.half()`` and the like call: the example inputs keep up with the model's dtype.
        super()._apply(fn, recurse)
        self._example = self._example.map(fn)
        return self

    # -- using ---------------------------------------------------------------------------------------------------------

    def bottleneck(self, split: str) -> Bottleneck:
        """The bottleneck of the feature that enters a split point.

        Args:
            split: The split point.

        Returns:
            Its bottleneck.

        Raises:
            SplitError: `split` is not one of this model's split points, or shapes are not known yet.
        """
        return self.bottlenecks_at(split)[0]

    def bottlenecks_at(self, split: str) -> list[Bottleneck]:
        """The bottlenecks of all features that cross at a split point.

        Args:
            split: The split point.

        Returns:
            That of the feature that enters the split point, then those of features that pass it by.

        Raises:
            SplitError: `split` is not one of this model's split points, or shapes are not known yet.
        """
        self._check(split)
        found = [self.bottlenecks[key_of(split, index)] for index in range(len(self.sites[split].features))]
        return [module for module in found if isinstance(module, Bottleneck)]

    def gate(self, split: str) -> Gate:
        """The switch at a split point, for code that puts something else than the bottleneck there.

        Args:
            split: The split point.

        Returns:
            Its gate.

        Raises:
            SplitError: `split` is not one of this model's split points, or shapes are not known yet.
        """
        self._check(split)
        return self._gates()[split]

    def _check_hung(self, base: nn.Module) -> None:
        if self._unwrapped or not is_marked(base):
            raise SplitError("this model has been unwrapped; use the model itself, or wrap it again with compoff.wrap")

    def _check(self, split: str) -> None:
        self._check_hung(self.base)
        if split not in self.split_points:
            known = ", ".join(f"'{path}'" for path in self.split_points)
            if not isinstance(split, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise SplitError(f"split is {split!r:.80}; expected the name of one split point: {known}")
            raise SplitError(f"'{split}' is not a split point of this model; it was wrapped at {known}")
        if not self.built:
            raise SplitError(
                "the shapes at the split points are not known yet; pass example_input to compoff.wrap, or run one "
                "batch through the wrapped model first"
            )

    @contextlib.contextmanager
    def at(self, split: str, *, bypass: bool = False) -> Generator[Wrapped]:
        """Make this model the student: the bottlenecks at `split` are on inside the block.

        In eval mode it answers as an export does at its best quality; in training mode with noise for the rounding.

        Args:
            split: The split point.
            bypass: Whether features are handed on as they are in place of being coded: what is different then is what
                the cut alone changes.

        Yields:
            This model.

        Raises:
            SplitError: `split` is not one of this model's split points, or shapes are not known yet; or `bypass` is no
                truth value.
        """
        self._check(split)
        check_flag("bypass", bypass, SplitError)
        gates = self._gates()
        with only_at(gates, split), gates[split].bypassing() if bypass else contextlib.nullcontext():
            try:
                yield self
            finally:
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
                unwrapped.
            FeatureError: A feature has another size than the model was wrapped with.
        """
        if not self.sites:
            self.build(*inputs, **keywords)
        base = self.base  # looked up once: PyTorch finds a module's modules slowly
        self._check_hung(base)
        self._frozen.keep()
        return base(*inputs, **keywords)

    def freeze(self) -> None:
        """Put the base back into eval mode and without gradients, where a script has changed that."""
        self._frozen.keep()

    def train(self, mode: bool = True) -> Wrapped:
        """Switch the bottlenecks between training and evaluation; the base stays in eval mode.

        Args:
            mode: True for training.

        Returns:
            This model.
        """
        super().train(mode)
        self._frozen.look_again()
        self.freeze()
        return self

    def bottleneck_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that an optimizer should be given: those of the bottlenecks, never the base's.

        Returns:
            An iterator over parameters.

        Raises:
            SplitError: Shapes are not known yet.
        """
        for split in self.split_points:
            self._check(split)
        return self.bottlenecks.parameters()

    def parameter_groups(self, lr: float, split: str | None = None) -> list[dict[str, Any]]:
        """The same parameters with the learning rate of each, as an optimizer takes them.

        Args:
            lr: Learning rate of the fit.
            split: The split point whose bottlenecks are trained, those of its skip tensors included; None for all.

        Returns:
            Groups with ``params`` and ``lr``.

        Raises:
            SplitError: `split` is not one of this model's split points, or shapes are not known yet.
            FitError: `lr` is negative or not finite.

        Examples:
            >>> import torch, compoff
            >>> model = compoff.wrap(torch.nn.Linear(32, 4), "input", example_input=torch.zeros(2, 32))
            >>> optimizer = torch.optim.Adam(model.parameter_groups(1e-3))
        """
        splits = self.split_points if split is None else (split,)
        return [group for name in splits for one in self.bottlenecks_at(name) for group in one.parameter_groups(lr)]

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
        save_bottlenecks(path, base, self.bottlenecks, {**fitted, **self._example.describe()})

    def unwrap(self) -> nn.Module:
        """Take the hooks out again and hand the model back, bit for bit and with its flags as they were.

        Returns:
            The base. Of this object only `bottlenecks` and `reports` are of use afterwards.

        Raises:
            SplitError: This was done before.
        """
        self._check_hung(self.base)
        stop_listening(self.base)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._unwrapped = True  # the base may be wrapped again, and then is another's
        unmark(self.base)
        self._flags.restore(self.base)
        return self.base


def _has(model: Any, name: str) -> bool:
    """Whether a model has an attribute; one that cannot be computed now is none."""
    try:
        return hasattr(model, name)
    except Exception:
        return False
