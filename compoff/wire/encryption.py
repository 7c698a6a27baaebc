"""Python's ``ssl``; where a Python was built without it, a stand-in that nothing is of: plain TCP does without."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from compoff.errors import BackendError

__all__ = ["check_encryption", "ssl"]


class _Nothing(Exception):
    """Stands for each class of ``ssl`` that plain TCP meets, too."""


_MET = (
    *("SSLContext", "SSLSocket", "SSLError", "SSLCertVerificationError", "SSLEOFError"),
    *("SSLWantReadError", "SSLWantWriteError", "SSLZeroReturnError"),
)

if TYPE_CHECKING:
    import ssl
else:
    try:
        import ssl
    except ImportError:
        ssl = SimpleNamespace(**dict.fromkeys(_MET, _Nothing))


def check_encryption() -> None:
    """Refuse to go on where there is no TLS.

    Raises:
        BackendError: This Python was built without ``ssl``.
    """
    if not hasattr(ssl, "OPENSSL_VERSION"):
        raise BackendError(
            "TLS needs Python's module ssl, which this Python was built without; use one that has it, or, where "
            "something else protects the link, insecure=True (--insecure)"
        )
