"""The server's heart: messages in, handlers run within bounds, replies out."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
from concurrent.futures import ThreadPoolExecutor
from math import inf
from typing import TYPE_CHECKING, Any

from resilient_client.clock import Deadlines, MonotonicClock
from resilient_client.codecs import JsonCodec
from resilient_client.context import (
    CORRELATION_HEADER,
    DEADLINE_HEADER,
    Context,
    correlation_id,
    current_context,
    fresh_id,
    valid_correlation_id,
)
from resilient_client.errors import (
    INTERNAL_SERVER_ERROR,
    SERVER_OVERLOADED,
    InvalidPayloadError,
    NoHandlerError,
    Overloaded,
    PayloadError,
    RemoteError,
    Throttled,
)
from resilient_client.jobs import Job, Slots, late
from resilient_client.message import NO_VALUE, Call, Reply
from resilient_client.pipeline import compose

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence

    from resilient_client.clock import Clock
    from resilient_client.codecs import Codec
    from resilient_client.events import Event, Observer
    from resilient_client.handlers import Handler
    from resilient_client.message import Items, Message
    from resilient_client.pipeline import Policy
    from resilient_client.telemetry import Telemetry
    from resilient_client.telemetry._server import ServerTelemetry
    from resilient_client.transports._base import Respond

log = logging.getLogger("resilient_client.server")


class Dispatcher:
    """Finds the handler of a message and runs it: within the caps, the deadline and the policies.

    Args:
        max_calls: handlers running at once, in total.
        max_calls_per_connection: and for one connection or consumer.
        max_threads: worker threads for plain `def` handlers.
    """

    def __init__(
        self,
        *,
        policies: Iterable[Policy] | None = None,
        codec: Codec | None = None,
        clock: Clock | None = None,
        max_calls: int = 1000,
        max_calls_per_connection: int = 256,
        max_threads: int = 32,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.clock: Clock = clock if clock is not None else MonotonicClock()
        self.codec: Codec = codec if codec is not None else JsonCodec()
        self.state: Any = None
        self.observers: list[Observer] = []
        self._requests: dict[str, Handler] = {}
        self._events: dict[str, list[Handler]] = {}
        self._exceptions: dict[type[BaseException], Callable[..., Any]] = {}
        self._policies = list(policies or ())
        self._limit: float = inf
        self._guarded = self._guard() if self._policies else None
        self._max_calls = max_calls
        self._max_per_connection = max_calls_per_connection
        self._max_threads = max_threads
        self._executor: ThreadPoolExecutor | None = None
        self._running = 0
        self._slots: set[Slots] = set()
        self.queue: dict[Slots, None] = {}  # those with something that waits, in order
        self._deadlines = Deadlines(self.clock, self._expire)
        self._refusing: set[asyncio.Task[None]] = set()
        self._telemetry: ServerTelemetry | None = None
        if telemetry is not None:
            from resilient_client.telemetry._server import ServerTelemetry

            self._telemetry = ServerTelemetry(telemetry, now=self.clock.now)
        self.draining = False

    # -------------------------------------------------------------------------- what is registered

    def register(self, handler: Handler) -> None:
        """Add a handler; a second one for a request pattern replaces the first, as in Nest."""
        if handler.is_event:
            self._events.setdefault(handler.route, []).append(handler)
        else:
            self._requests[handler.route] = handler

    def register_exception(self, kind: type[BaseException], function: Callable[..., Any]) -> None:
        """Add a translation of an exception into a `RemoteError`."""
        self._exceptions[kind] = function

    def subscriptions(self) -> Sequence[Handler]:
        """See `transports._base.App`."""
        return [*self._requests.values(), *(h for each in self._events.values() for h in each)]

    def handles(self, route: str) -> bool:
        """See `transports._base.App`."""
        return route in self._requests

    def receivers(self, route: str) -> int:
        """See `transports._base.App`."""
        handlers = self._events.get(route)
        return int(route in self._requests) if handlers is None else len(handlers)

    def notify(self, event: Event) -> None:
        """See `transports._base.App`."""
        for observer in tuple(self.observers):
            try:
                observer(event)
            except Exception:  # an observer's fault must not stop the server
                log.exception("an observer of the server failed")

    # ------------------------------------------------------------------------------------- the caps

    def slots(self, pause: Callable[[], None], resume: Callable[[], None]) -> Slots:
        """See `transports._base.App`."""
        slots = Slots(self, pause, resume)
        self._slots.add(slots)
        return slots

    def forget(self, slots: Slots) -> None:
        """A closed connection with nothing running."""
        self._slots.discard(slots)

    def released(self, slots: Slots) -> None:
        """One of its slots is free: something that waits may start."""
        self._running -= 1
        if self.queue:
            for each in tuple(self.queue):
                while self._running < self._max_calls and each.go_on(self._max_per_connection):
                    continue
                if not each.waiting:
                    self.queue.pop(each, None)
        if slots.closed and not slots.jobs and not slots.waiting:
            self.forget(slots)

    # --------------------------------------------------------------------------------- message in

    def accept(
        self, message: Message, respond: Respond | None, slots: Any, transport: str
    ) -> Job | None:
        """See `transports._base.App`."""
        if message.id is None:
            handlers = self._events.get(message.route)
            if handlers is None:
                request = self._requests.get(message.route)
                if request is None:
                    log.warning("nobody handles the event %.200r", message.route)
                    self._refused("no_handler", message, transport)
                    if respond is not None:
                        self._answer(respond, Reply(error=NoHandlerError()))
                    return None
                handlers = [request]
            start = functools.partial(self._event, message, handlers, respond, slots, transport)
            if slots.waiting or self._is_full(slots):
                slots.wait(start)
                return None
            return start()
        assert respond is not None  # noqa: S101
        job = self._admit(message, slots, transport)
        if isinstance(job, RemoteError):
            self._answer(respond, Reply(error=job))
            return None
        job.task = asyncio.get_running_loop().create_task(
            self._request(job, message, respond, transport), context=contextvars.Context()
        )
        return job

    async def serve(
        self, message: Message, respond: Respond, slots: Any, transport: str
    ) -> Job | None:
        """See `transports._base.App`."""
        job = self._admit(message, slots, transport)
        if isinstance(job, RemoteError):
            await respond(Reply(error=job))
            return None
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        context, known = current_context.get(), correlation_id.get()
        job.visit(task)
        try:
            await self._request(job, message, respond, transport)
        finally:
            job.leave()
            current_context.set(context)
            correlation_id.set(known)
        return job

    def _admit(self, message: Message, slots: Slots, transport: str) -> Job | RemoteError:
        """A slot for a request, or why it is refused."""
        handler = self._requests.get(message.route)
        several: Sequence[Handler] = ()
        if handler is None:
            several = self._events.get(message.route, ())
            if not several:
                self._refused("no_handler", message, transport)
                return NoHandlerError()
            handler = several[0]
        if self.draining or self._is_full(slots):
            self._refused("draining" if self.draining else "overload", message, transport)
            return Throttled(SERVER_OVERLOADED, status=429, retry_after=0.1)
        received = message.received
        deadline = received + _seconds(message.headers.get(DEADLINE_HEADER))
        if deadline - received > self._limit:
            deadline = received + self._limit
        job = Job(slots, deadline, handler, several)
        self._running += 1
        slots.jobs.add(job)
        if deadline != inf:
            self._deadlines.add(job, deadline)
        return job

    def _is_full(self, slots: Slots) -> bool:
        return self._running >= self._max_calls or len(slots.jobs) >= self._max_per_connection

    def _refused(self, reason: str, message: Message, transport: str) -> None:
        if self._telemetry is not None:
            self._telemetry.refused(reason, message, transport)

    def _answer(self, respond: Respond, reply: Reply) -> None:
        """Answer without running anything."""

        async def answer() -> None:
            await respond(reply)

        task = asyncio.get_running_loop().create_task(answer(), context=contextvars.Context())
        self._refusing.add(task)
        task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._refusing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a reply could not be sent: %s", error)

    def _expire(self, job: Job) -> None:
        job.expired = True
        job.abort()

    # ------------------------------------------------------------------------------------- requests

    async def _request(
        self,
        job: Job,
        message: Message,
        respond: Respond,
        transport: str,
    ) -> None:
        job.started = True
        handler = job.handler
        try:
            context = self._context(message, handler, job.deadline, transport)
            current_context.set(context)
            correlation_id.set(context.correlation_id)
            try:
                if len(job.several) > 1:
                    await self._all(job, message, job.several, context)
                    reply = Reply((message.codec or self.codec).encode({}))
                elif job.deadline <= self.clock.now():
                    job.expired = True
                    self._refused("expired", message, transport)
                    reply = Reply(error=late())
                elif self._telemetry is None:
                    reply = await self._handle(job, message, handler, context)
                else:
                    reply = await self._telemetry.around(
                        self._handle, job, message, handler, context, is_event=False
                    )
            except asyncio.CancelledError:
                if not job.expired or not job.settle():
                    raise
                reply = Reply(error=late())
            if reply.items is None:
                self._deadlines.discard(job)
                await respond(reply)
            else:
                await _carried(reply, reply.items, respond(reply))
        except asyncio.CancelledError:
            if not job.cancelled or not job.settle():
                raise
        except ConnectionError:
            log.debug("the caller of %s has gone", handler.route)
        except Exception:
            log.exception("the reply of %s could not be sent", handler.name)
        finally:
            self._deadlines.discard(job)
            if not job.held:
                job.slots.release(job)

    async def _handle(
        self, job: Job, message: Message, handler: Handler, context: Context
    ) -> Reply:
        """Run the handler inside the policies; every failure becomes `reply.error`."""
        try:
            if self._guarded is None:
                return await self._run(job, message, handler, context)
            call = Call(
                handler.pattern,
                handler.route,
                "send" if message.id is not None else "emit",
                (job, message, handler, context),
                dict(message.headers),
                message.received,
                job.deadline,
            )
            call.attempt = context.attempt
            reply: Reply = await self._guarded(call)
            return reply
        except Exception as error:  # noqa: BLE001  (translated, and logged where it is not deliberate)
            return Reply(error=await self._translate(error, handler, context))

    def _guard(self) -> Any:
        from resilient_client.policies import Timeout

        policies = []
        for policy in self._policies:
            if isinstance(policy, Timeout):
                self._limit = min(self._limit, policy.seconds)
            else:
                policies.append(policy)

        async def run(call: Call) -> Reply:
            return await self._run(*call.data)

        return compose(policies, run, self.clock) if policies else None

    async def _run(self, job: Job, message: Message, handler: Handler, context: Context) -> Reply:
        codec = message.codec or self.codec
        payload = None
        if handler.wants_payload:
            try:
                payload = codec.decode(message.body, handler.payload_type)
            except PayloadError as error:
                raise InvalidPayloadError(error.args[0]) from error
        if handler.style == "async":
            value = await handler.function(payload, context)
        elif handler.style == "stream":
            value = handler.function(payload, context)
        else:
            value = await self._in_thread(job, handler, payload, context)
        if value is None:
            return Reply(NO_VALUE if handler.is_event else codec.encode(None))
        if hasattr(value, "__aiter__"):
            return Reply(items=_HandlerItems(self, value, codec, handler, context))
        return Reply(value if value is NO_VALUE else codec.encode(value))

    async def _in_thread(self, job: Job, handler: Handler, payload: Any, context: Context) -> Any:
        """A plain `def` runs to its end whatever happens to its caller, and keeps its slot."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._max_threads, "resilient_client")
        ambient = contextvars.copy_context()
        work = self._executor.submit(ambient.run, handler.function, payload, context)
        loop = asyncio.get_running_loop()
        try:
            value = await asyncio.shield(asyncio.wrap_future(work))
        except asyncio.CancelledError:
            if not work.done() and not work.cancel():
                job.held = True

                def free(_: object) -> None:
                    if not loop.is_closed():
                        loop.call_soon_threadsafe(job.slots.release, job)

                work.add_done_callback(free)
            raise
        if hasattr(value, "__next__") and not hasattr(value, "__aiter__"):
            return _threaded(value, self._executor)
        return value

    def _context(
        self, message: Message, handler: Handler, deadline: float, transport: str
    ) -> Context:
        headers = message.headers
        known = headers.get(CORRELATION_HEADER)
        return Context(
            handler.route if message.subject is None else message.subject,
            headers,
            known if valid_correlation_id(known) else fresh_id(),  # type: ignore[arg-type]
            deadline,
            self.clock,
            self.state,
            transport,
            message.raw,
        )

    async def translate(self, error: Exception, handler: Handler, context: Context) -> RemoteError:
        """See `_translate`; for streams, whose errors come later."""
        return await self._translate(error, handler, context)

    async def _translate(self, error: Exception, handler: Handler, context: Context) -> RemoteError:
        """What an exception travels as.

        A deliberate `RemoteError` as itself; one that a client raised inside the handler, and
        anything else, as Nest would send it, with the truth in the log only.
        """
        for kind in type(error).__mro__:
            translate = self._exceptions.get(kind)
            if translate is not None:
                result = translate(error, context) if _takes_two(translate) else translate(error)
                if asyncio.iscoroutine(result):
                    result = await result
                if isinstance(result, RemoteError):
                    return result
                return RemoteError(payload=result)
        if isinstance(error, RemoteError) and error.endpoint is None:
            return error
        if isinstance(error, Overloaded) and error.endpoint is None:
            return Throttled(SERVER_OVERLOADED, status=429)
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

    # --------------------------------------------------------------------------------------- events

    def _event(
        self,
        message: Message,
        handlers: list[Handler],
        respond: Respond | None,
        slots: Slots,
        transport: str,
    ) -> Job:
        job = Job(slots, inf, handlers[0], is_event=True)
        self._running += 1
        slots.jobs.add(job)
        job.task = asyncio.get_running_loop().create_task(
            self._occur(job, message, handlers, respond, transport), context=contextvars.Context()
        )
        return job

    async def _occur(
        self,
        job: Job,
        message: Message,
        handlers: list[Handler],
        respond: Respond | None,
        transport: str,
    ) -> None:
        job.started = True
        try:
            context = self._context(message, handlers[0], inf, transport)
            current_context.set(context)
            correlation_id.set(context.correlation_id)
            error = await self._all(job, message, handlers, context)
            if respond is not None:
                await respond(Reply(error=error))
        except ConnectionError:
            log.debug("the event %s could not be acknowledged", message.route)
        except Exception:
            log.exception("the event %s could not be acknowledged", message.route)
        finally:
            if not job.held:
                job.slots.release(job)

    async def _all(
        self, job: Job, message: Message, handlers: Sequence[Handler], context: Context
    ) -> RemoteError | None:
        """Run every handler of an event side by side; the first error, if any, for the ack."""
        if len(handlers) == 1:
            replies = [await self._one(job, message, handlers[0], context)]
        else:
            replies = await asyncio.gather(
                *(self._one(job, message, handler, context) for handler in handlers)
            )
        return next((reply.error for reply in replies if reply.error is not None), None)

    async def _one(self, job: Job, message: Message, handler: Handler, context: Context) -> Reply:
        if self._telemetry is None:
            reply = await self._handle(job, message, handler, context)
        else:
            reply = await self._telemetry.around(
                self._handle, job, message, handler, context, is_event=True
            )
        if reply.items is not None:  # an event handler that yields: run it through
            try:
                await _carried(reply, reply.items, _run_through(reply.items))
            except RemoteError as error:
                return Reply(error=error)
            return reply
        if isinstance(reply.error, InvalidPayloadError):
            log.warning("event %s: %s", handler.route, reply.error.message)
        return reply

    # ------------------------------------------------------------------------------------- the end

    def _under_way(self) -> set[asyncio.Future[Any]]:
        running = {job.ended() for slots in self._slots for job in slots.jobs}
        return {each for each in running | self._refusing if each is not None and not each.done()}

    async def drain(self, grace: float) -> None:
        """Wait for what runs, at most `grace` seconds; then cancel it."""
        self.draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        kept_on: set[asyncio.Future[Any]] = set()
        while not kept_on and (running := self._under_way()):  # what waited may have begun
            _, kept_on = await asyncio.wait(running, timeout=max(0.0, end - loop.time()))
        waiting = sum(len(slots.waiting) for slots in self._slots)
        if waiting:
            log.warning("%d events had not begun at the end of the grace time", waiting)
        for slots in tuple(self._slots):
            slots.drop()
        for slots in tuple(self._slots):
            for job in tuple(slots.jobs):
                job.abort()
        if kept_on:
            log.warning("%d handlers were cancelled at the end of the grace time", len(kept_on))
            await asyncio.wait(kept_on, timeout=1.0)
        self._deadlines.clear()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None


