"""Certificates as files, made into TLS 1.3 contexts for either end, and read again when they change.

Knows nothing of frames or sockets. Which addresses need TLS at all is decided in ``security``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from compoff.checks import check_path
from compoff.errors import LocalProtocolError
from compoff.printable import printable
from compoff.wire.encryption import check_encryption, ssl

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["TLS", "ReloadableContext", "client_context", "common_name", "server_context"]

_Stamp: TypeAlias = "tuple[tuple[int, int], ...]"


class TLS:
    """The certificates of one end of a connection, as PEM files. Server and device each take one.

    Args:
        certificate: This end's certificate, with the intermediate ones after it. A server needs one; a device where
            the server asks for it.
        key: The certificate's private key.
        ca: Who may have signed the other end's certificate. Given to a server, devices without a certificate from
            there are refused (mutual TLS); without it the server asks for none. A device without it trusts the
            authorities of its system.
        revoked: The authority's list of certificates that it took back (CRL); needs ``ca``.

    Raises:
        LocalProtocolError: A certificate without its key, a key without its certificate, ``revoked`` without ``ca``,
            or a file that is missing or holds something else.
        BackendError: This Python was built without TLS.

    Examples:
        >>> TLS(certificate="edge.pem")
        Traceback (most recent call last):
            ...
        compoff.errors.LocalProtocolError: a certificate without its key was given; give certificate and key together

    Source: RFC 8446.
    """

    def __init__(
        self,
        *,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        ca: str | Path | None = None,
        revoked: str | Path | None = None,
    ) -> None:
        check_encryption()
        if (certificate is None) != (key is None):
            given, lacking = ("a key", "its certificate") if certificate is None else ("a certificate", "its key")
            raise LocalProtocolError(f"{given} without {lacking} was given; give certificate and key together")
        if revoked is not None and ca is None:
            raise LocalProtocolError("a list of revoked certificates was given without ca, the authority that signs it")
        self.certificate = _path("certificate", certificate)
        self.key = _path("key", key)
        self.ca = _path("ca", ca)
        self.revoked = _path("revoked", revoked)
        self._client: tuple[_Stamp, ssl.SSLContext] | None = None
        for path in self._files():
            _check_readable(path)

    def __repr__(self) -> str:
        """The files' names; nothing of what is in them."""
        fields = ", ".join(f"{name}={str(value)!r}" for name, value in self._named().items() if value is not None)
        return f"TLS({fields})"

    def __eq__(self, other: object) -> bool:
        """Whether both name the same files."""
        return isinstance(other, TLS) and self._named() == other._named()

    def __hash__(self) -> int:
        """By the files' names."""
        return hash(tuple(self._files()))

    def client_context(self) -> ssl.SSLContext:
        """Context of a device's next connection; the files are read again when they have changed.

        Returns:
            A context that checks the server's certificate and its name.

        Raises:
            LocalProtocolError: A file is missing or holds something else.
        """
        stamp = self._stamp()
        if self._client is None or self._client[0] != stamp:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            self._load_own(context)
            if self.ca is None:
                context.load_default_certs()
            else:
                self._load_authority(context, self.ca)
            self._client = (stamp, context)
        return self._client[1]

    def server_context(self) -> ReloadableContext:
        """Contexts of a server: one to listen with, and the way to read the files again.

        Returns:
            The context, to be reloaded when files have changed.

        Raises:
            LocalProtocolError: There is no certificate, or a file is missing or holds something else.
        """
        return ReloadableContext(self)

    def read_server(self) -> ssl.SSLContext:
        """A server's context from the files as they are now.

        Raises:
            LocalProtocolError: There is no certificate, or a file is missing or holds something else.
        """
        if self.certificate is None:
            raise LocalProtocolError(
                "a server needs a certificate and its key; `compoff certs` makes them for a first try"
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # A resumed session would skip the check of the device's certificate, and a connection here lasts for hours.
        context.num_tickets = 0
        self._load_own(context)
        if self.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            self._load_authority(context, self.ca)
        return context

    def _load_own(self, context: ssl.SSLContext) -> None:
        if self.certificate is None or self.key is None:
            return
        _check_readable(self.certificate)
        _check_readable(self.key)
        try:
            # An empty password: a key that needs one is refused instead of asking at a terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
        except (ssl.SSLError, OSError) as error:
            raise LocalProtocolError(
                f"'{self.certificate}' and '{self.key}' are no certificate and unencrypted key that belong together, "
                f"in PEM ({error.strerror or error})"
            ) from error

    def _load_authority(self, context: ssl.SSLContext, ca: Path) -> None:
        """What tells whom to trust. The list of revoked ones first: the store is empty then and shows what came of it.

        One loader takes certificates and lists alike: a certificate there would be trusted, and without a list nobody.
        """
        if self.revoked is not None:
            _load_verifying(context, self.revoked, "no list of revoked certificates")
            held = context.cert_store_stats()
            if held["x509"] or not held["crl"]:
                told = "certificates beside a list" if held["crl"] else "no list of revoked certificates"
                raise LocalProtocolError(
                    f"'{self.revoked}' holds {told}; give the authority's list in PEM, such as the revoked.pem of "
                    "`compoff certs`"
                )
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        _load_verifying(context, ca, "no certificates")
        if not context.cert_store_stats()["x509"]:
            raise LocalProtocolError(f"'{ca}' holds no certificates; give the authority's certificate in PEM")

    def _named(self) -> dict[str, Path | None]:
        return {"certificate": self.certificate, "key": self.key, "ca": self.ca, "revoked": self.revoked}

    def _files(self) -> list[Path]:
        return [path for path in self._named().values() if path is not None]

    def _stamp(self) -> _Stamp:
        stats = [_check_readable(path).stat() for path in self._files()]
        return tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)


