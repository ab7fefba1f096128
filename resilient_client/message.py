"""What travels (`Message`, `Reply`, `Receipt`) and what governs the journey (`Call`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, Protocol, TypeAlias

from resilient_client._json import Record, field
from resilient_client.codecs import Codec
from resilient_client.errors import (
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    Outcome,
    RemoteError,
    ReplyTimeout,
    ResilientClientError,
    outcome_of,
)

log = logging.getLogger("resilient_client")
Pattern: TypeAlias = "str | int | float | Mapping[str, Any]"
Kind: TypeAlias = Literal["send", "emit", "stream"]
Delivery: TypeAlias = Literal["written", "accepted", "stored"]


class _NoValue:
    """An answer that ended without a value, as opposed to the value null."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NO_VALUE"


NO_VALUE: Any = _NoValue()
"""The body of an answer that ended without a value; null is one."""
NO_LIMITS = (inf, inf)
"""Of `Call.limits`, while no policy has narrowed them; compare by identity."""


class Call(Record):
    """One call on its way: what it asks, and what bounds it.

    Times are seconds on the client's clock. A transport obeys `connect_deadline` while connecting
    and `attempt_deadline` while waiting for the reply; the client sets both for each attempt, out
    of `deadline`, `limits` and what the pattern and the attempt's `Timeout` say.

    Attributes:
        pattern, route: the pattern as given, and the address it stands for.
        kind: "send", "emit" or "stream".
        data, body: the payload as given, and as the transport encoded it (once).
        headers: lower-case names to strings; what goes out with every attempt.
        deadline: when the whole call must have ended.
        connect_deadline, attempt_deadline: when this attempt must have a connection, its reply;
            never after `deadline`.
        limits: the same two as narrowed by policies around the attempt, such as `Timeout`; a policy
            that sets them puts back afterwards what it found.
        attempt: the number of this attempt, from 1; 0 before the first.
        may_repeat: whether another attempt may follow this one; None when nobody repeats.
        max_attempts: this pattern's own number of attempts, None for the policy's.
        idempotent, idempotency_key: whether executing it twice is harmless.
        endpoint: the URL of the peer chosen for this attempt, credentials redacted.
        metadata: the headers of this attempt, made just before it is written; while nothing comes
            to them, `headers` themselves.
        sent: whether any attempt was written: set by the transport just before it writes.
        received: how many values of a streamed answer its consumer has been given.
        status: what this attempt was answered with, in the transport's own terms (HTTP's status).
        span: the client's telemetry of this call, None while nothing is recorded.
        ambient: OpenTelemetry's context in which it was made, while nothing is recorded.
        failures: (number, endpoint, started, ended, error) of the attempts given up so far.
    """

    pattern: Pattern
    route: str
    kind: Kind
    data: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    started: float = 0.0
    deadline: float = inf
    idempotent: bool = False
    idempotency_key: str | None = None
    endpoint: str | None = None
    observer: Callable[[Any], None] | None = None
    attempt_started: float = 0.0
    connect_deadline: float = inf
    attempt_deadline: float = inf
    limits: tuple[float, float] = NO_LIMITS
    body: Any = None
    attempt: int = 1
    may_repeat: bool | None = None
    max_attempts: int | None = None
    idle_timeout: float = inf
    sent: bool = False
    received: int = 0
    status: int | str | None = None
    failures: list[tuple[int, str | None, float, float, BaseException]] | tuple[()] = ()
    span: Any = None
    ambient: Any = None

    @property
    def opened_by(self) -> float:
        """When a stream must have its first item: repeats, and what they wait for, included."""
        return min(self.deadline, self.started + self.idle_timeout)

    def next_attempt(self, now: float, may_repeat: bool) -> None:  # noqa: FBT001
        """Begin another attempt."""
        self.attempt += 1
        self.attempt_started = now
        self.may_repeat = may_repeat

    def failed(self, error: BaseException, now: float) -> None:
        """Note an attempt that is given up while the call goes on."""
        if isinstance(error, ResilientClientError) and error.sent:
            self.sent = True  # also where a policy of the user's own says so
        entry = (self.attempt, self.endpoint, self.attempt_started, now, error)
        if self.failures:
            self.failures.append(entry)
        else:
            self.failures = [entry]

    def expired(self, *, sent: bool) -> ResilientClientError:
        """The error for a wait that ended at `attempt_deadline`.

        `DeadlineExceeded` when that is the whole call's deadline, `ReplyTimeout` when it is this
        attempt's.
        """
        if self.attempt_deadline >= self.deadline:
            return DeadlineExceeded("the call's time ran out", sent=sent or self.sent)
        return ReplyTimeout("no reply within this attempt's time", sent=sent)

    def unready(self, what: str) -> ConnectError:
        """The error for a wait that ended at `connect_deadline`: nothing of this attempt was sent.

        `ConnectError`, and `DeadlineExceeded` besides when that is the whole call's deadline.
        """
        return (
            ConnectTimeout(what) if self.connect_deadline >= self.deadline else ConnectError(what)
        )

    def __repr__(self) -> str:
        return f"<Call {self.kind} {self.route!r} attempt={self.attempt}>"


