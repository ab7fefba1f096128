"""Policies by pairs, and all together in a client: attempts, waits and remaining times."""

from __future__ import annotations

import asyncio
from math import inf

import pytest

from resilient_client import ClientProxy, standard
from resilient_client.errors import (
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    Overloaded,
    RemoteError,
    ReplyTimeout,
    Throttled,
)
from resilient_client.events import ConnectionChanged, RetryScheduled, RetrySuppressed
from resilient_client.message import Receipt
from resilient_client.policies import Timeout
from resilient_client.policies.bulkhead import Bulkhead
from resilient_client.policies.circuit_breaker import CircuitBreaker, CircuitOpenError
from resilient_client.policies.fallback import Fallback
from resilient_client.policies.retry import Retry
from resilient_client.policies.retry_budget import RetryBudget
from resilient_client.testing import NEVER, Delayed, FakeClock, ScriptedTransport, Streamed
from tests.policies.scene import Scene, drain

REFUSED = ConnectError("refused")
LOST = ConnectionLost("cut")


def retry(attempts: int = 3, **given):
    return Retry(attempts, jitter=None, **given)


# -------------------------------------------------------------------------------- retry and breaker


async def test_a_breaker_inside_a_retry_sees_every_attempt():
    breaker = CircuitBreaker()
    scene = Scene([retry(), breaker], [LOST, LOST, 1])
    assert await scene.ask(idempotent=True) == 1
    assert (breaker.calls, breaker.failures) == (3, 2)


async def test_a_breaker_outside_a_retry_sees_the_call():
    breaker = CircuitBreaker()
    scene = Scene([breaker, retry()], [LOST, LOST, 1])
    assert await scene.ask(idempotent=True) == 1
    assert (breaker.calls, breaker.failures) == (1, 0)


async def test_attempts_end_when_the_breaker_opens_between_them():
    scene = Scene([retry(9), CircuitBreaker(fail_max=2)], [LOST], forever=True)
    with pytest.raises(CircuitOpenError) as caught:
        await scene.ask(idempotent=True)
    assert scene.attempts == 2
    assert "ConnectionLost" in (caught.value.last_cause or "")


# -------------------------------------------------------------------------------- retry and timeout


async def test_each_attempt_gets_its_own_time_and_never_more_than_is_left():
    scene = Scene([retry(4), Timeout(3)], [NEVER], forever=True)
    with pytest.raises(DeadlineExceeded):
        await scene.ask(idempotent=True, timeout=12)
    assert [round(request.limit, 3) for request in scene.peer.requests] == [3, 3, 3, 2.3]
    assert [round(request.remaining, 3) for request in scene.peer.requests] == [12, 8.9, 5.7, 2.3]
    assert scene.slept == [0.1, 0.2, 0.4]
    assert scene.clock.now() == 1012


async def test_the_last_attempt_ends_with_the_calls_time():
    scene = Scene([retry(2), Timeout(3)], [NEVER, NEVER])
    with pytest.raises(DeadlineExceeded):
        await scene.ask(idempotent=True, timeout=5)
    assert scene.clock.now() == 1005


async def test_a_timeout_between_two_retries_is_an_attempts_of_the_outer_one():
    scene = Scene([retry(2), Timeout(1), retry(5)], [Delayed(0.3, REFUSED)], forever=True)
    with pytest.raises(ConnectError):
        await scene.ask(timeout=10)
    assert scene.attempts == 10  # a wait is bounded by the call's time, not by an attempt's


async def test_a_retry_in_a_retry_multiplies_and_knows_that_another_attempt_may_follow():
    may_repeat = []

    def look(call):
        may_repeat.append(call.may_repeat)
        return LOST

    scene = Scene([retry(2), retry(2)], [look], forever=True)
    with pytest.raises(ConnectionLost):
        await scene.ask(idempotent=True)
    assert may_repeat == [True, True, True, False]
    assert [request.attempt for request in scene.peer.requests] == [1, 2, 3, 4]
    assert scene.last is not None
    assert [number for number, *_ in scene.last.failures] == [1, 2, 3]


# ------------------------------------------------------------------------------- retry and bulkhead


