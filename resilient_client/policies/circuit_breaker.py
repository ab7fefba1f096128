"""The circuit breaker: stop calling a peer that keeps failing, and try it again with care.

To its users it is a `pybreaker.CircuitBreaker` (names, listeners, exclusions, storages), with a
state machine of its own. This is the one module that knows pybreaker; the machine is in `_circuit`.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterable
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

import pybreaker

from resilient_client._checks import plain, several
from resilient_client.errors import UNSET, ConfigurationError, RejectedError
from resilient_client.policies._circuit import mirror, rules, states
from resilient_client.policies._circuit.calls import Calls
from resilient_client.policies._circuit.engine import Circuit
from resilient_client.policies._circuit.home import Home
from resilient_client.policies._circuit.listeners import UNNAMED, Listeners, logger
from resilient_client.policies._circuit.panel import Panel
from resilient_client.policies._circuit.states import (
    CLOSED,
    DISABLED,
    FORCED_OPEN,
    HALF_OPEN,
    METRICS_ONLY,
    OPEN,
    State,
)

if TYPE_CHECKING:
    from resilient_client.clock import Clock
    from resilient_client.events import CircuitChanged
    from resilient_client.message import Call, Reply
    from resilient_client.pipeline import Handler


class CircuitOpenError(RejectedError, pybreaker.CircuitBreakerError):
    """Refused by a circuit breaker, before anything of this attempt was sent.

    Attributes:
        retry_after: seconds after which a call may be let through, None when that is not known.
        last_cause: type and text of the failure that opened the circuit, credentials redacted; None
            when it was opened by hand or by another process.
    """

    hint = "the peer was failing: wait retry_after seconds; last_cause says what it failed with"
    retry_after: float | None = None
    last_cause: str | None = None
    _refused_by: State | None = None
    _circuit: str | None = None
    _circuit_state: str = OPEN

    def __init__(
        self,
        message: str = "",
        *,
        sent: bool | None = None,
        hint: str | None = None,
        retry_after: float | None = None,
        last_cause: str | None = None,
    ) -> None:
        super().__init__(message, sent=sent, hint=hint)
        self.retry_after = retry_after
        self.last_cause = last_cause

    @property
    def circuit(self) -> str | None:
        """The breaker's name."""
        by = self._refused_by
        return self._circuit if by is None else by.circuit

    @property
    def state(self) -> str:
        """The breaker's state.

        "open", "forced-open", "half-open" when all probes are out, "closed" when the ramp is full.
        """
        by = self._refused_by
        return self._circuit_state if by is None else by.name

    def _state(self) -> dict[str, Any]:
        kept = super()._state()
        kept.update(_refused_by=None, _circuit=self.circuit, _circuit_state=self.state)
        return kept


_new = CircuitOpenError.__new__


def _refuse(state: State, wait: float, last_cause: str | None) -> CircuitOpenError:
    text = state.refusal
    if text is None:
        text = state.refusal = _text(state, last_cause)
    error = _new(CircuitOpenError, text)  # without its constructor: a refusal is cheap
    error._refused_by = state  # noqa: SLF001
    error.retry_after = wait if 0.0 < wait < inf else None
    error.last_cause = last_cause
    if wait == inf:  # forced open
        error.hint = "it was opened by hand: close() or half_open() lets calls pass again"
    return error


def _text(state: State, last_cause: str | None) -> str:
    text = f"circuit {state.circuit or UNNAMED} is {state.name}"
    if state.name in {CLOSED, HALF_OPEN}:
        text += ", but no more calls at once for now"
    return text if last_cause is None else f"{text} since {last_cause}"


class _ClosedState(states.Closed, pybreaker.CircuitClosedState):
    """Ours, for listeners that look at pybreaker's classes."""


class _OpenState(states.Open, pybreaker.CircuitOpenState):
    """Ours, for listeners that look at pybreaker's classes."""


class _HalfOpenState(states.HalfOpen, pybreaker.CircuitHalfOpenState):
    """Ours, for listeners that look at pybreaker's classes."""


class _DisabledState(states.Disabled, pybreaker.CircuitClosedState):
    """Ours, for listeners that look at pybreaker's classes."""


class _MetricsOnlyState(states.MetricsOnly, pybreaker.CircuitClosedState):
    """Ours, for listeners that look at pybreaker's classes."""


