"""The bodies of HELLO, WELCOME and ERROR frames: values to bytes and back, every field checked.

REQUEST and REPLY bodies are opaque here; PING, PONG and GOODBYE have none. When each may come is for ``protocol``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from compoff.errors import LocalProtocolError, RemoteProtocolError
from compoff.printable import printable
from compoff.wire.replies import REPLY_FORM_BYTES, ReplyForm
from compoff.wire.security import MAX_TOKEN_BYTES, check_token_form

__all__ = [
    "ARTIFACT_ID_BYTES",
    "MAX_ARTIFACTS",
    "MAX_ERROR_TEXT_BYTES",
    "MAX_HANDSHAKE_BYTES",
    "PROTOCOL_VERSION",
    "ErrorCode",
    "Hello",
    "Offer",
    "Route",
    "Welcome",
    "decode_error",
    "encode_error",
    "one_line",
]

PROTOCOL_VERSION = 2
ARTIFACT_ID_BYTES = 32
MAX_ARTIFACTS = 64  # 64 offers and the longest token still fit the 4 KiB that a stranger may send
MAX_HANDSHAKE_BYTES = 4096
MAX_ERROR_TEXT_BYTES = 1024

_MAGIC = b"COFF"
_HELLO_START = struct.Struct(">4sB")
_WELCOME_START = struct.Struct(">BHIB")
_ROUTE = struct.Struct(">BI")
_OFFER_BYTES = ARTIFACT_ID_BYTES + REPLY_FORM_BYTES


class ErrorCode(IntEnum):
    """Why something was refused; the numbers are on the wire and never change their meaning."""

    PROTOCOL = 1
    VERSION = 2
    TOKEN = 3
    ARTIFACT = 4
    PAYLOAD = 5
    TAIL = 6
    BUSY = 7
    DEADLINE = 8
    CLOSING = 9
    REPLY = 10
    CANCELED = 11


class Offer(NamedTuple):
    """One thing that a client wants to ask on a connection.

    Args:
        artifact_id: The export that it holds a head of, 32 bytes.
        reply: The form in which answers shall come.

    Source: this project.
    """

    artifact_id: bytes
    reply: ReplyForm = ReplyForm()


@dataclass(frozen=True)
class Hello:
    """What a client says first.

    Args:
        offers: The exports it holds heads of, each with a form of reply; a request names one by its index, its route.
        token: The shared secret, or None.
        version: Protocol version. The other fields are empty where it is not ours: their form may have changed.

    Examples:
        >>> Hello.decode(Hello((Offer(bytes(32)),), "secret").encode()).token
        'secret'

    Source: this project.
    """

    offers: tuple[Offer, ...]
    token: str | None = None
    version: int = PROTOCOL_VERSION

    def __repr__(self) -> str:
        """Everything but the token, which belongs in no log."""
        given = "no token" if self.token is None else "a token"
        return f"Hello(version={self.version}, {len(self.offers)} offers, {given})"

    def encode(self) -> bytes:
        """Body of the HELLO frame.

        Raises:
            LocalProtocolError: An artifact id is not 32 bytes, or there are none or too many, or the token is too long.
        """
        if not 1 <= len(self.offers) <= MAX_ARTIFACTS:
            message = f"{len(self.offers)} artifacts offered on one connection; expected 1 to {MAX_ARTIFACTS}"
            raise LocalProtocolError(message)
        for offer in self.offers:
            check_artifact_id(offer.artifact_id)
        if len(set(self.offers)) != len(self.offers):
            message = "an artifact is offered twice on one connection; offer each once for one form of reply"
            raise LocalProtocolError(message)
        check_token_form(self.token)
        token = (self.token or "").encode()
        start = _HELLO_START.pack(_MAGIC, self.version) + bytes([len(self.offers)])
        offers = b"".join(offer.artifact_id + offer.reply.encode() for offer in self.offers)
        return start + offers + len(token).to_bytes(2, "big") + token

    @classmethod
    def decode(cls, body: bytes) -> Hello:
        """HELLO from its body.

        Raises:
            RemoteProtocolError: The body has another form.
        """
        if len(body) < _HELLO_START.size or body[:4] != _MAGIC:
            message = "the first message is no HELLO of this protocol; connect with a compoff client"
            raise RemoteProtocolError(message)
        version = body[4]
        if version != PROTOCOL_VERSION:
            return cls((), None, version)
        count = body[5] if len(body) > 5 else 0
        end = 6 + count * _OFFER_BYTES
        token_bytes = int.from_bytes(body[end : end + 2], "big")
        fits = len(body) == end + 2 + token_bytes
        if not fits or not 1 <= count <= MAX_ARTIFACTS or token_bytes > MAX_TOKEN_BYTES:
            message = f"HELLO of {len(body)} bytes with {count} artifacts does not add up"
            raise RemoteProtocolError(message)
        offers = tuple(_decode_offer(body[at : at + _OFFER_BYTES]) for at in range(6, end, _OFFER_BYTES))
        if len(set(offers)) != count:
            message = "HELLO offers an artifact twice"
            raise RemoteProtocolError(message)
        return cls(offers, _decode_token(body[end + 2 :]), version)


def _decode_offer(data: bytes) -> Offer:
    return Offer(data[:ARTIFACT_ID_BYTES], ReplyForm.decode(data[ARTIFACT_ID_BYTES:]))


def check_artifact_id(artifact_id: bytes) -> None:
    """Refuse what is not an artifact id.

    Raises:
        LocalProtocolError: It is not 32 bytes.
    """
    if len(artifact_id) != ARTIFACT_ID_BYTES:
        message = f"an artifact id of {len(artifact_id)} bytes; expected {ARTIFACT_ID_BYTES} (a SHA-256)"
        raise LocalProtocolError(message)


def _decode_token(data: bytes) -> str | None:
    try:
        return data.decode() or None
    except UnicodeDecodeError:
        message = "the token in HELLO is not UTF-8"
        raise RemoteProtocolError(message) from None


@dataclass(frozen=True)
class Route:
    """Where requests for one artifact go, and how long they may be, in bytes."""

    number: int
    max_payload_bytes: int


@dataclass(frozen=True)
class Welcome:
    """What a server says to a HELLO it accepts.

    Args:
        window: Requests that may be unanswered at a time on this connection.
        routes: One for each offer, in that order; its longest payload is 0 where the server does not hold the artifact.
        idle_ms: Milliseconds without any message after which the server closes the connection; 0 for never.
        version: Protocol version.

    Examples:
        >>> Welcome(16, (Route(0, 4000),), 300_000).encode().hex()
        '020010000493e0010000000fa0'

    Source: this project.
    """

    window: int
    routes: tuple[Route, ...]
    idle_ms: int = 0
    version: int = PROTOCOL_VERSION

    def encode(self) -> bytes:
        """Body of the WELCOME frame."""
        start = _WELCOME_START.pack(self.version, self.window, self.idle_ms, len(self.routes))
        return start + b"".join(_ROUTE.pack(route.number, route.max_payload_bytes) for route in self.routes)

    @classmethod
    def decode(cls, body: bytes, num_artifacts: int) -> Welcome:
        """WELCOME from its body, for a HELLO that offered ``num_artifacts``.

        Raises:
            RemoteProtocolError: The body has another form, another version or other routes than were asked for.
        """
        if body and body[0] != PROTOCOL_VERSION:
            message = (
                f"the server speaks protocol version {body[0]}, this client version {PROTOCOL_VERSION}; "
                "install the same compoff on both"
            )
            raise RemoteProtocolError(message)
        if len(body) != _WELCOME_START.size + num_artifacts * _ROUTE.size:
            message = f"WELCOME of {len(body)} bytes does not answer a HELLO with {num_artifacts} artifacts"
            raise RemoteProtocolError(message)
        version, window, idle_ms, count = _WELCOME_START.unpack_from(body)
        routes = tuple(Route(*fields) for fields in _ROUTE.iter_unpack(body[_WELCOME_START.size :]))
        in_order = all(route.number == index for index, route in enumerate(routes))
        if count != num_artifacts or not in_order or window < 1:
            message = f"WELCOME with window {window} and {count} routes does not fit {num_artifacts} artifacts"
            raise RemoteProtocolError(message)
        return cls(window, routes, idle_ms, version)


def one_line(text: str) -> str:
    r"""Text that is safe to log and to show: its first line, printable characters only.

    Examples:
        >>> one_line("no room\x07 left\nsecond line")
        'no room? left'

    Source: this project.
    """
    lines = text.strip().splitlines()
    return printable(lines[0] if lines else "")


def encode_error(code: ErrorCode, text: str) -> bytes:
    r"""Body of an ERROR frame; a longer text is cut to 1 KiB of UTF-8.

    Examples:
        >>> encode_error(ErrorCode.BUSY, "no room")
        b'\x07no room'

    Source: this project.
    """
    encoded = one_line(text).encode("utf-8", "replace")[:MAX_ERROR_TEXT_BYTES]
    return bytes([code]) + encoded.decode("utf-8", "ignore").encode()


def decode_error(body: bytes) -> tuple[ErrorCode, str]:
    """Code and text of an ERROR frame.

    Raises:
        RemoteProtocolError: The code is unknown or the text too long.
    """
    if not 1 <= len(body) <= 1 + MAX_ERROR_TEXT_BYTES:
        message = f"an ERROR of {len(body)} bytes; expected 1 to {1 + MAX_ERROR_TEXT_BYTES}"
        raise RemoteProtocolError(message)
    try:
        code = ErrorCode(body[0])
    except ValueError:
        message = f"an ERROR with the unknown code {body[0]}"
        raise RemoteProtocolError(message) from None
    return code, one_line(body[1:].decode("utf-8", "replace"))
