"""Mounted: the user's model with bottlenecks hung into it, what is where, and how it stays as it was.

Knows neither teacher nor student (`wrapped`); what is left in the model itself, and how it is found, is in `mounting`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compoff.codec import Bottleneck
from compoff.codec_options import CodecOptions
from compoff.cutting.inputs import ExampleInputs
from compoff.cutting.sites import Site, Skips, check_names, check_skips, locate
from compoff.errors import SplitError
from compoff.frozen import Frozen
from compoff.gates import Gate, Work
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
    unmark,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.utils.hooks import RemovableHandle
    from typing_extensions import Self

__all__ = ["Mounted"]


class Mounted(nn.Module):
    """The user's model with a bottleneck at each split point, through hooks; frozen, and else as it was.

    Args:
        base: The model.
        split_points: Module paths, or ``"input"``.
        options: How the bottlenecks are made.
        skips: What happens to further floating-point tensors that cross; see `compoff.wrap`.

    Raises:
        SplitError: A split point names no module, an argument is of another kind, or the model is wrapped already.
    """

    base: nn.Module
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
        work = Work()
        placed = {  # before the first hook: there may be no memory for them
            key_of(path, index): bottleneck.to(sites[path].features[index].device).train(self.training)
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
        self._hooks = self._found()[1]
        self.split_points = tuple(sites)

    def _found(self) -> tuple[dict[str, Gate], Counter[str]]:
        """The gates that hang in the base, and by how many hooks each does."""
        return find_gates(self.base, {self.bottlenecks[key_of(path)]: path for path in self.sites})

    def _gates(self) -> dict[str, Gate]:
        """The gates by split point.

        Raises:
            SplitError: This model has been unwrapped, or a module in which a gate hangs has been replaced.
        """
        self._check_hung(self.base)
        gates, hooks = self._found()
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

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # What ``.to()``, ``.half()`` and the like call: the example inputs keep up with the model's dtype.
        super()._apply(fn, recurse)
        self._example = self._example.map(fn)
        return self

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

    def freeze(self) -> None:
        """Put the base back into eval mode and without gradients, where a script has changed that."""
        self._frozen.keep()

    def train(self, mode: bool = True) -> Self:
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
