"""A model that stays in eval mode and without gradients, whatever a training script does to it between two passes.

Asked before every pass, so it must cost next to nothing: after a pass the caches hold features, and walking a whole
tree of modules and parameters would take 3 % of a small MobileNet's pass.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compoff.errors import SplitError
from compoff.printable import told

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Frozen", "to_eval"]

# Modules of PyTorch that compute the same in either mode; a class derived from one of them may not.
_INDIFFERENT = (
    nn.Conv1d, nn.Conv2d, nn.Linear, nn.Embedding, nn.LayerNorm, nn.GroupNorm,
    nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity, nn.Flatten,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Softmax, nn.Hardswish, nn.Hardsigmoid,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample,
)  # fmt: skip

_training = itemgetter("training")


def to_eval(model: nn.Module) -> None:
    """Put a model into eval mode.

    Args:
        model: The model.

    Raises:
        SplitError: It cannot be switched.

    Examples:
        >>> net = torch.nn.Dropout()
        >>> to_eval(net)
        >>> net.training
        False
    """
    try:
        model.eval()
    except Exception as error:
        raise SplitError(
            f"{type(model).__name__}.eval() fails ({told(error)}), and a model is kept in eval mode while it is "
            "wrapped or looked at; give one whose train(mode) switches it and, in place of what torch.export made of "
            "it, the model as it was written"
        ) from error


class Frozen:
    """Keeps a model as it must be.

    Args:
        model: The model.

    Examples:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
        >>> frozen = Frozen(net)
        >>> frozen.keep()
        >>> _ = net.train()
        >>> frozen.keep()
        >>> net[1].training
        False
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.look_again()

    def look_again(self) -> None:
        """Take in modules that have been added to the model."""
        self._modules = list(self._model.modules())
        self._modes: list[dict[str, Any]] = []
        self._children: list[dict[str, nn.Module | None]] = []
        self._known: list[tuple[nn.Module | None, ...]] = []

    def _watch(self) -> None:
        """Take up the dicts in which a change would show: looking into them spares a module's own memory a visit."""
        watched = [module for module in self._modules[1:] if type(module) not in _INDIFFERENT]
        seen = [module.__dict__ for module in (self._model, *watched)]
        self._modes = [attributes for attributes in seen if "training" in attributes]  # some repeat another's
        self._children = [module._modules for module in self._modules]  # pyright: ignore[reportPrivateUsage] - children() walks
        self._known = [tuple(children.values()) for children in self._children]

    def _grown(self) -> bool:
        """Whether a module has another child than when it was last looked at."""
        return [tuple(children.values()) for children in self._children] != self._known

    def keep(self) -> None:
        """Put the model back into eval mode and without gradients, where a script has changed that.

        Raises:
            SplitError: The model cannot be put into eval mode.
        """
        if not self._modes:
            self._watch()
        elif not torch.compiler.is_compiling() and self._grown():
            self.look_again()
            self._watch()
        if any(map(_training, self._modes)):
            to_eval(self._model)
        # Where nothing is recorded, a parameter that would want a gradient gets none.
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self._parameters()):
            self._model.requires_grad_(requires_grad=False)

    def _parameters(self) -> Iterator[nn.Parameter]:
        for module in self._modules:
            for parameter in module._parameters.values():  # pyright: ignore[reportPrivateUsage] - parameters() walks the tree
                if parameter is not None:
                    yield parameter

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what a copy has to look for in its own modules."""
        return {**self.__dict__, "_modes": [], "_children": [], "_known": []}
