"""The known traps of retries, deadlines and what stands around them, each by its name.

Of the list of twenty, those of circuit breakers (1, 2, 5 to 10, 16, 20) are in
`test_traps_breaker.py`. 17 (hedges counted twice) has no test: there is no hedging yet.
"""

from __future__ import annotations

import asyncio
import time
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_client import ClientProxy, standard
from resilient_client.errors import (
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    Overloaded,
    RemoteError,
    ReplyTimeout,
    ResilientClientError,
    Throttled,
)
from resilient_client.message import Call, Reply
from resilient_client.pipeline import compose
from resilient_client.policies import Timeout
from resilient_client.policies.bulkhead import Bulkhead
from resilient_client.policies.circuit_breaker import CircuitBreaker, CircuitOpenError
from resilient_client.policies.fallback import Fallback
from resilient_client.policies.retry import Retry
from resilient_client.policies.retry_budget import RetryBudget
from resilient_client.testing import NEVER, Delayed, FakeClock, ScriptedTransport, Streamed
from tests.policies.scene import Scene, drain

LOST = ConnectionLost("cut")
REFUSED = ConnectError("refused")


async def test_trap_3_breaker_inside_or_outside_the_retry():
    """Inside: it sees every attempt, and the attempts end when it opens."""
    breaker = CircuitBreaker(fail_max=4)
    scene = Scene(standard(circuit_breaker=breaker, timeout=None), [LOST], forever=True)
    with pytest.raises(ConnectionLost):
        await scene.ask(idempotent=True)
    assert (scene.attempts, breaker.failures) == (3, 3)
    with pytest.raises(CircuitOpenError):
        await scene.ask(idempotent=True)
    assert scene.attempts == 4


@pytest.mark.parametrize("on", [None, Exception, ResilientClientError, lambda error: True])
async def test_trap_4_open_circuit_error_retried(on):
    breaker = CircuitBreaker()
    breaker.open()
    scene = Scene([Retry(5, on=on), breaker], [1])
    with pytest.raises(CircuitOpenError):
        await scene.ask(idempotent=True)
    assert (scene.attempts, scene.slept) == (0, [])


async def test_trap_11_retry_amplification():
    """Three services in a row, three attempts each: 27 times the load becomes 1.2 ** 3."""
    for budgets, most in ((False, 27.0), (True, 1.2**3)):
        clock = FakeClock(autojump=True)
        arrived = 0

        async def bottom(call: Call) -> Reply:
            nonlocal arrived
            arrived += 1
            raise ConnectionLost("dead")

        handler: Any = bottom
        for _ in range(3):
            budget = RetryBudget(reserve_per_second=0) if budgets else None
            handler = compose([Retry(budget=budget)], handler, clock)

        for number in range(300):
            with pytest.raises(ConnectionLost):
                await handler(Call("p", "p", "send", idempotent=True, started=clock.now()))
            if number % 50 == 0:
                await clock.sleep(1)
        assert arrived / 300 <= most + 1e-9
        assert arrived / 300 >= most * 0.9


async def test_trap_11_a_budget_that_is_spent_raises_the_peers_error_and_fills_again():
    budget = RetryBudget(ratio=0, reserve_per_second=0.2)
    scene = Scene([Retry(budget=budget)], [REFUSED], forever=True)
    for _ in range(3):
        with pytest.raises(ConnectError):
            await scene.ask()
    assert scene.attempts == 3 + 2
    await scene.clock.sleep(10)
    with pytest.raises(ConnectError):
        await scene.ask()
    assert scene.attempts == 5 + 3


async def test_trap_12_retry_after_shortened_by_jitter():
    waits = []
    for _ in range(500):
        scene = Scene([Retry()], [Throttled(retry_after=2.0), 1])
        assert await scene.ask(timeout=10) == 1
        waits += scene.slept
    assert 2.0 <= min(waits) < max(waits) <= 2.2
    assert len(set(waits)) > 400  # and not all at once


@pytest.mark.parametrize(("asked", "timeout"), [(2.0, 1.9), (3600.0, 10.0), (inf, inf)])
async def test_trap_12_retry_after_beyond_the_deadline(asked, timeout):
    scene = Scene([Retry()], [Throttled(retry_after=asked), 1])
    with pytest.raises(Throttled):
        await scene.ask(timeout=timeout)
    assert (scene.slept, scene.clock.now()) == ([], 1000)


@pytest.mark.parametrize("error", [LOST, ReplyTimeout("slow"), RemoteError("x", status=503)])
@pytest.mark.parametrize("kind", ["send", "emit", "stream"])
async def test_trap_13_non_idempotent_request_retried(error, kind):
    scene = Scene(standard(), [error, 1])
    with pytest.raises(type(error)):
        await scene.ask(kind)
    assert scene.attempts == 1


async def test_trap_13_already_consumed_request_retried():
    """Every attempt carries the same payload, encoded once."""
    bodies = []

    def look(call):
        bodies.append(call.body)
        return REFUSED

    peer = ScriptedTransport([look, look, look])
    clock = FakeClock(autojump=True)
    client = ClientProxy(peer, policies=standard(), clock=clock, telemetry=False)
    with pytest.raises(ConnectError):
        await client.send("p", {"id": 1})
    assert bodies[0] == b'{"id":1}'
    assert all(body is bodies[0] for body in bodies)
    assert len(bodies) == 3