_STATES: dict[str, type[State]] = {
    CLOSED: _ClosedState,
    OPEN: _OpenState,
    HALF_OPEN: _HalfOpenState,
    FORCED_OPEN: _OpenState,
    DISABLED: _DisabledState,
    METRICS_ONLY: _MetricsOnlyState,
}


class CircuitBreaker(Panel, pybreaker.CircuitBreaker):
    """A policy, and a `pybreaker.CircuitBreaker`.

    Closed, it counts successes and failures over the last `window` calls and opens when, with at
    least `minimum_calls` of them, `failure_rate` failed or `slow_call_rate` took longer than
    `slow_call`. Open, it refuses with `CircuitOpenError` for `open_for` seconds or up to half as
    long again, twice that with each reopening. Then `probes` calls pass, each with a lease: the
    first failure reopens, `success_threshold` successes close. After that a ramp: 2, 4, 8 ... 64
    times `probes` calls in flight, one more with each success; `current_state` is "closed" by then.
    A reopening is a failed probe, or an opening that follows closing sooner than the circuit had
    been open.

    What counts is the call's outcome: a success, or a failure (one that was never sent included).
    A throttled, rejected, cancelled or excluded call counts nothing and gives its permit back. A
    stream counts once, when it ends; for a probe, its first item is the success.

    Args:
        failure_rate: share of the calls in the window, above 0 to 1. Default 0.5; off when
            `fail_max` is given and this is not.
        window: calls remembered.
        minimum_calls: calls in the window before a share is judged, or the whole window if that is
            smaller than the default.
        slow_call: seconds; None is off. For a stream, the time to its first item.
        slow_call_rate: share of slow calls, failed or not, that opens it.
        open_for: seconds it stays open at first.
        open_for_max: seconds that the doubling stops at, jitter apart.
        probes: calls let through at half-open.
        listeners: pybreaker's `CircuitBreakerListener` objects. An error in one is only logged.
        exclude: exception classes, or functions of an exception, that say nothing about the peer.
        state_storage: a pybreaker storage, mirrored in a thread of its own (see `start`), or a
            function from the breaker's name to one.
        name: for people and metrics.
        probe_lease: seconds after which a probe that has not come back gives up its permit.
        fail_max: pybreaker's: open after so many failures in a row.
        reset_timeout: pybreaker's name for `open_for`.
        success_threshold: pybreaker's: successes that close it. Default `probes`.
        throw_new_error_on_trip: pybreaker's: `call` raises `CircuitOpenError` from the failure that
            opens the circuit. Default False: the failure itself.
        clock: by default the client's, else the monotonic clock.

    Raises:
        ConfigurationError: a setting that cannot work.
    """

    scope: ClassVar[str] = "endpoint"

    def __init__(
        self,
        failure_rate: float = UNSET,
        window: int = rules.WINDOW,
        minimum_calls: int = rules.MINIMUM_CALLS,
        slow_call: float | None = None,
        slow_call_rate: float = rules.SLOW_CALL_RATE,
        open_for: float = rules.OPEN_FOR,
        open_for_max: float = rules.OPEN_FOR_MAX,
        probes: int = rules.PROBES,
        listeners: Iterable[pybreaker.CircuitBreakerListener] | None = (),
        exclude: Iterable[type[BaseException] | Callable[[Any], bool]] | None = (),
        state_storage: Any = None,
        name: str | None = None,
        *,
        probe_lease: float = rules.PROBE_LEASE,
        fail_max: int | None = None,
        reset_timeout: float | None = None,
        success_threshold: int | None = None,
        throw_new_error_on_trip: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._rules = rules.check(
            failure_rate=failure_rate,
            window=window,
            minimum_calls=minimum_calls,
            fail_max=fail_max,
            slow_call=slow_call,
            slow_call_rate=slow_call_rate,
            open_for=open_for,
            open_for_max=open_for_max,
            reset_timeout=reset_timeout,
            probes=probes,
            success_threshold=success_threshold,
            probe_lease=probe_lease,
        )
        if name is not None and not isinstance(name, str):
            raise ConfigurationError(f"name={name!r} must be a string")
        super().__init__(
            exclude=[_checked_exclusion(entry) for entry in several("exclude", exclude or ())],
            listeners=[_checked_listener(entry) for entry in several("listeners", listeners or ())],
            name=name,
            throw_new_error_on_trip=throw_new_error_on_trip,
        )
        self._storage = _checked_storage(state_storage)
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        """Make everything that one endpoint has of its own."""
        self._lock = threading.RLock()
        self._home = Home()
        self._heard_by = Listeners(self, self._listeners, self._home, self._lock)
        self._mirror: mirror.Mirror | None = None
        if self._storage is not None:
            self._mirror = mirror.Mirror(self._storage, self._elsewhere)
        self._circuit = Circuit(
            self._rules,
            self._create_new_state,
            refuse=_refuse,
            is_excluded=lambda error: not self.is_system_error(error),
            listeners=self._heard_by,
            publish=None if self._mirror is None else self._mirror.publish,
            lock=self._lock,
            now=time.monotonic if self._clock is None else self._clock.now,
        )
        self._calls = Calls(self._circuit, new_error_on_trip=self._throw_new_error_on_trip)
        self._attend()
        _breakers.add(self)

    def copy_for(self, name: str) -> CircuitBreaker:
        """A breaker with these settings and listeners for one of several endpoints.

        Raises:
            ConfigurationError: `state_storage` is one storage; several breakers need a function.
        """
        if self._storage is not None and not callable(self._storage):
            raise ConfigurationError(
                "with several endpoints state_storage must be a function from a breaker's name to a"
                " storage: they cannot share one"
            )
        other = copy.copy(self)
        other._take(name)  # noqa: SLF001
        return other

    def _take(self, name: str) -> None:
        self._name = name
        self._rules = copy.copy(self._rules)
        self._listeners = list(self._listeners)
        self._excluded_exceptions = list(self._excluded_exceptions)
        self._begin()

    # ---- the policy

    def wrap(self, handler: Handler, clock: Clock, /) -> Handler:
        """See `Policy.wrap`.

        Raises:
            ConfigurationError: another client has given this breaker another clock.
        """
        self._adopt(clock)
        circuit = self._circuit

        async def circuit_breaker(call: Call) -> Reply:
            admission = circuit.state
            if not admission.plain:
                admission = circuit.admit(handler, call)
            try:
                reply = await handler(call)
            except BaseException as error:
                circuit.failed(admission, error)
                raise
            if admission is circuit.state and reply.items is None:  # the fast path: see Circuit
                admission.calls = number = admission.calls + 1
                if number == admission.judged_at:
                    circuit.judge(admission)
            else:
                circuit.returned(admission, reply)
            return reply

        return circuit_breaker

    def _adopt(self, clock: Clock) -> None:
        if self._clock is None:
            self._clock = clock
            self._circuit.move_clock(clock.now)
        elif clock.now != self._clock.now:
            raise ConfigurationError(
                f"circuit breaker {self.name or UNNAMED} already runs on another clock:"
                " clients that share a breaker share the clock"
            )

    def admits(self) -> bool:
        """Whether a call made now would be let through. Changes nothing."""
        return self._circuit.admits()

    # ---- listeners and exclusions

    def observe(self, observer: Callable[[CircuitChanged], None]) -> Callable[[], None]:
        """Tell `observer` of each change of state, with its reason; the function returned ends it.

        Reasons: "failure_rate", "slow_rate", "consecutive", "open_time_over", "probe_ok",
        "probe_failed", "probe_slow", "manual", "storage".
        """
        observers = self._heard_by.observers
        observers.append(observer)

        def forget() -> None:
            if observer in observers:
                observers.remove(observer)

        return forget

    def add_listener(self, listener: pybreaker.CircuitBreakerListener) -> None:
        """Register a listener.

        The hooks of a call run where the call runs, `state_change` on the client's loop while that
        runs.
        """
        self._listeners.append(_checked_listener(listener))
        self._attend()

    def remove_listener(self, listener: pybreaker.CircuitBreakerListener) -> None:
        """Unregister it."""
        entries: list[Any] = self._listeners
        entries.remove(listener)
        self._attend()

    def _attend(self) -> None:
        slow_calls = self._rules.slow_call is not None
        self._circuit.attend(closely=slow_calls or any(map(_follows_calls, self._listeners)))

    def add_excluded_exception(self, exception: Any) -> None:
        """Add an exception class, or a function of an exception, that counts nothing."""
        self._excluded_exceptions.append(_checked_exclusion(exception))

    def is_system_error(self, exception: BaseException) -> bool:
        """Whether this exception is not excluded."""
        for exclusion in tuple(self._excluded_exceptions):
            if isinstance(exclusion, type):
                if isinstance(exception, exclusion):
                    return False
                continue
            try:
                if exclusion(exception):
                    return False
            except Exception:  # noqa: BLE001 - a user's function must not change the outcome
                logger.exception("an exclusion of circuit %s failed", self.name or UNNAMED)
        return True

    def _create_new_state(
        self,
        new_state: str,
        prev_state: Any = None,
        notify: bool = False,  # noqa: FBT001, FBT002 - pybreaker's
        *,
        until: float = inf,
        ramp: bool = False,
    ) -> Any:
        return _STATES[new_state](self, new_state, self._rules, until=until, ramp=ramp)

    async def call_async(  # pyright: ignore[reportIncompatibleMethodOverride] - Tornado's there
        self, func: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Call and await `func` through the breaker. See `call`."""
        result = self._calls.call(func, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    def __repr__(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        counts = f"{self.failures} of {self.calls} failed"
        return f"<CircuitBreaker{name} {self.current_state}: {counts}>"

    # ---- the client's loop, and the storage

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to this loop: steering from other threads goes there from now on.

        Raises:
            ConfigurationError: the breaker is in use on another loop that is not closed.
        """
        self._home.bind(loop, self.name or UNNAMED)

    def begin(self, loop: asyncio.AbstractEventLoop, user: object = None) -> None:
        """`bind`, and `start` without waiting for the first read."""
        self.bind(loop)
        if self._mirror is not None:
            self._mirror.begin(user, self.name or UNNAMED)

    async def start(self, user: object = None) -> None:
        """Bind to the running loop, and mirror the state in `state_storage` if there is one.

        Waits for the first read, half a second at most: an opening found there opens this breaker.
        Changes of state are published; later openings elsewhere are seen within a second or so.
        Nothing else is taken over, and a storage that hangs or fails changes nothing here.

        Args:
            user: whoever will `stop`; the mirror runs until its last user has.
        """
        self.bind(asyncio.get_running_loop())
        if self._mirror is not None:
            await self._mirror.start(user, self.name or UNNAMED)

    async def stop(self, user: object = None) -> None:
        """Publish what is left and end the mirror; waits for that, half a second at most."""
        if self._mirror is not None:
            await self._mirror.stop(user)

    def leave(self, user: object = None) -> None:
        """`stop` without waiting."""
        if self._mirror is not None:
            self._mirror.leave(user)

    def _elsewhere(self, age: float | None) -> None:
        self._home.post(lambda: self._circuit.opened_elsewhere(age))

    def _forked(self) -> None:
        """Threads and loops stayed in the parent, and one of them may have held the lock."""
        self._lock = self._circuit.lock = self._heard_by.lock = threading.RLock()
        self._heard_by.telling = False
        self._home.forget()
        if self._mirror is not None:
            self._mirror.forget()


_breakers: WeakSet[CircuitBreaker] = WeakSet()


def _after_fork() -> None:
    mirror.forget_all()
    for breaker in _breakers:
        breaker._forked()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _follows_calls(listener: Any) -> bool:
    """Whether it wants to know of each call, as opposed to failures and changes of state."""
    base = pybreaker.CircuitBreakerListener
    return (
        getattr(listener.before_call, "__func__", None) is not base.before_call
        or getattr(listener.success, "__func__", None) is not base.success
    )


def _checked_listener(listener: Any) -> Any:
    hooks = ("before_call", "success", "failure", "state_change")
    fits = all(callable(getattr(listener, hook, None)) for hook in hooks)
    if isinstance(listener, type) or not fits:
        raise ConfigurationError(
            f"listener {listener!r} must be a pybreaker.CircuitBreakerListener object"
        )
    return listener


def _checked_exclusion(entry: Any) -> Any:
    # pybreaker asks `type(entry) is type`, and takes a class with a metaclass for a function
    if isinstance(entry, type) and not issubclass(entry, BaseException):
        raise ConfigurationError(f"exclude entry {entry!r} is not an exception class")
    if not callable(entry):
        raise ConfigurationError(
            f"exclude entry {entry!r} must be an exception class or a function of an exception"
        )
    plain("exclude entry", entry)
    return entry


def _checked_storage(storage: Any) -> Any:
    # the class is asked: reading a storage's properties may block
    if storage is None or callable(storage) or hasattr(type(storage), "state"):
        return storage
    raise ConfigurationError(
        f"state_storage {storage!r} must be a pybreaker storage, or a function from a name to one"
    )
