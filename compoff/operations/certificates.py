"""A small certificate authority for a first try: its own key, a server's certificate, one for each device.

Files in one folder, in PEM. A fleet's own authority can take its place: nothing else here depends on this one.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING

from compoff.checks import is_number
from compoff.drafts import drafts, write_draft
from compoff.errors import BackendError, LocalProtocolError

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ModuleNotFoundError as error:
    raise BackendError('making certificates needs cryptography: pip install "compoff[tls]"') from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Authority"]

_AUTHORITY_DAYS = 3650
_REPLACED = ".replaced.pem"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Authority:
    """An authority in a folder; made there the first time, used again later.

    The folder holds ``ca.pem``, its key ``ca.key``, the list of revoked certificates ``revoked.pem``, and
    ``NAME.pem`` with ``NAME.key`` for each certificate. Only ``ca.pem``, ``revoked.pem`` and its own pair belong on
    a server or a device.

    Args:
        folder: Where the files are.

    Raises:
        LocalProtocolError: The folder holds an authority that cannot be read.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     authority = Authority(folder)
        ...     [path.name for path in authority.issue_server("edge", ["edge.local", "192.0.2.7"])]
        ['edge.pem', 'edge.key']

    Source: RFC 5280.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if (self.folder / "ca.key").exists() or (self.folder / "ca.pem").exists():
            self._key, self._certificate = self._read()
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._key, self._certificate = self._make()
            contents = {"revoked.pem": self._revoked(()), "ca.key": _key_bytes(self._key)}
            _write(self.folder, {**contents, "ca.pem": _pem(self._certificate)})

    @property
    def path(self) -> Path:
        """The authority's certificate, which both ends trust."""
        return self.folder / "ca.pem"

    @property
    def revoked_path(self) -> Path:
        """The list of certificates taken back, for the server."""
        return self.folder / "revoked.pem"

    def issue_server(self, name: str, hosts: Sequence[str], *, days: float = 365, renew: bool = False) -> list[Path]:
        """Make a server's certificate and key.

        Args:
            name: Of the two files.
            hosts: Names and numbers under which devices reach the server.
            days: How long it is valid; below zero, it has expired already, for trials.
            renew: Whether files of that name may be replaced.

        Returns:
            Certificate and key.

        Raises:
            LocalProtocolError: The name cannot be a file's or is a device's, a host cannot be one, or the files are
                there already.
        """
        if not hosts:
            raise LocalProtocolError("a server's certificate was asked for without a host name; give at least one")
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        return self._issue(name, days, renew, ExtendedKeyUsageOID.SERVER_AUTH, names)

    def issue_device(self, name: str, *, days: float = 365, renew: bool = False) -> list[Path]:
        """Make a device's certificate and key; with them it cannot pass for a server.

        Args:
            name: The device's; the server's log shows it.
            days: How long it is valid; below zero, it has expired already, for trials.
            renew: Whether files of that name may be replaced.

        Returns:
            Certificate and key.

        Raises:
            LocalProtocolError: The name cannot be a file's or is a server's, or the files are there already.
        """
        return self._issue(name, days, renew, ExtendedKeyUsageOID.CLIENT_AUTH, None)

    def revoke(self, name: str) -> Path:
        """Take a certificate back, and those that it replaced; a server refuses them from its next reload on.

        Args:
            name: As it was given when it was made.

        Returns:
            The list of revoked certificates.

        Raises:
            LocalProtocolError: There is no such certificate here.
        """
        if not (self.folder / f"{_check_name(name)}.pem").exists():
            there = ", ".join(f"'{one}'" for one in self._names()) or "none"
            raise LocalProtocolError(f"'{self.folder}' has no certificate '{name}'; those of it are: {there}")
        certificates = [_read_certificate(self.folder / f"{name}.pem")]
        certificates += [_read_certificate(path) for path in self._replaced(name)]
        entries = {entry.serial_number: entry for entry in _read_list(self.revoked_path)}  # which keep their dates
        for serial in (certificate.serial_number for certificate in certificates):
            entries.setdefault(serial, _revocation(serial))
        _write(self.folder, {self.revoked_path.name: self._revoked(entries.values())})
        return self.revoked_path

    def _make(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "compoff first-try authority")])
        usage = _usage(key_cert_sign=True, crl_sign=True)
        builder = _builder(name, name, key.public_key(), _AUTHORITY_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        return key, builder.sign(key, hashes.SHA256())

    def _read(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        path = self.folder / "ca.key"
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise LocalProtocolError(f"'{path}' holds no private key without a password ({_reason(error)})") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise LocalProtocolError(f"'{path}' holds another kind of key; expected the one that `compoff certs` made")
        return key, _read_certificate(self.path)

    def _issue(
        self,
        name: str,
        days: float,
        renew: bool,
        purpose: x509.ObjectIdentifier,
        hosts: x509.SubjectAlternativeName | None,
    ) -> list[Path]:
        paths = [self.folder / f"{_check_name(name)}{suffix}" for suffix in (".pem", ".key")]
        there = [path for path in paths if path.exists()]
        if there and not renew:
            told = f"'{there[0]}' is there already"
            raise LocalProtocolError(f"{told}; choose another name, or replace it with --renew (renew=True)")
        if not (is_number(days) and abs(days) <= _AUTHORITY_DAYS):
            raise LocalProtocolError(f"days is {days!r:.80}; expected how long it is valid, up to {_AUTHORITY_DAYS}")
        old = _read_certificate(paths[0]) if paths[0].exists() else None
        if old is not None and purpose not in _purposes(old):
            kind = "device" if purpose == ExtendedKeyUsageOID.SERVER_AUTH else "server"
            raise LocalProtocolError(f"'{paths[0]}' is a {kind}'s certificate, which stays; choose another name")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self._certificate.subject, key.public_key(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(digital_signature=True), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        builder = builder.add_extension(self._key_identifier(), critical=False)
        if hosts is not None:
            builder = builder.add_extension(hosts, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        contents: dict[str, bytes] = {}
        if old is not None:  # valid until it ends, and so to be taken back with the name
            contents[f"{name}.{old.serial_number:x}{_REPLACED}"] = _pem(old)
        _write(self.folder, {**contents, paths[1].name: _key_bytes(key), paths[0].name: _pem(certificate)})
        return paths

    def _names(self) -> list[str]:
        """What the certificates that were made here are called."""
        found = (path.stem for path in self.folder.glob("*.pem") if not path.name.endswith(_REPLACED))
        return sorted(name for name in found if _NAME.fullmatch(name) and name not in {"ca", "revoked"})

    def _replaced(self, name: str) -> list[Path]:
        """The certificates of a name that were replaced."""
        form = re.compile(rf"{re.escape(name)}\.[0-9a-f]+{re.escape(_REPLACED)}")
        return sorted(path for path in self.folder.iterdir() if form.fullmatch(path.name))

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())

    def _revoked(self, entries: Iterable[x509.RevokedCertificate]) -> bytes:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._certificate.subject)
        builder = builder.last_update(now - datetime.timedelta(days=1))
        builder = builder.next_update(now + datetime.timedelta(days=_AUTHORITY_DAYS))
        builder = builder.add_extension(self._key_identifier(), critical=False)
        for entry in entries:
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _revocation(serial: int) -> x509.RevokedCertificate:
    now = datetime.datetime.now(datetime.timezone.utc)
    return x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key)
    builder = builder.serial_number(x509.random_serial_number())
    # A device's clock may be behind when it first starts.
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    return builder.not_valid_after(now + datetime.timedelta(days=days))


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", host):
        raise LocalProtocolError(f"{host!r} is neither a host name nor a number such as 192.0.2.7")
    return x509.DNSName(host)


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name in {"ca", "revoked"}:
        raise LocalProtocolError(
            f"{name!r} cannot name a certificate; expected up to 63 letters, digits, '.', '_' or '-', and not 'ca' or "
            "'revoked'"
        )
    return name


def _reason(error: Exception) -> str:
    """The system's words without its number."""
    return getattr(error, "strerror", None) or str(error)


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise LocalProtocolError(f"'{path}' holds no certificate ({_reason(error)})") from error


def _purposes(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:  # not one of ours
        return []


def _read_list(path: Path) -> x509.CertificateRevocationList:
    try:
        return x509.load_pem_x509_crl(path.read_bytes())
    except (OSError, ValueError) as error:
        raise LocalProtocolError(f"'{path}' holds no list of revoked certificates ({error})") from error


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files whole or, on a full disk, not at all; their owner alone may read a key."""
    with drafts(folder, contents) as made:
        for name, draft in made.items():
            if name.endswith(".key"):
                draft.touch(mode=0o600, exist_ok=False)
                draft.write_bytes(contents[name])
            else:
                write_draft(draft, contents[name], folder / name)
        for name, draft in made.items():
            draft.replace(folder / name)
