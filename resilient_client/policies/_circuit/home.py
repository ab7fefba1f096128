"""The event loop that a circuit breaker lives on, and how others reach it there."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

from resilient_client.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 1.0
"""Seconds to wait for a loop that is busy; after that the action runs here."""


class Home:
    """Runs actions on its loop while that runs, at other times in the thread at hand.

    Actions are safe anywhere (they take the breaker's lock); the loop is where listeners expect to
    be called.
    """

    __slots__ = ("_loop",)

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def bind(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        """Live on this loop from now on.

        Raises:
            ConfigurationError: it lives on another that has not been closed.
        """
        if self._loop is not None and self._loop is not loop and not self._loop.is_closed():
            raise ConfigurationError(
                f"circuit breaker {name} is in use on another event loop:"
                " give the clients of each loop a breaker of their own"
            )
        self._loop = loop

    def forget(self) -> None:
        """Belong to no loop."""
        self._loop = None

    def _elsewhere(self) -> asyncio.AbstractEventLoop | None:
        """The loop, if it runs and this is not its thread."""
        loop = self._loop
        if loop is None or not loop.is_running():
            return None
        try:
            return None if asyncio.get_running_loop() is loop else loop
        except RuntimeError:
            return loop

    def post(self, action: Callable[[], None]) -> None:
        """Have the action run soon, or now when this is the place."""
        loop = self._elsewhere()
        if loop is not None:
            try:
                loop.call_soon_threadsafe(action)
            except RuntimeError:  # closed this moment
                action()
        else:
            action()

    def run(self, action: Callable[[], None]) -> None:
        """Return when the action has run."""
        loop = self._elsewhere()
        if loop is None:
            action()
            return
        job = [action]  # whoever pops it runs it
        done = threading.Event()

        def there() -> None:
            if job:
                taken = job.pop()
                try:
                    taken()
                finally:
                    done.set()

        try:
            loop.call_soon_threadsafe(there)
        except RuntimeError:
            action()
            return
        end = time.monotonic() + PATIENCE
        while not done.wait(0.05):
            if time.monotonic() >= end or self._elsewhere() is None:
                try:
                    taken = job.pop()
                except IndexError:  # it has just begun there
                    done.wait(PATIENCE)
                else:
                    taken()
                return