class Items(Protocol):
    """The values of a streamed answer, as a transport hands them on.

    One that knows whether `receive` would not wait says so with a truth value `at_hand`.
    """

    async def receive(self, deadline: float) -> Any:
        """The next body.

        Raises:
            StopAsyncIteration: the stream ended.
            ReplyTimeout: nothing came by `deadline` (on the clock's scale).
        """

    async def aclose(self) -> None:
        """Leave: the peer is told to stop where the transport can."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is proved about an event that was handed over.

    Attributes:
        delivery: "written" to the socket, "accepted" by the peer or broker, "stored" by it durably.
        receivers: how many got it, None where nobody can tell.
    """

    delivery: Delivery
    receivers: int | None = None


WRITTEN, ACCEPTED, STORED = Receipt("written"), Receipt("accepted"), Receipt("stored")
"""Those that nearly all are: to make one takes 0.2 us."""


class Reply(Record):
    """What came back, and a place to be told when all of it has.

    Attributes:
        body: the value as the transport carries it, or `NO_VALUE`.
        headers: what the peer sent beside it.
        decoded: True when `body` is already the value itself (a fallback's).
        items: the values, for a stream.
        receipt: for an emit.
        error: on a server, the error to answer with.
    """

    body: Any = NO_VALUE
    headers: Mapping[str, str] | None = None
    decoded: bool = False
    items: Items | None = None
    receipt: Receipt | None = None
    error: RemoteError | None = None
    _done: list[Callable[[Outcome, BaseException | None], None]] | None = None

    def on_complete(self, hook: Callable[[Outcome, BaseException | None], None]) -> None:
        """Call `hook(outcome, error)` once, when the last item has passed or the caller has left.

        Only for a reply with `items`: any other is complete when the handler returns it.
        """
        if self._done is None:
            self._done = []
        self._done.append(hook)

    def complete(self, error: BaseException | None, *, seen: bool) -> None:
        """Told by whoever consumes the items: how it ended, and whether an item was seen."""
        hooks, self._done = self._done, None
        if hooks is None:
            return
        outcome = outcome_of(error)
        if outcome is Outcome.CANCELLED and seen:
            outcome = Outcome.SUCCESS
        for hook in reversed(hooks):
            try:
                hook(outcome, error)
            except Exception:  # one policy's fault must not keep another's permit
                log.exception("a policy failed at the end of a stream")


class Message(Record):
    """A request or event as it arrived at a server.

    Attributes:
        route: the lookup key of its pattern.
        body: the payload, encoded as the transport carries it.
        headers: lower-case names to strings, checked.
        id: how to match the reply; None for an event.
        received: when it arrived, on the server's clock.
        subject: the concrete address when the handler's pattern has wildcards.
        raw: the transport's own message object, for `Context.raw`.
        codec: how this transport's payloads become values, when it is not the server's own codec.
        status_of: what a reply travels as in the transport's own terms (HTTP's status), if it has
            such.
        ambient: the context of whoever handed it over, where that is a caller of ours (the ASGI
            application that this server is mounted in).
        batch: where it stands for a batch, a function that gives the headers of each in it; its own
            are those of the first.
    """

    route: str
    body: Any
    headers: Mapping[str, str]
    id: Any = None
    received: float = 0.0
    subject: str | None = None
    raw: Any = None
    codec: Codec | None = None
    status_of: Callable[[Reply], int | str] | None = None
    ambient: Context | None = None
    batch: Callable[[], Sequence[Mapping[str, str]]] | None = None
