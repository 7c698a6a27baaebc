"""The device's end of a conversation: requests in, answers and refusals out.

No sockets, threads or clocks. The rules are drawn in ``protocol``; the server's end is ``server_protocol``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compoff.errors import (
    ArtifactMismatch,
    AuthenticationError,
    CompoffError,
    ConnectionLost,
    FeatureError,
    LocalProtocolError,
    PayloadError,
    ReadTimeout,
    RemoteError,
    RemoteProtocolError,
    ServerBusy,
    WireError,
)
from compoff.wire.frames import MAX_DEADLINE_MS, MAX_REQUEST_ID, Frame, FrameType
from compoff.wire.messages import (
    MAX_ERROR_TEXT_BYTES,
    MAX_HANDSHAKE_BYTES,
    ErrorCode,
    Hello,
    Offer,
    Route,
    Welcome,
    decode_error,
)
from compoff.wire.protocol import Answer, ClientEvent, Closing, Conversation, Opened, Refusal, State

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["HUNG_UP", "MAX_REPLY_BYTES", "ClientProtocol", "unserved_words"]

MAX_REPLY_BYTES = 64 * 2**20
HUNG_UP = (  # what a peer did that may be a proxy, a server that is just ending, or none of ours
    "hung up before it answered HELLO; is a compoff server there, do both sides speak TLS or neither, and does it take "
    "this device's certificate?"
)


class ClientProtocol(Conversation):
    """The device's end.

    Args:
        offers: Exports to use on this connection, each with the form of its replies (an id alone: whole); a request
            names one by its index, its route.
        token: The server's shared secret, or None.
        max_reply_bytes: Longest reply taken, in bytes.

    Raises:
        LocalProtocolError: Artifact ids or token have a form that cannot be sent.

    Examples:
        >>> from compoff.wire.server_protocol import ServerProtocol
        >>> client = ClientProtocol([bytes(32)])
        >>> server = ServerProtocol({bytes(32): 100})
        >>> server.receive_data(client.data_to_send()), client.receive_data(server.data_to_send())
        ([Opened(window=16)], [Opened(window=16)])
        >>> client.send_request(b"payload", deadline_ms=50)
        1
        >>> server.receive_data(client.data_to_send())[0].body
        b'payload'

    Source: this project.
    """

    def __init__(
        self, offers: Sequence[bytes | Offer], *, token: str | None = None, max_reply_bytes: int = MAX_REPLY_BYTES
    ) -> None:
        """Start with a HELLO to send."""
        super().__init__()
        self._max_reply_bytes = max_reply_bytes
        self._expected: dict[int, FrameType] = {}  # what would answer each unanswered id
        self._abandoned: set[int] = set()  # ids among them of requests whose answer nobody waits for
        self._missed: set[int] = set()  # ids among them of such pings
        self._pings = 0  # how many of them are pings, which take no place in the window
        self._last_id = 0
        self.window = 0
        self.idle_timeout = 0.0  # seconds without any message after which the server closes; 0 for never
        self.queue_seconds = 0.0  # what the last PONG said that a request would wait
        self.routes: tuple[Route, ...] = ()
        self.unserved: tuple[bytes, ...] = ()  # ids of what was offered and is not there, while other artifacts are
        self._offers = tuple(offer if isinstance(offer, Offer) else Offer(offer) for offer in offers)
        hello = Hello(self._offers, token)
        self._send(Frame(FrameType.HELLO, hello.encode()))

    @property
    def stuck(self) -> bool:
        """Whether requests past their deadline hold the whole window: nobody waits here, and nothing can be sent."""
        return 0 < self.window <= len(self._abandoned)

    def send_request(self, body: bytes, *, route: int = 0, deadline_ms: int = 0) -> int:
        """Queue a request.

        Args:
            body: Payload bytes.
            route: Index into the offers of the constructor.
            deadline_ms: Milliseconds until nobody waits for the answer any more; 0 for none given.

        Returns:
            The request's id.

        Raises:
            LocalProtocolError: Not opened, unknown route, or a body longer than the artifact's maximum.
            ArtifactMismatch: The server does not hold the artifact of this route.
            ServerBusy: As many requests are unanswered as the server's window allows.
            ConnectionLost: The server has said goodbye, as when it stops.
        """
        self._check_can_send()
        self._check_window()
        if not 0 <= route < len(self.routes):
            message = f"route {route} was given; this connection has routes 0 to {len(self.routes) - 1}"
            raise LocalProtocolError(message)
        maximum = self.routes[route].max_payload_bytes
        if not maximum:
            raise ArtifactMismatch(unserved_words(self._offers[route].artifact_id))
        if len(body) > maximum:
            message = f"a request of {len(body)} bytes was given; the artifact on route {route} takes at most {maximum}"
            raise LocalProtocolError(message)
        if not 0 <= deadline_ms <= MAX_DEADLINE_MS:
            message = f"a deadline of {deadline_ms} ms was given; expected 0 (none) to {MAX_DEADLINE_MS}"
            raise LocalProtocolError(message)
        request_id = self._next_id()
        self._send(Frame(FrameType.REQUEST, body, request_id, route, deadline_ms))
        self._expected[request_id] = FrameType.REPLY
        return request_id

    def send_ping(self) -> int:
        """Queue a ping; its answer comes like a reply, with an empty body.

        Returns:
            The ping's id.

        Raises:
            LocalProtocolError: Not opened.
            ConnectionLost: The server has said goodbye, as when it stops.
        """
        self._check_can_send()
        request_id = self._next_id()
        self._send(Frame(FrameType.PING, request_id=request_id))
        self._pings += 1
        self._expected[request_id] = FrameType.PONG
        return request_id

    def abandon(self, request_id: int) -> None:
        """Wait no longer for an answer: a late one is dropped, and keeps its id and place in the window till then."""
        expected = self._expected.get(request_id)
        if expected is not None:
            (self._missed if expected is FrameType.PONG else self._abandoned).add(request_id)

    def send_cancel(self, request_id: int) -> None:
        """Queue word to the server that nobody waits for an answer, and ``abandon`` it."""
        if self._expected.get(request_id) is FrameType.REPLY and self._state is not State.DEAD:
            self._send(Frame(FrameType.CANCEL, request_id=request_id))
        self.abandon(request_id)

    def withdraw(self, request_id: int) -> None:
        """Forget a request whose bytes were never written to the connection."""
        self._pings -= self._expected.pop(request_id, None) is FrameType.PONG

    def receive_data(self, data: bytes) -> list[ClientEvent]:
        """Take bytes from the server.

        Returns:
            What they say, in order.

        Raises:
            RemoteProtocolError: The server broke the protocol, or the connection damaged the bytes.
            AuthenticationError: The server refused the token.
            ArtifactMismatch: The server holds none of the artifacts.
            LocalProtocolError: The server cannot reply in the form that was asked for.
            ServerBusy: The server has no room for this connection.
            ConnectionLost: The server closed the connection and said why.
        """
        try:
            self._parser.feed(data)
            events: list[ClientEvent] = []
            while (frame := self._next_frame()) is not None:
                event = self._welcome(frame) if self._state is State.GREETING else self._take(frame)
                if event is not None:
                    events.append(event)
        except WireError:
            self._state = State.DEAD
            raise
        return events

    def receive_eof(self) -> None:
        """The server closed its side.

        Raises:
            ConnectionLost: It did so.
        """
        state, self._state = self._state, State.DEAD
        if state is State.GREETING:
            raise ConnectionLost(f"the server {HUNG_UP}")
        middle = " in the middle of a message" if self.buffered else ""
        message = f"the server closed the connection{middle}; ask again"
        raise ConnectionLost(message)

    def _max_body_bytes(self, frame_type: FrameType, route: int) -> int:
        if self._state is State.GREETING:
            if frame_type not in {FrameType.WELCOME, FrameType.ERROR}:
                message = f"the server answered HELLO with {frame_type.name}; expected WELCOME"
                raise RemoteProtocolError(message)
            return MAX_HANDSHAKE_BYTES
        if frame_type is FrameType.REPLY:
            return self._max_reply_bytes
        if frame_type is FrameType.ERROR:
            return 1 + MAX_ERROR_TEXT_BYTES
        if frame_type is FrameType.PONG or frame_type is FrameType.GOODBYE:
            return 0
        message = f"the server sent {frame_type.name}, which it may not send now"
        raise RemoteProtocolError(message)

    def _welcome(self, frame: Frame) -> Opened:
        if frame.type is FrameType.ERROR:
            raise _handshake_error(*decode_error(frame.body))
        welcome = Welcome.decode(frame.body, len(self._offers))
        self.idle_timeout = welcome.idle_ms / 1000
        self.window, self.routes = welcome.window, welcome.routes
        offered = zip(self._offers, self.routes, strict=True)
        self.unserved = tuple(offer.artifact_id for offer, route in offered if not route.max_payload_bytes)
        self._state = State.OPEN
        return Opened(welcome.window)

    def _take(self, frame: Frame) -> Answer | Refusal | Closing | None:
        if frame.type is FrameType.GOODBYE:
            self._state = State.CLOSING
            return Closing()
        if frame.type is FrameType.ERROR and frame.request_id == 0:
            code, text = decode_error(frame.body)
            message = f"the server closed the connection ({code.name.lower()}): {text}; ask again"
            raise ConnectionLost(message)
        expected = self._expected.pop(frame.request_id, None)
        if expected is FrameType.PONG:
            self._pings -= 1
        if frame.type is not expected and (expected is None or frame.type is not FrameType.ERROR):
            message = f"the server sent {frame.type.name} for request {frame.request_id}, which does not await one"
            raise RemoteProtocolError(message)
        error = _request_error(*decode_error(frame.body)) if frame.type is FrameType.ERROR else None
        given_up = self._missed if expected is FrameType.PONG else self._abandoned
        if frame.request_id in given_up:
            given_up.remove(frame.request_id)
            return None
        if error is not None:
            return Refusal(frame.request_id, error)
        if frame.type is FrameType.PONG:
            self.queue_seconds = frame.seconds
        return Answer(frame.request_id, frame.body, frame.seconds)

    def _check_can_send(self) -> None:
        if self._state is State.GREETING:
            message = "a request was made before the server answered HELLO; wait for it"
            raise LocalProtocolError(message)
        if self._state is not State.OPEN:
            message = "the connection is closed, or the server has said goodbye; open a new connection"
            raise ConnectionLost(message)

    def _check_window(self) -> None:
        unanswered = len(self._expected) - self._pings
        if unanswered >= self.window:
            message = (
                f"{unanswered} requests are unanswered, {len(self._abandoned)} of them past their deadline; "
                f"the server takes {self.window} at a time; wait for answers or open another connection"
            )
            raise ServerBusy(message)

    def _next_id(self) -> int:
        while True:
            self._last_id = self._last_id % MAX_REQUEST_ID + 1  # 1 .. 2**32 - 1: 0 is the connection
            if self._last_id not in self._expected:
                return self._last_id


def unserved_words(*artifact_ids: bytes) -> str:
    """What to say where a server lacks the tails of artifacts.

    Args:
        *artifact_ids: Their ids.

    Returns:
        A line.
    """
    heads = ", ".join(artifact_id.hex()[:8] for artifact_id in artifact_ids)
    return f"the server holds no tail for the head {heads}; serve the tail of the same export"


def _handshake_error(code: ErrorCode, text: str) -> WireError:
    errors: dict[ErrorCode, type[WireError]] = {
        ErrorCode.TOKEN: AuthenticationError,
        ErrorCode.ARTIFACT: ArtifactMismatch,
        ErrorCode.BUSY: ServerBusy,
        ErrorCode.CLOSING: ConnectionLost,
        ErrorCode.REPLY: LocalProtocolError,
    }
    return errors.get(code, RemoteProtocolError)(f"the server refused the connection: {text}")


def _request_error(code: ErrorCode, text: str) -> CompoffError:
    errors: dict[ErrorCode, type[CompoffError]] = {
        ErrorCode.PAYLOAD: PayloadError,
        ErrorCode.TAIL: RemoteError,
        ErrorCode.BUSY: ServerBusy,
        ErrorCode.DEADLINE: ReadTimeout,
        ErrorCode.CLOSING: ConnectionLost,
        ErrorCode.REPLY: FeatureError,
    }
    return errors.get(code, RemoteProtocolError)(f"the server refused the request: {text}")
