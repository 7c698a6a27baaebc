"""`compoff top`: a server's live figures in a terminal, read from its metrics port."""

from __future__ import annotations

import http.client
import json
import time
from typing import TYPE_CHECKING, cast

from rich.live import Live as LiveView
from rich.table import Table

from compoff.errors import ConnectionLost, RemoteProtocolError, WireError
from compoff.wire.sockets import connect_error, parse_target

if TYPE_CHECKING:
    from rich.console import Console

    from compoff.operations.figures import Figures, TailFigures

__all__ = ["fetch", "show_top", "table_of"]

_COLUMNS = ("requests/s", "in", "out", "waiting", "p50", "p90", "p99", "batch", "busy", "errors", "answered")
_SECONDS = 3.0


def show_top(address: str, console: Console, *, interval: float = 1.0, looks: int | None = None) -> None:
    """Show the figures until interrupted.

    Args:
        address: ``"host:port"`` of the server's metrics.
        console: Where to.
        interval: Seconds between two looks.
        looks: How many looks; None for no end.

    Raises:
        WireError: Nobody shows figures there.
    """
    table = table_of(fetch(address), address)
    with LiveView(table, console=console, auto_refresh=False) as view:
        while looks is None or (looks := looks - 1) > 0:
            time.sleep(interval)
            view.update(table_of(fetch(address), address), refresh=True)


def fetch(address: str) -> Figures:
    """The figures that a server shows now.

    Args:
        address: ``"host:port"`` of its metrics.

    Raises:
        WireError: Nobody shows figures there.
    """
    host, port = parse_target(address)
    connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
    try:
        connection.request("GET", "/figures.json")
        response = connection.getresponse()
        figures = json.loads(response.read())
        if response.status != 200 or "tails" not in figures:
            raise ValueError(f"status {response.status}")
    except (ValueError, TypeError, ConnectionResetError, http.client.HTTPException) as error:
        raise RemoteProtocolError(
            f"{address} shows no figures ({error}); give the address of the server's metrics, not the devices'"
        ) from error
    except WireError:
        raise
    except ConnectionRefusedError as error:
        raise ConnectionLost(
            f"nobody shows figures at {address}: {error.strerror}; start the server with --metrics {address}, or give "
            "the address that it says"
        ) from error
    except OSError as error:
        raise connect_error(address, error) from error
    finally:
        connection.close()
    return cast("Figures", figures)


def table_of(figures: Figures, address: str) -> Table:
    """One row a tail.

    Args:
        figures: What to show.
        address: Where it came from.
    """
    state = "ready" if figures["ready"] else "NOT READY"
    title = (
        f"{address} · {state} · up {figures['uptime']:.0f} s · processes {figures['processes']} · connections "
        f"{figures['connections']} · pending {figures['pending']} · refused {figures['refused']}"
    )
    table = Table(title=title, title_justify="left", title_style="bold" if figures["ready"] else "bold red")
    table.add_column("tail")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for tail in figures["tails"]:
        table.add_row(*_cells(tail))
    return table


def _cells(tail: TailFigures) -> list[str]:
    live = tail["live"]
    name = f"{tail['model'] or 'tail'} at {tail['split'] or '?'} · {tail['artifact']}"
    if live is None:
        return [name]
    return [
        name,
        f"{live['requests']:.1f}",
        _bytes(live["bytes_in"]),
        _bytes(live["bytes_out"]),
        str(tail["waiting"]),
        _seconds(live["p50"]),
        _seconds(live["p90"]),
        _seconds(live["p99"]),
        f"{live['mean_batch']:.1f}",
        f"{100 * live['busy']:.0f} %",
        str(sum(tail["errors"].values())),
        str(tail["replies"]),
    ]


def _seconds(seconds: float) -> str:
    if seconds <= 0:
        return "–"
    return (
        f"{1e6 * seconds:.0f} µs"
        if seconds < 1e-3
        else f"{1e3 * seconds:.1f} ms"
        if seconds < 1
        else f"{seconds:.2f} s"
    )


def _bytes(rate: float) -> str:
    return f"{rate:.0f} B/s" if rate < 1e3 else f"{rate / 1e3:.1f} kB/s" if rate < 1e6 else f"{rate / 1e6:.1f} MB/s"
