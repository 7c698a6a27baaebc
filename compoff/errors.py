"""The exceptions of compoff: one tree, so that ``except CompoffError`` catches them all.

Each class is also the built-in exception it specialises, so ``except ValueError`` works as people expect::

    CompoffError
    ├── SplitError(ValueError)           a split point that cannot be used, and what to use instead
    ├── FeatureError(ValueError)         a tensor the codec or the model was not made for
    ├── FitError(RuntimeError)           training could not go on (NaN, no batches, a foreign checkpoint)
    ├── PayloadError(ValueError)         bytes that are damaged, truncated or another export's
    ├── ArtifactError(ValueError)        a folder that is damaged, foreign or of another format
    ├── ConfigError(ValueError)          a configuration file with a setting that is unknown or out of its range
    ├── BackendError(RuntimeError)       a runtime that is missing or cannot run the program
    ├── PickleError(TypeError)           an object that belongs to its process
    └── WireError(ConnectionError)
        ├── LocalProtocolError           this side broke the protocol
        ├── RemoteProtocolError          the other side did
        ├── AuthenticationError          one side refused the other: token or certificate
        ├── ArtifactMismatch             head and tail come from different exports
        ├── RemoteError                  the tail raised; its words are in the message
        ├── ServerBusy                   the server has no room for the request now
        ├── ConnectionLost               the link broke under a request
        └── Timeout(TimeoutError)
            ├── ConnectTimeout           no connection within its deadline
            └── ReadTimeout              no answer within the request's deadline

Nothing here knows where an error is raised; every message says what was given, what was expected and what to do.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "ArtifactMismatch",
    "AuthenticationError",
    "BackendError",
    "CompoffError",
    "ConfigError",
    "ConnectTimeout",
    "ConnectionLost",
    "FeatureError",
    "FitError",
    "LocalProtocolError",
    "PayloadError",
    "PickleError",
    "ReadTimeout",
    "RemoteError",
    "RemoteProtocolError",
    "ServerBusy",
    "SplitError",
    "Timeout",
    "WireError",
]


class CompoffError(Exception):
    """The root of every error that compoff raises on purpose."""


class SplitError(CompoffError, ValueError):
    """The model cannot be split where it was asked to be."""


class FeatureError(CompoffError, ValueError):
    """A tensor has a shape, dtype or layout that the codec or the model was not made for."""


class FitError(CompoffError, RuntimeError):
    """Fitting could not go on; the bottlenecks hold the last good state."""


class PayloadError(CompoffError, ValueError):
    """Payload bytes are damaged, truncated, or were made by the head of another export."""


class ArtifactError(CompoffError, ValueError):
    """A saved head or tail is damaged, incomplete, foreign, or of an unknown format."""


class ConfigError(CompoffError, ValueError):
    """A configuration file holds a setting that is unknown or out of its range; the message names the line."""


class BackendError(CompoffError, RuntimeError):
    """A runtime is not installed or cannot run this program."""


class PickleError(CompoffError, TypeError):
    """An object belongs to its process and cannot be pickled; the message says what to do in the other one."""


class WireError(CompoffError, ConnectionError):
    """Something failed between the device and the edge."""


class LocalProtocolError(WireError):
    """This side tried something that the protocol does not allow."""


class RemoteProtocolError(WireError):
    """The other side sent something that the protocol does not allow."""


class AuthenticationError(WireError):
    """The server refused the token or the device's certificate, or its own certificate is not trusted."""


class ArtifactMismatch(WireError):
    """The head and the tail come from different exports."""


class RemoteError(WireError):
    """The tail raised while it answered; the message holds the server's words."""


class ServerBusy(WireError):
    """The server has no room for this request now."""


class ConnectionLost(WireError):
    """The connection broke before the answer came."""


class Timeout(WireError, TimeoutError):
    """Something took longer than its deadline."""


class ConnectTimeout(Timeout):
    """No connection could be opened within the deadline."""


class ReadTimeout(Timeout):
    """No answer came within the request's deadline."""
