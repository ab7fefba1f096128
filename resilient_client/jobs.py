"""Messages being handled: what may cancel each, and how many run for one connection."""

from __future__ import annotations

import asyncio
from collections import deque
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from resilient_client._json import Record
from resilient_client.clock import DeadlineTimer
from resilient_client.errors import DEADLINE_EXCEEDED_CODE, INTERNAL_SERVER_ERROR, RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from resilient_client.clock import Clock
    from resilient_client.dispatch import Dispatcher
    from resilient_client.handlers import Handler
    from resilient_client.message import Message


def late() -> RemoteError:
    """The answer to a request whose time is up."""
    return RemoteError("Deadline exceeded", code=DEADLINE_EXCEEDED_CODE, status=504)


class Job(Record):
    """One message being handled: what may cancel it, and what it holds.

    Attributes:
        several: all the handlers of an event; of a request, when it is for more than one.
        deadline: when it is cancelled, `inf` once it has been, or has an answer.
        task: what its handler runs in: a task of its own, or (`is_guest`) its caller's.
        held: it was cancelled, but a plain function of its runs on in a thread.
        stopped: the server's end has cancelled it, and its caller must be told.
        is_guest: its task is its caller's: see `visit`.
        _own_cancels: how often it has cancelled its task, and not taken that back.
        _cancelled_before: how often the task had been cancelled when the job came into it.
    """

    slots: Slots
    message: Message
    transport: str
    handler: Handler
    several: Sequence[Handler] = ()
    deadline: float = inf
    is_event: bool = False
    task: asyncio.Task[Any] | None = None
    started: bool = False
    cancelled: bool = False
    expired: bool = False
    held: bool = False
    stopped: bool = False
    is_guest: bool = False
    _cancelled_before: int = 0
    _own_cancels: int = 0
    _ended: asyncio.Future[None] | None = None

    def cancel(self) -> None:
        """The caller has left: cancel the request's handler. An event's handlers run on."""
        if self.is_event or self.cancelled:
            return
        self.abort()

    def abort(self) -> None:
        """Cancel whatever it is."""
        self.cancelled = True
        if self.task is not None:
            self._own_cancels += 1
            self.task.cancel()
            if not self.started:  # its coroutine will never run, and so never release
                self.slots.release(self)

    def stop(self) -> None:
        """The server ends: cancel whatever it is."""
        self.stopped = self.slots.farewell and not self.is_event
        self.abort()

    def expire(self) -> None:
        """Its time is up."""
        self.expired = True
        self.deadline = inf
        self.abort()

    def settle(self) -> bool:
        """Take back its own cancellations. False when somebody else wants its task to end too."""
        task = self.task
        assert task is not None  # noqa: S101
        while self._own_cancels:
            self._own_cancels -= 1
            task.uncancel()
        return task.cancelling() <= self._cancelled_before

    def failed_by(self, error: BaseException) -> bool:
        """Whether the handler failed with it, rather than being told to end.

        A `CancelledError` is the handler's own when nobody cancelled its task: it came out of
        something that the handler waited for.
        """
        if isinstance(error, asyncio.CancelledError):
            task = self.task or asyncio.current_task()  # an eager task's first step comes before us
            assert task is not None  # noqa: S101
            return task.cancelling() <= self._cancelled_before
        return not isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit))

    def visit(self, task: asyncio.Task[Any]) -> None:
        """Run in this task, which is its caller's."""
        self.task = task
        self.is_guest = self.started = True
        self._cancelled_before = task.cancelling()

    def leave(self) -> None:
        """Its caller goes on with its own work."""
        if self._own_cancels:
            self.settle()
        if not self.held:
            self.freed()

    def freed(self) -> None:
        """It has ended, and nothing of it runs on in a thread."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def ended(self) -> asyncio.Future[Any] | None:
        """Done when it has ended, for whoever waits for that; None when it has begun nothing."""
        if not self.is_guest and not self.held:
            return self.task
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        return self._ended

    def unanswered(self) -> RemoteError:
        """Why there was no reply."""
        if self.expired:
            return late()
        if self.cancelled:
            return RemoteError("The server was stopped", status=503)
        return RemoteError(INTERNAL_SERVER_ERROR)


class Slots:
    """What runs for one connection, and what waits until it may."""

    __slots__ = ("_app", "_loop", "_paused", "closed", "farewell", "jobs", "pause", "resume",
                 "waiting")  # fmt: skip

    def __init__(
        self,
        app: Dispatcher,
        pause: Callable[[], None],
        resume: Callable[[], None],
        *,
        farewell: bool = False,
    ) -> None:
        self._app = app
        self.farewell = farewell
        self._loop: asyncio.AbstractEventLoop | None = None
        self.pause = pause
        self.resume = resume
        self.jobs: set[Job] = set()
        self.waiting: deque[Callable[[], object]] = deque()
        self._paused = False
        self.closed = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that runs; to ask for it each time costs Python 3.11 a system call."""
        loop = self._loop
        if loop is None or not loop.is_running():
            loop = self._loop = asyncio.get_running_loop()
        return loop

    def wait(self, start: Callable[[], object]) -> None:
        """An event that may not run yet: keep it, and stop reading."""
        self.waiting.append(start)
        self._app.queue[self] = None
        if not self._paused:
            self._paused = True
            self.pause()

    def release(self, job: Job) -> None:
        """The job has ended: its slot is free."""
        if job in self.jobs:
            self.jobs.remove(job)
            app = self._app
            app.running -= 1
            if not app.running:
                app.idle_since = monotonic()
            if job.held:
                job.freed()
            if self.closed or app.queue:
                app.released(self)

    def cancel(self, id: Any) -> list[Job]:  # noqa: A002
        """See `transports._base.Slots`."""
        left = [job for job in self.jobs if job.message.id == id]
        for job in left:
            job.cancel()
        return left

    def go_on(self, limit: int) -> bool:
        """Start one that waits, if this connection may run one more. True when it did."""
        if not self.waiting or len(self.jobs) >= limit:
            return False
        self.waiting.popleft()()
        if not self.waiting and self._paused:
            self._paused = False
            if not self.closed:
                self.resume()
        return True

    def drop(self) -> None:
        """Whoever sent the events that wait has left before they were accepted: forget them."""
        self.waiting.clear()
        self._paused = False  # whoever goes on with these slots begins anew
        self._app.queue.pop(self, None)

    def close(self) -> None:
        """The connection is gone: cancel its request handlers; event handlers run to their end."""
        self.closed = True
        for job in tuple(self.jobs):
            job.cancel()
        if not self.jobs and not self.waiting:
            self._app.forget(self)


class Watch(DeadlineTimer):
    """Cancels the jobs whose time is up. It keeps no list: it looks through all that run."""

    __slots__ = ("_slots",)

    def __init__(self, clock: Clock, slots: Collection[Slots]) -> None:
        super().__init__(clock)
        self._slots = slots

    def _look(self, now: float) -> float:
        nearest = inf
        for job in [job for slots in self._slots for job in slots.jobs]:
            if job.deadline <= now:
                job.expire()
            elif job.deadline < nearest:
                nearest = job.deadline
        return nearest
