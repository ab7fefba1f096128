"""A transport whose peer is a list of answers."""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Self

from resilient_client._checks import several
from resilient_client.clock import MonotonicClock, call_later
from resilient_client.codecs import JsonCodec
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    ReplyTimeout,
    ResilientClientError,
    client_closed,
)
from resilient_client.events import ConnectionChanged
from resilient_client.message import NO_VALUE, Receipt, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilient_client.clock import Clock
    from resilient_client.codecs import Codec
    from resilient_client.events import Event, Status
    from resilient_client.message import Call, Kind
    from resilient_client.transports._base import Environment


class _Never:
    def __repr__(self) -> str:
        return "NEVER"

    def __reduce__(self) -> str:  # copied, it stays the one and only
        return "NEVER"


NEVER: Any = _Never()
"""An answer that does not come: the attempt waits until its time is up."""


@dataclass(frozen=True, slots=True)
class Delayed:
    """An answer that takes a while, if the attempt's time allows.

    Attributes:
        seconds: until the answer is there.
        answer: any other answer of a script.
        connecting: the seconds pass while connecting: nothing is sent before.
    """

    seconds: float
    answer: Any = None
    connecting: bool = False


class Streamed:
    """A streamed answer: values, with `Delayed` and `NEVER` where the peer is slow, errors last."""

    __slots__ = ("items",)

    def __init__(self, *items: Any) -> None:
        self.items = items


@dataclass(slots=True)
class Request:
    """One attempt, as the peer saw it.

    Attributes:
        kind, route, data: what was asked.
        metadata: the attempt's headers.
        attempt: its number, from 1.
        at: when it came, on the clock.
        remaining: seconds left of the whole call.
        limit: seconds this attempt may wait for its reply.
        connect_limit: seconds it may take to connect.
        endpoint: which endpoint it was meant for.
        outcome: how it ended: None while it is waited for; "left" when the caller was cancelled.
    """

    kind: Kind
    route: str
    data: Any
    metadata: dict[str, str]
    attempt: int
    at: float
    remaining: float
    limit: float
    connect_limit: float
    endpoint: str | None
    outcome: str | None = None


