"""How much may be repeated, over all calls together."""

from __future__ import annotations

import os
from collections import deque
from math import inf
from typing import TYPE_CHECKING

from resilient_client import defaults
from resilient_client._checks import amount, seconds
from resilient_client.errors import ConfigurationError

if TYPE_CHECKING:
    import asyncio

_STEPS = 100
"""Into so many steps a window is counted: memory stays bounded, the error under one of them."""

_ROUNDING = 1e-9
"""0.29 x 100 is a little under 29."""


class Withdrawal:
    """Repeats granted within one step of time."""

    __slots__ = ("_budget", "count", "first", "last")

    def __init__(self, budget: RetryBudget, at: float) -> None:
        self._budget = budget
        self.first = self.last = at
        self.count = 0

    def give_back(self) -> None:
        """A repeat that was granted did not take place."""
        if self.count:
            self.count -= 1
            self._budget._repeats -= 1  # noqa: SLF001


class RetryBudget:
    """At most `ratio` x calls + `reserve_per_second` x time may be repeated within a window.

    Retries of many callers multiply the load on a peer that is already failing; this bounds them
    all together, whatever each caller's attempts. The reserve of a whole window is there from the
    start. It is no policy: those that repeat ask it. One object given to two clients of one loop is
    shared on purpose.

    Args:
        ratio: repeats per call; 0 leaves only the reserve.
        reserve_per_second: repeats per second besides; 0 leaves only the ratio.
        window: seconds.

    Raises:
        ConfigurationError: a setting that cannot work.
    """

    __slots__ = (
        "_calls",
        "_current",
        "_loop",
        "_past",
        "_process",
        "_repeats",
        "_reserve",
        "_since",
        "_step",
        "_until",
        "_withdrawals",
        "ratio",
        "reserve_per_second",
        "window",
    )

    def __init__(
        self,
        ratio: float = defaults.BUDGET_RATIO,
        reserve_per_second: float = defaults.BUDGET_RESERVE_PER_SECOND,
        window: float = defaults.BUDGET_WINDOW,
    ) -> None:
        self.ratio = amount("RetryBudget: ratio", ratio)
        self.reserve_per_second = amount("RetryBudget: reserve_per_second", reserve_per_second)
        self.window = seconds("RetryBudget: window", window, finite=True)
        self._reserve = self.reserve_per_second * self.window
        self._step = self.window / _STEPS
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = os.getpid()
        # Calls count from the first of their step and repeats until the last of theirs, so that
        # what is counted errs on the side of fewer repeats.
        self._calls: deque[tuple[float, int]] = deque()
        self._past = 0  # the sum of those
        self._current = 0  # calls since `_since`
        self._since = self._until = -inf
        self._withdrawals: deque[Withdrawal] = deque()
        self._repeats = 0

    @property
    def available(self) -> float:
        """What may still be repeated, as it was found when somebody last asked for a repeat."""
        allowed = self.ratio * (self._past + self._current) + self._reserve
        return max(0.0, allowed - self._repeats)

    def deposit(self, now: float) -> None:
        """A call begins."""
        if now >= self._until:
            self._turn(now)
        self._current += 1

    def _turn(self, now: float) -> None:
        if self._current:
            self._calls.append((self._since, self._current))
            self._past += self._current
            self._current = 0
        if len(self._calls) > _STEPS:
            self._forget(now)
        self._since, self._until = now, now + self._step

    def _forget(self, now: float) -> None:
        oldest = now - self.window
        calls, withdrawals = self._calls, self._withdrawals
        while calls and calls[0][0] <= oldest:
            self._past -= calls.popleft()[1]
        while withdrawals and withdrawals[0].last <= oldest:
            gone = withdrawals.popleft()
            self._repeats -= gone.count
            gone.count = 0

    def withdraw(self, now: float) -> Withdrawal | None:
        """Something is to be repeated: None when there is nothing left for it.

        What is granted and then not used after all is brought back with its `give_back`.
        """
        self._forget(now)
        if self._since <= now - self.window:
            self._current = 0
        allowed = self.ratio * (self._past + self._current) + self._reserve
        if self._repeats + 1 > allowed + _ROUNDING:
            return None
        latest = self._withdrawals[-1] if self._withdrawals else None
        if latest is None or now - latest.first >= self._step:
            latest = Withdrawal(self, now)
            self._withdrawals.append(latest)
        latest.last = max(latest.last, now)
        latest.count += 1
        self._repeats += 1
        return latest

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to this loop, until it has closed or the process has forked.

        Raises:
            ConfigurationError: it belongs to another one that is still open.
        """
        before, process = self._loop, os.getpid()
        here = before is not None and not before.is_closed() and self._process == process
        if here and before is not loop:
            raise ConfigurationError(
                "this RetryBudget belongs to another event loop that is still open",
                hint="make one RetryBudget per loop",
            )
        self._loop, self._process = loop, process

    def describe(self) -> str:
        """The settings in words."""
        return (
            f"{self.ratio:.4g} of calls + {self.reserve_per_second:.4g}/s over {self.window:.4g} s"
        )

    def __repr__(self) -> str:
        return (
            f"RetryBudget(ratio={self.ratio!r}, reserve_per_second={self.reserve_per_second!r},"
            f" window={self.window!r})"
        )
