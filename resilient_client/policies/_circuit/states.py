"""What a circuit breaker admits and counts in each of its states.

A state object lives for one stay in that state: it is the generation of the calls it let through,
so that a result which comes after the state has changed finds another object and is dropped. The
states know neither locks, clocks nor listeners, which are the circuit's business.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from resilient_client.policies._circuit.leases import Admission, Leases
from resilient_client.policies._circuit.rules import RAMP

if TYPE_CHECKING:
    from resilient_client.policies._circuit.rules import Rules

CLOSED = "closed"
OPEN = "open"
HALF_OPEN = "half-open"
FORCED_OPEN = "forced-open"
DISABLED = "disabled"
METRICS_ONLY = "metrics-only"

Reason: TypeAlias = Literal[
    "failure_rate",
    "slow_rate",
    "consecutive",
    "open_time_over",
    "probe_ok",
    "probe_failed",
    "probe_slow",
    "manual",
    "storage",
]


class Result(Enum):
    """What the end of a call means to a breaker."""

    SUCCESS = 1
    FAILURE = 2
    NEUTRAL = 3


class State:
    """What all states have; also one of pybreaker's states when it is made by `CircuitBreaker`.

    Attributes:
        plain: every call passes and a success only adds one to `calls`: the fast path.
        calls: how many have been counted here.
        judged_at: the number of the one call that can open the circuit by succeeding.
        until: when an open state ends.
        refusal: what those that are not let through are told, once there was one.
        failed_in_a_row: as it came from the state before, for those that count none themselves.
    """

    plain = False
    until = -inf
    refusal: str | None = None
    failed_in_a_row = 0
    calls = 0
    judged_at = 0

    def __init__(
        self, breaker: Any, name: str, rules: Rules, *, until: float = inf, ramp: bool = False
    ) -> None:
        self._breaker = breaker  # these two are all that pybreaker's states have
        self._name = name
        self._rules = rules

    @property
    def name(self) -> str:
        """The state's name."""
        return self._name

    @property
    def circuit(self) -> str | None:
        """The breaker's name."""
        name: str | None = self._breaker.name
        return name

    @property
    def fail_counter(self) -> int:
        """Failures in a row up to now."""
        return self.failed_in_a_row

    @property
    def success_counter(self) -> int:
        """Probes that have succeeded."""
        return 0

    def size(self) -> int:
        """How many calls the window holds."""
        return 0

    def failures(self) -> int:
        """How many of them failed."""
        return 0

    def slow_calls(self) -> int:
        """How many of them were slow."""
        return 0

    def admits(self, now: float) -> bool:
        """Whether a call would be admitted; changes nothing."""
        return False

    def take(self, now: float) -> Admission | None:
        """Admit a call, or None."""
        return None

    def next_free(self) -> float:
        """When a call may be admitted, as far as the state can tell."""
        return self.until

    def first_item(self, admission: Admission) -> bool:
        """A stream has begun: its permit comes back. Whether that already is a success."""
        return False

    def settle(self, admission: Admission | None, result: Result, *, slow: bool) -> Reason | None:
        """Count the end of a call that this state let through; the reason if that ends the state.

        Args:
            admission: None when it has no permit to bring back.
            result: what it means.
            slow: whether it took too long.
        """
        return None

    def judge(self) -> Reason | None:
        """Why the circuit should open now, if it should."""
        return None


