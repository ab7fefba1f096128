"""The breaker against a model that is written without any of its tricks."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from resilient_client.errors import ConnectionLost, Overloaded, RemoteError, Throttled
from resilient_client.message import Reply
from resilient_client.policies.circuit_breaker import CircuitBreaker, CircuitOpenError
from tests.policies.breaker_kit import Clock, Items

WINDOW, MINIMUM, RATE, PROBES, LEASE = 6, 4, 0.5, 2, 3.0
OPEN_FOR, OPEN_MAX = 5.0, 12.0

ANSWERS: list[tuple[str, Any]] = [
    ("success", "well"),
    ("success", RemoteError("boom")),
    ("failure", ConnectionLost("cut")),
    ("failure", OSError("boom")),
    ("neutral", Throttled()),
    ("neutral", Overloaded("full")),
    ("neutral", KeyError("excluded")),
    ("neutral", GeneratorExit()),
]


class Stay:
    """One stay in a state, as the model sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.results: deque[bool] = deque(maxlen=WINDOW)
        self.successes = 0
        self.leases: dict[int, float] = {}
        self.limit: int | None = None  # of the ramp
        self.until = 0.0


class Machine(RuleBasedStateMachine):
    """Calls that start and end in any order, a clock, and a hand at the switches."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = CircuitBreaker(
            RATE, WINDOW, minimum_calls=MINIMUM, probes=PROBES, probe_lease=LEASE,
            open_for=OPEN_FOR, open_for_max=OPEN_MAX, exclude=[KeyError],
        )  # fmt: skip
        self.wire: dict[int, Any] = {}  # calls on the wire: the handler's coroutine, suspended
        self.streams: dict[int, tuple[Stay, Reply]] = {}
        self.stays: dict[int, Stay] = {}
        self.number = 0
        self.answer: Any = None

        async def peer(call: Any) -> Reply:
            answer = await Pause()
            if isinstance(answer, BaseException):
                raise answer
            return answer if isinstance(answer, Reply) else Reply(answer)

        self.handler = self.breaker.wrap(peer, self.clock)
        self.stay = Stay("closed")
        self.base = 0.0
        self.was_open = 0.0
        self.closed_at = float("-inf")

    # ---- the model

    def live(self) -> int:
        return sum(expiry > self.clock.time for expiry in self.stay.leases.values())

    def model_admits(self) -> bool:
        stay = self.stay
        if stay.name == "open":
            return self.clock.time >= stay.until
        if stay.name == "half-open":
            return self.live() < min(PROBES, PROBES - stay.successes)
        if stay.name == "closed":
            return stay.limit is None or self.live() < stay.limit
        return stay.name != "forced-open"

    def model_open(self, *, by_hand: bool = False) -> None:
        before = self.stay
        if before.name != "half-open" and self.clock.time - self.closed_at >= self.was_open:
            self.base = OPEN_FOR
        elif not by_hand:
            self.base = min(2 * self.base, OPEN_MAX) or OPEN_FOR
        self.base = max(self.base, OPEN_FOR)
        self.stay = Stay("open")
        self.stay.until = self.breaker.state.until
        # the time that was drawn: until - now is that but for the last bit, which decides above
        self.was_open = self.breaker._circuit._was_open
        assert abs(self.stay.until - self.clock.time - self.was_open) < 1e-6
        assert self.base <= self.was_open + 1e-6
        assert self.was_open <= 1.5 * self.base + 1e-6

    def model_ended(self, number: int, stay: Stay, meaning: str, *, lease: bool = True) -> None:
        if stay is not self.stay or stay.name == "disabled":
            return
        if lease:
            stay.leases.pop(number, None)
            if stay.limit is not None and meaning == "success":
                stay.limit += 1
                if stay.limit >= 64 * PROBES:
                    stay.limit = None
        if meaning == "neutral":
            return
        if stay.name == "half-open":
            if meaning == "failure":
                self.model_open()
            else:
                stay.successes += 1
                if stay.successes == PROBES:
                    self.stay = Stay("closed")
                    self.stay.limit = 2 * PROBES
                    self.closed_at = self.clock.time
            return
        stay.results.append(meaning == "failure")
        size, failures = len(stay.results), sum(stay.results)
        if stay.name == "closed" and size >= MINIMUM and failures / size >= RATE:
            self.model_open()

    # ---- the steps

    @rule()
    def begin(self) -> None:
        self.number += 1
        expected = self.model_admits()
        assert self.breaker.admits() is expected
        if expected and self.stay.name == "open":
            self.stay = Stay("half-open")
        coroutine = self.handler(None)  # type: ignore[arg-type]
        try:
            coroutine.send(None)
        except CircuitOpenError as error:
            refusal: CircuitOpenError | None = error
        else:
            refusal = None
        assert expected is (refusal is None)
        if refusal is not None:
            assert refusal.retry_after is None or refusal.retry_after > 0
            coroutine.close()
            return
        self.wire[self.number] = coroutine
        self.stays[self.number] = self.stay
        self.stay.leases[self.number] = self.clock.time + LEASE

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), answer=st.sampled_from(ANSWERS))
    def end(self, data: Any, answer: tuple[str, Any]) -> None:
        number = data.draw(st.sampled_from(sorted(self.wire)))
        self.finish(number, *answer)

    def finish(self, number: int, meaning: str, answer: Any) -> None:
        coroutine, stay = self.wire.pop(number), self.stays.pop(number)
        ended = outcome(coroutine, answer)
        assert ended is answer or ended == "well"
        self.model_ended(number, stay, meaning)

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def first_item(self, data: Any) -> None:
        number = data.draw(st.sampled_from(sorted(self.wire)))
        coroutine, stay = self.wire.pop(number), self.stays.pop(number)
        reply = Reply(items=Items())
        assert outcome(coroutine, reply) is reply
        if stay.name == "half-open":
            self.model_ended(number, stay, "success")
            reply.complete(ConnectionLost("after the probe's first item"), seen=True)
            return
        stay.leases.pop(number, None)
        if stay.limit is not None:
            stay.limit += 1
            if stay.limit >= 64 * PROBES:
                stay.limit = None
        self.streams[number] = (stay, reply)

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), how=st.sampled_from(["end", "left", "left unseen", "cut"]))
    def stream_ends(self, data: Any, how: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.streams)))
        stay, reply = self.streams.pop(number)
        error: BaseException | None = None
        if how.startswith("left"):
            error = GeneratorExit()
        elif how == "cut":
            error = ConnectionLost("cut")
        reply.complete(error, seen=how != "left unseen")
        meaning = {"cut": "failure", "left unseen": "neutral"}.get(how, "success")
        self.model_ended(number, stay, meaning, lease=False)

    @rule(count=st.integers(1, 12), meaning=st.sampled_from(["success", "failure"]))
    def burst(self, count: int, meaning: str) -> None:
        for _ in range(count):
            before = self.number
            self.begin()
            if before + 1 in self.wire:
                answer = "well" if meaning == "success" else ConnectionLost("cut")
                self.finish(before + 1, meaning, answer)

    @rule(seconds=st.one_of(st.floats(0.0, 8.0), st.sampled_from([LEASE, OPEN_FOR, 1e6])))
    def time_passes(self, seconds: float) -> None:
        self.clock.time += seconds

    @precondition(lambda self: self.stay.name == "open")
    @rule()
    def open_time_ends(self) -> None:
        self.clock.time = max(self.clock.time, self.stay.until)

    @rule(
        how=st.sampled_from(["open", "half_open", "close", "force_open", "disable", "metrics_only"])
    )
    def steer(self, how: str) -> None:
        getattr(self.breaker, how)()
        if how == self.stay.name == "open" and self.clock.time >= self.stay.until:
            self.stay = Stay("half-open")  # it was, unseen
        name = {"half_open": "half-open", "close": "closed", "force_open": "forced-open",
                "disable": "disabled", "metrics_only": "metrics-only"}.get(how, how)  # fmt: skip
        if how == "close":
            self.stay = Stay("closed")
            self.closed_at = float("-inf")
        elif name == self.stay.name:
            return
        elif how == "open":
            self.model_open(by_hand=True)
        else:
            self.stay = Stay(name)

    # ---- what always holds

    @invariant()
    def same_state(self) -> None:
        assert self.breaker.current_state == self.stay.name
        if self.stay.name == "open":
            assert self.breaker.state.until == self.stay.until

    @invariant()
    def same_counts(self) -> None:
        assert self.breaker.calls == len(self.stay.results)
        assert self.breaker.failures == sum(self.stay.results)
        assert self.breaker.success_counter == self.stay.successes

    @invariant()
    def same_admission(self) -> None:
        assert self.breaker.admits() is self.model_admits()

    @invariant()
    def never_more_probes_than_there_are_permits(self) -> None:
        if self.stay.name == "half-open":
            held = self.breaker.state.leases.held(self.clock.time)
            assert held == self.live()
            assert held <= PROBES

    def teardown(self) -> None:
        for coroutine in self.wire.values():
            coroutine.close()


def outcome(coroutine: Any, answer: Any) -> Any:
    """What the call returns (the reply, or its value) or raises when the peer answers this."""
    try:
        coroutine.send(answer)
    except StopIteration as stop:
        return stop.value if answer is stop.value else stop.value.body
    except BaseException as error:
        return error
    raise AssertionError("it goes on")


class Pause:
    """Suspends until the model sends the answer."""

    def __await__(self) -> Any:
        return (yield)


class TestBreakerAgainstTheModel(Machine.TestCase):  # type: ignore[misc,name-defined]
    settings = settings(max_examples=50, stateful_step_count=60, deadline=None)


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestBreakerAgainstTheModelForLong(Machine.TestCase):  # type: ignore[misc,name-defined]
    settings = settings(
        max_examples=2000,
        stateful_step_count=100,
        derandomize=False,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
