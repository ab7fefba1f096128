"""Those who are told what a circuit breaker does: pybreaker's listeners, and observers.

Whatever they do wrong is logged and goes no further.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from resilient_client.events import CircuitChanged
from resilient_client.policies._circuit.states import OPEN

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from resilient_client.policies._circuit.home import Home
    from resilient_client.policies._circuit.states import Reason, State

UNNAMED = "(unnamed)"

logger = logging.getLogger("resilient_client.circuit_breaker")


class Listeners:
    """The listeners of one breaker.

    The hooks of a call (`before_call`, `success`, `failure`) run where it runs. Changes of state
    are queued while the breaker's lock is held and told after that, in their order, on the loop the
    breaker lives on.

    Attributes:
        entries: pybreaker's listeners.
        observers: functions of a `CircuitChanged`.
        news: changes not yet told.
        telling: whether somebody is at it.
    """

    __slots__ = ("_breaker", "_home", "entries", "lock", "news", "observers", "telling")

    def __init__(self, breaker: Any, entries: list[Any], home: Home, lock: threading.RLock) -> None:
        self._breaker = breaker
        self._home = home
        self.lock = lock
        self.telling = False
        self.entries = entries
        self.observers: list[Callable[[CircuitChanged], None]] = []
        self.news: deque[tuple[State, State, Reason, str | None]] = deque()

    def before_call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call is about to be made."""
        for listener in tuple(self.entries):
            self._tell(listener.before_call, self._breaker, function, *args, **kwargs)

    def success(self) -> None:
        """A call counted as a success."""
        for listener in tuple(self.entries):
            self._tell(listener.success, self._breaker)

    def failure(self, error: BaseException | None) -> None:
        """A call counted as a failure."""
        for listener in tuple(self.entries):
            self._tell(listener.failure, self._breaker, error)

    def announce(self) -> None:
        """Tell the news, the lock not held."""
        if self.news:
            self._home.post(self._tell_news)

    def _tell_news(self) -> None:
        mine = False
        while True:
            with self.lock:
                if self.telling and not mine:
                    return  # news made by a listener: told in turn by the round that told it
                if not self.news:
                    self.telling = False
                    return
                self.telling = mine = True
                news = self.news.popleft()
            try:
                self._tell_one(*news)
            except BaseException:
                self.telling = False
                raise

    def _tell_one(self, old: State, new: State, reason: Reason, cause: str | None) -> None:
        name = self._breaker.name or UNNAMED
        if new.name == OPEN:
            logger.warning(
                "circuit %s opened: %s%s", name, reason, f", last by {cause}" if cause else ""
            )
        else:
            logger.info("circuit %s is %s after %s: %s", name, new.name, old.name, reason)
        for listener in tuple(self.entries):
            self._tell(listener.state_change, self._breaker, old, new)
        change = CircuitChanged(self._breaker.name or "", old.name, new.name, reason)
        for observer in tuple(self.observers):
            self._tell(observer, change)

    def _tell(self, hook: Any, /, *args: Any, **kwargs: Any) -> None:
        try:
            hook(*args, **kwargs)
        except Exception:
            logger.exception(
                "a listener of circuit %s failed; the circuit goes on",
                self._breaker.name or UNNAMED,
            )
