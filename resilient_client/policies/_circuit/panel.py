"""What a circuit breaker shows, and how it is steered by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar, overload

from resilient_client._checks import integer, seconds
from resilient_client.errors import ConfigurationError
from resilient_client.policies._circuit import rules
from resilient_client.policies._circuit.calls import Calls
from resilient_client.policies._circuit.engine import Circuit
from resilient_client.policies._circuit.home import Home
from resilient_client.policies._circuit.states import (
    CLOSED,
    DISABLED,
    FORCED_OPEN,
    HALF_OPEN,
    METRICS_ONLY,
    OPEN,
)

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

STATES = (CLOSED, OPEN, HALF_OPEN, FORCED_OPEN, DISABLED, METRICS_ONLY)


class Panel:
    """The part of `CircuitBreaker` that people, tests and metrics use, from any thread."""

    _calls: Calls
    _circuit: Circuit
    _home: Home
    _rules: rules.Rules
    _lock: threading.RLock
    _throw_new_error_on_trip: bool

    # ---- steering by hand, from any thread

    def open(self) -> bool:
        """Refuse calls for the open time, then probe. Nothing while it does so already."""
        self._steer(OPEN)
        return self._throw_new_error_on_trip

    def half_open(self) -> None:
        """Probe now. Nothing when it does so already."""
        self._steer(HALF_OPEN)

    def close(self) -> None:
        """Let everything pass and count anew, without a ramp."""
        self._steer(CLOSED)

    reset = close

    def force_open(self) -> None:
        """Refuse every call until `close`, `half_open` or another of these."""
        self._steer(FORCED_OPEN)

    def disable(self) -> None:
        """Let every call pass and count nothing, until `close`."""
        self._steer(DISABLED)

    def metrics_only(self) -> None:
        """Let every call pass and count, but never open, until `close`."""
        self._steer(METRICS_ONLY)

    def _steer(self, name: str) -> None:
        self._home.run(lambda: self._circuit.by_hand(name))

    @property
    def state(self) -> Any:
        """The state object; setting it to a state's name is steering."""
        return self._circuit.state

    @state.setter
    def state(self, state_str: str) -> None:
        if state_str not in STATES:
            raise ConfigurationError(f"no state {state_str!r}; there are {', '.join(STATES)}")
        self._steer(state_str)

    # ---- what it is and has

    @property
    def current_state(self) -> str:
        """One of "closed", "open", "half-open", "forced-open", "disabled", "metrics-only"."""
        return str(self._circuit.state.name) if hasattr(self, "_circuit") else CLOSED

    @property
    def calls(self) -> int:
        """How many calls the window holds."""
        return int(self._circuit.state.size())

    @property
    def failures(self) -> int:
        """How many of them failed."""
        with self._lock:
            return int(self._circuit.state.failures())

    @property
    def slow_calls(self) -> int:
        """How many of them were slow."""
        with self._lock:
            return int(self._circuit.state.slow_calls())

    @property
    def rejections(self) -> int:
        """How many calls it has refused since it was made."""
        return self._circuit.rejections

    @property
    def fail_counter(self) -> int:
        """Failures in a row up to now."""
        return int(self._circuit.state.fail_counter)

    @property
    def success_counter(self) -> int:
        """Probes that have succeeded, at half-open."""
        return int(self._circuit.state.success_counter)

    @property
    def fail_max(self) -> int:
        """Failures in a row that open it; 0 when they do not."""
        return self._rules.fail_max or 0

    @fail_max.setter
    def fail_max(self, number: int) -> None:
        self._rules.fail_max = integer("fail_max", number)

    @property
    def success_threshold(self) -> int:
        """Probes that must succeed to close it; a change holds from the next half-open."""
        return self._rules.success_threshold

    @success_threshold.setter
    def success_threshold(self, threshold: int) -> None:
        self._rules.success_threshold = integer("success_threshold", threshold)

    @property
    def reset_timeout(self) -> float:
        """`open_for`; a change holds from the next opening."""
        return self._rules.open_for

    @reset_timeout.setter
    def reset_timeout(self, timeout: float) -> None:
        self._rules.open_for = seconds("reset_timeout", timeout, finite=True)
        self._rules.open_for_max = max(self._rules.open_for_max, self._rules.open_for)

    # ---- pybreaker's ways to call

    def call(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call `func` through the breaker; safe in threads, nothing is locked while it runs.

        A coroutine or generator that it returns, async or not, is wrapped, and counts when that
        ends; what is entered with `async with`, when it has been.

        Raises:
            CircuitOpenError: it was not called.
        """
        result: T = self._calls.call(func, *args, **kwargs)
        return result

    def calling(self) -> Any:
        """A context manager that guards its block, awaits inside included. See `call`."""
        return self._calls.calling()

    @overload
    def __call__(self, function: F, /) -> F: ...

    @overload
    def __call__(self, *call_args: Any, **call_kwargs: bool) -> Callable[[F], F]: ...

    def __call__(self, *call_args: Any, **call_kwargs: Any) -> Any:
        """Decorate a function, sync or async. See `call`."""
        return self._calls.decorate(call_args[0]) if call_args else self._calls.decorate

    # ---- for people

    def describe(self) -> str:
        """The effective settings, in words."""
        return self._rules.describe()
