"""Symbols and side tensors to bytes and back: frequency tables, three coders, and the payload that travels.

Needs numpy only; knows neither networks nor sockets. Start at `payload`; the default coder is `range_coder`.
"""

from __future__ import annotations

from compoff.coding.body import Code, Coding
from compoff.coding.message import Decoded, Payload
from compoff.coding.payload import PayloadFormat
from compoff.coding.side import Side
from compoff.coding.tables import SymbolTables

__all__ = ["Code", "Coding", "Decoded", "Payload", "PayloadFormat", "Side", "SymbolTables"]
