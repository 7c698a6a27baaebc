"""Gates: the switches that hooks put at the split points of a model.

A hook is an object that owns its gate, and a gate owns its bottleneck, so that a copied or pickled model owns its own.
Knows neither where the split points are (`cutting.sites`) nor who switches (`wrapping`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from compoff.codec import Bottleneck

__all__ = ["Gate", "InputHook", "OutputHook"]


class Gate:
    """The switch at one split point.

    Args:
        bottleneck: What the feature passes through while the gate is on.

    Examples:
        >>> import torch
        >>> from compoff.codec import Bottleneck, Geometry
        >>> gate, y = Gate(Bottleneck(Geometry((4, 8)), 2).eval()), torch.randn(3, 4, 8)
        >>> gate(y) is y
        True
        >>> gate.on = True
        >>> gate(y) is y, gate(y).shape
        (False, torch.Size([3, 4, 8]))
    """

    def __init__(self, bottleneck: Bottleneck) -> None:
        self.bottleneck = bottleneck
        self.on = False
        self.replace: Callable[[Tensor], Tensor] | None = None

    def __call__(self, y: Tensor) -> Tensor:
        """Pass a feature on, through the bottleneck if the gate is on.

        Args:
            y: The feature.

        Returns:
            What the model goes on with.
        """
        if self.replace is not None:
            return self.replace(y)
        return self.bottleneck(y) if self.on else y

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to one running pass."""
        return {"bottleneck": self.bottleneck, "on": self.on, "replace": None}


class OutputHook:
    """Put a gate behind the module that makes the feature: every reader, skips included, sees the decoded tensor.

    Args:
        gate: The gate.
    """

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Pass the module's output through the gate, as a forward hook."""
        del module, args
        return self.gate(output)


class InputHook:
    """Put a gate before the split point, where no module made the feature.

    Args:
        gate: The gate.
    """

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Pass the first tensor among the module's inputs through the gate, as a forward pre-hook."""
        del module
        for index, value in enumerate(args):
            if isinstance(value, Tensor):
                return (*args[:index], self.gate(value), *args[index + 1 :]), kwargs
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                return args, {**kwargs, name: self.gate(value)}
        return args, kwargs
