"""The prior: how probable each symbol is in each channel of the latent.

Gives the rate term of the loss, and the integer tables that the coder uses on both sides. Knows no bytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compoff.coding.stored import MODEL_PARTS, model_arrays, model_of
from compoff.coding.tables import SymbolTables

if TYPE_CHECKING:
    from torch import Tensor

    from compoff.coding.context_model import ContextModel

__all__ = ["CONTEXTS_KEY", "Prior"]

CONTEXTS_KEY = "contexts."
"""How the names of context models begin in a prior's state."""


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

    def __init__(self, channels: int, num_centers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(channels, num_centers))
        # No buffers: their sizes are found by a fit, and what copies buffers between models needs them alike.
        self.contexts: tuple[ContextModel, ...] = ()

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

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for quality, model in enumerate(self.contexts):
            for name, array in model_arrays(model).items():
                destination[f"{prefix}{CONTEXTS_KEY}{quality}.{name}"] = torch.from_numpy(array)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        told = (missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *told)
        mine = {name for name in state_dict if name.startswith(prefix + CONTEXTS_KEY)}
        unexpected_keys[:] = [name for name in unexpected_keys if name not in mine]
        if f"{prefix}logits" not in state_dict:  # nothing of this prior: it stays as it is
            return
        names = [f"{prefix}{CONTEXTS_KEY}{quality}." for quality in range(len(mine) // len(MODEL_PARTS))]
        try:
            if mine != {name + part for name in names for part in MODEL_PARTS}:
                raise KeyError("some of their arrays are missing")
            self.contexts = tuple(
                model_of({part: state_dict[name + part].detach().cpu().numpy() for part in MODEL_PARTS})
                for name in names
            )
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            error_msgs.append(f"the context models under {prefix}{CONTEXTS_KEY} are damaged ({error})")
