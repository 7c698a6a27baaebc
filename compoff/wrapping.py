"""wrap() and Wrapped: the user's model with a bottleneck at each split point, through hooks, the model itself untouched.

The teacher is the model with its bottlenecks off, the student the same weights with one on. Knows nothing of training
loops (`fitting`) and of programs (`cutting.capture`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compoff.checkpoint import read_bottlenecks, save_bottlenecks
from compoff.codec import Bottleneck
from compoff.codec_options import CodecOptions
from compoff.cutting.inputs import ExampleInputs
from compoff.cutting.sites import INPUT, Site, check_names, locate
from compoff.distilling import Batch, student_pass, teacher_pass
from compoff.errors import ArtifactError, SplitError
from compoff.gates import Gate, InputHook, OutputHook
from compoff.recipe import Recipe, recipe_named

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from pathlib import Path

    from torch.utils.hooks import RemovableHandle

    from compoff.codec import CodecFactory

__all__ = ["CodecOptions", "Wrapped", "load", "wrap"]

_MARK = "_compoff_wrapped"


@dataclass
class _Flags:
    """The base model's flags as they were before wrapping."""

    training: dict[str, bool] = field(default_factory=dict[str, bool])
    requires_grad: dict[str, bool] = field(default_factory=dict[str, bool])

    @classmethod
    def of(cls, base: nn.Module) -> _Flags:
        return cls(
            {name: module.training for name, module in base.named_modules()},
            {name: parameter.requires_grad for name, parameter in base.named_parameters()},
        )

    def restore(self, base: nn.Module) -> None:
        for name, module in base.named_modules():
            module.training = self.training.get(name, module.training)
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(self.requires_grad.get(name, parameter.requires_grad))


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

    Example:
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

    def __init__(self, base: nn.Module, split_points: Sequence[str], options: CodecOptions | None = None) -> None:
        super().__init__()
        _refuse_wrapped(base)
        check_names(base, split_points)
        self.split_points = tuple(split_points)
        self.options = options or CodecOptions()
        self.bottlenecks = nn.ModuleDict()
        self.sites: dict[str, Site] = {}
        self.reports: dict[str, dict[str, Any]] = {}
        self._example = ExampleInputs()
        self._handles: list[RemovableHandle] = []
        self._flags = _Flags.of(base)
        self.base = base
        setattr(base, _MARK, True)
        self.freeze()

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
        self._check_wrapped()
        if self.built:
            return
        sites = locate(self.base, self.split_points, inputs, keywords)
        made = {path: self.options.build(site.shape) for path, site in sites.items()}
        self._install(sites, made, ExampleInputs.of_call(self.base, inputs, keywords))

    def _install(self, sites: dict[str, Site], made: dict[str, Bottleneck], example: ExampleInputs) -> None:
        """Hang the bottlenecks into the base."""
        self._example = example
        for path, bottleneck in made.items():
            self.bottlenecks[_key(path)] = bottleneck.to(_device_of(self.base)).train(self.training)
            self._attach(sites[path], Gate(bottleneck))
        self.sites = sites

    def _attach(self, site: Site, gate: Gate) -> None:
        """Register the gate's hook in the base."""
        if site.producer is not None:
            module = self.base.get_submodule(site.producer)
            self._handles.append(module.register_forward_hook(OutputHook(gate)))
        else:
            module = self.base if site.at_input else self.base.get_submodule(site.path)
            self._handles.append(module.register_forward_pre_hook(InputHook(gate), with_kwargs=True))

    def _gates(self) -> dict[str, Gate]:
        """The gates as they hang in the base, by split point; found, not stored, so that copies find their own."""
        owned = {self.bottlenecks[_key(path)]: path for path in self.sites}
        gates: dict[str, Gate] = {}
        for module in self.base.modules():
            for hook in _hooks(module):
                if isinstance(hook, (OutputHook, InputHook)) and hook.gate.bottleneck in owned:
                    gates[owned[hook.gate.bottleneck]] = hook.gate
        return gates

    def example_inputs(self) -> ExampleInputs:
        """Inputs of the shapes that this model was wrapped with: two samples of zeros, where the model is.

        Returns:
            The inputs.

        Raises:
            SplitError: Shapes are not known yet.
        """
        self._check(self.split_points[0])
        where = _device_of(self.base)
        return self._example.map(lambda tensor: tensor.to(where))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Wrapped:
        # What ``.to()``, ``.half()`` and the like call: the example inputs keep up with the model's dtype.
        super()._apply(fn, recurse)
        self._example = self._example.map(fn)
        return self

    # -- using ---------------------------------------------------------------------------------------------------------

    def bottleneck(self, split: str) -> Bottleneck:
        """The bottleneck at a split point.

        Args:
            split: The split point.

        Returns:
            Its bottleneck.

        Raises:
            SplitError: `split` is not one of this model's split points, or shapes are not known yet.
        """
        self._check(split)
        module = self.bottlenecks[_key(split)]
        assert isinstance(module, Bottleneck)
        return module

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

    def _check_wrapped(self) -> None:
        if not getattr(self.base, _MARK, False):
            raise SplitError("this model has been unwrapped; use the model itself, or wrap it again with compoff.wrap")

    def _check(self, split: str) -> None:
        self._check_wrapped()
        if split not in self.split_points:
            known = ", ".join(f"'{path}'" for path in self.split_points)
            raise SplitError(f"'{split}' is not a split point of this model; it was wrapped at {known}")
        if not self.built:
            raise SplitError(
                "the shapes at the split points are not known yet; pass example_input to compoff.wrap, or run one "
                "batch through the wrapped model first"
            )

    @contextlib.contextmanager
    def at(self, split: str) -> Generator[Wrapped]:
        """Make this model the student: the bottleneck at `split` is on inside the block.

        Args:
            split: The split point.

        Yields:
            This model.

        Raises:
            SplitError: `split` is not one of this model's split points, or shapes are not known yet.
        """
        self._check(split)
        gates = self._gates()
        before = {path: gate.on for path, gate in gates.items()}
        for path, gate in gates.items():
            gate.on = path == split
        try:
            yield self
        finally:
            for path, gate in gates.items():
                gate.on = before[path]

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
        if not self.built:
            self.build(*inputs, **keywords)
        self._check_wrapped()
        self.freeze()
        return self.base(*inputs, **keywords)

    def freeze(self) -> None:
        """Put the base back into eval mode and without gradients, where a script has changed that."""
        if any(module.training for module in self.base.modules()):
            self.base.eval()
        if any(parameter.requires_grad for parameter in self.base.parameters()):
            self.base.requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> Wrapped:
        """Switch the bottlenecks between training and evaluation; the base stays in eval mode.

        Args:
            mode: True for training.

        Returns:
            This model.
        """
        super().train(mode)
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

    def distillation_loss(
        self,
        *inputs: Any,
        split: str | None = None,
        recipe: str | Recipe = "deepcod",
        rate: float = 0.0,
        distill: bool = True,
    ) -> torch.Tensor:
        """The objective for a loop of your own: call it, then ``backward`` and an optimizer step.

        Args:
            *inputs: One batch, as the model takes it; labels are not needed.
            split: The split point to train; None for the only one, or the one that is on inside `at`.
            recipe: Weights of the terms.
            rate: Weight of the rate, per bit and latent value.
            distill: False for the first phase (Eq. 10 alone), True to add Eq. 11.

        Returns:
            The loss, a scalar that reaches the bottleneck's parameters only.

        Raises:
            SplitError: `split` is not one of this model's split points, or is needed and not given.

        Example:
            >>> import torch, compoff
            >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))
            >>> model = compoff.wrap(net, "1", example_input=torch.zeros(2, 3, 18, 18))
            >>> optimizer = torch.optim.Adam(model.bottleneck_parameters(), lr=1e-3)
            >>> loss = model.distillation_loss(torch.randn(4, 3, 18, 18))
            >>> loss.backward()
            >>> optimizer.step()

        Source: DeepCOD (SenSys 2020), Eq. 10-11.
        """
        if not self.built:
            self.build(*inputs)
        split = split or self._the_split()
        gates = {split: self.gate(split)}
        self.freeze()
        batch = Batch(inputs)
        record = teacher_pass(self.base, gates, self.sites, batch, blocks=distill)
        terms = student_pass(self.base, gates[split], self.sites[split], record, batch, distill=distill)
        return terms.total(recipe_named(recipe), rate)

    def _the_split(self) -> str:
        """The split point that goes without saying."""
        active = [path for path, gate in self._gates().items() if gate.on]
        chosen = active or list(self.split_points)
        if len(chosen) != 1:
            names = ", ".join(f"'{path}'" for path in self.split_points)
            raise SplitError(f"this model has the split points {names}; say which one with split=")
        return chosen[0]

    def save(self, path: str | Path) -> None:
        """Write the fitted bottlenecks to one safetensors file; the base's weights are not in it.

        Args:
            path: The file.

        Raises:
            SplitError: Shapes are not known yet, or an own encoder or decoder is in use and cannot be described.
            ArtifactError: The model was called with something else than tensors and plain constants.
        """
        self._check(self.split_points[0])
        shapes = {split: list(site.shape) for split, site in self.sites.items()}
        description = {"options": self.options.describe(), "shapes": shapes, "reports": self.reports}
        save_bottlenecks(path, self.base, self.bottlenecks, {**description, **self._example.describe()})

    def unwrap(self) -> nn.Module:
        """Take the hooks out again and hand the model back, bit for bit and with its flags as they were.

        Returns:
            The base. Of this object only `bottlenecks` and `reports` are of use afterwards.

        Raises:
            SplitError: This was done before.
        """
        self._check_wrapped()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        delattr(self.base, _MARK)
        self._flags.restore(self.base)
        return self.base