class Closed(State):
    """Calls pass and are counted; for a while after half-open, only so many at once (the ramp).

    The ramp begins with twice the probes in flight and allows one more with each success, so that
    it doubles with each round: 2, 4, 8 ... 64 times the probes, then it is over.

    A success costs one addition: the window is kept as the numbers of the calls that failed.
    """

    plain = True

    def __init__(
        self, breaker: Any, name: str, rules: Rules, *, until: float = inf, ramp: bool = False
    ) -> None:
        super().__init__(breaker, name, rules)
        self.calls = 0
        self._failed: deque[int] = deque()  # the numbers of those calls, and of the slow ones
        self._slow: deque[int] = deque()
        self._last_failure = 0
        self._in_a_row = 0
        if rules.failure_rate is not None or rules.slow_call is not None:
            self.judged_at = rules.minimum_calls
        self.ramp = Leases(2 * rules.probes, rules.probe_lease) if ramp else None

    def admits(self, now: float) -> bool:
        """See `State.admits`."""
        return self.ramp is None or self.ramp.free(now)

    def take(self, now: float) -> Admission | None:
        """See `State.take`."""
        admission = Admission(self, now)
        if self.ramp is not None and not self.ramp.take(admission, now):
            return None
        return admission

    def next_free(self) -> float:
        """See `State.next_free`."""
        return self.until if self.ramp is None else self.ramp.next_free()

    def first_item(self, admission: Admission) -> bool:
        """See `State.first_item`."""
        if self.ramp is not None:
            self._bring_back(self.ramp, admission, climb=True)
        return False

    def settle(self, admission: Admission | None, result: Result, *, slow: bool) -> Reason | None:
        """See `State.settle`."""
        if self.ramp is not None and admission is not None:
            self._bring_back(self.ramp, admission, climb=result is Result.SUCCESS)
        if result is Result.NEUTRAL:
            return None
        self.calls = number = self.calls + 1
        if slow:
            self._slow.append(number)
        if result is Result.FAILURE:
            self._in_a_row = self.fail_counter_before(number) + 1
            self._last_failure = number
            self._failed.append(number)
        elif not slow and number != self.judged_at:
            return None
        return self.judge()

    def _bring_back(self, ramp: Leases, admission: Admission, *, climb: bool) -> None:
        ramp.give_back(admission)
        ramp.limit += climb
        if ramp.limit >= RAMP * self._rules.probes:
            self.ramp = None

    def judge(self) -> Reason | None:
        """See `State.judge`."""
        rules = self._rules
        size, failures, slow = self.size(), self.failures(), self.slow_calls()
        if rules.fail_max is not None and self.fail_counter >= rules.fail_max:
            return "consecutive"
        if size < rules.minimum_calls:
            return None
        if rules.failure_rate is not None and failures / size >= rules.failure_rate:
            return "failure_rate"
        if rules.slow_call is not None and slow / size >= rules.slow_call_rate:
            return "slow_rate"
        return None

    def fail_counter_before(self, number: int) -> int:
        """Failures in a row up to the call before this one."""
        return self._in_a_row if self._last_failure == number - 1 else 0

    @property
    def fail_counter(self) -> int:
        """See `State.fail_counter`."""
        return self.fail_counter_before(self.calls + 1)

    def size(self) -> int:
        """See `State.size`."""
        return min(self.calls, self._rules.window)

    def failures(self) -> int:
        """See `State.failures`."""
        return self._within(self._failed)

    def slow_calls(self) -> int:
        """See `State.slow_calls`."""
        return self._within(self._slow)

    def _within(self, numbers: deque[int]) -> int:
        oldest = self.calls - self._rules.window
        while numbers and numbers[0] <= oldest:
            numbers.popleft()
        return len(numbers)


class MetricsOnly(Closed):
    """Counts, and never opens."""

    def judge(self) -> Reason | None:
        """Nothing is reason enough."""
        super().judge()  # lets go of what has left the window
        return None


class Disabled(Closed):
    """Lets everything pass and counts nothing."""

    def settle(self, admission: Admission | None, result: Result, *, slow: bool) -> Reason | None:
        """Nothing counts."""
        return None

    def judge(self) -> Reason | None:
        """Nothing is reason enough."""
        return None

    def size(self) -> int:
        """Nothing counts."""
        return 0


class Open(State):
    """Nothing passes until its time is up."""

    def __init__(
        self, breaker: Any, name: str, rules: Rules, *, until: float = inf, ramp: bool = False
    ) -> None:
        super().__init__(breaker, name, rules)
        self.until = until

    def admits(self, now: float) -> bool:
        """See `State.admits`."""
        return now >= self.until


class HalfOpen(State):
    """A few leased probes pass: the first failure reopens, enough successes close.

    A success keeps its permit: no more probes go out than are still needed. A probe whose lease has
    ended still has its say when it comes back; only its permit is another's by then.
    """

    def __init__(
        self, breaker: Any, name: str, rules: Rules, *, until: float = inf, ramp: bool = False
    ) -> None:
        super().__init__(breaker, name, rules)
        self._successes = 0
        self._slow = 0
        self.leases = Leases(min(rules.probes, rules.success_threshold), rules.probe_lease)

    @property
    def success_counter(self) -> int:
        """See `State.success_counter`."""
        return self._successes

    def admits(self, now: float) -> bool:
        """See `State.admits`."""
        return self.leases.free(now)

    def take(self, now: float) -> Admission | None:
        """See `State.take`."""
        admission = Admission(self, now)
        return admission if self.leases.take(admission, now) else None

    def next_free(self) -> float:
        """See `State.next_free`."""
        return self.leases.next_free()

    def first_item(self, admission: Admission) -> bool:
        """See `State.first_item`."""
        return True

    def settle(self, admission: Admission | None, result: Result, *, slow: bool) -> Reason | None:
        """See `State.settle`."""
        if admission is not None:
            self.leases.give_back(admission)
        if result is Result.NEUTRAL:
            return None
        if result is Result.FAILURE:
            return "probe_failed"
        rules = self._rules
        self._successes += 1
        self._slow += slow
        self.failed_in_a_row = 0
        left = rules.success_threshold - self._successes
        if left > 0:
            self.leases.limit = min(rules.probes, left)
            return None
        if self._slow and self._slow / self._successes >= rules.slow_call_rate:
            return "probe_slow"
        return "probe_ok"
