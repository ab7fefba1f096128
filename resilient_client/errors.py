"""Every error of the package, except `CircuitOpenError`, which lives beside the breaker.

ResilientClientError              .sent .retryable .pattern .endpoint .attempts .hint
├─ TransportError                 the network's or the peer's fault
│  ├─ ConnectError                also ConnectionError; nothing was sent
│  ├─ ConnectionLost              also ConnectionError; sent, outcome unknown
│  ├─ ReplyTimeout                also TimeoutError; an attempt's time is up; sent, outcome unknown
│  └─ ProtocolError               the peer does not speak this protocol
├─ DeadlineExceeded               also TimeoutError; the whole call's time ran out
├─ RejectedError                  refused on this side
│  ├─ CircuitOpenError            (policies/circuit_breaker.py) also pybreaker.CircuitBreakerError
│  └─ Overloaded                  pending cap, bulkhead, limiter
├─ RemoteError                    the peer answered with an error: .code .status .message .payload
│  ├─ NoHandlerError              nobody handles this pattern
│  ├─ InvalidPayloadError         the peer's validation refused the payload
│  └─ Throttled                   the peer asks to slow down: .retry_after
├─ PayloadError                   also ValueError; cannot be encoded or decoded, or is too large
└─ ConfigurationError             also ValueError
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from resilient_client.message import Call

PEER_FAILED = "the peer failed, by a fault of its own: its log says why"
"""The hint of an error that nobody meant for the caller."""
INTERNAL_SERVER_ERROR = "Internal server error"
NO_HANDLER_MESSAGE = "There is no matching message handler defined in the remote service."
DEADLINE_EXCEEDED_CODE = "DEADLINE_EXCEEDED"
SERVER_OVERLOADED = "The server is overloaded"
_FAILURE_STATUSES = frozenset({408, 500, 502, 503, 504})


class Outcome(Enum):
    """What an attempt came to: all that breaker, retry, budget and metrics look at."""

    SUCCESS = "success"
    FAILURE = "failure"
    THROTTLED = "throttled"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    NEVER_SENT = "never_sent"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a call that failed.

    `started` and `ended` are seconds since the call began; `error` is the name of the error's
    class and `cause` its text, credentials redacted.
    """

    number: int
    endpoint: str | None
    started: float
    ended: float
    sent: bool
    outcome: Outcome
    error: str
    cause: str


_USERINFO = re.compile(r"(?<=://)[^/\s]*@")
_MAX_SHOWN = 2000
FOR_EVER = 10**9
"""Seconds that a caller is told to wait where it is longer: no infinity can be written."""
_unprintable = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]").sub


def redact(text: str) -> str:
    """The text without the user and password of any URL in it."""
    return _USERINFO.sub("***@", text)


def shown(text: str) -> str:
    """A text as it may stand in a log or on a terminal: one line, bounded, redacted.

    A peer may have written it: what it holds must not make up lines of a log, or steer a terminal.
    """
    text = redact(text)
    if len(text) > _MAX_SHOWN:
        text = text[:_MAX_SHOWN] + "..."
    return text if text.isprintable() else _unprintable(lambda found: repr(found[0])[1:-1], text)


class ForeignCause(Exception):
    """Stands for another library's exception after pickling: its type's name and redacted text."""


