"""Time, injectable: every deadline of the package is a number on one clock's scale."""

from __future__ import annotations

import asyncio
import time
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable


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


DEADLINE_RESOLUTION = 0.005
"""Seconds: deadlines this close together cost one look."""


class Deadlines:
    """Many deadlines, one timer.

    Each `key` is handed to `expire` when its time has come, unless it was discarded before. The
    timer is armed for the nearest deadline only and left alone when that one is discarded, because
    most are: it then finds nothing and is armed for the next.
    """

    __slots__ = ("_at", "_clock", "_expire", "_timer", "_timer_at")

    def __init__(self, clock: Clock, expire: Callable[[Any], object]) -> None:
        self._clock = clock
        self._expire = expire
        self._at: dict[Any, float] = {}
        self._timer: TimerHandle | None = None
        self._timer_at = inf

    def add(self, key: Any, deadline: float) -> None:
        """Watch this key; `inf` is never."""
        if deadline < inf:
            self._at[key] = deadline
            if deadline < self._timer_at:
                self._arm(deadline)

    def discard(self, key: Any) -> None:
        """Do not expire this key any more."""
        self._at.pop(key, None)

    def clear(self) -> None:
        """Discard everything and stop the timer."""
        self._at.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, inf

    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = call_later(self._clock, deadline - self._clock.now(), self._look)

    def _look(self) -> None:
        self._timer, self._timer_at = None, inf
        now = self._clock.now()
        for key in [key for key, deadline in self._at.items() if deadline <= now]:
            del self._at[key]
            self._expire(key)
        if self._at:
            self._arm(max(min(self._at.values()), now + DEADLINE_RESOLUTION))
