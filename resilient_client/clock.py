"""Time, injectable: every deadline of the package is a number on one clock's scale."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable

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


def call_later(clock: Clock, seconds: float, callback: Callable[[], None]) -> TimerHandle:
    """Call back on the running loop after that much of the clock's time."""
    own = getattr(clock, "call_later", None)
    if own is not None:
        handle: TimerHandle = own(seconds, callback)
        return handle
    return asyncio.get_running_loop().call_later(max(0.0, seconds), callback)