class ReloadableContext:
    """A server's TLS context whose certificates can change under way; connections that stand are not touched.

    Args:
        tls: The files.

    Raises:
        LocalProtocolError: As ``TLS.server_context``.
    """

    def __init__(self, tls: TLS) -> None:
        self._tls = tls
        self._current = self.listening = tls.read_server()
        # Called in every handshake, with or without a server name: the one place where a context can still change.
        self.listening.sni_callback = self._choose

    def reload(self) -> None:
        """Read the files again, for the connections to come.

        Raises:
            LocalProtocolError: A file is missing or holds something else; what was in use stays in use.
        """
        self._current = self._tls.read_server()

    def _choose(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        handshake.context = self._current


def client_context(tls: TLS | ssl.SSLContext | None) -> ssl.SSLContext | None:
    """The context of a device's next connection; None for plain TCP."""
    return tls.client_context() if isinstance(tls, TLS) else tls


def server_context(tls: TLS | ssl.SSLContext | None) -> tuple[ssl.SSLContext | None, ReloadableContext | None]:
    """The context a server listens with, None for plain TCP; and how to reload it, None where it is not ours."""
    if not isinstance(tls, TLS):
        return tls, None
    reloadable = tls.server_context()
    return reloadable.listening, reloadable


def common_name(certificate: Mapping[str, Any] | None) -> str | None:
    """The name in a certificate, in printable characters; None where there is no certificate or no name.

    Args:
        certificate: As ``ssl.SSLSocket.getpeercert`` gives it.

    Examples:
        >>> common_name({"subject": ((("commonName", "camera-1"),),)})
        'camera-1'
    """
    for part in (certificate or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return printable(value)
    return None


def _path(name: str, path: str | Path | None) -> Path | None:
    return None if path is None else check_path(name, path, LocalProtocolError)


def _check_readable(path: Path) -> Path:
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise LocalProtocolError(f"'{path}' cannot be read: {error.strerror}; give a PEM file") from error


def _load_verifying(context: ssl.SSLContext, path: Path, lacking: str) -> None:
    _check_readable(path)
    try:
        context.load_verify_locations(cafile=path)
    except (ssl.SSLError, OSError) as error:
        raise LocalProtocolError(f"'{path}' holds {lacking} in PEM ({error})") from error
