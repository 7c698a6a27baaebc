"""Who may talk to a server: the shared token, compared in constant time.

Knows nothing of frames or sockets. TLS contexts are made by the caller and handed to client and server as they are.
"""

from __future__ import annotations

import hashlib
import hmac

from compoff.errors import LocalProtocolError

__all__ = ["MAX_TOKEN_BYTES", "check_token_form", "token_matches"]

MAX_TOKEN_BYTES = 1024


def check_token_form(token: str | None) -> None:
    """Refuse a token that cannot be sent.

    Args:
        token: The shared secret, or None for no token.

    Raises:
        LocalProtocolError: It is empty, longer than 1 KiB of UTF-8, or not Unicode text.
    """
    if token is None:
        return
    try:
        length = len(token.encode())
    except UnicodeEncodeError:
        message = "the token is not valid Unicode text; use printable characters"  # the token itself stays out of it
        raise LocalProtocolError(message) from None
    if not 1 <= length <= MAX_TOKEN_BYTES:
        message = f"a token of {length} bytes; expected 1 to {MAX_TOKEN_BYTES}, or None for no token"
        raise LocalProtocolError(message)


def token_matches(expected: str | None, offered: str | None) -> bool:
    """Whether the offered token opens a server; takes as long for a near miss as for a far one.

    Args:
        expected: The server's token; None lets everyone in.
        offered: The client's token; None for none.

    Returns:
        True where the client may come in.

    Examples:
        >>> token_matches("secret", "secret"), token_matches("secret", None), token_matches(None, "any")
        (True, False, True)

    Source: this project.
    """
    if expected is None:
        return True
    # Digests have one length, so that not even the token's length shows in the time.
    digests = [hashlib.sha256((token or "").encode()).digest() for token in (expected, offered)]
    return hmac.compare_digest(*digests) and offered is not None
