"""What wrapping leaves in the user's model and takes out again: hooks, a mark, and the flags it changes.

Knows neither what the gates hold nor who switches them (`wrapped`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from compoff.codec import Adapter
from compoff.codec.precision import own_defaults
from compoff.codec_options import Sizes
from compoff.cutting.watching import named_modules
from compoff.errors import FitError, SplitError
from compoff.gates import Gate
from compoff.hooks import Adapting, catchers, hang

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.utils.hooks import RemovableHandle

    from compoff.codec import Bottleneck
    from compoff.codec_options import CodecOptions
    from compoff.cutting.sites import Site

__all__ = [
    "Flags",
    "attach",
    "build_bottlenecks",
    "device_of",
    "find_gates",
    "is_marked",
    "key_of",
    "mark",
    "quantized_modules",
    "refuse_wrapped",
    "require_gradients",
    "require_wrapped",
    "unmark",
]

_MARK = "_compoff_wrapped"


@dataclass
class Flags:
    """A model's flags as they were at one moment.

    Args:
        training: Mode of each module, by name.
        requires_grad: Whether each parameter wants gradients, by name.

    Examples:
        >>> import torch
        >>> net = torch.nn.Linear(2, 2)
        >>> flags = Flags.of(net)
        >>> flags.restore(net.eval().requires_grad_(False))
        >>> net.training, net.weight.requires_grad
        (True, True)
    """

    training: dict[str, bool] = field(default_factory=dict[str, bool])
    requires_grad: dict[str, bool] = field(default_factory=dict[str, bool])

    @classmethod
    def of(cls, model: nn.Module) -> Flags:
        """Note a model's flags.

        Args:
            model: The model.

        Returns:
            Its flags.
        """
        return cls(
            {name: module.training for name, module in named_modules(model).items()},
            {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        )

    def restore(self, model: nn.Module) -> None:
        """Give a model its flags back; what has been added to it since is left alone.

        Args:
            model: The model.
        """
        for name, module in named_modules(model).items():
            module.training = self.training.get(name, module.training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.requires_grad.get(name, parameter.requires_grad))


def attach(model: nn.Module, site: Site, gate: Gate) -> list[RemovableHandle]:
    """Hang a gate into a model.

    Args:
        model: The model.
        site: Where.
        gate: The gate.

    Returns:
        What takes it out again.
    """
    handles = hang(model, gate, [crossing.tap for crossing in (*site.features, *site.sides)])
    if gate.bottleneck.adapter is not None:
        layers = enumerate(site.behind)
        handles += [model.get_submodule(one.path).register_forward_hook(Adapting(gate, k)) for k, one in layers]
    return handles


def build_bottlenecks(
    options: CodecOptions,
    sites: Mapping[str, Site],
    device: str = "cpu",
    sizes: Mapping[str, Sequence[Sizes]] | None = None,
) -> dict[str, list[Bottleneck]]:
    """Make the bottlenecks of several split points.

    Args:
        options: How they are made.
        sites: The split points, by name.
        device: Where to make them; ``"meta"`` where only their sizes are of interest.
        sizes: Of each split point one for each feature, in place of what `options` choose for it.

    Returns:
        The bottlenecks of each, one a feature that crosses there, freshly initialized.

    Raises:
        FeatureError: A size is out of range, or a factory's module gives another shape than was asked of it.
        SplitError: An adapter is asked for, and no layer behind a split point can have one.
    """
    made: dict[str, list[Bottleneck]] = {}
    for path, site in sites.items():
        given = [options] * len(site.features)
        if sizes is not None:
            given = [replace(options, **one._asdict()) for one in sizes[path]]
        pairs = zip(given, site.features, strict=True)
        made[path] = [chosen.build(feature.packed_shape, device) for chosen, feature in pairs]
    if not options.strict:
        for path, site in sites.items():
            made[path][0].adapter = _adapter(site, device)
    return made


def sizes_of(made: Mapping[str, Sequence[Bottleneck]]) -> dict[str, list[Sizes]]:
    """Sizes of bottlenecks, as `build_bottlenecks` takes them.

    Args:
        made: The bottlenecks of each split point.

    Returns:
        Of each split point one for each bottleneck.
    """
    return {path: [*map(Sizes.of, bottlenecks)] for path, bottlenecks in made.items()}


def _adapter(site: Site, device: str) -> Adapter:
    """What may change the layers behind a split point."""
    if not site.behind:
        raise SplitError(
            f"strict=False, but behind '{site.path}' there is no normalization, convolution or linear layer that an "
            "adapter could change; leave strict=True"
        )
    with torch.inference_mode(mode=False), own_defaults(device):
        return Adapter([(layer.channels, layer.axis) for layer in site.behind])


def device_of(model: nn.Module) -> torch.device | None:
    """Where a model is.

    Args:
        model: The model.

    Returns:
        The device of its first parameter; None where it has none.
    """
    return next((parameter.device for parameter in model.parameters()), None)


def key_of(path: str, index: int = 0) -> str:
    """A split point's name as a key of ModuleDict, which allows no dots and none of its own attributes' names.

    Args:
        path: The split point.
        index: Which of the features that cross there.

    Returns:
        The key.

    Examples:
        >>> key_of("layer1.0"), key_of("values"), key_of("mid", 2)
        ('layer1/0', 'values/', 'mid+2')
    """
    key = path.replace(".", "/")
    key = f"{key}/" if hasattr(nn.ModuleDict, key) else key
    return f"{key}+{index}" if index else key


def find_gates(model: nn.Module, owners: Mapping[nn.Module, str]) -> tuple[dict[str, Gate], Counter[str]]:
    """The gates that hang in a model; found, not stored, so that copies find their own.

    Args:
        model: The model.
        owners: Name of each bottleneck.

    Returns:
        The gates of these bottlenecks, by name; and by how many hooks each hangs.
    """
    gates: dict[str, Gate] = {}
    hooks = Counter[str]()
    for module in model.modules():
        for gate in catchers(module):
            if isinstance(gate, Gate) and gate.bottleneck in owners:
                gates[owners[gate.bottleneck]] = gate
                hooks[owners[gate.bottleneck]] += 1
    return gates, hooks


def mark(model: nn.Module) -> None:
    """Note in a model that it is wrapped, so that a copy of it can be told.

    Args:
        model: The model.
    """
    setattr(model, _MARK, _itself(model))


def unmark(model: nn.Module) -> None:
    """Take the note out.

    Args:
        model: The model.
    """
    delattr(model, _MARK)


def _itself(model: nn.Module) -> str:
    return str(id(model))  # text, which a compiler takes for a constant


def is_marked(model: nn.Module) -> bool:
    """Whether a model is wrapped.

    Args:
        model: The model.

    Returns:
        Whether `mark` was called on it, or on what it is a copy of.
    """
    return bool(getattr(model, _MARK, False))


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a model that is wrapped already: two masters would freeze and restore it.

    Args:
        model: The model.

    Raises:
        SplitError: The model, or a part of it, is wrapped; or it is no model.
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance] - a user's mistake all the same
        raise SplitError(f"the model is a {type(model).__name__}; expected a torch.nn.Module")
    if any(is_marked(module) and getattr(module, _MARK) != _itself(module) for module in model.modules()):
        raise SplitError(
            "this model is a copy of one that was wrapped already, made without the object that takes the hooks out "
            "again; copy or save the model after unwrap(), or copy what compoff.wrap returned and unwrap() that"
        )
    if any(is_marked(module) or catchers(module) for module in model.modules()):
        raise SplitError(
            "this model is wrapped already; give every split point to one call of compoff.wrap, or unwrap() it first"
        )


def require_gradients(model: nn.Module) -> None:
    """Refuse a model through which no gradient can pass, since it was made in inference mode or has no weights yet.

    Args:
        model: The model.

    Raises:
        FitError: It was.
    """
    if empty := next((name for name, parameter in model.named_parameters() if parameter.is_meta), None):
        raise FitError(
            f"this {type(model).__name__} has no weights yet: '{empty}' is on the device 'meta'; load them first, with "
            "load_state_dict(..., assign=True)"
        )
    first = next(model.parameters(), None)  # a model is made there whole
    if first is not None and first.is_inference():
        raise FitError(
            f"this {type(model).__name__} was made inside torch.inference_mode(), so no gradient passes through it; "
            "make or load it outside, under torch.no_grad() if need be, and wrap it again"
        )


def quantized_modules(model: nn.Module) -> list[str]:
    """Names of PyTorch's modules in 8-bit integers, which have no gradient and become no program.

    Args:
        model: The model.

    Returns:
        The names.

    Examples:
        >>> quantized_modules(nn.Sequential(nn.Linear(2, 2)))
        []
    """
    return [name for name, module in named_modules(model).items() if ".nn.quantized." in type(module).__module__]


def require_wrapped(model: object) -> None:
    """Refuse what `compoff.wrap` did not return, such as the user's model itself.

    Args:
        model: What was given as the wrapped model.

    Raises:
        SplitError: It is not one.

    Examples:
        >>> require_wrapped(nn.Linear(2, 2))
        Traceback (most recent call last):
        compoff.errors.SplitError: Linear is no wrapped model; give what compoff.wrap(model, split_points) returned
    """
    if hasattr(model, "split_points") and hasattr(model, "bottlenecks"):  # compiled ones hand these on
        return
    inside = isinstance(model, nn.Module) and is_marked(model)
    told = "is the model inside of a wrapped one" if inside else "is no wrapped model"
    raise SplitError(f"{type(model).__name__} {told}; give what compoff.wrap(model, split_points) returned")
