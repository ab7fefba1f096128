"""A clock that stands still until it is told to move."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count
from math import inf
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

_TURNS = 50
"""Turns of the loop that tasks are given to run on, where the loop does not say that it is idle."""

_IDLE_TURNS = 3
"""Turns in a row without anything ready before an autojump: a socket gets a chance to speak."""


_ROUNDING = 1e-9
"""Seconds: ten times 0.1 is a little under 1."""


class _Timer:
    __slots__ = ("at", "callback")

    def __init__(self, at: float, callback: Callable[[], object]) -> None:
        self.at = at
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """See `clock.TimerHandle.cancel`."""
        self.callback = None


class _Done:
    """Nothing is left to wait for."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


class FakeClock:
    """A `Clock` for tests: seconds pass only when `advance` says so, and then take no time.

    With `autojump` it goes on by itself, to the next timer, whenever nothing else on the loop can
    run: a test with retries and timeouts is written as if they were instantaneous. It is for tests
    on one event loop without threads: a thread's answer looks like waiting, and so does a sleep of
    the loop's own.

    Attributes:
        sleeps: the seconds of each `sleep` so far, in order.
    """

    def __init__(self, start: float = 1000.0, *, autojump: bool = False) -> None:
        self._now = start
        self._autojump = autojump
        self._timers: list[tuple[float, int, _Timer]] = []
        self._numbers = count()
        self._watching: asyncio.AbstractEventLoop | None = None
        self._home: asyncio.AbstractEventLoop | None = None  # of the timer that was set last
        self._idle = 0
        self.sleeps: list[float] = []

    def now(self) -> float:
        """See `Clock.now`."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        self.sleeps.append(seconds)
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        timer = self.call_later(seconds, wake)
        try:
            await woken
        finally:
            timer.cancel()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> _Timer:
        """Call back when the clock gets there; at the earliest with the next move of it."""
        timer = _Timer(self._now + max(0.0, seconds), callback)
        if timer.at < inf:
            self._home = _running_loop()
            heapq.heappush(self._timers, (timer.at, next(self._numbers), timer))
            if self._autojump:
                self._watch()
        return timer

    @property
    def waiting(self) -> int:
        """How many timers are set."""
        return sum(timer.callback is not None for _, _, timer in self._timers)

    def advance(self, seconds: float) -> Awaitable[None]:
        """Let so much time pass: timers fire in order, each at its own time, and tasks run on.

        On a running loop it must be awaited: the tasks run first, and again after each timer, and
        may set timers of their own. Without a loop it has done its work when it returns, on the
        loop of those who wait where that runs in another thread, as a `SyncClientProxy`'s does.
        """
        if seconds < 0:
            raise ValueError(f"time does not go back: advance({seconds})")
        until = self._now + seconds
        here, home = _running_loop(), self._home
        if home is not None and home is not here and home.is_running():
            moving = asyncio.run_coroutine_threadsafe(self._advance(until), home)
            if here is not None:
                return asyncio.wrap_future(moving)
            moving.result()
            return _Done()
        if here is not None:
            return self._advance(until)
        while self._fire(until):
            pass
        self._now = max(self._now, until)
        return _Done()

    async def _advance(self, until: float) -> None:
        await self._settle()
        while self._fire(until):
            await self._settle()
        self._now = max(self._now, until)

    def _due(self, until: float) -> bool:
        timers = self._timers
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
        return bool(timers) and timers[0][0] <= until + _ROUNDING

    def _fire(self, until: float) -> bool:
        """Move to the next timer and call back; False when there is none up to `until`."""
        if not self._due(until):
            return False
        at, _, timer = heapq.heappop(self._timers)
        callback, timer.callback = timer.callback, None
        self._now = max(self._now, at)
        assert callback is not None
        callback()
        return True

    async def _settle(self) -> None:
        """Let the tasks run until none of them can."""
        loop = asyncio.get_running_loop()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
            if _ready(loop) == 0:
                return

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._idle = 0
        if self._watching is not loop:
            self._watching = loop
            _watchers.add(self)
            loop.call_soon(self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._watching = None  # so that it is not counted as ready itself
        ready = _ready(loop)
        self._idle = 0 if ready else self._idle + 1
        if self._idle >= (_TURNS if ready is None else _IDLE_TURNS):
            self._idle = 0
            self._fire(inf)
        if self._due(inf) and self._watching is None:
            self._watching = loop
            loop.call_soon(self._look)


_watchers: WeakSet[FakeClock] = WeakSet()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _ready(loop: asyncio.AbstractEventLoop) -> int | None:
    """How much can run right now besides the caller and the clocks that watch this loop.

    None where the loop does not tell.
    """
    ready = getattr(loop, "_ready", None)
    if ready is None:
        return None
    return len(ready) - sum(clock._watching is loop for clock in _watchers)  # noqa: SLF001
