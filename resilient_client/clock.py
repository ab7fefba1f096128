"""Time, injectable: every deadline of the package is a number on one clock's scale."""

from __future__ import annotations

import asyncio
import time
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class TimerHandle(Protocol):
    """What `call_later` returns."""

    def cancel(self) -> None:
        """Do not call back any more."""


@runtime_checkable
class Clock(Protocol):
    """A monotonic clock: `now()` in seconds, and a way to wait on it.

    A clock that can also be asked to call back has `call_later(seconds, callback)`; without it the
    event loop's real timers are used.
    """

    def now(self) -> float:
        """Seconds on a scale that never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Return when that much time has passed."""


class MonotonicClock:
    """The real one: `time.monotonic` and `asyncio.sleep`."""

    now = staticmethod(time.monotonic)

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        await asyncio.sleep(seconds)


def call_later(clock: Clock, seconds: float, callback: Callable[[], object]) -> TimerHandle:
    """Call back on the running loop after that much of the clock's time."""
    own = getattr(clock, "call_later", None)
    if own is not None:
        handle: TimerHandle = own(seconds, callback)
        return handle
    return asyncio.get_running_loop().call_later(max(0.0, seconds), callback)


async def in_time(awaitable: Awaitable[T], deadline: float, clock: Clock, late: BaseException) -> T:
    """Await it until the clock says `deadline`; then raise `late`.

    It starts in any case: what need not wait comes even when no time is left.
    """
    loop = asyncio.get_running_loop()
    limit = asyncio.timeout(None)
    timer = None
    try:
        async with limit:
            if deadline < inf:
                timer = call_later(
                    clock, deadline - clock.now(), lambda: limit.reschedule(loop.time())
                )
            return await awaitable
    except TimeoutError:
        if not limit.expired():
            raise
    finally:
        if timer is not None:
            timer.cancel()
    raise late


DEADLINE_RESOLUTION = 0.005
"""Seconds: deadlines this close together cost one look."""


HELD_UP = 0.1
"""Seconds by which a timer is late where the loop, or the whole process, was held up meanwhile."""
CATCH_UP = 0.05
"""Seconds that what arrived in the meantime then gets to be read: it may well be what is due."""


class DeadlineTimer:
    """One timer for many deadlines, which a subclass knows.

    It stands at the nearest deadline there has been, and is left alone when nobody waits for that
    one any more, because nearly all end long before: it then finds nothing and is set to the next.
    Where the loop was held up, it looks only after what has arrived was read.

    Attributes:
        at: when it looks next.
    """

    __slots__ = ("_catching_up", "_clock", "_timer", "at")

    def __init__(self, clock: Clock) -> None:
        self.at = inf
        self._catching_up = False
        self._clock = clock
        self._timer: TimerHandle | None = None

    def set(self, deadline: float) -> None:
        """Look then."""
        self.stop()
        self.at = deadline
        self._timer = call_later(self._clock, deadline - self._clock.now(), self._ring)

    def stop(self) -> None:
        """Do not look any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.at = None, inf

    def _ring(self) -> None:
        now = self._clock.now()
        self._catching_up = not self._catching_up and now - self.at > HELD_UP
        if self._catching_up:
            self.set(now + CATCH_UP)
            return
        self._timer, self.at = None, inf
        nearest = self._look(now)
        if nearest < self.at:  # else a nearer one has come meanwhile
            self.set(max(nearest, now + DEADLINE_RESOLUTION))

    def _look(self, now: float) -> float:
        """End what is due, and say when the next one is."""
        raise NotImplementedError


class Alarm(DeadlineTimer):
    """One deadline: `due` is called then, unless it is stopped before."""

    __slots__ = ("_due",)

    def __init__(self, clock: Clock, due: Callable[[], object]) -> None:
        super().__init__(clock)
        self._due = due

    def _look(self, now: float) -> float:
        self._due()
        return inf


class Deadlines(DeadlineTimer):
    """Keys with their deadlines: each is handed to `expire` then, unless discarded before."""

    __slots__ = ("_deadlines", "_expire")

    def __init__(self, clock: Clock, expire: Callable[[Any], object]) -> None:
        super().__init__(clock)
        self._expire = expire
        self._deadlines: dict[Any, float] = {}

    def add(self, key: Any, deadline: float) -> None:
        """Watch this key; `inf` is never."""
        if deadline < inf:
            self._deadlines[key] = deadline
            if deadline < self.at:
                self.set(deadline)

    def discard(self, key: Any) -> None:
        """Do not expire this key any more."""
        self._deadlines.pop(key, None)

    def clear(self) -> None:
        """Discard everything and stop the timer."""
        self._deadlines.clear()
        self.stop()

    def _look(self, now: float) -> float:
        for key in [key for key, deadline in self._deadlines.items() if deadline <= now]:
            del self._deadlines[key]
            self._expire(key)
        return min(self._deadlines.values(), default=inf)
