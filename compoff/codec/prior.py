"""The prior: how probable each symbol is in each channel of the latent.

Gives the rate term of the loss, and the integer tables that the coder uses on both sides. Knows no bytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compoff.coding.context_model import CONTEXTS, ContextModel
from compoff.coding.tables import SymbolTables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Prior"]


class Prior(nn.Module):
    """Learned symbol probabilities, one table per channel.

    Args:
        channels: Number of channels of the latent.
        num_centers: Number of symbols.

    Shapes:
        probabilities ``(channels, num_centers)``.

    Examples:
        >>> Prior(channels=2, num_centers=4).probabilities()[0].tolist()
        [0.25, 0.25, 0.25, 0.25]

    Source: this project (the paper codes with Huffman and has no rate term, Sec. 3.4.1).
    """

    context_weights: Tensor
    """Of each quality the weights of its context model, channels that it does not send after the others."""
    context_bounds: Tensor
    """Of each quality the bounds of its context model; empty where there are none."""
    context_tables: Tensor
    """Of each quality the tables of its context model, zeros after the symbols that it has."""

    def __init__(self, channels: int, num_centers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(channels, num_centers))
        for name, shape in self._no_contexts().items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int32))
        self.register_load_state_dict_pre_hook(_as_many_contexts)

    def probabilities(self) -> Tensor:
        """Probability of each symbol in each channel.

        Returns:
            Rows that sum to 1.
        """
        return torch.softmax(self.logits, dim=-1)

    def estimated_rate(self, weights: Tensor) -> Tensor:
        """Bits per sample that the symbols would cost under this prior.

        Args:
            weights: Weight of each center for each latent value, as `Quantizer.forward` gives them.

        Returns:
            The mean over the batch, in bits; differentiable in the prior and in the weights.

        Shapes:
            weights ``(batch, channels, *space, num_centers)``; result a scalar.

        Examples:
            >>> import torch
            >>> prior = Prior(channels=1, num_centers=4)
            >>> weights = torch.nn.functional.one_hot(torch.tensor([[[0, 1, 2]]]), 4).float()
            >>> prior.estimated_rate(weights).item()
            6.0

        Source: this project.
        """
        bits = torch.log_softmax(self.logits, dim=-1) / -math.log(2)  # (channels, num_centers)
        shares = weights.flatten(2, -2).sum(2) if weights.dim() > 3 else weights  # (batch, channels, num_centers)
        return (shares * bits).sum((1, 2)).mean()

    def _no_contexts(self) -> dict[str, tuple[int, ...]]:
        channels, num_centers = self.logits.shape
        return {
            "context_weights": (0, channels, CONTEXTS),
            "context_bounds": (0, 0),
            "context_tables": (0, 0, num_centers),
        }

    def keep_contexts(self, models: Sequence[ContextModel]) -> None:
        """Keep the context models of all qualities, or that there are none.

        Args:
            models: One a quality, or none.
        """
        sizes = self._no_contexts()
        if models:
            tables = models[0].tables
            sizes = {
                "context_weights": (len(models), *sizes["context_weights"][1:]),
                "context_bounds": (len(models), tables.num_channels - 1),
                "context_tables": (len(models), tables.num_channels, *sizes["context_tables"][2:]),
            }
        # Whatever device the script has made its default.
        made = {name: torch.zeros(size, dtype=torch.int32, device="cpu") for name, size in sizes.items()}
        for quality, model in enumerate(models):
            tables = torch.from_numpy(model.tables.weights.astype("int32"))
            made["context_weights"][quality, : model.num_channels] = torch.from_numpy(model.weights.astype("int32"))
            made["context_bounds"][quality] = torch.from_numpy(model.bounds.astype("int32"))
            made["context_tables"][quality, :, : model.tables.num_symbols] = tables
        for name, value in made.items():
            setattr(self, name, value.to(self.logits.device))

    def contexts(self, channels: Sequence[int]) -> tuple[ContextModel, ...]:
        """The context models of all qualities.

        Args:
            channels: How many channels each quality sends.

        Returns:
            One a quality; none where there are none, or where they were made for other qualities.
        """
        kept = [self.context_weights, self.context_bounds, self.context_tables]
        if len(kept[0]) != len(channels):
            return ()
        models: list[ContextModel] = []
        for sent, weights, bounds, tables in zip(channels, *(one.cpu().numpy() for one in kept), strict=True):
            models.append(ContextModel(weights[:sent], bounds, SymbolTables(tables[:, tables.any(0)])))
        return tuple(models)

    def tables(self) -> SymbolTables:
        """The probabilities as the integers that both sides of the wire code with.

        Returns:
            One table per channel.

        Examples:
            >>> Prior(channels=1, num_centers=4).tables().weights.tolist()
            [[4194304, 4194304, 4194304, 4194304]]

        Source: this project.
        """
        with torch.no_grad():
            return SymbolTables.from_probabilities(torch.softmax(self.logits.cpu().double(), dim=-1).numpy())

    @torch.no_grad()
    def count(self, counts: Tensor, expected: Tensor | None = None) -> None:
        """Replace the learned probabilities by measured frequencies.

        Args:
            counts: How often each symbol occurred, ``(channels, num_centers)``. Half a count is added to each, so that
                a symbol that was never seen can still be coded.
            expected: Probabilities expected beforehand, ``(channels, num_centers)``: two counts, spread by them, take
                the place of the half counts, which cost much where there are many symbols and few are ever seen.

        Examples:
            >>> import torch
            >>> prior = Prior(channels=1, num_centers=2)
            >>> prior.count(torch.tensor([[1, 2]]))
            >>> [round(value, 3) for value in prior.probabilities()[0].tolist()]
            [0.375, 0.625]

        Source: this project (Krichevsky-Trofimov smoothing).
        """
        smoothed = counts.cpu().double() + (0.5 if expected is None else 2 * expected.cpu())
        self.logits.copy_((smoothed / smoothed.sum(1, keepdim=True)).log())


def _as_many_contexts(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Before weights are loaded: as many context models as were saved; none from before there were any."""
    assert isinstance(module, Prior)
    saved: list[Tensor] = []
    for name in ("context_weights", "context_bounds", "context_tables"):
        mine: Tensor = getattr(module, name)
        saved.append(state.setdefault(f"{prefix}{name}", mine.new_zeros((0, *mine.shape[1:]))))
        setattr(module, name, torch.empty_like(saved[-1], device=mine.device))
    (channels, num_centers), (weights, bounds, tables) = module.logits.shape, (tuple(one.shape) for one in saved)
    num_tables = tables[1] if len(tables) > 1 else 0
    expected = (
        (weights[0], channels, CONTEXTS),
        (weights[0], max(num_tables - 1, 0)),
        (weights[0], num_tables, num_centers),
    )
    if (weights, bounds, tables) != expected:
        errors: list[str] = rest[-1]
        errors.append(f"context models of shapes {weights}, {bounds} and {tables} do not go together")