class ScriptedTransport:
    """A `Transport` that answers from a script, and remembers what it was asked.

    `ClientProxy(ScriptedTransport([ConnectError("refused"), 42]), clock=clock)` fails once and then
    answers 42. An answer is a value (anything the client's codec can carry), an error or its class,
    `Delayed(seconds, answer)`, `NEVER`, `Streamed(1, 2, 3)`, a `Receipt` for an event, or a
    function of the call, sync or async, that returns one of these. It obeys the deadlines on the
    call by the client's clock, so with a `FakeClock` nothing really waits.

    Args:
        answers: one for each attempt, in order.
        forever: repeat the last answer when the script is over, instead of failing the test.
        endpoint: the URL it says it is at.
        idempotent: what the protocol says about its calls.
        clock: until a client brings its own.

    Attributes:
        requests: each attempt as a `Request`, in order.
        open_streams: streams whose consumer has neither reached the end nor left.
    """

    def __init__(
        self,
        answers: Iterable[Any] = (),
        *,
        forever: bool = False,
        endpoint: str = "scripted://peer",
        idempotent: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.status: Status = "idle"
        self.open_streams = 0
        self._idempotent = idempotent
        if isinstance(answers, Mapping):  # its keys would be the answers
            raise ConfigurationError(
                "answers= must be a list, in the order of the attempts",
                hint="a function of the call can tell patterns apart: it has call.route",
            )
        self._answers = deque(several("answers", answers))
        self._forever = forever
        self.requests: list[Request] = []
        self._clock: Clock = clock if clock is not None else MonotonicClock()
        self._codec: Codec = JsonCodec()
        self._notify: Callable[[Event], None] = lambda event: None
        self._waiting: dict[asyncio.Future[None], bool] = {}  # whether the request was sent

    def __call__(self, env: Environment) -> Self:
        """The client hands over its clock and codec, and wants to be told of the connection."""
        self._clock = env.clock
        self._codec = env.codec
        self._notify = env.notify
        return self

    def encode(self, call: Call) -> None:
        """See `Transport.encode`."""
        call.body = self._codec.encode(call.data)

    def decode(self, body: Any, type: Any) -> Any:  # noqa: A002
        """See `Transport.decode`."""
        return self._codec.decode(body, type)

    def idempotent(self, call: Call) -> bool:
        """See `Transport.idempotent`."""
        return self._idempotent

    async def connect(self, deadline: float) -> None:
        """See `Transport.connect`."""
        self._refuse_closed()
        self._change("connected")

    def forget_loop(self) -> None:
        """See `Transport`."""
        self._waiting.clear()

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._change("closed")
        for woken, sent in self._waiting.items():
            if not woken.done():
                lost = ConnectionLost("the client was closed")
                woken.set_exception(lost if sent else client_closed())

    def _refuse_closed(self) -> None:
        if self.status == "closed":
            raise client_closed()

    def _change(self, status: Status, reason: str = "") -> None:
        if self.status not in (status, "closed"):
            old, self.status = self.status, status
            self._notify(ConnectionChanged(self.endpoint, old, status, reason))

    def _reached(self, call: Call) -> None:
        """The peer has the request."""
        call.sent = True
        self._change("connected")

    async def request(self, call: Call) -> Reply:
        """See `Transport.request`."""
        reply: Reply = await self._answer(call, self._reply)
        return reply

    async def publish(self, call: Call) -> Receipt:
        """See `Transport.publish`."""
        receipt: Receipt = await self._answer(call, self._receipt)
        return receipt

    async def _answer(self, call: Call, carry: Callable[[Call, Any], Any]) -> Any:
        self._refuse_closed()
        request, before = self._noted(call), call.sent
        try:
            answer = await self._next(call)
            carried = carry(call, answer)
            if inspect.isawaitable(carried):
                carried = await carried
        except Exception as error:
            request.outcome = type(error).__name__
            if isinstance(error, ResilientClientError) and not error.sent:
                call.sent = before  # nothing was, however long that took to be known
            if isinstance(error, ConnectError | ConnectionLost) and self.status == "connected":
                self._change("reconnecting", str(error))
            raise
        except BaseException:
            request.outcome = "left"
            raise
        request.outcome = "answered"
        return carried

    def _noted(self, call: Call) -> Request:
        now = self._clock.now()
        request = Request(
            kind=call.kind,
            route=call.route,
            data=call.data,
            metadata=dict(call.metadata),
            attempt=call.attempt,
            at=now,
            remaining=call.deadline - now,
            limit=call.attempt_deadline - now,
            connect_limit=call.connect_deadline - now,
            endpoint=call.endpoint,
        )
        self.requests.append(request)
        return request

    async def _next(self, call: Call) -> Any:
        """Play the next answer up to where only a value, a stream or a receipt is left of it."""
        if not self._answers:
            raise AssertionError(f"no answer is left for request {len(self.requests)}: {call!r}")
        last = self._forever and len(self._answers) == 1
        answer = self._answers[0] if last else self._answers.popleft()
        while True:
            if isinstance(answer, Delayed):
                await self._pass(call, answer.seconds, connecting=answer.connecting)
                answer = answer.answer
            elif answer is NEVER:
                await self._pass(call, inf)
            elif _is_error(answer):
                error = _error(answer)
                if last:  # each attempt its own, as from a real peer
                    error = copy.copy(error)
                if not isinstance(error, ResilientClientError) or error.sent:
                    self._reached(call)
                raise error
            elif callable(answer):
                answer = answer(call)
                if inspect.isawaitable(answer):
                    answer = await answer
            else:
                self._reached(call)
                return answer

    async def _pass(self, call: Call, seconds: float, *, connecting: bool = False) -> None:
        """Wait like a transport: no longer than the attempt may."""
        limit = call.connect_deadline if connecting else call.attempt_deadline
        if not connecting:
            self._reached(call)
        left = limit - self._clock.now()
        if seconds < left:
            await self._wait(seconds, sent=not connecting)
            return
        await self._wait(left, sent=not connecting)
        if connecting:
            raise call.unready(f"no connection to {self.endpoint} in time")
        raise call.expired(sent=True)

    async def _wait(self, seconds: float, *, sent: bool = True) -> None:
        """Wait so long; not with `clock.sleep`, whose calls a test may count."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        self._waiting[woken] = sent
        timer = call_later(self._clock, seconds, wake) if seconds < inf else None
        try:
            await woken
        finally:
            self._waiting.pop(woken, None)
            if timer is not None:
                timer.cancel()

    async def _reply(self, call: Call, answer: Any) -> Reply:
        if isinstance(answer, Reply):
            return answer
        if call.kind == "stream":
            values = answer.items if isinstance(answer, Streamed) else (answer,)
            return Reply(items=await _Items(self, values).opened(call))
        if isinstance(answer, Streamed):
            answer = answer.items[0] if answer.items else NO_VALUE
        return Reply(answer if answer is NO_VALUE else self._codec.encode(answer))

    def _receipt(self, call: Call, answer: Any) -> Receipt:
        return answer if isinstance(answer, Receipt) else Receipt("accepted")


class _Items:
    """The values of a `Streamed` answer. See `message.Items`."""

    __slots__ = ("_first", "_left", "_open", "_transport")

    def __init__(self, transport: ScriptedTransport, values: Iterable[Any]) -> None:
        self._transport = transport
        self._left = deque(values)
        self._first: Any = NO_VALUE
        self._open = True
        transport.open_streams += 1

    async def opened(self, call: Call) -> Self:
        """Have the first value, or be at the end, by the attempt's deadline."""
        try:
            self._first = await self.receive(call.attempt_deadline)
        except StopAsyncIteration:
            return self
        except ReplyTimeout:
            self._end()
            raise call.expired(sent=True) from None
        except BaseException:
            self._end()
            raise
        return self

    def _end(self) -> None:
        if self._open:
            self._open = False
            self._left.clear()
            self._transport.open_streams -= 1

    async def receive(self, deadline: float) -> Any:
        """See `message.Items.receive`."""
        if self._first is not NO_VALUE:
            first, self._first = self._first, NO_VALUE
            return first
        if not self._left:
            self._end()
            raise StopAsyncIteration
        item = self._left[0]
        while isinstance(item, Delayed) or item is NEVER:
            seconds = inf if item is NEVER else item.seconds
            left = deadline - self._transport._clock.now()  # noqa: SLF001
            await self._transport._wait(min(seconds, left))  # noqa: SLF001
            if seconds >= left:
                raise ReplyTimeout("the stream was silent for too long")
            item = item.answer
        if self._left:
            self._left.popleft()
        if _is_error(item):
            self._end()
            raise _error(item)
        return self._transport._codec.encode(item)  # noqa: SLF001

    async def aclose(self) -> None:
        """See `message.Items.aclose`."""
        self._end()


def _is_error(answer: Any) -> bool:
    return isinstance(answer, BaseException) or (
        isinstance(answer, type) and issubclass(answer, BaseException)
    )


def _error(answer: Any) -> BaseException:
    error: BaseException = answer() if isinstance(answer, type) else answer
    return error
