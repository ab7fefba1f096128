"""Messages being handled: what may cancel each, and how many run for one connection."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from resilient_client.errors import DEADLINE_EXCEEDED_CODE, INTERNAL_SERVER_ERROR, RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilient_client.dispatch import Dispatcher
    from resilient_client.handlers import Handler


def late() -> RemoteError:
    """The answer to a request whose time is up."""
    return RemoteError("Deadline exceeded", code=DEADLINE_EXCEEDED_CODE, status=504)


class Job:
    """One message being handled: what may cancel it, and what it holds.

    Attributes:
        several: the handlers, when a request is for more than one.
        task: what its handler runs in: a task of its own, or (`is_guest`) its caller's.
    """

    __slots__ = (
        "_before", "_ended", "_requests", "cancelled", "deadline", "expired", "handler", "held",
        "is_event", "is_guest", "several", "slots", "started", "task",
    )  # fmt: skip

    def __init__(
        self,
        slots: Slots,
        deadline: float,
        handler: Handler,
        several: Sequence[Handler] = (),
        *,
        is_event: bool = False,
    ) -> None:
        self.slots = slots
        self.deadline = deadline
        self.handler = handler
        self.several = several
        self.is_event = is_event
        self.task: asyncio.Task[Any] | None = None
        self.started = self.cancelled = self.expired = self.held = self.is_guest = False
        self._before = self._requests = 0
        self._ended: asyncio.Future[None] | None = None

    def cancel(self) -> None:
        """The caller has left: cancel the request's handler. An event's handlers run on."""
        if self.is_event or self.cancelled:
            return
        self.abort()

    def abort(self) -> None:
        """Cancel whatever it is."""
        self.cancelled = True
        if self.task is not None:
            self._requests += 1
            self.task.cancel()
            if not self.started:  # its coroutine will never run, and so never release
                self.slots.release(self)

    def settle(self) -> bool:
        """Take back its own cancellations. False when somebody else wants its task to end too."""
        task = self.task
        assert task is not None  # noqa: S101
        while self._requests:
            self._requests -= 1
            task.uncancel()
        return task.cancelling() <= self._before

    def visit(self, task: asyncio.Task[Any]) -> None:
        """Run in this task, which is its caller's."""
        self.task = task
        self.is_guest = self.started = True
        self._before = task.cancelling()

    def leave(self) -> None:
        """Its caller goes on with its own work."""
        if self._requests:
            self.settle()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def ended(self) -> asyncio.Future[Any] | None:
        """Done when it has ended, for whoever waits for that; None when it has begun nothing."""
        if not self.is_guest:
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

    __slots__ = ("_app", "_paused", "closed", "jobs", "pause", "resume", "waiting")

    def __init__(
        self, app: Dispatcher, pause: Callable[[], None], resume: Callable[[], None]
    ) -> None:
        self._app = app
        self.pause = pause
        self.resume = resume
        self.jobs: set[Job] = set()
        self.waiting: deque[Callable[[], object]] = deque()
        self._paused = False
        self.closed = False

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
            self.jobs.discard(job)
            self._app.released(self)

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
        self._app.queue.pop(self, None)

    def close(self) -> None:
        """The connection is gone: cancel its request handlers; event handlers run to their end."""
        self.closed = True
        for job in tuple(self.jobs):
            job.cancel()
        if not self.jobs and not self.waiting:
            self._app.forget(self)
