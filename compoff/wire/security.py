"""Who may talk to a server: tokens, compared in constant time; and where plain TCP needs to be asked for by name.

Knows nothing of frames or sockets. The certificates of TLS are read in ``tls``.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, TypeAlias, cast

from compoff.checks import check_flag
from compoff.errors import LocalProtocolError
from compoff.wire.address import is_loopback, parse_address
from compoff.wire.encryption import ssl
from compoff.wire.tls import TLS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "MAX_TOKEN_BYTES",
    "Tokens",
    "check_token_form",
    "check_tokens",
    "device_tls",
    "server_tls",
    "token_matches",
]

MAX_TOKEN_BYTES = 1024

Tokens: TypeAlias = "str | Sequence[str] | None"
"""A server's token, several of which each opens it, or None to let everyone in."""


def device_tls(address: str, tls: TLS | ssl.SSLContext | None, insecure: bool) -> TLS | ssl.SSLContext | None:
    """What a device connects with: TLS, except on loopback or where plain TCP is asked for by name.

    Args:
        address: The server's.
        tls: What the caller gave; None for nothing.
        insecure: Whether the caller asked for plain TCP.

    Returns:
        None for plain TCP; else ``tls``, or the trust in the authorities of the system.

    Raises:
        LocalProtocolError: Both TLS and plain TCP were asked for, or `insecure` is neither True nor False.
        BackendError: It would be TLS, and this Python was built without it.

    Examples:
        >>> device_tls("127.0.0.1:7878", None, False), device_tls("edge:7878", None, False)
        (None, TLS())

    Source: this project.
    """
    _check_tls(tls, insecure)
    if tls is not None or insecure or is_loopback(parse_address(address)[0]):
        return tls
    return TLS()


def server_tls(address: str, tls: TLS | ssl.SSLContext | None, insecure: bool) -> TLS | ssl.SSLContext | None:
    """What a server listens with; plain TCP off loopback has to be asked for by name.

    Args:
        address: Where it listens.
        tls: What the caller gave; None for nothing.
        insecure: Whether the caller asked for plain TCP.

    Returns:
        ``tls``; None for plain TCP.

    Raises:
        LocalProtocolError: Other machines could connect, and neither TLS nor plain TCP was asked for; or both were, or
            `insecure` is neither True nor False.

    Examples:
        >>> server_tls("127.0.0.1:0", None, False)

    Source: this project.
    """
    _check_tls(tls, insecure)
    if tls is None and not insecure and not is_loopback(parse_address(address)[0]):
        raise LocalProtocolError(
            f"other machines can connect to {address}, so it needs tls=TLS(certificate=..., key=..., ca=...), which "
            "`compoff certs` makes files for; insecure=True (--insecure) serves without encryption, for a private link"
        )
    return tls


def _check_tls(tls: TLS | ssl.SSLContext | None, insecure: bool) -> None:
    if tls is not None and not isinstance(tls, (TLS, ssl.SSLContext)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise LocalProtocolError(f"tls is a {type(tls).__name__}; expected compoff.TLS(...) or an ssl.SSLContext")
    check_flag("insecure", insecure, LocalProtocolError)
    if tls is not None and insecure:
        raise LocalProtocolError("tls and insecure=True were both given; give one of them")


def check_tokens(tokens: Tokens) -> str | tuple[str, ...] | None:
    """A server's tokens, refused where one cannot be sent, or where there are none in a list.

    Args:
        tokens: The token, several, or None.

    Returns:
        The same, several as a tuple: what changes or runs out later changes nothing here.

    Raises:
        LocalProtocolError: A token has another form, or the list is empty: it would let nobody in.

    Examples:
        >>> check_tokens(["old", "new"])
        ('old', 'new')

    Source: this project.
    """
    if tokens is None or isinstance(tokens, (str, bytes)) or not hasattr(tokens, "__iter__"):
        alone = cast("str | None", tokens)
        check_token_form(alone)
        return alone
    several = tuple(tokens)
    if not several:
        raise LocalProtocolError("an empty list of tokens was given; give at least one, or None to let everyone in")
    for token in several:
        if token is None:  # pyright: ignore[reportUnnecessaryComparison] - a user's mistake all the same
            raise LocalProtocolError(
                "None was given as one of several tokens; give token=None by itself to let everyone in, or leave it out"
            )
        check_token_form(token)
    return several


def check_token_form(token: str | None) -> None:
    """Refuse a token that cannot be sent.

    Args:
        token: The shared secret, or None for no token.

    Raises:
        LocalProtocolError: It is empty, longer than 1 KiB of UTF-8, or not Unicode text.
    """
    if token is None:
        return
    if not isinstance(token, str):  # pyright: ignore[reportUnnecessaryIsInstance] - a user's mistake all the same
        raise LocalProtocolError(f"the token is a {type(token).__name__}; expected text, or None for no token")
    try:
        length = len(token.encode())
    except UnicodeEncodeError:
        message = "the token is not valid Unicode text; use printable characters"  # the token itself stays out of it
        raise LocalProtocolError(message) from None
    if not 1 <= length <= MAX_TOKEN_BYTES:
        message = f"a token of {length} bytes; expected 1 to {MAX_TOKEN_BYTES}, or None for no token"
        raise LocalProtocolError(message)


def token_matches(expected: Tokens, offered: str | None) -> bool:
    """Whether the offered token opens a server; takes as long for a near miss as for a far one.

    Args:
        expected: The server's token, or several of which each opens it; None lets everyone in.
        offered: The client's token; None for none.

    Returns:
        True where the client may come in.

    Examples:
        >>> token_matches("secret", "secret"), token_matches("secret", None), token_matches(None, "any")
        (True, False, True)
        >>> token_matches(["old", "new"], "new")
        True

    Source: this project.
    """
    if expected is None:
        return True
    # Digests have one length, so that not even the token's length shows in the time.
    digest = hashlib.sha256((offered or "").encode()).digest()
    matches = 0
    for token in [expected] if isinstance(expected, str) else expected:
        # Every token is compared: the time does not tell which of them it was.
        matches += hmac.compare_digest(hashlib.sha256(token.encode()).digest(), digest)
    return matches > 0 and offered is not None
