"""The rules of a conversation that both ends share: states, events, and bytes on their way in and out.

The ends are ``client_protocol`` and ``server_protocol``. No sockets, threads or clocks: ``client`` and
``compoff.edge.server`` move the bytes and keep the time::

    client   HELLO ──────────────────────► server        then, in any order and many at a time:
             ◄────────── WELCOME or ERROR                REQUEST ► ◄ REPLY or ERROR    PING ► ◄ PONG
                                                         CANCEL ►  the answer still comes, but need not be made
    either   GOODBYE: no new requests; the answers in flight still come

An end that raised is dead: what it still has to send says why, and then the connection is closed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from compoff.errors import LocalProtocolError, RemoteProtocolError
from compoff.wire.frames import Frame, FrameParser, FrameType, serialize
from compoff.wire.replies import FULL, ReplyForm

if TYPE_CHECKING:
    from compoff.errors import CompoffError

__all__ = [
    "Answer",
    "Canceled",
    "ClientEvent",
    "Closing",
    "Conversation",
    "Opened",
    "Refusal",
    "Request",
    "ServerEvent",
    "State",
]


class State(Enum):
    """How far a conversation is."""

    GREETING = "waiting for the handshake"
    OPEN = "open"
    CLOSING = "closing"
    DEAD = "closed"


class Opened(NamedTuple):
    """The handshake is done; at most ``window`` requests may be unanswered at a time."""

    window: int


class Answer(NamedTuple):
    """A REPLY came, or the PONG to a ping (with an empty body).

    ``server_seconds`` is what the server says of its part: the time from the request's arrival to the answer, or for
    a ping the time that a request would now wait in its queue.
    """

    request_id: int
    body: bytes
    server_seconds: float = 0.0


class Refusal(NamedTuple):
    """An ERROR came instead of a reply."""

    request_id: int
    error: CompoffError


class Request(NamedTuple):
    """A REQUEST came; ``deadline_ms`` 0 means that none was given."""

    request_id: int
    artifact_id: bytes
    body: bytes
    deadline_ms: int
    reply: ReplyForm = FULL


class Canceled(NamedTuple):
    """Nobody waits any longer for the answer to a request in flight; one is still to be sent."""

    request_id: int


class Closing(NamedTuple):
    """The peer said GOODBYE."""


ClientEvent: TypeAlias = "Opened | Answer | Refusal | Closing"
ServerEvent: TypeAlias = "Opened | Request | Canceled | Closing"


class Conversation(ABC):
    """One end: a parser, an output and a state."""

    def __init__(self) -> None:
        """Start before the handshake."""
        self._parser = FrameParser(self._check_header)
        self._output: list[bytes] = []
        self._state = State.GREETING
        self.received = 0  # messages, whatever they were

    @property
    def buffered(self) -> int:
        """Bytes held of a message that is not complete yet."""
        return self._parser.buffered

    @property
    def opened(self) -> bool:
        """Whether the handshake is done."""
        return self._state is not State.GREETING

    @property
    def closing(self) -> bool:
        """Whether no further request can be sent or taken on this connection."""
        return self._state is State.CLOSING or self._state is State.DEAD

    def data_to_send(self) -> bytes:
        """Bytes to write now, in one write; empty for none."""
        output, self._output = self._output, []
        return output[0] if len(output) == 1 else b"".join(output)

    def send_goodbye(self) -> None:
        """Queue a farewell, after which there are no new requests. Does nothing before WELCOME or the second time."""
        if self._state is State.OPEN:
            self._send(Frame(FrameType.GOODBYE))
            self._state = State.CLOSING

    def discard(self) -> None:
        """Let go of a message half received, at the end of the connection.

        This end is part of a reference cycle; until the garbage collector comes by, what it holds stays in memory.
        """
        self._parser.discard()

    def _send(self, frame: Frame) -> None:
        self._output.append(serialize(frame))

    def _next_frame(self) -> Frame | None:
        if self._state is State.DEAD:
            message = "bytes were received on a connection that is closed; open a new one"
            raise LocalProtocolError(message)
        frame = self._parser.next_frame()
        self.received += frame is not None
        return frame

    def _check_header(self, frame_type: FrameType, route: int, length: int) -> None:
        maximum = self._max_body_bytes(frame_type, route)
        if length > maximum:
            message = f"a {frame_type.name} of {length} bytes was announced; at most {maximum} are allowed here"
            raise RemoteProtocolError(message)

    @abstractmethod
    def _max_body_bytes(self, frame_type: FrameType, route: int) -> int:
        """Longest body of such a frame in this state; raises where there may be none."""
