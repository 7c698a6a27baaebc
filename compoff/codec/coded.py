"""What a bottleneck's symbols are coded with: tables, channels and step of each quality, context models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compoff.coding import Code, SymbolTables

if TYPE_CHECKING:
    from compoff.codec.bottleneck import Bottleneck

__all__ = ["code_of"]


def code_of(bottleneck: Bottleneck) -> Code:
    """How the coder sees a bottleneck.

    Args:
        bottleneck: The bottleneck, its symbols counted.

    Returns:
        The code of all its qualities; its tables carry the context models, as an export does.

    Examples:
        >>> from compoff.codec import Bottleneck, Geometry
        >>> code_of(Bottleneck(Geometry((16, 8, 8)), channels=4)).latent_shape
        (4, 2, 2)
    """
    qualities, contexts = bottleneck.qualities(), bottleneck.prior.contexts
    channels, steps = ([getattr(quality, name) for quality in qualities] for name in ("channels", "step"))
    plain = Code(bottleneck.prior.tables(), bottleneck.latent_shape, channels, steps)
    sizes = [(sent, plain.tables_at(quality).num_symbols) for quality, sent in enumerate(channels)]
    if [(model.num_channels, model.tables.num_symbols) for model in contexts] != sizes:
        return plain  # there are none, or they are of other qualities: the symbols were counted anew by other means
    tables = SymbolTables(plain.tables.weights, contexts)
    return Code(tables, bottleneck.latent_shape, channels, steps)
