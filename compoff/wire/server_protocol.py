"""The edge's end of a conversation: requests out, replies in; what a stranger sends wrong ends here.

No sockets, threads or clocks. The rules are drawn in ``protocol``; the device's end is ``client_protocol``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compoff.errors import (
    ArtifactMismatch,
    AuthenticationError,
    ConnectionLost,
    FeatureError,
    LocalProtocolError,
    RemoteProtocolError,
    ServerBusy,
    WireError,
)
from compoff.wire.frames import Frame, FrameType, serialize_timed
from compoff.wire.messages import (
    MAX_HANDSHAKE_BYTES,
    PROTOCOL_VERSION,
    ErrorCode,
    Hello,
    Offer,
    Route,
    Welcome,
    check_artifact_id,
    encode_error,
)
from compoff.wire.protocol import Canceled, Closing, Conversation, Opened, Request, ServerEvent, State
from compoff.wire.replies import FULL, ReplyForm
from compoff.wire.security import check_tokens, token_matches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from compoff.wire.security import Tokens

__all__ = ["ServerProtocol", "check_limits", "only_full"]

_MAX_WINDOW = 2**16 - 1
_MAX_PAYLOAD_BYTES = 2**32 - 1
_MAX_IDLE_MS = 2**32 - 1


def check_limits(artifacts: Mapping[bytes, int], token: Tokens, window: int) -> None:
    """Refuse settings that no server can keep.

    Args:
        artifacts: For each artifact id the longest payload in bytes.
        token: The shared secret, several of which each will do, or None.
        window: Requests that may be unanswered at a time on one connection.

    Raises:
        LocalProtocolError: A setting is out of its range.
    """
    check_tokens(token)
    if not artifacts:
        message = "there is nothing to serve; give at least one tail"
        raise LocalProtocolError(message)
    for artifact_id, maximum in artifacts.items():
        check_artifact_id(artifact_id)
        if not 1 <= maximum <= _MAX_PAYLOAD_BYTES:
            message = f"a longest payload of {maximum} bytes was given; expected 1 to {_MAX_PAYLOAD_BYTES}"
            raise LocalProtocolError(message)
    if not 1 <= window <= _MAX_WINDOW:
        message = f"a window of {window} requests was given; expected 1 to {_MAX_WINDOW}"
        raise LocalProtocolError(message)


def only_full(artifact_id: bytes, reply: ReplyForm) -> None:
    """Refuse every form of a reply but the whole answer.

    Raises:
        FeatureError: Another one was asked for.
    """
    if reply != FULL:
        message = f"the tail of {artifact_id.hex()[:8]} answers in one form only; ask for reply='full'"
        raise FeatureError(message)


class ServerProtocol(Conversation):
    """The edge's end.

    Args:
        artifacts: For each artifact id served here the longest payload in bytes.
        token: The shared secret that a client must know, several of which each will do, or None to let everyone in.
        window: Requests that may be unanswered at a time; one more is refused as busy.
        idle_timeout: Seconds without any message after which the connection will be closed; told to the client.
        check_reply: Called with an artifact id and a form of reply; raises FeatureError where the two do not fit.
        expected_wait: Seconds that a request would wait now; told to a client that pings.
        admit: Called before a client whose HELLO is right is welcomed; raises ServerBusy where there is no place.

    Raises:
        LocalProtocolError: A setting is out of its range.

    Examples:
        >>> server = ServerProtocol({bytes(32): 100}, token="secret")
        >>> server.opened, server.in_flight
        (False, 0)

    Source: this project.
    """

    def __init__(
        self,
        artifacts: Mapping[bytes, int],
        *,
        token: Tokens = None,
        window: int = 16,
        idle_timeout: float = 0.0,
        check_reply: Callable[[bytes, ReplyForm], None] = only_full,
        expected_wait: Callable[[], float] = lambda: 0.0,
        admit: Callable[[], None] = lambda: None,
    ) -> None:
        """Start waiting for a HELLO."""
        self._token = check_tokens(token)
        check_limits(artifacts, self._token, window)
        super().__init__()
        self._artifacts = artifacts
        self._window = window
        self._idle_timeout = idle_timeout
        self._check_reply = check_reply
        self._expected_wait = expected_wait
        self._admit = admit
        self._offers: tuple[Offer, ...] = ()
        self._maxima: tuple[int, ...] = ()  # longest payload of each offer; 0 where none is served
        self._in_flight: set[int] = set()
        self.requests = 0  # that came, taken or refused

    @property
    def in_flight(self) -> int:
        """Requests taken and not yet answered."""
        return len(self._in_flight)

    @property
    def offers(self) -> tuple[Offer, ...]:
        """The artifacts that this client has asked for, each with the form of its replies."""
        return self._offers

    @property
    def granted(self) -> tuple[bool, ...]:
        """For each of them whether it was served here when the client asked."""
        return tuple(maximum > 0 for maximum in self._maxima)

    def awaits(self, request_id: int) -> bool:
        """Whether a request was taken and not yet answered."""
        return request_id in self._in_flight

    def send_reply(self, request_id: int, body: bytes, seconds: float = 0.0) -> None:
        """Queue the answer to a request.

        Args:
            request_id: The request.
            body: The answer.
            seconds: Time since the request arrived, for the client.

        Raises:
            LocalProtocolError: No such request is waiting, or the body is longer than a frame can be.
        """
        self._check_awaited(request_id)
        self._output.append(serialize_timed(FrameType.REPLY, body, request_id, seconds))
        self._in_flight.remove(request_id)

    def send_error(self, request_id: int, code: ErrorCode, text: str) -> None:
        """Queue a refusal instead of the answer.

        Raises:
            LocalProtocolError: No such request is waiting.
        """
        self._check_awaited(request_id)
        self._refuse(request_id, code, text)
        self._in_flight.remove(request_id)

    def send_farewell(self, code: ErrorCode, text: str) -> None:
        """Queue the reason for which the connection is closed now; nothing can be sent or received after it."""
        if self._state is not State.DEAD:
            self._send(Frame(FrameType.ERROR, encode_error(code, text)))
            self._state = State.DEAD

    def receive_data(self, data: bytes) -> list[ServerEvent]:
        """Take bytes from the client. Pings, and requests beyond the window, are answered here.

        Returns:
            What is left to do, in order.

        Raises:
            RemoteProtocolError: The client broke the protocol, or the connection damaged the bytes.
            AuthenticationError: The client does not know the token.
            ArtifactMismatch: None of the artifacts that the client asked for is served here, or one not in that form.
            ServerBusy: There is no place for the client.
        """
        try:
            self._parser.feed(data)
            events: list[ServerEvent] = []
            while (frame := self._next_frame()) is not None:
                event = self._take(frame) if self.opened else self._greet(frame)
                if event is not None:
                    events.append(event)
        except WireError as error:
            self.send_farewell(_farewell_code(error), str(error))
            raise
        return events

    def receive_eof(self) -> None:
        """The client closed its side.

        Raises:
            ConnectionLost: It did so in the middle of a message, or while requests are unanswered.
        """
        self._state = State.DEAD
        if self.buffered or self._in_flight:
            message = f"the client left with {self.in_flight} requests unanswered and {self.buffered} bytes half sent"
            raise ConnectionLost(message)

    def _max_body_bytes(self, frame_type: FrameType, route: int) -> int:
        if not self.opened:
            if frame_type is not FrameType.HELLO:
                message = f"the first message is {frame_type.name}; expected HELLO"
                raise RemoteProtocolError(message)
            return MAX_HANDSHAKE_BYTES
        if frame_type is FrameType.PING or frame_type is FrameType.CANCEL or frame_type is FrameType.GOODBYE:
            return 0
        if frame_type is not FrameType.REQUEST:
            message = f"a client may not send {frame_type.name} now"
            raise RemoteProtocolError(message)
        if route >= len(self._maxima):
            message = f"a request for route {route} of {len(self._maxima)}; routes count the artifacts offered in HELLO"
            raise RemoteProtocolError(message)
        if not self._maxima[route]:
            message = f"a request for route {route}, whose artifact is not served here, as WELCOME said"
            raise RemoteProtocolError(message)
        return self._maxima[route]

    def _greet(self, frame: Frame) -> Opened:
        hello = Hello.decode(frame.body)
        if hello.version != PROTOCOL_VERSION:
            message = (
                f"this server speaks protocol version {PROTOCOL_VERSION}, the client version {hello.version}; "
                "install the same compoff on both"
            )
            self.send_farewell(ErrorCode.VERSION, message)
            raise RemoteProtocolError(message)
        # The token comes first: who does not know it learns nothing of what is served here.
        if not token_matches(self._token, hello.token):
            message = "the token is wrong" if hello.token else "a token is needed and none was given"
            raise AuthenticationError(message)
        self._check_offers(hello.offers)
        self._admit()
        self._offers = hello.offers
        self._maxima = tuple(self._artifacts.get(offer.artifact_id, 0) for offer in hello.offers)
        routes = tuple(Route(index, maximum) for index, maximum in enumerate(self._maxima))
        idle_ms = min(round(self._idle_timeout * 1000), _MAX_IDLE_MS)
        self._send(Frame(FrameType.WELCOME, Welcome(self._window, routes, idle_ms).encode()))
        self._state = State.OPEN
        return Opened(self._window)

    def _check_offers(self, offers: tuple[Offer, ...]) -> None:
        served = [offer for offer in offers if offer.artifact_id in self._artifacts]
        if not served:
            heads = ", ".join(offer.artifact_id.hex()[:8] for offer in offers)
            message = f"no tail here belongs to the head {heads}; serve the tail of the same export"
            raise ArtifactMismatch(message)
        try:
            for offer in served:
                self._check_reply(*offer)
        except FeatureError as error:
            self.send_farewell(ErrorCode.REPLY, str(error))
            raise ArtifactMismatch(str(error)) from error

    def _take(self, frame: Frame) -> Request | Canceled | Closing | None:
        if frame.type is FrameType.GOODBYE:
            self._state = State.CLOSING
            return Closing()
        if frame.type is FrameType.CANCEL:  # of an id that is not in flight: the answer was on its way already
            return Canceled(frame.request_id) if frame.request_id in self._in_flight else None
        if frame.request_id == 0 or frame.request_id in self._in_flight:
            message = f"request id {frame.request_id} is reserved or still in flight"
            raise RemoteProtocolError(message)
        if frame.type is FrameType.PING:
            self._output.append(serialize_timed(FrameType.PONG, b"", frame.request_id, self._expected_wait()))
            return None
        self.requests += 1
        if self._state is State.CLOSING:
            self._refuse(frame.request_id, ErrorCode.CLOSING, "this connection is being closed; connect again")
            return None
        if len(self._in_flight) >= self._window:
            self._refuse(frame.request_id, ErrorCode.BUSY, f"{self._window} requests are in flight on this connection")
            return None
        self._in_flight.add(frame.request_id)
        artifact_id, reply = self._offers[frame.route]
        return Request(frame.request_id, artifact_id, frame.body, frame.deadline_ms, reply)

    def _refuse(self, request_id: int, code: ErrorCode, text: str) -> None:
        self._send(Frame(FrameType.ERROR, encode_error(code, text), request_id))

    def _check_awaited(self, request_id: int) -> None:
        if request_id not in self._in_flight or self._state is State.DEAD:
            message = f"request {request_id} awaits no answer on this connection"
            raise LocalProtocolError(message)


def _farewell_code(error: WireError) -> ErrorCode:
    if isinstance(error, AuthenticationError):
        return ErrorCode.TOKEN
    if isinstance(error, ServerBusy):
        return ErrorCode.BUSY
    return ErrorCode.ARTIFACT if isinstance(error, ArtifactMismatch) else ErrorCode.PROTOCOL