async def test_outside_a_retry_a_bulkhead_holds_its_slot_between_attempts():
    scene = Scene([Bulkhead(1), retry()], [Delayed(1, REFUSED), Delayed(1, 1), 2], autojump=False)
    first = asyncio.ensure_future(scene.ask())
    await scene.clock.advance(1.05)
    assert scene.slept == [0.1]
    with pytest.raises(Overloaded):
        await scene.ask()
    await scene.clock.advance(1.05)
    assert await first == 1
    assert await scene.ask() == 2


async def test_inside_a_retry_it_is_free_between_attempts_and_a_refusal_is_not_repeated():
    scene = Scene([retry(), Bulkhead(1)], [REFUSED, Delayed(5, 2), 1], autojump=False)
    first = asyncio.ensure_future(scene.ask())
    await scene.clock.advance(0.05)
    second = asyncio.ensure_future(scene.ask())  # takes the slot for longer than the wait
    await scene.clock.advance(0.05)
    with pytest.raises(Overloaded):
        await first
    await scene.clock.advance(5)
    assert await second == 2
    assert scene.slept == [0.1]


# -------------------------------------------------------------------------- fallback and all others


async def test_a_fallback_comes_after_the_last_attempt():
    scene = Scene([Fallback("instead"), retry()], [LOST], forever=True)
    assert await scene.ask(idempotent=True) == "instead"
    assert (scene.attempts, scene.slept) == (3, [0.1, 0.2])
    assert await scene.ask() == "instead"
    assert scene.attempts == 4


async def test_a_fallback_stands_in_for_an_open_circuit_and_a_full_bulkhead():
    breaker = CircuitBreaker()
    scene = Scene([Fallback("instead"), Bulkhead(1), breaker], [NEVER])
    breaker.open()
    assert await scene.ask() == "instead"
    breaker.close()
    waiting = asyncio.ensure_future(scene.ask())
    await asyncio.sleep(0)
    assert await scene.ask() == "instead"
    assert scene.attempts == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_fallback_that_waits_keeps_to_what_the_attempts_left():
    async def slow():
        await scene.clock.sleep(3)
        return "instead"

    scene = Scene([Fallback(slow), retry(2)], [Delayed(1, LOST)], forever=True)
    assert await scene.ask(idempotent=True, timeout=10) == "instead"
    assert scene.clock.now() == pytest.approx(1005.1)
    started = scene.clock.now()
    with pytest.raises(ConnectionLost):
        await scene.ask(idempotent=True, timeout=4)
    assert scene.clock.now() - started == pytest.approx(4)


# ------------------------------------------------------------------------------- breaker and others


async def test_an_attempts_timeout_is_a_failure_to_the_breaker():
    breaker = CircuitBreaker(fail_max=1)
    scene = Scene([breaker, Timeout(3)], [NEVER])
    with pytest.raises(ReplyTimeout):
        await scene.ask(timeout=10)
    assert breaker.current_state == "open"


async def test_a_bulkhead_inside_a_breaker_says_nothing_about_the_peer():
    breaker = CircuitBreaker(fail_max=1)
    scene = Scene([breaker, Bulkhead(1)], [Delayed(1, 1)])
    first = asyncio.ensure_future(scene.ask())
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await scene.ask()
    assert await first == 1
    assert (breaker.current_state, breaker.calls, breaker.failures) == ("closed", 1, 0)


async def test_a_stream_holds_slot_and_admission_to_its_end():
    breaker = CircuitBreaker()
    scene = Scene([Bulkhead(1), retry(), breaker, Timeout(3)], [LOST, Streamed(1, Delayed(60, 2))])
    reply = await scene.ask("stream", idempotent=True)
    assert (breaker.calls, breaker.failures) == (1, 1)
    with pytest.raises(Overloaded):
        await scene.ask()
    assert await drain(reply) == [b"1", b"2"]
    assert (breaker.calls, breaker.failures) == (2, 1)


# --------------------------------------------------------------------------- all of it, in a client


def client_of(answers, *, forever=False, events=None, **given):
    clock = FakeClock(autojump=True)
    peer = ScriptedTransport(answers, forever=forever)
    policies = standard(retry=retry(), **given)
    observers = () if events is None else (events.append,)
    client = ClientProxy(
        peer, policies=policies, clock=clock, observers=observers, telemetry=False, name="stock"
    )
    return client, peer, clock