def wrap(
    model: nn.Module,
    split_points: str | Sequence[str],
    *,
    example_input: Any = None,
    # the codec
    channels: int | None = None,
    num_centers: int = 8,
    stride: int = 4,
    encoder: CodecFactory | None = None,
    decoder: CodecFactory | None = None,
) -> Wrapped:
    """Put a learned encoder/decoder pair at block starts of a trained model.

    The model gets a hook at each split point and is frozen (eval mode, no gradients); its parameters and buffers are
    not touched, and `Wrapped.unwrap` takes everything out again.

    Args:
        model: The trained model.
        split_points: Module paths such as ``["layer1", "layer2"]``: the model is cut where the tensor enters that
            module. ``"input"`` cuts before the model.
        example_input: One batch to learn shapes from: a tensor, or a tuple of positional inputs. Without it shapes are
            learnt from the first batch that `fit` or the model itself sees, and split points are checked only then.
        channels: Channels of the latent at every split point; None for 8, or a sixteenth of a flat feature.
        num_centers: Number of quantization levels, 2 to 256.
        stride: Side of the tile that becomes one latent position, in elements.
        encoder: Your own encoder: a function from ``(feature shape, latent shape)`` to a module; None for ours.
        decoder: Your own decoder: a function from ``(latent shape, feature shape)`` to a module; None for ours.

    Returns:
        The wrapped model.

    Shapes:
        ``(batch, channels, height, width)``, ``(batch, channels, time)`` or ``(batch, features)`` at each split point.

    Raises:
        SplitError: A split point names no module, or cannot be used; nothing has been changed then.
        FeatureError: A size or an own module's output shape does not fit; nothing has been changed then.

    Example:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1))
        >>> compoff.wrap(net, ["input", "1"], example_input=torch.zeros(2, 3, 16, 16)).split_points
        ('input', '1')

    Source: DeepCOD (SenSys 2020), Sec. 3.2.
    """
    paths = [split_points] if isinstance(split_points, str) else list(split_points)
    options = CodecOptions(channels, num_centers, stride, encoder, decoder)
    _refuse_wrapped(model)
    if example_input is None:
        return Wrapped(model, paths, options)
    inputs: tuple[Any, ...] = example_input if isinstance(example_input, tuple) else (example_input,)  # pyright: ignore[reportUnknownVariableType]
    sites = locate(model, paths, inputs)
    made = {path: options.build(site.shape) for path, site in sites.items()}
    return _wrapped(model, options, sites, made, ExampleInputs.of_call(model, inputs))


