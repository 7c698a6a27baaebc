"""Addresses as people write them: ``host:port``, with brackets around an IPv6 host.

Only text: nothing is resolved and no socket is opened here.
"""

from __future__ import annotations

from compoff.errors import LocalProtocolError

__all__ = ["format_address", "parse_address"]


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of an address.

    Args:
        address: ``"host:port"``, ``"127.0.0.1:7878"`` or ``"[::1]:7878"``; port 0 asks a server to pick one.

    Returns:
        Host without brackets, and port.

    Raises:
        LocalProtocolError: The text has another form.

    Examples:
        >>> parse_address("edge:7878"), parse_address("[::1]:7878")
        (('edge', 7878), ('::1', 7878))

    Source: this project.
    """
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    malformed = not colon or not host or host != host.strip() or any(char in host for char in "[]/@ \t\r\n\x00")
    if malformed or (":" in host) != bracketed:
        message = f"{address!r} is not an address; expected 'host:port', or '[host]:port' for an IPv6 host"
        raise LocalProtocolError(message)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        message = f"{address!r} has no port from 0 to 65535 after its last colon; expected for example '{host}:7878'"
        raise LocalProtocolError(message)
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """The address of a host and a port, with brackets where the host is IPv6.

    Examples:
        >>> format_address("::1", 7878)
        '[::1]:7878'

    Source: this project.
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
