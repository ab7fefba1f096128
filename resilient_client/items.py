"""What a handler that yields answers with: its values, encoded one by one."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator
    from concurrent.futures import Executor

    from resilient_client.codecs import Codec
    from resilient_client.context import Context
    from resilient_client.exception_handlers import ExceptionHandlers
    from resilient_client.handlers import Handler
    from resilient_client.jobs import Job
    from resilient_client.message import Items, Reply


async def carried(reply: Reply, items: Items, carry: Awaitable[None]) -> None:
    """Await what consumes a reply's items; then end them, and tell the policies that they have."""
    ended: BaseException | None = None
    try:
        await carry
    except BaseException as error:
        ended = error
        raise
    finally:
        try:
            await items.aclose()
        finally:
            reply.complete(ended, seen=True)


async def run_through(items: Items) -> None:
    """Take all of them, for nobody."""
    try:
        while True:
            await items.receive(inf)
    except StopAsyncIteration:
        return


class HandlerItems:
    """What an async generator of the user's yields, encoded, its errors translated."""

    __slots__ = ("_codec", "_context", "_exceptions", "_handler", "_job", "_values")

    def __init__(
        self,
        values: AsyncIterator[Any],
        codec: Codec,
        exceptions: ExceptionHandlers,
        job: Job,
        context: Context,
        handler: Handler,
    ) -> None:
        self._values = aiter(values)
        self._codec = codec
        self._exceptions = exceptions
        self._job = job
        self._context = context
        self._handler = handler

    async def receive(self, deadline: float) -> Any:
        """See `message.Items.receive`; an error is a `RemoteError`."""
        try:
            return self._codec.encode(await anext(self._values))
        except StopAsyncIteration:
            raise
        except BaseException as error:
            if not self._job.failed_by(error):
                raise
            with contextlib.suppress(Exception):  # the first error is the one to be told
                await self.aclose()
            raise await self._exceptions.answer(error, self._handler, self._context) from error

    async def aclose(self) -> None:
        """Stop the generator."""
        close = getattr(self._values, "aclose", None)
        if close is not None:
            await close()


async def threaded(
    values: Iterator[Any], executor: Executor, context: contextvars.Context
) -> AsyncIterator[Any]:
    """A plain generator's values, each made in a worker thread, in the handler's context.

    Whoever leaves early has it closed there, as soon as it has made the value it was asked for.
    """
    end = object()
    following = functools.partial(next, values, end)
    value: Any = None
    while value is not end:
        step = asyncio.wrap_future(executor.submit(context.run, following))
        try:
            value = await asyncio.shield(step)
            if value is not end:
                yield value
        except (asyncio.CancelledError, GeneratorExit):
            if (close := getattr(values, "close", None)) is not None:

                def leave(step: asyncio.Future[Any]) -> None:
                    if not step.cancelled() and step.exception() is None:  # else it has ended
                        executor.submit(context.run, close)

                step.add_done_callback(leave)
            raise
