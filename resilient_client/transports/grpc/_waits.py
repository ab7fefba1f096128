"""Waiting for grpcio no longer than there is time, whether it lets go or not."""

from __future__ import annotations

import asyncio
from typing import Any

from resilient_client.clock import Clock, Deadlines

Wait = tuple[asyncio.Task[Any], int]
"""A task that waits, and how often it had been cancelled when it began to."""


class Waits:
    """What waits for grpcio in one loop, with one timer for all.

    After a deadline, as after `cancel`, grpcio waits until what it was writing is written, and a
    peer that does not read holds that up for as long as keepalive lets it. So a task that is still
    waiting when its time has come is cancelled, as `asyncio.timeout` would, for less.
    """

    __slots__ = ("_deadlines", "_loop", "_over", "_waiting")

    def __init__(self, clock: Clock) -> None:
        self._deadlines = Deadlines(clock, self._expire)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[Wait] = set()
        self._over: dict[Wait, bool] = {}  # those cancelled here: whether for want of time

    def begin(self, deadline: float) -> Wait:
        """The running task waits, until that time; `end` it in any case."""
        loop = self._loop
        if loop is None:  # to ask for it each time costs Python 3.11 a system call
            loop = self._loop = asyncio.get_running_loop()
        task: Any = asyncio.current_task(loop)
        wait: Wait = (task, task.cancelling())
        self._waiting.add(wait)
        self._deadlines.add(wait, deadline)
        return wait

    def end(self, wait: Wait) -> None:
        """It waits no longer."""
        self._waiting.discard(wait)
        self._deadlines.discard(wait)
        if self._over:
            self.expired(wait)

    def expired(self, wait: Wait) -> bool:
        """Whether a cancellation was that of its time, and no other; it is taken back if it was."""
        timely = self._over.pop(wait, None)
        if timely is None:
            return False
        task, before = wait
        return task.uncancel() <= before and timely

    def close(self) -> None:
        """End them all."""
        self._deadlines.clear()
        for wait in tuple(self._waiting):
            self._cancel(wait, timely=False)

    def _expire(self, wait: Wait) -> None:
        self._cancel(wait, timely=True)

    def _cancel(self, wait: Wait, *, timely: bool) -> None:
        task, before = wait
        if task.cancelling() == before:  # else its caller was first, and it is about to end
            self._over[wait] = timely
            task.cancel()