def load(path: str | Path, model: nn.Module) -> Wrapped:
    """Wrap a model with bottlenecks that were fitted for it before.

    Args:
        path: A file that `Wrapped.save` wrote.
        model: The model, with the weights that they were fitted for.

    Returns:
        The wrapped model.

    Raises:
        ArtifactError: The file is damaged or foreign, or was fitted for other weights; the model is unchanged then.

    Example:
        >>> import tempfile, torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))
        >>> x = torch.randn(2, 3, 18, 18)
        >>> model = compoff.wrap(net, "1", example_input=x)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/fitted.safetensors")
        ...     again = compoff.load(f"{folder}/fitted.safetensors", model.unwrap())
        >>> again.split_points
        ('1',)
    """
    _refuse_wrapped(model)
    description, tensors = read_bottlenecks(path, model)
    try:
        options, shapes = CodecOptions(**description["options"]), description["shapes"]
        made = {split: options.build(tuple(shape)) for split, shape in shapes.items()}
        stacked = nn.ModuleDict({_key(split): bottleneck for split, bottleneck in made.items()})
        stacked.load_state_dict(tensors)
        example, reports = ExampleInputs.of_description(description), dict(description["reports"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ArtifactError(f"'{path}': its description does not fit its tensors ({error}); save again") from error
    where = _device_of(model)
    example = example.map(lambda tensor: tensor.to(where))
    sites = locate(model, list(shapes), example.args, example.keywords)
    for split, site in sites.items():
        if list(site.shape) != list(shapes[split]):
            raise ArtifactError(
                f"'{path}': shapes say {shapes[split]} at '{split}', but this {type(model).__name__} has "
                f"{list(site.shape)} there; the bottlenecks were fitted for another model"
            )
    wrapped = _wrapped(model, options, sites, made, example)
    wrapped.reports = reports
    return wrapped


def _wrapped(
    model: nn.Module,
    options: CodecOptions,
    sites: dict[str, Site],
    made: dict[str, Bottleneck],
    example: ExampleInputs,
) -> Wrapped:
    """Wrap where everything has been checked."""
    wrapped = Wrapped(model, list(sites), options)
    wrapped._install(sites, made, example)  # pyright: ignore[reportPrivateUsage] - same module
    return wrapped


def _refuse_wrapped(model: nn.Module) -> None:
    """A model can be wrapped once, or two masters would freeze and restore it."""
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance] - a user's mistake all the same
        raise SplitError(f"the model is a {type(model).__name__}; expected a torch.nn.Module")
    for module in model.modules():
        if getattr(module, _MARK, False) or any(isinstance(hook, (OutputHook, InputHook)) for hook in _hooks(module)):
            raise SplitError(
                "this model is wrapped already; give every split point to one call of compoff.wrap, or unwrap() it "
                "first"
            )


def _device_of(model: nn.Module) -> torch.device | None:
    """Where the model is, if it has parameters."""
    return next((parameter.device for parameter in model.parameters()), None)


def _hooks(module: nn.Module) -> list[Any]:
    """The forward hooks and pre-hooks of one module."""
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]  # pyright: ignore[reportPrivateUsage] - there is no public way


def _key(path: str) -> str:
    """A split point's name as a key of ModuleDict, which allows no dots and none of its own attributes' names."""
    key = path.replace(".", "/")
    return f"{key}/" if hasattr(nn.ModuleDict, key) else key
