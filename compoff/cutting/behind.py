"""Layers behind a cut whose channels an adapter can scale and shift, from one watched run.

Those that run on the edge in every call, and whose axis of channels is known for certain. Knows no adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from compoff.cutting.watching import named_modules

if TYPE_CHECKING:
    from compoff.cutting.trace import Trace

__all__ = ["Layer", "layers_behind"]

_NORMALIZATIONS = (
    nn.modules.batchnorm._BatchNorm,  # pyright: ignore[reportPrivateUsage] - what all batch norms have in common
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclass(frozen=True)
class Layer:
    """One layer behind a cut.

    Args:
        path: The module.
        channels: Number of channels that it returns.
        axis: The axis on which they lie.
    """

    path: str
    channels: int
    axis: int


def layers_behind(model: nn.Module, trace: Trace, moment: int) -> tuple[Layer, ...]:
    """The layers that an adapter of a cut may change.

    Args:
        model: The model.
        trace: A run of it.
        moment: The cut: number of operators that had run by then.

    Returns:
        Its normalizations with learned scales; where it has none, its convolutions and linear layers.

    Examples:
        >>> import torch
        >>> from compoff.cutting.watching import watch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> [layer.path for layer in layers_behind(net.eval(), watch(net, (torch.zeros(2, 3, 8, 8),)), 0)]
        ['1']
    """
    modules = named_modules(model)
    before = {call.path for call in trace.modules if call.begin < moment}
    paths = dict.fromkeys(call.path for call in trace.modules if call.path not in before)
    found = [(layer, modules[path]) for path in paths if (layer := _layer(path, modules[path])) is not None]
    normalizations = [layer for layer, module in found if isinstance(module, _NORMALIZATIONS)]
    return tuple(normalizations or [layer for layer, _ in found])


def _layer(path: str, module: nn.Module) -> Layer | None:
    """What is known of a module's channels; None where it is no layer of ours."""
    # Asked for by its attribute, a parametrized weight would be computed, and in training mode spectral normalization
    # moves its buffers by that.
    held: dict[str, Any] = {**module._buffers, **module._parameters, **vars(module)}  # pyright: ignore[reportPrivateUsage]
    weight = held.get("weight")
    if not path or (weight is None and not is_parametrized(module, "weight")):
        return None
    if isinstance(module, _CONVOLUTIONS):
        return Layer(path, module.out_channels, 1)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
        return Layer(path, module.num_features if weight is None else len(weight), 1)
    if isinstance(module, nn.GroupNorm):
        return Layer(path, module.num_channels if weight is None else len(weight), 1)
    # A subclass may have its channels elsewhere, as ConvNeXt's LayerNorm2d does.
    if type(module) in (nn.LayerNorm, nn.RMSNorm) and weight is not None and weight.dim() == 1:
        return Layer(path, len(weight), -1)
    return Layer(path, module.out_features, -1) if type(module) is nn.Linear else None