async def _carried(reply: Reply, items: Items, carry: Awaitable[None]) -> None:
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


async def _run_through(items: Items) -> None:
    try:
        while True:
            await items.receive(inf)
    except StopAsyncIteration:
        return


class _HandlerItems:
    """What an async generator of the user's yields, encoded, its errors translated."""

    __slots__ = ("_app", "_codec", "_context", "_handler", "_values")

    def __init__(
        self,
        app: Dispatcher,
        values: AsyncIterator[Any],
        codec: Codec,
        handler: Handler,
        context: Context,
    ) -> None:
        self._app = app
        self._values = aiter(values)
        self._codec = codec
        self._handler = handler
        self._context = context

    async def receive(self, deadline: float) -> Any:
        """See `message.Items.receive`; an error is a `RemoteError`."""
        try:
            return self._codec.encode(await anext(self._values))
        except StopAsyncIteration:
            raise
        except Exception as error:
            await self.aclose()
            raise await self._app.translate(error, self._handler, self._context) from error

    async def aclose(self) -> None:
        """Stop the generator."""
        close = getattr(self._values, "aclose", None)
        if close is not None:
            await close()


async def _threaded(values: Iterator[Any], executor: ThreadPoolExecutor) -> AsyncIterator[Any]:
    """A plain generator's values, each made in a worker thread."""
    loop = asyncio.get_running_loop()
    end = object()
    while (value := await loop.run_in_executor(executor, next, values, end)) is not end:
        yield value


def _seconds(text: str | None) -> float:
    """The caller's remaining time; nonsense counts as none given."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 12:
        return inf
    return int(text) / 1000


def _takes_two(function: Callable[..., Any]) -> bool:
    code = getattr(function, "__code__", None)
    return (
        code is not None
        and code.co_argcount - len(getattr(function, "__defaults__", None) or ()) >= 2
    )
