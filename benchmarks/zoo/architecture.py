"""One architecture of the zoo: how it is built, called, and where it is cut.

It knows neither the library that a model comes from nor what is measured on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Architecture", "Inputs", "enlivened", "images", "largest"]

_SEED = 0
_CALIBRATION = 8  # samples that BatchNorm takes its statistics from; of two, features of one pixel have none
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Inputs:
    """What a model is called with.

    Args:
        args: Positional inputs.
        kwargs: Keyword inputs.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Architecture:
    """One architecture with the split points to cut it at.

    Args:
        name: Its name, which is also the row's name in the tables.
        library: Where the model comes from; ``"own"`` for the hand-written ones of this package.
        make: Builds the model; True for a small instance with the same structure.
        sample: Makes one batch: whether for the small instance, and how many samples.
        split_points: Two or more module paths that exist in both instances.
        skips: What to do with skip tensors that cross.
        factories: Where the suffix cannot become a program, the importable functions that build the model for an eager
            tail: as it is, and its small instance.
        weights: Where the weights come from.
        max_batch: Most samples in a batch that the export is for; None for the default.
        codec: The codec; ``"deepcod"`` where a flat feature is too long for the directions of the other.
    """

    name: str
    library: Literal["torchvision", "timm", "transformers", "diffusers", "own"]
    make: Callable[[bool], nn.Module]
    sample: Callable[[bool, int], Inputs]
    split_points: tuple[str, ...]
    skips: Literal["encode", "send", "forbid"] = "encode"
    factories: tuple[str, str] | None = None
    weights: Literal["random", "real"] = "random"
    codec: Literal["transform", "deepcod"] = "transform"
    max_batch: int | None = None

    @property
    def suffix_exports(self) -> bool:
        """Whether the part behind the split points can become a program."""
        return self.factories is None

    def tail_factory(self, *, reduced: bool) -> str | None:
        """What builds the model for an eager tail.

        Args:
            reduced: Whether the small instance.

        Returns:
            ``"module:function"``; None where the tail is a program.
        """
        return None if self.factories is None else self.factories[reduced]

    def build(self, *, reduced: bool) -> nn.Module:
        """Build the model, the same one each time, in eval mode.

        Args:
            reduced: Whether to build the small instance.

        Returns:
            The model.
        """
        with torch.random.fork_rng():
            torch.manual_seed(_SEED)
            model = self.make(reduced)
            return (
                model.eval()
                if self.weights == "real"
                else enlivened(model, self.inputs(reduced=reduced, batch=_CALIBRATION))
            )

    def inputs(self, *, reduced: bool, batch: int = 2, seed: int = _SEED) -> Inputs:
        """Make one batch.

        Args:
            reduced: Whether for the small instance.
            batch: Number of samples.
            seed: What the values are drawn with.

        Returns:
            The inputs.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.sample(reduced, batch)


def images(full: int, reduced: int, channels: int = 3) -> Callable[[bool, int], Inputs]:
    """Square images as the only input.

    Args:
        full: Side for the model as it is.
        reduced: Side for the small instance.
        channels: Number of channels.

    Returns:
        What makes a batch.
    """

    def sample(small: bool, batch: int) -> Inputs:
        side = reduced if small else full
        return Inputs((torch.randn(batch, channels, side, side),))

    return sample


@torch.no_grad()
def enlivened(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Give a freshly initialized model activations of the size that a trained one has.

    Many layers are initialized so that they do nothing (zero classifiers, layer scales of 1e-6, BatchNorm that does not
    normalize yet); a cut through such a model would look exact whatever went wrong.

    Args:
        model: The model.
        inputs: One batch.

    Returns:
        The same model in eval mode.
    """
    for name, parameter in model.named_parameters():
        scale = name.rpartition(".")[2].startswith(("gamma", "layer_scale")) and parameter.abs().max() < 1e-3
        if scale:
            parameter.fill_(1.0)
        elif parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, _NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    if norms:
        model(*inputs.args, **inputs.kwargs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def largest(output: Any) -> float:
    """Largest absolute value among the floating-point tensors of an output: 0 would say that nothing was compared.

    Args:
        output: Any nesting of tensors.

    Returns:
        The value.
    """
    leaves = torch.utils._pytree.tree_leaves(output)
    values = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()]
    return max((float(value.detach().abs().max()) for value in values), default=0.0)