async def test_trap_13_a_stream_is_not_begun_again_after_its_first_item():
    scene = Scene(standard(), [Streamed(1, LOST), Streamed(1, 2)])
    with pytest.raises(ConnectionLost):
        await drain(await scene.ask("stream", idempotent=True))
    assert scene.attempts == 1


answers = st.lists(
    st.builds(
        Delayed,
        st.floats(0, 5),
        st.sampled_from([1, LOST, REFUSED, Throttled(retry_after=0.7), RemoteError("boom")]),
        connecting=st.booleans(),
    )
    | st.just(NEVER),
    min_size=6,
    max_size=6,
)


@settings(deadline=None)
@given(
    answers=answers,
    timeout=st.floats(0.01, 12),
    attempt=st.floats(0.01, 4) | st.none(),
    attempts=st.integers(1, 5),
    idempotent=st.booleans(),
    fallback=st.sampled_from([None, Fallback(1), "slow"]),
)
def test_trap_14_max_time_that_does_not_bound_time(
    answers, timeout, attempt, attempts, idempotent, fallback
):
    async def run():
        async def slow():
            await clock.sleep(1)
            return 1

        layers: Any = [fallback, Retry(attempts), attempt and Timeout(attempt)]
        if fallback == "slow":
            layers[0] = Fallback(slow)
        scene = Scene([layer for layer in layers if layer], answers)
        clock = scene.clock
        try:
            await scene.ask(timeout=timeout, idempotent=idempotent)
        except ResilientClientError:
            assert fallback is None or fallback == "slow" or scene.attempts
        assert scene.clock.now() - 1000 <= timeout + 1e-6
        for request in scene.peer.requests:
            assert 0 < request.limit <= request.remaining + 1e-9
            assert request.connect_limit <= request.remaining + 1e-9

    asyncio.run(run())


async def test_trap_15_timeouts_that_leak_work():
    """A slot is free when the work has ended, not when somebody stopped waiting."""
    stopping = asyncio.Event()

    class Stubborn:
        """Ends its work before it lets itself be cancelled, as some drivers do."""

        def wrap(self, handler, clock):
            async def stubborn(call):
                try:
                    return await handler(call)
                except asyncio.CancelledError:
                    await stopping.wait()
                    raise

            return stubborn

    scene = Scene([Bulkhead(1), Stubborn()], [NEVER, 1], autojump=False)
    task = asyncio.ensure_future(scene.ask())
    await scene.clock.advance(1)
    task.cancel()
    await scene.clock.advance(1)
    with pytest.raises(Overloaded):
        await scene.ask()
    stopping.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await scene.ask() == 1
    assert scene.clock.waiting == 0


async def test_trap_15_an_attempt_that_timed_out_has_ended_when_the_next_begins():
    running = most = 0

    class Count:
        def wrap(self, handler, clock):
            async def count(call):
                nonlocal running, most
                running += 1
                most = max(most, running)
                try:
                    return await handler(call)
                finally:
                    running -= 1

            return count

    scene = Scene([*standard(timeout=None), Count()], [NEVER, NEVER, 1])
    assert await scene.ask(idempotent=True, timeout=30) == 1
    assert (running, most, scene.attempts) == (0, 1, 3)


async def test_trap_16_clock_jumps(monkeypatch):
    """Nobody asks the wall clock."""

    def wall() -> float:
        raise AssertionError("the wall clock was read")

    scene = Scene(standard(fallback=Fallback(9)), [REFUSED, LOST, 1, NEVER])
    monkeypatch.setattr(time, "time", wall)
    assert await scene.ask(idempotent=True, timeout=10) == 1
    assert await scene.ask(timeout=10) == 9
    monkeypatch.undo()


async def test_trap_18_local_rejections_and_throttles_counted_as_dependency_failures():
    breaker = CircuitBreaker(fail_max=1)
    budget = RetryBudget(ratio=0, reserve_per_second=0.1)
    scene = Scene(
        [Retry(budget=budget, jitter=None), breaker, Bulkhead(1)],
        [Delayed(1, 1), Throttled(retry_after=0.5), 2],
        autojump=False,
    )
    first = asyncio.ensure_future(scene.ask())
    await scene.clock.advance(0.1)
    with pytest.raises(Overloaded):  # not repeated, not counted, and not charged to the budget
        await scene.ask(idempotent=True)
    await scene.clock.advance(1)
    assert await first == 1
    second = asyncio.ensure_future(scene.ask())
    await scene.clock.advance(1)
    assert await second == 2
    assert (breaker.current_state, breaker.failures) == ("closed", 0)


async def test_trap_19_lost_cause():
    root = OSError("no route")

    async def handler(call: Call) -> Reply:
        raise ConnectError(f"attempt {call.attempt}") from root

    clock = FakeClock(autojump=True)
    for policies in (
        [Retry()],
        [Retry(budget=RetryBudget(0, 0))],
        [Fallback(1, on=Throttled), Bulkhead(1), Retry(1), Timeout(1)],
    ):
        with pytest.raises(ConnectError) as caught:
            await compose(policies, handler, clock)(Call("p", "p", "send", started=clock.now()))
        assert caught.value.__cause__ is root
        assert not isinstance(caught.value.__context__, StopIteration)


async def test_trap_19_listener_that_breaks_the_retry():
    def broken(event: object) -> None:
        raise RuntimeError("a bug in an observer")

    peer = ScriptedTransport([REFUSED, 1, DeadlineExceeded("x"), 2])
    clock = FakeClock(autojump=True)
    client = ClientProxy(
        peer, policies=standard(), clock=clock, observers=[broken], telemetry=False
    )
    assert await client.send("p") == 1
