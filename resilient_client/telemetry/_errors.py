"""`error.type`: a small closed list for our errors, bounded for everybody else's."""

from __future__ import annotations

import re

from resilient_client.errors import (
    NoHandlerError,
    Outcome,
    RemoteError,
    ResilientClientError,
    shown,
    text_of,
)
from resilient_client.telemetry._semconv import OTHER

MAX_ERROR_TYPES = 32

_NAMES = {  # by class name, because some classes load libraries
    "CircuitOpenError": "circuit_open",
    "ConfigurationError": "configuration_error",
    "ConnectError": "connection_error",
    "ConnectionLost": "connection_lost",
    "DeadlineExceeded": "deadline_exceeded",
    "Overloaded": "overloaded",
    "PayloadError": "serialization_error",
    "ProtocolError": "protocol_error",
    "RejectedError": "rejected",
    "ReplyTimeout": "timeout",
    "TransportError": "transport_error",
}
_code = re.compile(r"[A-Z][A-Z0-9_]{0,63}").fullmatch

_TEXTS_OF_OURS = frozenset(
    {
        "ConnectError",
        "ConnectTimeout",
        "ConnectionLost",
        "DeadlineExceeded",
        "Overloaded",
        "ReplyTimeout",
    }
)
_OUTCOMES = {
    "timeout": "timeout",
    "deadline_exceeded": "timeout",
    "connection_lost": "lost",
}


def status_code(error: BaseException) -> str | None:
    """What the peer called its error, when that is fit for a label: a code, else a status."""
    if not isinstance(error, RemoteError):
        return None
    code = error.code
    if isinstance(code, str) and _code(code):
        return code
    status = error.status
    return str(status) if status is not None and 0 <= status <= 999 else None


def error_type(error: BaseException) -> str:
    """The name of this kind of error; of a foreign one, its class."""
    if isinstance(error, NoHandlerError):
        return "no_responders" if error.outcome is Outcome.NEVER_SENT else "no_handler"
    if isinstance(error, RemoteError):
        return status_code(error) or "remote_error"
    for cls in type(error).__mro__:
        name = _NAMES.get(cls.__name__)
        if name is not None and issubclass(cls, ResilientClientError):
            return name
    cls = type(error)
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


def description(error: BaseException) -> str | None:
    """A text for the span's status: our own words only, never a peer's or a payload's."""
    if isinstance(error, ResilientClientError) and type(error).__name__ in _TEXTS_OF_OURS:
        return shown(text_of(error)) or None
    return None


def attempt_outcome(kind: str | None) -> str:
    """What an attempt came to, for its span."""
    return "ok" if kind is None else _OUTCOMES.get(kind, "error")


class ErrorTypes:
    """`error.type` of one client or server: what comes after the first 32 kinds is `_OTHER`."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: set[str] = set()

    def of(self, error: BaseException) -> str:
        """See `error_type`."""
        return self.bounded(error_type(error))

    def bounded(self, name: str) -> str:
        """The name itself as long as there is room for it."""
        if name not in self._known:
            if len(self._known) >= MAX_ERROR_TYPES:
                return OTHER
            self._known.add(name)
        return name
