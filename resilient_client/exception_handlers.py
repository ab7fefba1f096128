"""What an exception that a handler raises travels as."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any

from resilient_client.clock import DEADLINE_RESOLUTION
from resilient_client.errors import (
    INTERNAL_SERVER_ERROR,
    SERVER_OVERLOADED,
    ConfigurationError,
    DeadlineExceeded,
    Overloaded,
    RemoteError,
    Throttled,
    wire_error,
)
from resilient_client.jobs import late

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_client.codecs import Codec
    from resilient_client.context import Context
    from resilient_client.handlers import Handler
    from resilient_client.jobs import Job

log = logging.getLogger("resilient_client.server")
_ANSWERS = (RemoteError, Overloaded)
"""What is an answer already, where no client raised it."""
_IN_GENERAL = {kind for answer in _ANSWERS for kind in answer.__mro__[1:]}
"""Whoever translates these need not mean answers."""


class ExceptionHandlers:
    """The user's functions that translate exceptions, and what becomes of all others.

    Args:
        codec: what is sent must have a form in it.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._functions: dict[type[BaseException], Callable[..., Any]] = {}

    def register(self, kind: type[BaseException], function: Callable[..., Any]) -> None:
        """Add a translation of an exception into a `RemoteError`.

        Raises:
            ConfigurationError: it cannot be called with an exception, or that and a context.
        """
        self._functions[kind] = _adapted(function)

    async def answer(
        self, error: BaseException, job: Job, handler: Handler, context: Context
    ) -> RemoteError:
        """What an exception travels as.

        A deliberate `RemoteError` as itself; one that a client raised inside the handler, and
        anything else, as Nest would send it, with the truth in the log only. The same goes for an
        error that has no JSON form, and for one that the function meant to translate it raised.

        A client in the handler whose inherited time ran out has only noticed first that the
        request's has: the answer is the one that the request's deadline gives.
        """
        try:
            answer = await self._deliberate(error, context)
            if answer is not None:
                self._codec.encode(wire_error(answer))
                return answer
        except BaseException as fault:
            if not job.failed_by(fault):
                raise
            error = fault
        log.error(
            "handler %s of %s failed (correlation id %s)",
            handler.name,
            handler.route,
            context.correlation_id,
            exc_info=error,
        )
        answer = RemoteError(INTERNAL_SERVER_ERROR)
        answer.__cause__ = error  # for the span; nothing of it travels
        return answer

    async def _deliberate(self, error: BaseException, context: Context) -> RemoteError | None:
        """The error that the handler, or a function registered for its exceptions, means to send.

        Raises:
            Exception: that function failed.
        """
        meant = isinstance(error, _ANSWERS) and error.endpoint is None
        for kind in type(error).__mro__:
            translate = self._functions.get(kind)
            if translate is None or (meant and kind in _IN_GENERAL):
                continue
            try:
                result = translate(error, context)
                if asyncio.iscoroutine(result):
                    result = await result
            except RemoteError as told:  # raised rather than returned
                if told.endpoint is not None:
                    raise
                return told
            return result if isinstance(result, RemoteError) else RemoteError(payload=result)
        if meant:
            if isinstance(error, RemoteError):
                return error
            return Throttled(SERVER_OVERLOADED, status=429)
        left = context.remaining
        if isinstance(error, DeadlineExceeded) and left is not None and left <= DEADLINE_RESOLUTION:
            answer = late()
            answer.__cause__ = error
            return answer
        return None


def _adapted(function: Callable[..., Any]) -> Callable[[BaseException, Context], Any]:
    """The function with one signature: it gets the context if it has a place for it."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions do not tell
        return lambda error, _context: function(error)
    places = list(signature.parameters.values())
    named = signature.parameters.get("context")
    second = places[1] if len(places) > 1 else None
    try:
        if named is not None and named.kind is named.KEYWORD_ONLY:
            signature.bind(None, context=None)
            return lambda error, context: function(error, context=context)
        if (
            second is not None
            and second.kind in (second.POSITIONAL_ONLY, second.POSITIONAL_OR_KEYWORD)
            and (second is named or second.default is second.empty)
        ):
            signature.bind(None, None)
            return function
        signature.bind(None)
    except TypeError as error:
        raise ConfigurationError(
            f"{function!r} cannot be called with an exception: {error}",
            hint="it takes (error), or (error, context)",
        ) from None
    return lambda error, _context: function(error)