async def test_the_default_stack_repeats_what_never_ran():
    events: list[object] = []
    client, peer, clock = client_of([REFUSED, Throttled(retry_after=1.0), 42], events=events)
    assert await client.send("p", returns=int) == 42
    assert clock.sleeps == [0.1, 1.0]
    assert [request.metadata.get("x-attempt") for request in peer.requests] == [None, "2", "3"]
    told = [int(request.metadata["x-deadline-ms"]) for request in peer.requests]
    assert told == pytest.approx([10000, 9900, 8900], abs=1)
    assert [request.limit for request in peer.requests] == pytest.approx([10, 9.9, 8.9])
    assert [request.connect_limit for request in peer.requests] == pytest.approx([3, 3, 3])
    kinds = [RetryScheduled, ConnectionChanged, RetryScheduled]
    assert [type(event) for event in events] == kinds
    assert client.circuit_breaker.failures == 1


async def test_an_idempotent_call_is_cut_at_three_seconds_and_tried_again():
    client, peer, clock = client_of([NEVER, NEVER, Delayed(3.5, 7)])
    assert await client.send("p", idempotency_key="k") == 7
    assert [round(request.limit, 3) for request in peer.requests] == [3, 3, 3.7]
    assert {request.metadata["idempotency-key"] for request in peer.requests} == {"k"}
    assert clock.now() == pytest.approx(1009.8)


async def test_a_calls_key_comes_before_what_its_pattern_says():
    peer, clock = ScriptedTransport([ConnectionLost("cut"), 7]), FakeClock(autojump=True)
    patterns = {"p": {"idempotent": False}}
    client = ClientProxy(peer, patterns=patterns, clock=clock, telemetry=False)
    assert await client.send("p", idempotency_key="k") == 7
    for own in ({}, {"idempotency_key": "k", "idempotent": False}):
        peer = ScriptedTransport([ConnectionLost("cut"), 7])
        client = ClientProxy(peer, patterns=patterns, clock=clock, telemetry=False)
        with pytest.raises(ConnectionLost):
            await client.send("p", **own)


async def test_a_call_that_is_not_idempotent_has_all_the_time():
    client, peer, _ = client_of([Delayed(8, 7)])
    assert await client.send("p", timeout=8.5) == 7
    assert len(peer.requests) == 1


async def test_the_error_tells_the_whole_story():
    events: list[object] = []
    client, _, _ = client_of([LOST, Delayed(1, REFUSED), NEVER], events=events)
    with pytest.raises(DeadlineExceeded) as caught:
        await client.send("p", idempotent=True, timeout=5)
    error = caught.value
    assert [(each.number, each.error, each.sent) for each in error.attempts] == [
        (1, "ConnectionLost", True),
        (2, "ConnectError", False),
        (3, "DeadlineExceeded", True),
    ]
    assert [round(each.ended - each.started, 3) for each in error.attempts] == [0, 1, 3.7]
    assert error.sent
    assert isinstance(events[-1], RetrySuppressed)


async def test_an_open_circuit_is_the_end_of_the_call_and_sent_is_the_truth():
    breaker = CircuitBreaker(fail_max=1)
    client, peer, clock = client_of([LOST, 1], circuit_breaker=breaker)
    with pytest.raises(CircuitOpenError) as caught:
        await client.send("p", idempotent=True)
    assert caught.value.sent
    assert [attempt.sent for attempt in caught.value.attempts] == [True, False]
    with pytest.raises(CircuitOpenError) as caught:
        await client.send("p", idempotent=True)
    assert not caught.value.sent
    assert (len(peer.requests), clock.sleeps) == (1, [0.1])


async def test_sent_is_also_what_a_policy_of_the_users_own_says_of_an_earlier_attempt():
    errors = [ConnectionLost("cut")]

    class Cut:
        def wrap(self, handler, clock):
            async def cut(call):
                if errors:
                    raise errors.pop()
                return await handler(call)

            return cut

    clock = FakeClock(autojump=True)
    policies = [*standard(retry=retry(), circuit_breaker=CircuitBreaker(fail_max=1)), Cut()]
    client = ClientProxy(ScriptedTransport(), policies=policies, clock=clock, telemetry=False)
    with pytest.raises(CircuitOpenError) as caught:
        await client.send("p", idempotent=True)
    assert [attempt.sent for attempt in caught.value.attempts] == [True, False]
    assert caught.value.sent


