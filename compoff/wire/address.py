"""Addresses as people write them: ``host:port``, with brackets around an IPv6 host.

Only text: nothing is resolved and no socket is opened here.
"""

from __future__ import annotations

import ipaddress

from compoff.errors import LocalProtocolError

__all__ = ["format_address", "is_loopback", "parse_address"]


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
    if not isinstance(address, str):  # pyright: ignore[reportUnnecessaryIsInstance] - a user's mistake all the same
        raise LocalProtocolError(f"{address!r:.80} is not an address; expected text, such as 'edge:7878'")
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    malformed = not colon or not host or host != host.strip() or any(char in host for char in "[]/@ \t\r\n\x00")
    if malformed or (":" in host) != bracketed:
        message = f"{address!r:.80} is not an address; expected 'host:port', or '[host]:port' for an IPv6 host"
        raise LocalProtocolError(message)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        message = (
            f"{address!r:.80} has no port from 0 to 65535 after its last colon; expected for example '{host:.80}:7878'"
        )
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


def is_loopback(host: str) -> bool:
    """Whether a host, as it is written, can only be this machine.

    Args:
        host: Name or number, without brackets. Of the names only ``localhost`` counts: any other may be anybody's.

    Returns:
        True where nothing leaves the machine.

    Examples:
        >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, True, False)

    Source: RFC 5735, RFC 4291, RFC 6761.
    """
    if host.lower() == "localhost":
        return True
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = number.ipv4_mapped if isinstance(number, ipaddress.IPv6Address) else None
    return (mapped or number).is_loopback