class ResilientClientError(Exception):
    """The base of every error this package raises.

    Attributes:
        sent: whether any attempt of the call may have been executed by the peer.
        hint: what a person can do about it.
    """

    outcome: Outcome = Outcome.FAILURE
    sent: bool = False
    hint: str = ""
    _call: Call | None = None  # the journey this error ended; texts are built from it when read
    _endpoint: str | None = None
    _pattern: str | None = None
    _started: float = 0.0  # of the attempt that failed, on the call's clock
    _ended: float = 0.0
    _frozen_attempts: tuple[Attempt, ...] | None = None  # after pickling
    _idempotent: bool = False

    def __init__(
        self, message: str = "", *, sent: bool | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        if sent is not None:
            self.sent = sent
        if hint is not None:
            self.hint = hint

    @property
    def retryable(self) -> bool:  # overridden where the class alone decides
        """Whether repeating the call is safe: it never ran, or it is declared idempotent."""
        if self.outcome is Outcome.SUCCESS:
            return False
        if not self.sent or self.outcome is Outcome.THROTTLED:
            return True
        return self._call.idempotent if self._call is not None else self._idempotent

    @property
    def pattern(self) -> str | None:
        """The route of the call, None when the error belongs to no call."""
        return self._call.route if self._call is not None else self._pattern

    @property
    def endpoint(self) -> str | None:
        """The URL of the last peer tried, credentials redacted."""
        if self._endpoint is None and self._call is not None:
            return self._call.endpoint
        return self._endpoint

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """One entry per attempt of the call, the last of them this error's own."""
        if self._frozen_attempts is not None:
            return self._frozen_attempts
        call = self._call
        if call is None:
            return ()
        entries = [_attempt(call, *failure) for failure in call.failures]
        if call.attempt:
            entries.append(
                _attempt(call, call.attempt, self.endpoint, self._started, self._ended, self)
            )
        return tuple(entries)

    def _text(self) -> str:
        return str(self.args[0]) if self.args else ""

    def _own_sent(self) -> bool:
        call = self._call
        return self.sent and not (call is not None and isinstance(self, RejectedError))

    def __str__(self) -> str:
        parts = [shown(self._text()) or type(self).__name__]
        about = []
        if self.pattern is not None:
            about.append(f"pattern {self.pattern!r}")
        if self.endpoint is not None:
            about.append(f"at {self.endpoint}")
        attempts = self.attempts
        if about:
            about.append("sent" if self.sent else "not sent")
        if len(attempts) > 1:
            about.append(f"{len(attempts)} attempts in {attempts[-1].ended:.3f} s")
        if about:
            parts.append(f"({', '.join(about)})")
        if self.hint:
            parts.append(f"- {shown(self.hint)}")
        return " ".join(parts)

    def __repr__(self) -> str:
        return shown(super().__repr__())

    def _state(self) -> dict[str, Any]:
        """What pickling and copying keep, besides `args`."""
        state = {
            key: list(value) if key == "__notes__" else value
            for key, value in self.__dict__.items()
            if key not in {"_call", "_started", "_ended"}
        }
        state.update(
            sent=self.sent,
            _pattern=self.pattern,
            _endpoint=self.endpoint,
            _idempotent=self._call.idempotent if self._call is not None else self._idempotent,
        )
        if self._call is not None:
            state["_frozen_attempts"] = self.attempts
        return state

    def __copy__(self) -> ResilientClientError:
        return _rebuild(type(self), self.args, self._state(), self.__cause__)

    def __reduce__(self) -> tuple[Any, ...]:
        cause = self.__cause__
        if cause is not None and not isinstance(cause, ResilientClientError):
            cause = ForeignCause(f"{_name(cause)}: {shown(text_of(cause))}")
        return _rebuild, (type(self), self.args, self._state(), cause)


def _rebuild(
    cls: type[ResilientClientError],
    args: tuple[Any, ...],
    state: dict[str, Any],
    cause: BaseException | None,
) -> ResilientClientError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    if cause is not None:
        error.__cause__ = cause
    return error


def _name(error: BaseException) -> str:
    cls = type(error)
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"


def text_of(error: BaseException) -> str:
    """An error's own text, without what one of ours tells of its call."""
    try:
        return error._text() if isinstance(error, ResilientClientError) else str(error)
    except Exception as broken:  # noqa: BLE001 - another library's text is no reason to fail
        return f"(no text: {type(broken).__name__})"


def conclude(error: ResilientClientError, call: Call, now: float) -> bool:
    """The call has ended with this error: what it needs to tell the whole story when it is read.

    False when it has ended another already.
    """
    if error._call is not None:
        return False
    error._call = call
    error._endpoint = call.endpoint
    error._started = call.attempt_started
    error._ended = now
    if call.sent and not error.sent:
        error.sent = True
    return True


def _attempt(
    call: Call,
    number: int,
    endpoint: str | None,
    started: float,
    ended: float,
    error: BaseException,
) -> Attempt:
    return Attempt(
        number=number,
        endpoint=endpoint,
        started=max(0.0, started - call.started),
        ended=max(0.0, ended - call.started),
        sent=error._own_sent() if isinstance(error, ResilientClientError) else True,
        outcome=outcome_of(error),
        error=type(error).__name__,
        cause=shown(text_of(error)),
    )


class TransportError(ResilientClientError):
    """The network's or the peer's fault: no answer that can be used."""


class ConnectError(TransportError, ConnectionError):
    """No connection could be made; nothing was sent."""

    outcome = Outcome.NEVER_SENT
    hint = "check that the service is running and that the address is right"


def client_closed() -> ConnectError:
    """What a call of a closed client ends with: it says nothing about the peer, and stays so."""
    error = ConnectError("the client is closed", hint="make a new client")
    error.outcome = Outcome.REJECTED
    return error


class ConnectionLost(TransportError, ConnectionError):
    """The connection ended after the request was written: whether it was executed is unknown."""

    sent = True
    hint = (
        "repeat it only if that is harmless: declare the call idempotent and it is repeated for you"
    )


class ReplyTimeout(TransportError, TimeoutError):
    """An attempt's time, or a stream's idle limit, ran out; whether it was executed is unknown."""

    sent = True
    hint = "the peer is slow, frozen or does not answer this pattern"


class ProtocolError(TransportError):
    """The peer does not speak this protocol."""

    sent = True
    hint = "check that the URL's scheme is what the peer speaks"


class DeadlineExceeded(ResilientClientError, TimeoutError):
    """The whole call's time ran out; `sent` tells whether any attempt was written."""

    hint = "allow more with timeout=, or find out why the peer is slow"

    def __init__(
        self, message: str = "", *, sent: bool | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, sent=sent, hint=hint)
        if not self.sent:
            self.outcome = Outcome.NEVER_SENT


class ConnectTimeout(ConnectError, DeadlineExceeded):
    """The whole call's time ran out while it waited for a connection: both, for who catches one."""

    hint = "allow more with timeout=, or check that the service is running there"


class RejectedError(ResilientClientError):
    """Refused on this side, before anything of this attempt was sent."""

    outcome = Outcome.REJECTED


class Overloaded(RejectedError):
    """Too much at once on this side: the pending cap, a bulkhead, a limiter or a buffer is full."""

    hint = "slow down, or raise the limit"


class _Unset:
    def __repr__(self) -> str:
        return "UNSET"

    def __reduce__(self) -> str:
        return "UNSET"


UNSET: Any = _Unset()
"""Not given, where None would mean something."""


class RemoteError(ResilientClientError):
    """The peer answered with an error; raise it in a handler to answer with one.

    Args:
        message: the text. Without `payload` the error travels as
            `{"status": status or "error", "message": message, "code": code}`.
        payload: any JSON value to send instead, exactly as given.
        code: a name for programs, such as "E_STOCK".
        status: an HTTP-like number.

    Attributes:
        message, payload: the peer's text, and its error value untouched.
        code, status: what the peer said, or None; `status` is always an int or None.
    """

    outcome = Outcome.SUCCESS  # a deliberate error is an answer
    sent = True
    hint = "the peer's handler means it: .code, .status and .payload are all it said"

    def __init__(
        self,
        message: Any = None,
        *,
        payload: Any = UNSET,
        code: str | int | None = None,
        status: int | None = None,
        sent: bool | None = None,
        hint: str | None = None,
    ) -> None:
        if isinstance(message, BaseException):  # as in `raise RemoteError(error) from error`
            message = str(message)
        told_payload = payload is not UNSET
        if isinstance(payload, dict):
            if message is None:
                message = payload.get("message")
            if code is None and isinstance(payload.get("code"), str | int):
                code = payload["code"]
            if status is None:
                status = told_status(payload)
        elif told_payload and message is None:
            message = payload
        super().__init__("" if message is None else message, sent=sent, hint=hint)
        self.message: str = message if isinstance(message, str) else _plain(message)
        self.code: str | int | None = code
        self.status = status
        self._given = payload
        if status in _FAILURE_STATUSES or self.message == INTERNAL_SERVER_ERROR:
            self.outcome = Outcome.FAILURE
            if hint is None:
                self.hint = PEER_FAILED

    @property
    def payload(self) -> Any:
        """The error value as it travels: a truthy JSON value."""
        if self._given is not UNSET:
            return self._given
        body: dict[str, Any] = {
            "status": "error" if self.status is None else self.status,
            "message": self.args[0],
        }
        if self.code is not None:
            body["code"] = self.code
        return body

    def _text(self) -> str:
        return self.message or _plain(self.payload)


def told_status(payload: dict[str, Any]) -> int | None:
    """The status in an error value: its `status`, else its `statusCode`, where that is a number."""
    for key in ("status", "statusCode"):
        value = payload.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _plain(value: Any) -> str:
    try:
        return "" if value is None else str(value)
    except RecursionError:
        return "nested too deeply to be shown"


def told_seconds(value: Any) -> float | None:
    """How long a peer asks to wait, None where what it says is no length of time."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        return None
    try:
        return float(value)
    except OverflowError:  # JSON's numbers have no end
        return inf


class NoHandlerError(RemoteError):
    """Nobody handles this pattern. `sent` is False when a broker said that nobody is subscribed."""

    hint = "check the pattern's spelling and that a server that handles it is running"

    def __init__(self, message: Any = NO_HANDLER_MESSAGE, **details: Any) -> None:
        super().__init__(message, **details)
        self.outcome = Outcome.SUCCESS if self.sent else Outcome.NEVER_SENT

    @property
    def payload(self) -> Any:
        """The error value as it travels: Nest's is the text alone."""
        return self.message if self._given is UNSET else self._given


class InvalidPayloadError(RemoteError):
    """The peer's validation refused the payload."""

    CODE: ClassVar[str] = "INVALID_PAYLOAD"
    hint = "the payload does not match the handler's type; the message says where"

    def __init__(
        self, message: Any = None, *, code: str | int | None = CODE, **details: Any
    ) -> None:
        super().__init__(message, code=code, **details)
        self.outcome = Outcome.SUCCESS


class Throttled(RemoteError):
    """The peer asks to slow down.

    Attributes:
        retry_after: seconds to wait before the next try, None when the peer did not say.
    """

    CODE: ClassVar[str] = "THROTTLED"
    hint = "the peer is overloaded: send less, or wait retry_after seconds"

    def __init__(
        self,
        message: Any = "Too many requests",
        *,
        payload: Any = UNSET,
        code: str | int | None = CODE,
        status: int | None = 429,
        retry_after: float | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message, payload=payload, code=code, status=status, **details)
        if retry_after is None and isinstance(payload, dict):
            retry_after = told_seconds(payload.get("retry_after"))
        self.retry_after = told_seconds(retry_after)
        self.outcome = Outcome.THROTTLED
        if details.get("hint") is None:  # a 503 that says when to come back is no fault
            self.hint = type(self).hint

    @property
    def payload(self) -> Any:
        """The error value as it travels, `retry_after` in seconds included when known."""
        if self._given is not UNSET:
            return self._given
        body = {"status": self.status, "message": self.args[0], "code": self.code}
        if self.retry_after is not None:
            body["retry_after"] = min(self.retry_after, FOR_EVER)
        return body


class PayloadError(ResilientClientError, ValueError):
    """A value cannot be encoded, decoded or validated on this side, or is too large.

    With `sent=True` the peer's answer is what cannot be used: the peer itself is well.
    """

    outcome = Outcome.SUCCESS
    hint = "the text says what does not fit; the types are those of the data, or of returns="


class ConfigurationError(ResilientClientError, ValueError):
    """A setting that cannot work; the text says what to change. Asking again does not help."""

    outcome = Outcome.REJECTED

    @property
    def retryable(self) -> bool:
        """Never."""
        return False


def is_throttled(code: str | int | None, status: int | None, retry_after: float | None) -> bool:
    """Whether a peer that says this asks to slow down, on whatever transport."""
    return status == 429 or code == Throttled.CODE or (status == 503 and retry_after is not None)


def remote_error(
    payload: Any,
    *,
    code: str | int | None = None,
    status: int | None = None,
    retry_after: float | None = None,
) -> RemoteError | DeadlineExceeded:
    """The typed error for an error value that a peer sent, kept untouched in `.payload`.

    A peer of ours that gave up because the caller's own time was up says so: that is the caller's
    `DeadlineExceeded`, whoever noticed first.

    Args:
        payload: the value as decoded from the wire.
        code, status: what the transport itself says (HTTP status, gRPC code), when it says so.
        retry_after: seconds the transport was told to wait, if any.
    """
    if isinstance(payload, dict):
        if code is None and isinstance(payload.get("code"), str | int):
            code = payload["code"]
        if status is None:
            status = told_status(payload)
        message = payload.get("message")
        if retry_after is None and status == 503:
            retry_after = told_seconds(payload.get("retry_after"))
    else:
        message = payload
        if payload == NO_HANDLER_MESSAGE:
            return NoHandlerError(message, payload=payload)
    if is_throttled(code, status, retry_after):
        return Throttled(
            message, payload=payload, code=code, status=status, retry_after=retry_after
        )
    if code == InvalidPayloadError.CODE:
        return InvalidPayloadError(message, payload=payload, code=code, status=status)
    if code == DEADLINE_EXCEEDED_CODE:
        return DeadlineExceeded("the call's time ran out at the peer", sent=True)
    return RemoteError(message, payload=payload, code=code, status=status)


def wire_error(error: RemoteError) -> Any:
    """The JSON value an error travels as: truthy in JavaScript, as a Nest client demands."""
    payload = error.payload
    if payload is None or payload is False or payload in (0, ""):
        return {"status": "error", "message": payload}
    return payload


def outcome_of(error: BaseException | None) -> Outcome:
    """The outcome of an attempt that ended with `error`, None being a value.

    An exception that is not ours is the failure of whatever was guarded; one that is not an
    `Exception` at all (cancellation, interrupt) says nothing about the peer.
    """
    if error is None:
        return Outcome.SUCCESS
    if isinstance(error, ResilientClientError):
        return error.outcome
    return Outcome.FAILURE if isinstance(error, Exception) else Outcome.CANCELLED
