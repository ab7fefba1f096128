"""The state machine of a circuit breaker: who may call, and what their results lead to."""

from __future__ import annotations

import random
import threading
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from resilient_client.errors import Outcome, outcome_of, shown, text_of
from resilient_client.policies._circuit.leases import Admission
from resilient_client.policies._circuit.rules import OPEN_FOR_JITTER, Rules
from resilient_client.policies._circuit.states import (
    CLOSED,
    FORCED_OPEN,
    HALF_OPEN,
    OPEN,
    Closed,
    Reason,
    Result,
    State,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_client.message import Reply
    from resilient_client.policies._circuit.listeners import Listeners

_RESULTS = {
    Outcome.SUCCESS: Result.SUCCESS,
    Outcome.FAILURE: Result.FAILURE,
    Outcome.NEVER_SENT: Result.FAILURE,
    Outcome.THROTTLED: Result.NEUTRAL,
    Outcome.REJECTED: Result.NEUTRAL,
    Outcome.CANCELLED: Result.NEUTRAL,
}
_CAUSE_LENGTH = 500


class Maker(Protocol):
    """Makes a state by name."""

    def __call__(self, name: str, /, *, until: float = inf, ramp: bool = False) -> State: ...


class Circuit:
    """The current state, and every way it changes.

    A call takes an admission and brings it back by `succeeded`, `returned` or `failed`; nothing is
    held in between. The admission of a plain state is the state itself, and its successes are
    counted by the caller with one addition, without the lock: that is the fast path. All else takes
    the lock, for calls and steering may come from several threads.

    Attributes:
        state: the current state; its identity is the generation.
        now: the clock.
        rejections: calls refused so far.
        attentive: whether each call must be seen, so that there is no fast path.
    """

    __slots__ = (
        "_closed_at",
        "_is_excluded",
        "_last_cause",
        "_listeners",
        "_make",
        "_open_time",
        "_publish",
        "_refuse",
        "_rules",
        "_was_open",
        "attentive",
        "lock",
        "now",
        "rejections",
        "state",
    )

    def __init__(
        self,
        rules: Rules,
        make: Maker,
        *,
        refuse: Callable[[State, float, str | None], BaseException],
        is_excluded: Callable[[BaseException], bool],
        listeners: Listeners,
        publish: Callable[[str], None] | None,
        lock: threading.RLock,
        now: Callable[[], float],
    ) -> None:
        self._rules = rules
        self._make = make
        self._refuse = refuse
        self._is_excluded = is_excluded
        self._listeners = listeners
        self._publish = publish
        self.lock = lock
        self.now = now
        self.rejections = 0
        self.attentive = False
        self._last_cause: str | None = None
        self._open_time = 0.0  # of the last opening, before jitter
        self._was_open = 0.0  # and as it was drawn
        self._closed_at = -inf  # by probes that succeeded
        self.state: Any = make(CLOSED)

    # ---- calls

    def admits(self) -> bool:
        """Whether a call made now would be let through. Changes nothing."""
        return bool(self.state.admits(self.now()))

    def admit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """An admission, or the refusal raised."""
        now = self.now()
        state = self.state
        if now < state.until:
            self.rejections += 1
            raise self._refuse(state, state.until - now, self._last_cause)
        if not state.admits(now):  # a herd at half-open need not take turns at the lock
            self.rejections += 1
            raise self.refusal(state, now)
        with self.lock:
            self._pass_open_time(now)
            state = self.state
            admission = state.take(now)
        if self._listeners.news:
            self._listeners.announce()
        if admission is None:
            self.rejections += 1
            raise self.refusal(state, now)
        if self._listeners.entries:
            self._listeners.before_call(function, args, kwargs)
        return admission

    def refusal(self, state: State, now: float) -> BaseException:
        """The error for a call that the state does not let through."""
        return self._refuse(state, state.next_free() - now, self._last_cause)

    def succeeded(self, admission: Any) -> None:
        """The call ended well."""
        self._settle(admission, Result.SUCCESS, slow=self._slow(admission))

    def returned(self, admission: Any, reply: Reply) -> None:
        """A reply came: a stream counts when it ends, anything else now."""
        if reply.items is None:
            self._settle(admission, Result.SUCCESS, slow=self._slow(admission))
            return
        state, slow = admission, self._slow(admission)
        if type(admission) is Admission:
            state = admission.state
            with self.lock:
                success = state.first_item(admission)
                self._attend(state)  # the ramp may be over
            if success:
                self.succeeded(admission)
                return

        def ended(outcome: Outcome, error: BaseException | None) -> None:
            self._settle(state, self._result(outcome, error), error, slow=slow)

        reply.on_complete(ended)

    def failed(self, admission: Any, error: BaseException) -> bool:
        """The call ended with an error, which may be none of the peer's. Whether that opened it."""
        result = self._result(outcome_of(error), error)
        slow = result is not Result.NEUTRAL and self._slow(admission)
        return self._settle(admission, result, error, slow=slow)

    def _result(self, outcome: Outcome, error: BaseException | None) -> Result:
        if isinstance(error, Exception) and self._is_excluded(error):
            return Result.NEUTRAL
        return _RESULTS[outcome]

    def _slow(self, admission: Any) -> bool:
        limit = self._rules.slow_call
        return (
            limit is not None
            and type(admission) is Admission
            and self.now() - admission.started > limit
        )

    def _settle(
        self,
        admission: Any,
        result: Result,
        error: BaseException | None = None,
        *,
        slow: bool = False,
    ) -> bool:
        if type(admission) is Admission:
            state, permit = admission.state, admission
        else:
            state, permit = admission, None
        listeners = self._listeners
        opened = False
        with self.lock:
            if state is not self.state:
                return False  # a late result: that stay is over
            reason = state.settle(permit, result, slow=slow)
            if reason is not None:
                opened = self._decide(reason, error)
            else:
                self._attend(state)  # the ramp may be over
        if listeners.entries:
            if result is Result.SUCCESS:
                listeners.success()
            elif result is Result.FAILURE:
                listeners.failure(error)
        if listeners.news:
            listeners.announce()
        return opened

    def judge(self, state: State) -> None:
        """A success on the fast path was the one that makes the minimum of calls."""
        with self.lock:
            reason = state.judge() if state is self.state else None
            if reason is not None:
                self._decide(reason, None)
        self._listeners.announce()

    # ---- transitions; the lock is held

    def _decide(self, reason: Reason, error: BaseException | None) -> bool:
        if reason == "probe_ok":
            self._closed_at = self.now()
            self._enter(self._make(CLOSED, ramp=True), reason)
            return False
        self._open(reason, error)
        return True

    def _pass_open_time(self, now: float) -> None:
        """An open circuit's time ends unseen: only what comes next finds that it is over."""
        if -inf < self.state.until <= now:
            self._enter(self._make(HALF_OPEN), "open_time_over")

    def _open(self, reason: Reason, error: BaseException | None = None, age: float = 0.0) -> None:
        rules, now = self._rules, self.now()
        was_up = self.state.name not in {OPEN, HALF_OPEN}
        if was_up and now - self._closed_at >= self._was_open:
            self._open_time = 0.0  # it has been well for longer than it was not
        elif reason not in {"manual", "storage"}:
            self._open_time = min(2 * self._open_time, rules.open_for_max)
        self._open_time = max(self._open_time, rules.open_for)
        self._was_open = self._open_time * random.uniform(1.0, 1.0 + OPEN_FOR_JITTER)
        self._last_cause = None if error is None else _cause(error)
        until = now + max(0.0, self._was_open - age)
        self._enter(self._make(OPEN, until=until), reason)

    def _enter(self, state: State, reason: Reason) -> None:
        old, self.state = self.state, state
        state.failed_in_a_row = old.fail_counter + (reason == "probe_failed")
        self._attend(state)
        if old.name == state.name:
            return
        self._listeners.news.append((old, state, reason, self._last_cause))
        if self._publish is not None and reason != "storage":
            self._publish(state.name)

    def _attend(self, state: State) -> None:
        if isinstance(state, Closed):
            state.plain = not self.attentive and state.ramp is None

    # ---- steering

    def attend(self, *, closely: bool) -> None:
        """See each call from now on, or not."""
        with self.lock:
            self.attentive = closely
            self._attend(self.state)

    def by_hand(self, name: str) -> None:
        """Enter a state because somebody says so."""
        with self.lock:
            if name == OPEN:
                self._pass_open_time(self.now())
            if name == CLOSED:
                self._closed_at = -inf
                self._enter(self._make(CLOSED), "manual")
            elif name == self.state.name:
                return
            elif name == OPEN:
                self._open("manual")
            else:
                if name == FORCED_OPEN:
                    self._last_cause = None
                self._enter(self._make(name), "manual")
        self._listeners.announce()

    def opened_elsewhere(self, age: float | None) -> None:
        """Another process has opened its circuit to this peer, so many seconds ago."""
        with self.lock:
            state = self.state
            if state.name not in {CLOSED, HALF_OPEN, OPEN} or self.now() < state.until:
                return
            self._open("storage", age=age or 0.0)
        self._listeners.announce()

    def move_clock(self, now: Callable[[], float]) -> None:
        """Go on by another clock, keeping what is left of each time."""
        with self.lock:
            shift = now() - self.now()
            self.now = now
            self._closed_at += shift
            self.state.until += shift


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {shown(text_of(error))}"[:_CAUSE_LENGTH]
