"""`compoff top`: a server's live figures in a terminal, read from its metrics port."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, cast

from rich.live import Live as LiveView
from rich.table import Table
from rich.text import Text

from compoff.checks import is_number
from compoff.errors import ConnectionLost, LocalProtocolError, RemoteProtocolError, WireError
from compoff.printable import printable
from compoff.wire.sockets import connect_error, parse_target

if TYPE_CHECKING:
    from collections.abc import Generator

    from rich.console import Console

    from compoff.operations.figures import Figures, Live, TailFigures

__all__ = ["fetch", "show_top", "table_of"]

# Each as wide as what usually stands in it, so that the figures of several tails stand below one another.
_COLUMNS = {"requests/s": 10, "in": 10, "out": 10, "waiting": 7, "p50": 8, "p90": 8, "p99": 8, "batch": 5, "busy": 5}
_SECONDS = 3.0  # for a whole answer
_LONGEST = 2**20  # bytes
_LONGEST_INTERVAL = 86_400  # seconds, a day; years cannot be slept
_NO_HTTP = (http.client.HTTPException, ConnectionResetError, BrokenPipeError)


def show_top(address: str, console: Console, *, interval: float = 1.0, looks: int | None = None) -> None:
    """Show the figures until interrupted: in a terminal one look in place of the other, elsewhere one after another.

    Args:
        address: ``"host:port"`` of the server's metrics.
        console: Where to.
        interval: Seconds between two looks, up to a day.
        looks: How many looks; None for no end.

    Raises:
        LocalProtocolError: The interval is none.
        WireError: Nobody shows figures there.
    """
    if not (is_number(interval) and 0 < interval <= _LONGEST_INTERVAL):
        expected = f"a positive number up to {_LONGEST_INTERVAL:,}"
        raise LocalProtocolError(f"an interval of {interval!r:.80} seconds was given; expected {expected}")
    tables = _tables(address, interval, looks)
    if not console.is_terminal:
        for table in tables:
            console.print(table)
        return
    with LiveView(next(tables), console=console, auto_refresh=False) as view:
        for table in tables:
            view.update(table, refresh=True)


def _tables(address: str, interval: float, looks: int | None) -> Generator[Table]:
    """What is to be seen, look after look."""
    yield table_of(fetch(address), address)
    while looks is None or (looks := looks - 1) > 0:
        time.sleep(interval)
        yield table_of(fetch(address), address)


def fetch(address: str) -> Figures:
    """The figures that a server shows now.

    Args:
        address: ``"host:port"`` of its metrics.

    Raises:
        WireError: Nobody shows figures there.
    """
    host, port = parse_target(address)
    connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
    ended = threading.Event()
    try:
        connection.connect()
        with _ended_at(connection.sock, ended):
            connection.request("GET", "/figures.json")
            with connection.getresponse() as response:
                body = response.read(_LONGEST + 1)
        if len(body) > _LONGEST:
            raise ValueError(f"an answer of more than {_LONGEST} bytes")
        figures = json.loads(body)
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        table_of(figures, address)  # what cannot be shown is none
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, *_NO_HTTP) as error:
        raise _no_figures(address, error, ended) from error
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


@contextlib.contextmanager
def _ended_at(sock: socket.socket, ended: threading.Event) -> Generator[None]:
    """End a connection when its time is over: the timeout of a socket is one for each read, and a drip has no end."""

    def end() -> None:
        ended.set()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(_SECONDS, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _no_figures(address: str, error: Exception, ended: threading.Event) -> RemoteProtocolError:
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, http.client.RemoteDisconnected):
        said = "it does not speak HTTP"  # the error's own words are the bytes that it said
    else:
        said = str(error) if isinstance(error, (ValueError, *_NO_HTTP)) else "it answers something else"
    reason = f"no whole answer within {_SECONDS:g} s" if ended.is_set() else said
    return RemoteProtocolError(
        f"{address} shows no figures ({printable(reason)}); give the address of the server's metrics, not the devices'"
    )


def table_of(figures: Figures, address: str) -> Table:
    """Two lines a tail, one below the other: what it is and has done, and what it does now; 80 columns are enough.

    Args:
        figures: What to show.
        address: Where it came from.
    """
    state = "ready" if figures["ready"] else "NOT READY"
    title = (
        f"{address} · {state} · up {figures['uptime']:.0f} s · processes {figures['processes']} · connections "
        f"{figures['connections']} · pending {figures['pending']} · refused {figures['refused']}"
    )
    style = "bold" if figures["ready"] else "bold red"
    table = Table(title=Text(printable(title)), title_justify="left", title_style=style, box=None, padding=0)
    table.show_header = False
    table.add_column()
    for tail in figures["tails"]:
        name = f"{tail['model'] or 'tail'} at {tail['split'] or '?'} · {tail['artifact']}"
        done = f"answered {tail['replies']} · errors {sum(tail['errors'].values())}"
        table.add_row(Text(printable(f"{name} · {done}"), style="bold"))
        if tail["live"] is not None:
            table.add_row(_now(tail, tail["live"]))
    return table


def _now(tail: TailFigures, live: Live) -> Table:
    """What a tail did in the last seconds."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name, width in _COLUMNS.items():
        table.add_column(name, justify="right", min_width=width)
    table.add_row(
        f"{live['requests']:.1f}",
        _bytes(live["bytes_in"]),
        _bytes(live["bytes_out"]),
        str(tail["waiting"]),
        _seconds(live["p50"]),
        _seconds(live["p90"]),
        _seconds(live["p99"]),
        f"{live['mean_batch']:.1f}",
        f"{100 * live['busy']:.0f} %",
    )
    return table


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
