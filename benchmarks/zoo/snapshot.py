"""Everything about a model that wrapping must leave alone, taken down before and compared after."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """A model at one moment.

    Args:
        values: Copies of parameters and buffers, those that a state dict leaves out included.
        owners: Identity of each parameter and buffer.
        flags: Mode of each module and whether each parameter wants gradients.
        hooks: Number of hooks on each module, by their kind.
        attributes: Names of the attributes of each module.
        calls: What is called for a forward pass, and with which signature.
    """

    values: dict[str, Tensor]
    owners: dict[str, int]
    flags: dict[str, bool]
    hooks: dict[str, int]
    attributes: dict[str, list[str]]
    calls: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """Take a model down.

        Args:
            model: The model.

        Returns:
            The snapshot.
        """
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        modules = dict(model.named_modules())
        modes = {f"{name}.training": module.training for name, module in modules.items()}
        gradients = {f"{name}.requires_grad": value.requires_grad for name, value in model.named_parameters()}
        return cls(
            {name: value.detach().clone() for name, value in tensors.items()},
            {name: id(value) for name, value in tensors.items()},
            modes | gradients,
            {f"{name}.{kind}": count for name, module in modules.items() for kind, count in _hooks(module)},
            {name: sorted(vars(module)) for name, module in modules.items()},
            {
                "signature": str(inspect.signature(model.forward)),
                "forward": model.forward.__func__,
                "type": type(model),
            },
        )

    def changed_values(self, model: nn.Module) -> list[str]:
        """Parameters and buffers that are no longer the same to the last bit: what must hold while it is wrapped.

        Args:
            model: The model.

        Returns:
            Their names.
        """
        now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return [name for name, value in self.values.items() if name not in now or not torch.equal(now[name], value)]

    def changes(self, model: nn.Module) -> list[str]:
        """Whatever is different from before: what must hold once it is unwrapped.

        Args:
            model: The model.

        Returns:
            What changed, in words; nothing where the model is as it was.
        """
        now = Snapshot.of(model)
        found = [f"value of {name}" for name in self.changed_values(model)]
        for field in ("owners", "flags", "hooks", "attributes", "calls"):
            before, after = getattr(self, field), getattr(now, field)
            found += [f"{field} of {name}" for name in before | after if before.get(name) != after.get(name)]
        return found


def _hooks(module: nn.Module) -> list[tuple[str, int]]:
    return [(kind, len(value)) for kind, value in vars(module).items() if "hooks" in kind and hasattr(value, "__len__")]
