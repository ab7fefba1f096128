"""What the caller gets instead, when the peer is in trouble."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from resilient_client.clock import in_time
from resilient_client.errors import (
    ConfigurationError,
    DeadlineExceeded,
    Outcome,
    RejectedError,
    RemoteError,
    ReplyTimeout,
    TransportError,
)
from resilient_client.events import CallRejected
from resilient_client.message import Receipt, Reply
from resilient_client.policies._on import On, matcher, named

if TYPE_CHECKING:
    from resilient_client.clock import Clock
    from resilient_client.message import Call
    from resilient_client.pipeline import Handler


def trouble(error: Exception) -> bool:
    """Whether an error says that the peer cannot be used right now.

    No usable answer (`TransportError`, `DeadlineExceeded`), none asked for (`RejectedError`: an
    open circuit, a full bulkhead), or one that says broken, throttled or "nobody is subscribed". A
    deliberate error of the peer's handler is an answer, and a `PayloadError` or
    `ConfigurationError` a mistake to be seen.
    """
    if isinstance(error, RemoteError):
        return error.outcome is not Outcome.SUCCESS
    return isinstance(error, TransportError | DeadlineExceeded | RejectedError)


class Fallback:
    """A value, or what a function returns, in place of an error.

    Args:
        value_or_callable: a value is the answer itself, the same object each time. A function is
            called with the call and the error, or with fewer arguments if it takes fewer (a single
            one is the call, unless it is named `error`); it may be async, and then has what is left
            of the call's deadline (and a stream's `idle_timeout`): after that, the original error
            is raised. For a stream, a list, tuple, set, range or iterator is its items, an async
            iterable too, and anything else its one item. For an `emit` a value says nothing: the
            error is raised, unless a function returns a `Receipt`.
        on: an exception class, a tuple of them, or a function of the error; by default the errors
            of a peer in trouble (see `trouble`). Cancellation is never caught.

    Raises:
        ConfigurationError: a setting that cannot work.
    """

    scope: ClassVar[str] = "call"

    def __init__(self, value_or_callable: Any, on: On | None = None) -> None:
        self.value_or_callable = value_or_callable
        self.on = on
        self._means = trouble if on is None else matcher("Fallback", on)
        self._make = _maker(value_or_callable) if callable(value_or_callable) else None

    def wrap(self, handler: Handler, clock: Clock, /) -> Handler:
        """See `Policy.wrap`."""
        means, make, constant = self._means, self._make, self.value_or_callable

        async def fallback(call: Call) -> Reply:
            try:
                return await handler(call)
            except Exception as error:
                if not means(error):
                    raise
                if make is None:
                    value = constant
                else:
                    value = make(call, error)
                    if isinstance(value, Awaitable):
                        limit = min(call.deadline, clock.now() + call.idle_timeout)
                        value = await in_time(value, limit, clock, error)
                reply = _reply(value, call, clock)
                if reply is None:
                    raise
                if call.observer is not None and isinstance(error, RejectedError):
                    call.observer(CallRejected(call.route, error))
                return reply

        return fallback

    def describe(self) -> str:
        """The settings in words."""
        value = self.value_or_callable
        what = f"{named(value)}()" if callable(value) else "a fixed value"
        return f"{what} on {'a peer in trouble' if self.on is None else named(self.on)}"

    def __repr__(self) -> str:
        return f"<Fallback {self.describe()}>"


def _reply(value: Any, call: Call, clock: Clock) -> Reply | None:
    if isinstance(value, Reply):
        return value
    if call.kind == "emit":
        return Reply(receipt=value) if isinstance(value, Receipt) else None
    if call.kind == "stream":
        return Reply(items=_Items(value, clock), decoded=True)
    return Reply(value, decoded=True)


def _maker(function: Callable[..., Any]) -> Callable[[Call, Exception], Any]:
    """The function, called with as much as it takes."""
    if isinstance(function, type):
        return lambda call, error: function()
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # some built-in functions do not tell
        return lambda call, error: function()
    said = {parameter.name for parameter in parameters}
    unsaid = [name for name in ("call", "error") if name not in said]
    positional: list[str] = []
    keywords: list[str] = []
    for parameter in parameters:
        known = parameter.name in {"call", "error"}
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += unsaid
        elif parameter.kind is parameter.VAR_KEYWORD:
            continue
        elif parameter.default is not parameter.empty or parameter.kind is parameter.KEYWORD_ONLY:
            if known:
                keywords.append(parameter.name)
            elif parameter.default is parameter.empty:
                raise _too_many(function)
        elif known:
            positional.append(parameter.name)
        elif unsaid:
            positional.append(unsaid.pop(0))
        else:
            raise _too_many(function)

    def make(call: Call, error: Exception) -> Any:
        given = {"call": call, "error": error}
        return function(
            *[given[name] for name in positional], **{name: given[name] for name in keywords}
        )

    return make


def _too_many(function: Callable[..., Any]) -> ConfigurationError:
    return ConfigurationError(
        f"Fallback: {named(function)}() takes more than the call and the error",
        hint="write lambda call, error: ...",
    )


class _Items:
    """The fallback's values, as a stream. See `message.Items`."""

    __slots__ = ("_clock", "_source")

    def __init__(self, value: Any, clock: Clock) -> None:
        self._clock = clock
        self._source: AsyncIterator[Any] | Iterator[Any]
        if isinstance(value, AsyncIterable):
            self._source = aiter(value)
        elif isinstance(value, list | tuple | set | frozenset | range | Iterator):
            self._source = iter(value)
        else:
            self._source = iter((value,))

    async def receive(self, deadline: float) -> Any:
        """See `message.Items.receive`."""
        source = self._source
        if isinstance(source, AsyncIterator):
            silent = ReplyTimeout("the fallback's stream was silent for too long", sent=False)
            return await in_time(anext(source), deadline, self._clock, silent)
        for item in source:
            return item
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """See `message.Items.aclose`."""
        if isinstance(self._source, AsyncIterator):
            if (leave := getattr(self._source, "aclose", None)) is not None:
                await leave()
        elif isinstance(self._source, Generator):
            self._source.close()