async def test_patterns_bring_their_own_settings():
    clock = FakeClock(autojump=True)
    peer = ScriptedTransport([LOST], forever=True)
    client = ClientProxy(
        peer,
        policies=standard(retry=retry(), circuit_breaker=None),
        clock=clock,
        telemetry=False,
        patterns={"get": {"idempotent": True, "attempts": 5}, "once": {"attempts": 1}},
    )
    for pattern, attempts in (("get", 5), ("once", 1), ("other", 1)):
        before = len(peer.requests)
        with pytest.raises(ConnectionLost):
            await client.send(pattern)
        assert len(peer.requests) - before == attempts


async def test_an_event_and_a_stream_go_through_the_same_stack():
    client, peer, _ = client_of([REFUSED, Receipt("stored"), REFUSED, Streamed(1, 2)])
    assert await client.emit("p", 1) == Receipt("stored")
    assert [item async for item in client.stream("p")] == [1, 2]
    assert [request.kind for request in peer.requests] == ["emit", "emit", "stream", "stream"]
    assert "x-deadline-ms" not in peer.requests[0].metadata
    assert peer.requests[3].remaining == inf


async def test_the_budget_is_shared_by_all_calls_of_a_client():
    budget = RetryBudget(ratio=0, reserve_per_second=0.5)
    client, peer, _ = client_of([REFUSED], forever=True, retry_budget=budget, circuit_breaker=None)
    results = await asyncio.gather(*(client.send("p") for _ in range(20)), return_exceptions=True)
    assert {type(result) for result in results} == {ConnectError}
    assert len(peer.requests) == 20 + 5


@pytest.mark.parametrize("bad_is_outside", [True, False])
async def test_a_hook_that_fails_at_a_streams_end_keeps_nobodys_permit(bad_is_outside, caplog):
    class Bad:
        def wrap(self, handler, clock, /):
            async def bad(call):
                reply = await handler(call)
                reply.on_complete(lambda outcome, error: 1 / 0)
                return reply

            return bad

    peer = ScriptedTransport([Streamed(1, 2)], forever=True)
    policies = [Bad(), Bulkhead(1)] if bad_is_outside else [Bulkhead(1), Bad()]
    client = ClientProxy(peer, policies=policies, telemetry=False)
    for _ in range(2):
        assert [item async for item in client.stream("p")] == [1, 2]
    assert caplog.text.count("ZeroDivisionError: ") == 2


async def test_a_policy_of_ones_own_needs_to_know_no_names_of_ours():
    class Logged:
        describe = "a text"
        budget = 5

        def bind(self, **values):
            return self

        def wrap(self, handler, clock, /):
            return handler

    client = ClientProxy(ScriptedTransport([7]), policies=[*standard(), Logged()], telemetry=False)
    assert await client.send("p") == 7
    assert "Logged" in client.explain()


async def test_an_attempt_that_is_not_begun_for_want_of_time_says_nothing_about_the_peer():
    class Queue:
        def wrap(self, handler, clock, /):
            async def queue(call):
                await clock.sleep(waits.pop(0))
                return await handler(call)

            return queue

    events: list[object] = []
    breaker, peer, clock = CircuitBreaker(fail_max=1), ScriptedTransport([7]), FakeClock()
    client = ClientProxy(
        peer,
        policies=[retry(), breaker, Queue()],
        clock=clock,
        observers=(events.append,),
        telemetry=False,
    )
    waits = [2.0, 0.0]
    asking = asyncio.ensure_future(client.send("p", timeout=1))
    await clock.advance(2)
    with pytest.raises(DeadlineExceeded) as caught:
        await asking
    assert not caught.value.sent
    assert caught.value.retryable
    assert (breaker.current_state, breaker.calls, events) == ("closed", 0, [])
    asking = asyncio.ensure_future(client.send("p"))
    await clock.advance(0)
    assert await asking == 7


async def test_a_fallback_value_reaches_the_caller_in_the_end():
    client, _, clock = client_of([NEVER], forever=True, fallback=Fallback(-1))
    assert await client.send("p", returns=int, timeout=2) == -1
    assert clock.now() == 1002
    with pytest.raises(DeadlineExceeded):
        await client.emit("p", timeout=2)
    assert [item async for item in client.stream("p", timeout=2)] == [-1]


async def test_a_deliberate_error_goes_straight_through():
    client, peer, clock = client_of([RemoteError("boom", code="E")], fallback=Fallback(-1))
    with pytest.raises(RemoteError, match="boom"):
        await client.send("p", idempotent=True)
    assert (len(peer.requests), clock.sleeps) == (1, [])
