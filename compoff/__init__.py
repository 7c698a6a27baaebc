"""compoff: a trained model across a weak device and an edge server, with almost nothing on the wire.

Names are loaded on first use (PEP 562), so that ``import compoff`` costs nothing and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compoff import codec as codec
    from compoff import coding as coding
    from compoff import errors as errors
    from compoff.codec import Bottleneck, Geometry
    from compoff.coding import Decoded, Payload, PayloadFormat, SymbolTables
    from compoff.cutting.points import SplitPoint, SplitPoints, list_split_points
    from compoff.device.async_remote import AsyncRemote
    from compoff.device.connecting import connect, connect_async
    from compoff.device.head import Head
    from compoff.device.remote import Remote
    from compoff.device.statistics import RemoteStats
    from compoff.edge.server import Server, serve
    from compoff.edge.stats import ServerStats, TailStats
    from compoff.edge.tail import Tail
    from compoff.errors import (
        ArtifactError,
        ArtifactMismatch,
        AuthenticationError,
        BackendError,
        CompoffError,
        ConfigError,
        ConnectionLost,
        ConnectTimeout,
        FeatureError,
        FitError,
        LocalProtocolError,
        PayloadError,
        ReadTimeout,
        RemoteError,
        RemoteProtocolError,
        ServerBusy,
        SplitError,
        Timeout,
        WireError,
    )
    from compoff.exporting import export
    from compoff.fitting import FitReport, SplitReport, calibrate, finish, fit
    from compoff.objective import DistillationLoss
    from compoff.partition.decide import Goal, Plan
    from compoff.pixels import Pixels
    from compoff.recipe import Recipe
    from compoff.record import Record
    from compoff.weights import WeightPool
    from compoff.wire.replies import ArgMax, TopK, TopValues
    from compoff.wire.tls import TLS
    from compoff.wrapping import Wrapped, load, wrap

__version__ = "0.1.0"

_HOMES = {
    "ArgMax": "compoff.wire.replies",
    "ArtifactError": "compoff.errors",
    "ArtifactMismatch": "compoff.errors",
    "AsyncRemote": "compoff.device.async_remote",
    "AuthenticationError": "compoff.errors",
    "BackendError": "compoff.errors",
    "Bottleneck": "compoff.codec",
    "CompoffError": "compoff.errors",
    "ConfigError": "compoff.errors",
    "ConnectTimeout": "compoff.errors",
    "ConnectionLost": "compoff.errors",
    "Decoded": "compoff.coding",
    "DistillationLoss": "compoff.objective",
    "FeatureError": "compoff.errors",
    "FitError": "compoff.errors",
    "FitReport": "compoff.fitting",
    "Geometry": "compoff.codec",
    "Goal": "compoff.partition.decide",
    "Head": "compoff.device.head",
    "LocalProtocolError": "compoff.errors",
    "Payload": "compoff.coding",
    "PayloadError": "compoff.errors",
    "PayloadFormat": "compoff.coding",
    "Pixels": "compoff.pixels",
    "Plan": "compoff.partition.decide",
    "ReadTimeout": "compoff.errors",
    "Recipe": "compoff.recipe",
    "Record": "compoff.record",
    "Remote": "compoff.device.remote",
    "RemoteError": "compoff.errors",
    "RemoteProtocolError": "compoff.errors",
    "RemoteStats": "compoff.device.statistics",
    "Server": "compoff.edge.server",
    "ServerBusy": "compoff.errors",
    "ServerStats": "compoff.edge.stats",
    "SplitError": "compoff.errors",
    "SplitPoint": "compoff.cutting.points",
    "SplitPoints": "compoff.cutting.points",
    "SplitReport": "compoff.fitting",
    "SymbolTables": "compoff.coding",
    "TLS": "compoff.wire.tls",
    "Tail": "compoff.edge.tail",
    "TailStats": "compoff.edge.stats",
    "Timeout": "compoff.errors",
    "TopK": "compoff.wire.replies",
    "TopValues": "compoff.wire.replies",
    "WeightPool": "compoff.weights",
    "WireError": "compoff.errors",
    "Wrapped": "compoff.wrapping",
    "calibrate": "compoff.fitting",
    "connect": "compoff.device.connecting",
    "connect_async": "compoff.device.connecting",
    "export": "compoff.exporting",
    "finish": "compoff.fitting",
    "fit": "compoff.fitting",
    "list_split_points": "compoff.cutting.points",
    "load": "compoff.wrapping",
    "serve": "compoff.edge.server",
    "wrap": "compoff.wrapping",
}

__all__ = [  # noqa: RUF022 - ruff takes TLS for a constant
    "ArgMax",
    "ArtifactError",
    "ArtifactMismatch",
    "AsyncRemote",
    "AuthenticationError",
    "BackendError",
    "Bottleneck",
    "CompoffError",
    "ConfigError",
    "ConnectTimeout",
    "ConnectionLost",
    "Decoded",
    "DistillationLoss",
    "FeatureError",
    "FitError",
    "FitReport",
    "Geometry",
    "Goal",
    "Head",
    "LocalProtocolError",
    "Payload",
    "PayloadError",
    "PayloadFormat",
    "Pixels",
    "Plan",
    "ReadTimeout",
    "Recipe",
    "Record",
    "Remote",
    "RemoteError",
    "RemoteProtocolError",
    "RemoteStats",
    "Server",
    "ServerBusy",
    "ServerStats",
    "SplitError",
    "SplitPoint",
    "SplitPoints",
    "SplitReport",
    "SymbolTables",
    "TLS",
    "Tail",
    "TailStats",
    "Timeout",
    "TopK",
    "TopValues",
    "WeightPool",
    "WireError",
    "Wrapped",
    "calibrate",
    "connect",
    "connect_async",
    "export",
    "finish",
    "fit",
    "list_split_points",
    "load",
    "serve",
    "wrap",
]

_MODULES = ("codec", "coding", "errors")  # those that the reference speaks of by their own names


def _look_up(name: str) -> object:
    if name not in _HOMES and name not in _MODULES:
        raise AttributeError(f"module 'compoff' has no attribute '{name}'")
    try:
        if name in _MODULES:
            return importlib.import_module(f"compoff.{name}")
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("torch", "tqdm"):
            raise
        from compoff.errors import BackendError  # only here: nothing else is loaded beforehand

        raise BackendError(
            f"compoff.{name} needs {error.name}, which is not installed: pip install compoff. A device does without: "
            "compoff.Head and compoff.connect run a head that was compiled for onnx"
        ) from error


if not TYPE_CHECKING:  # whoever checks types would take any misspelt name for one of these
    __getattr__ = _look_up


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
