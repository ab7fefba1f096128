"""The server's heart: messages in, handlers run within bounds, replies out."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from resilient_client.clock import MonotonicClock
from resilient_client.codecs import JsonCodec, quick_decoder, refuse_unreadable
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
    ConfigurationError,
    InvalidPayloadError,
    NoHandlerError,
    PayloadError,
    RemoteError,
    Throttled,
    shown,
    text_of,
)
from resilient_client.exception_handlers import ExceptionHandlers
from resilient_client.items import HandlerItems, carried, encoded, run_through, threaded
from resilient_client.jobs import Job, Slots, Watch, late
from resilient_client.message import NO_VALUE, Call, Reply
from resilient_client.pipeline import compose
from resilient_client.workers import WorkerThreads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence

    from resilient_client.clock import Clock
    from resilient_client.codecs import Codec
    from resilient_client.events import Event, Observer
    from resilient_client.handlers import Handler
    from resilient_client.message import Message
    from resilient_client.pipeline import Policy
    from resilient_client.telemetry import Telemetry
    from resilient_client.telemetry._server import ServerTelemetry
    from resilient_client.transports._base import Respond

T = TypeVar("T")
log = logging.getLogger("resilient_client.server")

_LINGER = 0.05
"""Seconds to go on refusing after the last answer: who has it may ask on at once, and is to hear
"not now", which is safe to repeat, rather than lose the connection in the middle."""

_TURNS = 10
"""What `_LINGER` is divided into: a machine too busy to run us in time gets its turns all the same,
and what had arrived before is read in the first."""

_NOTHING = Reply()


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
        self.exceptions = ExceptionHandlers(self.codec)
        self._policies = list(policies or ())
        self._limit: float = inf
        self._guarded = self._guard() if self._policies else None
        self._max_calls = max_calls
        self._max_per_connection = max_calls_per_connection
        self._max_threads = max_threads
        self._executor: WorkerThreads | None = None
        self.running = 0
        self.idle_since = -inf  # when the last handler ended, of `time.monotonic`
        self._slots: set[Slots] = set()
        self.queue: dict[Slots, None] = {}  # those with something that waits, in order
        self._watch = Watch(self.clock, self._slots)
        self._refusing: set[asyncio.Task[Any]] = set()
        self._telemetry: ServerTelemetry | None = None
        if telemetry is not None:
            from resilient_client.telemetry._server import ServerTelemetry

            self._telemetry = ServerTelemetry(telemetry, now=self.clock.now)
        self._now = self.clock.now
        self.draining = False

    # -------------------------------------------------------------------------- what is registered

    def register(self, handler: Handler) -> None:
        """Add a handler; a second one for a request pattern replaces the first, as in Nest."""
        handler.decode = _decoder(handler, self.codec)
        handler.is_straight = (
            handler.style == "async" and not handler.is_event and self._guarded is None
        )
        if handler.is_event:
            self._events.setdefault(handler.route, []).append(handler)
        else:
            self._requests[handler.route] = handler

    def prepare(self, payload_type: Callable[[Any], Any]) -> None:
        """Look at the payloads' types again: what they name may have come into being since.

        Args:
            payload_type: what of a type is the codec's business.

        Raises:
            ConfigurationError: nothing can be decoded into one of them.
        """
        for handler in self.subscriptions():
            try:
                refuse_unreadable(self.codec, payload_type(handler.payload_type))
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"handler {handler.name}: {handler.payload_name!r}: {error.args[0]}",
                    hint="annotate it with a builtin, dataclass, TypedDict, Struct or pydantic"
                    " model, or leave the annotation out",
                ) from error
            handler.decode = _decoder(handler, self.codec)

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

    def slots(
        self, pause: Callable[[], None], resume: Callable[[], None], *, farewell: bool = False
    ) -> Slots:
        """See `transports._base.App`."""
        slots = Slots(self, pause, resume, farewell=farewell)
        self._slots.add(slots)
        return slots

    def forget(self, slots: Slots) -> None:
        """A closed connection with nothing running."""
        self._slots.discard(slots)

    def released(self, slots: Slots) -> None:
        """One of its slots is free: something that waits may start."""
        for each in tuple(self.queue):
            while self.running < self._max_calls and each.go_on(self._max_per_connection):
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
        if isinstance(job, Job):
            job.task = _start(slots.loop, self._process(job, respond), job.handler.name)
            return job
        self._answer(respond, Reply(error=job))
        return None

    async def serve(
        self, message: Message, respond: Respond, slots: Any, transport: str
    ) -> Job | None:
        """See `transports._base.App`."""
        job = self._admit(message, slots, transport)
        if not isinstance(job, Job):
            await _written(respond(Reply(error=job)))
            return None
        task = asyncio.current_task(slots.loop)
        assert task is not None  # noqa: S101
        context, known = current_context.get(), correlation_id.get()
        job.visit(task)
        try:
            await self._process(job, respond)
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
            if len(several) == 1:
                several = ()
        if (
            self.draining
            or self.running >= self._max_calls
            or len(slots.jobs) >= self._max_per_connection
        ):
            self._refused("draining" if self.draining else "overload", message, transport)
            return Throttled(SERVER_OVERLOADED, status=429, retry_after=0.1)
        remaining = self._limit
        told = message.headers.get(DEADLINE_HEADER)
        if told is not None and (seconds := _seconds(told)) < remaining:
            remaining = seconds
        deadline = message.received + remaining
        job = Job(slots, message, transport, handler, several, deadline)
        self.running += 1
        slots.jobs.add(job)
        if deadline < self._watch.at:
            self._watch.set(deadline)
        return job

    def _is_full(self, slots: Slots) -> bool:
        return self.running >= self._max_calls or len(slots.jobs) >= self._max_per_connection

    def _refused(self, reason: str, message: Message, transport: str) -> None:
        if self._telemetry is not None:
            self._telemetry.refused(reason, message, transport)

    def _answer(self, respond: Respond, reply: Reply) -> None:
        """Answer without running anything."""

        async def answer() -> None:
            await _written(respond(reply))

        self._aside(_start(asyncio.get_running_loop(), answer(), "answer"))

    def _aside(self, task: asyncio.Task[Any]) -> None:
        """Keep a task that belongs to no job until it ends."""
        self._refusing.add(task)
        task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[Any]) -> None:
        self._refusing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a reply could not be sent: %s", error)

    # ------------------------------------------------------------------------------------- requests

    async def _process(self, job: Job, respond: Respond) -> None:
        """Handle a message from its beginning to its answer."""
        job.started = True
        message, handler, telemetry = job.message, job.handler, self._telemetry
        headers = message.headers
        try:
            known = headers.get(CORRELATION_HEADER, "")
            context = Context(
                handler.route if message.subject is None else message.subject,
                headers,
                known if valid_correlation_id(known) else fresh_id(),
                job.deadline,
                self.clock,
                self.state,
                job.transport,
                message.raw,
            )
            current_context.set(context)
            correlation_id.set(context.correlation_id)
            if (
                handler.is_straight
                and not job.several
                and job.deadline > self._now()
                and (
                    telemetry is None
                    or (
                        message.received < telemetry.silent_until
                        and telemetry.signs.isdisjoint(headers)
                    )
                )
            ):
                # What `_reply_to` comes to for most requests, spelt out: its hops, and the
                # questions on the way, were an eighth of a call.
                codec = message.codec or self.codec
                try:
                    payload = (
                        handler.decode(message.body)
                        if codec is self.codec
                        else _decode(message.body, handler, codec)
                    )
                    value = await handler.function(payload, context)
                    if value is NO_VALUE or hasattr(value, "__aiter__"):
                        reply = self._reply(value, job, context, handler)
                    else:
                        reply = Reply(codec.encode(value))
                except BaseException as error:  # noqa: BLE001
                    reply = await self._failed(error, job, handler, context)
            else:
                reply = await self._reply_to(job, context)
            if reply.items is None:
                job.deadline = inf
                writing = respond(reply)
                if writing is not None:
                    await writing
            else:
                await carried(reply, reply.items, _written(respond(reply)))
        except asyncio.CancelledError:
            if not job.cancelled or not job.settle():
                raise
            await _last_word(job, respond)
        except ConnectionError:
            log.debug("the sender of %s has gone", handler.route)
        except Exception:
            log.exception("the reply of %s could not be sent", handler.name)
        finally:
            reply = _NOTHING  # an error's traceback holds this frame: no cycle
            job.deadline = inf
            if not job.held:
                job.slots.release(job)

    async def _reply_to(self, job: Job, context: Context) -> Reply:
        """Have a message handled by whatever it is for."""
        message = job.message
        if job.several:
            error = await self._all(job, context)
            if job.is_event:
                return Reply(error=error)
            return Reply((message.codec or self.codec).encode({}))
        if job.deadline <= self._now():
            job.expired = True
            self._refused("expired", message, job.transport)
            return Reply(error=late())
        return await self._around(job, job.handler, context)

    def _around(self, job: Job, handler: Handler, context: Context) -> Coroutine[Any, Any, Reply]:
        """Run the handler inside the policies, and those inside a span where there are spans."""
        if self._telemetry is None:
            return self._handle(job, handler, context)
        return self._telemetry.around(self._handle, job, handler, context)

    async def _handle(self, job: Job, handler: Handler, context: Context) -> Reply:
        """Run the handler inside the policies; every failure becomes `reply.error`."""
        try:
            if self._guarded is None:
                return await self._run(job, handler, context)
            message = job.message
            call = Call(
                handler.pattern,
                handler.route,
                "send" if message.id is not None else "emit",
                (job, handler, context),
                dict(message.headers),
                started=message.received,
                deadline=job.deadline,
                attempt_started=message.received,
                attempt=context.attempt,
                idempotent=context.idempotency_key is not None,
                idempotency_key=context.idempotency_key,
            )
            return encoded(await self._guarded(call), message.codec or self.codec)
        except BaseException as error:  # noqa: BLE001
            return await self._failed(error, job, handler, context)

    async def _failed(
        self, error: BaseException, job: Job, handler: Handler, context: Context
    ) -> Reply:
        """The reply of a handler that raised; what ends its task, or the process, is passed on."""
        if not job.failed_by(error):
            try:
                raise error
            finally:
                del error  # its traceback holds this frame
        return Reply(error=await self.exceptions.answer(error, job, handler, context))

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

    async def _run(self, job: Job, handler: Handler, context: Context) -> Reply:
        codec = job.message.codec or self.codec
        payload = _decode(job.message.body, handler, codec)
        if handler.style == "sync":
            value = await self._in_thread(job, handler, payload, context)
        else:
            value = handler.function(payload, context)
        if hasattr(value, "__await__"):  # of a plain function too, when it wraps a coroutine's
            value = await value
        return self._reply(value, job, context, handler)

    def _reply(self, value: Any, job: Job, context: Context, handler: Handler) -> Reply:
        """What a handler returned, as a reply."""
        codec = job.message.codec or self.codec
        if hasattr(value, "__aiter__"):
            items = HandlerItems(value, codec, self.exceptions, job, context, handler)
            return Reply(items=items)
        if value is NO_VALUE or (value is None and handler.is_event):
            return Reply()
        return Reply(codec.encode(value))

    async def _in_thread(self, job: Job, handler: Handler, payload: Any, context: Context) -> Any:
        """A plain `def` runs to its end whatever happens to its caller, and keeps its slot."""
        if self._executor is None:
            self._executor = WorkerThreads(self._max_threads, "resilient_client")
        ambient = contextvars.copy_context()
        work = self._executor.submit(ambient.run, _called, handler.function, payload, context)
        loop = asyncio.get_running_loop()
        step = asyncio.wrap_future(work)
        try:
            value: Any = await asyncio.shield(step)
        except asyncio.CancelledError:
            job.held = not work.done() and not work.cancel()

            def ended(step: asyncio.Future[Any]) -> None:
                if job.held:
                    job.slots.release(job)
                # what it fails with is for the log
                error = None if step.cancelled() else step.exception()
                if error is not None and not isinstance(error, asyncio.CancelledError):
                    answer = self.exceptions.answer(error, job, handler, context)
                    self._aside(_start(loop, answer, handler.name))

            step.add_done_callback(ended)
            raise
        if hasattr(value, "__next__") and not hasattr(value, "__aiter__"):
            return threaded(value, self._executor, ambient)
        return value

    # --------------------------------------------------------------------------------------- events

    def _event(
        self,
        message: Message,
        handlers: list[Handler],
        respond: Respond | None,
        slots: Slots,
        transport: str,
    ) -> Job:
        job = Job(slots, message, transport, handlers[0], handlers, is_event=True)
        self.running += 1
        slots.jobs.add(job)
        job.task = _start(slots.loop, self._process(job, respond or _unheard), handlers[0].name)
        return job

    async def _all(self, job: Job, context: Context) -> RemoteError | None:
        """Run every handler of an event side by side; the first error, if any, for the ack."""
        if len(job.several) == 1:
            replies = [await self._one(job, job.handler, context)]
        else:
            replies = await asyncio.gather(
                *(self._one(job, handler, context) for handler in job.several)
            )
        return next((reply.error for reply in replies if reply.error is not None), None)

    async def _one(self, job: Job, handler: Handler, context: Context) -> Reply:
        reply = await self._around(job, handler, context)
        if reply.items is not None:  # an event handler that yields: run it through
            try:
                await carried(reply, reply.items, run_through(reply.items))
            except RemoteError as error:
                reply = Reply(error=error)
        fault = reply.error
        if fault is not None and fault.message != INTERNAL_SERVER_ERROR:  # which is in the log
            log.warning("event %s: %s", handler.route, shown(text_of(fault)))
        return reply

    # ------------------------------------------------------------------------------------- the end

    def _under_way(self, *, threads: bool = True) -> set[asyncio.Future[Any]]:
        """What runs; without `threads`, only what ends when it is cancelled."""
        jobs = [job for slots in self._slots for job in slots.jobs]
        running = {job.ended() for job in jobs if threads or not job.held}
        return {each for each in running | self._refusing if each is not None and not each.done()}

    async def drain(self, grace: float) -> None:
        """Wait for what runs, at most `grace` seconds; then cancel it."""
        self.draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        kept_on: set[asyncio.Future[Any]] = set()
        turns = _TURNS if monotonic() - self.idle_since < _LINGER else 1
        try:
            while not kept_on:
                left = max(0.0, end - loop.time())
                if running := self._under_way():  # what waited may have begun
                    turns = _TURNS
                    _, kept_on = await asyncio.wait(running, timeout=left)
                elif turns:
                    turns -= 1
                    await asyncio.sleep(min(_LINGER / _TURNS, left))
                else:
                    break
        finally:
            if kept_on:
                log.warning("%d handlers were cancelled at the end of the grace time", len(kept_on))
            self.abort()
            if cancelled := self._under_way(threads=False):
                await asyncio.wait(cancelled, timeout=1.0)
            self._watch.stop()
            if self._executor is not None:
                self._executor.shutdown(wait=False)
                self._executor = None

    def abort(self) -> None:
        """Cancel what runs, and forget what waits."""
        waiting = sum(len(slots.waiting) for slots in self._slots)
        if waiting:
            log.warning("%d events had not begun at the end of the grace time", waiting)
        for slots in tuple(self._slots):
            slots.drop()
        for slots in tuple(self._slots):
            for job in tuple(slots.jobs):
                job.stop()


def _decode(body: Any, handler: Handler, codec: Codec) -> Any:
    """What a handler is given.

    Raises:
        InvalidPayloadError: it is not what the handler takes.
    """
    if not handler.wants_payload:
        return None
    try:
        return codec.decode(body, handler.payload_type)
    except PayloadError as error:
        raise InvalidPayloadError(error.args[0]) from error


def _decoder(handler: Handler, codec: Codec) -> Callable[[Any], Any]:
    """`_decode` for this handler, made ready."""
    if not handler.wants_payload:
        return lambda _body: None
    quick = quick_decoder(codec, handler.payload_type)

    def decode(body: Any) -> Any:
        try:
            return quick(body)
        except Exception:  # noqa: BLE001  (the codec does better, or has words for it)
            return _decode(body, handler, codec)

    return decode


def _start(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], name: str
) -> asyncio.Task[T]:
    """Run it in a task of its own, and in a context of its own."""
    if loop.get_task_factory() is not None:
        return loop.create_task(coroutine, name=name, context=contextvars.Context())
    # As every loop does it, but that uvloop's does not hand the name on: Python 3.11 then makes one
    # up, which takes 0.2 us of the 0.9 that a task costs.
    return asyncio.Task(coroutine, loop=loop, name=name, context=contextvars.Context())


def _unheard(_reply: Reply) -> None:
    """Nobody wants to know what became of an event."""


async def _last_word(job: Job, respond: Respond) -> None:
    """Tell the caller of a request what has cut it short, unless that was the caller.

    It was the server's end; or the time of a stream, whose values may be all that it has so far.
    """
    if not job.stopped and not job.expired:
        return
    try:
        await _written(respond(Reply(error=job.unanswered())))
    except Exception as error:  # noqa: BLE001  (the broker has gone before us, most likely)
        log.debug("the caller of %s could not be told: %s", job.handler.route, error)


async def _written(writing: Awaitable[None] | None) -> None:
    """Wait for what `respond` returned."""
    if writing is not None:
        await writing


@functools.lru_cache(maxsize=256)
def _seconds(text: str) -> float:
    """The caller's remaining time; nonsense counts as none given."""
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        return inf
    return int(text) / 1000


def _called(function: Callable[..., Any], payload: Any, context: Context) -> Any:
    """What a plain function returns, in a worker thread."""
    try:
        return function(payload, context)
    except StopIteration as error:  # no future can hold one; a coroutine turns it into this too
        raise RuntimeError("the handler raised StopIteration") from error
