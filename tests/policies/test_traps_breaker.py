"""The known traps of circuit breakers, each by its name.

Of the list of twenty, 3 (breaker inside or outside the retry) is about the order of policies, and
11 to 15 and 17 are about retries, deadlines and hedges: they are tested where those are.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pybreaker
import pytest

from resilient_client.errors import (
    ConnectionLost,
    DeadlineExceeded,
    Overloaded,
    RejectedError,
    RemoteError,
    Throttled,
)
from resilient_client.message import Call, Reply
from resilient_client.policies.circuit_breaker import CircuitBreaker, CircuitOpenError
from tests.policies.breaker_kit import Clock, Heard, Peer, Scene


async def test_trap_1_caller_cancellation_counted_as_failure() -> None:
    scene = Scene(fail_max=1)
    scene.peer.gate = asyncio.Event()
    tasks = [asyncio.create_task(scene.call()) for _ in range(50)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(r) for r in results} == {asyncio.CancelledError}
    assert (scene.state, scene.breaker.calls) == ("closed", 0)


async def test_trap_1_a_timeout_of_the_callers_own_stays_a_timeout() -> None:
    scene = Scene(fail_max=1)
    scene.peer.gate = asyncio.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await scene.call()
    assert scene.state == "closed"


async def test_trap_1_a_sibling_that_fails_is_alone_in_its_exception_group() -> None:
    scene = Scene(fail_max=1)
    scene.peer.gate = asyncio.Event()

    async def sibling() -> None:
        await asyncio.sleep(0)
        raise ValueError("mine")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(scene.call())
            group.create_task(sibling())
    assert [type(e) for e in caught.value.exceptions] == [ValueError]


async def test_trap_2_the_mirror_a_deadline_of_ours_that_fires_is_a_failure() -> None:
    scene = Scene()
    call = Call("x", "x", "send", deadline=1.0)
    call.sent = True
    for i in range(20):
        call.attempt_deadline = 0.5 if i % 2 else 1.0  # the attempt's time, or the whole call's
        error = await scene.get(call.expired(sent=True))
        assert isinstance(error, TimeoutError)
    assert scene.state == "open"


async def test_trap_2_also_when_the_deadline_passed_before_anything_was_sent() -> None:
    scene = Scene()
    for _ in range(20):
        await scene.get(DeadlineExceeded("while connecting", sent=False))
    assert scene.state == "open"


async def test_trap_4_an_open_circuit_is_known_for_what_it_is() -> None:
    scene = await Scene().opened()
    error = await scene.refused()
    assert isinstance(error, RejectedError)  # which Retry never repeats
    assert not isinstance(error, OSError)


@pytest.mark.parametrize(("probes", "tasks"), [(1, 500), (3, 10_000), (10, 500)])
async def test_trap_5_thundering_herd_at_half_open(probes: int, tasks: int) -> None:
    scene = await Scene(probes=probes).half_opened()
    before = scene.peer.calls
    results = await scene.flood(tasks)
    assert scene.peer.calls - before == probes
    assert sum(isinstance(r, Reply) for r in results) == probes
    assert sum(isinstance(r, CircuitOpenError) for r in results) == tasks - probes
    assert [c[1] for c in scene.changes[-2:]] == ["half-open", "closed"]


async def test_trap_5_nor_does_the_herd_come_at_the_moment_of_closing() -> None:
    scene = await Scene(probes=3).ramping()
    before = scene.peer.calls
    await scene.flood(1000)
    assert scene.peer.calls - before == 6


async def test_trap_5_clients_do_not_come_back_together() -> None:
    times = set()
    for _ in range(20):
        scene = await Scene().opened()
        times.add(scene.breaker.state.until - scene.clock.time)
    assert len(times) == 20


async def test_trap_6_hung_or_leaked_probe_wedges_half_open() -> None:
    scene = await Scene(probes=3, probe_lease=3.0).half_opened()
    gate = scene.peer.gate = asyncio.Event()
    hung = [asyncio.create_task(scene.call()) for _ in range(3)]
    await asyncio.sleep(0)
    scene.peer.gate = None
    scene.clock.time += 2.999
    await scene.refused()
    scene.clock.time += 0.001
    await scene.succeed(3)
    assert scene.state == "closed"
    for task in hung:
        task.cancel()
    gate.set()
    await asyncio.gather(*hung, return_exceptions=True)
    assert scene.state == "closed"


async def test_trap_6_a_probe_whose_lease_ended_is_not_lost_to_the_verdict() -> None:
    # a peer that answers slower than the lease, or never, must not keep it half-open for ever
    scene = await Scene(probes=1, probe_lease=3.0).half_opened()

    def frozen(call: Call) -> Exception:
        scene.clock.time += 10
        return DeadlineExceeded("frozen", sent=True)

    await scene.get(frozen)
    assert scene.state == "open"


@pytest.mark.parametrize(
    "answer",
    [asyncio.CancelledError(), Throttled(), Overloaded("full"), KeyError("excluded")],
    ids=repr,
)
async def test_trap_7_verdict_of_a_cancelled_or_ignored_probe(answer: BaseException) -> None:
    scene = await Scene(probes=1, exclude=[KeyError]).half_opened()
    assert await scene.get(answer) is answer
    assert scene.state == "half-open"
    assert scene.breaker.admits()
    await scene.fail()
    assert scene.state == "open"


async def test_trap_8_late_results_do_not_prolong_the_open_time() -> None:
    scene = Scene(fail_max=2)
    gate = scene.peer.gate = asyncio.Event()
    late = [asyncio.create_task(scene.call()) for _ in range(4)]
    await asyncio.sleep(0)
    scene.peer.gate = None
    await scene.opened()
    until = scene.breaker.state.until
    scene.clock.time += 1
    scene.peer.answer = ConnectionLost("cut")
    gate.set()
    await asyncio.gather(*late, return_exceptions=True)
    assert scene.breaker.state.until == until


@pytest.mark.parametrize("answer", [ConnectionLost("cut"), "well"], ids=repr)
async def test_trap_8_late_results_neither_reopen_nor_close_nor_count(answer: Any) -> None:
    scene = Scene(fail_max=2, probes=2)
    gate = scene.peer.gate = asyncio.Event()
    late = [asyncio.create_task(scene.call()) for _ in range(4)]
    await asyncio.sleep(0)
    scene.peer.gate = None
    await scene.half_opened()
    await scene.succeed()
    scene.peer.answer = answer
    gate.set()
    await asyncio.gather(*late, return_exceptions=True)
    assert (scene.state, scene.breaker.success_counter) == ("half-open", 1)
    await scene.succeed()
    assert (scene.state, scene.breaker.calls) == ("closed", 0)


async def test_trap_8_a_late_probe_of_an_earlier_half_open_has_no_say_in_the_next() -> None:
    scene = await Scene(probes=2).half_opened()
    gate = scene.peer.gate = asyncio.Event()
    stale = asyncio.create_task(scene.call())
    await asyncio.sleep(0)
    scene.peer.gate = None
    await scene.fail()
    scene.wait()
    await scene.succeed()
    scene.peer.answer = ConnectionLost("cut")
    gate.set()
    with pytest.raises(ConnectionLost):
        await stale
    assert (scene.state, scene.breaker.success_counter) == ("half-open", 1)


async def test_trap_9_permit_over_release() -> None:
    # calls admitted while closed come back neutral at half-open: no permit was theirs to give
    scene = Scene(probes=1)
    gate = scene.peer.gate = asyncio.Event()
    old = [asyncio.create_task(scene.call()) for _ in range(5)]
    await asyncio.sleep(0)
    scene.peer.gate = None
    await scene.half_opened()
    probe_gate = scene.peer.gate = asyncio.Event()
    probe = asyncio.create_task(scene.call())
    await asyncio.sleep(0)
    for task in old:
        task.cancel()
    gate.set()
    await asyncio.gather(*old, return_exceptions=True)
    scene.peer.gate = None
    await scene.refused()
    probe_gate.set()
    await probe


async def test_trap_10_streak_counters_four_failures_in_five_open_it() -> None:
    scene = Scene()
    refused = 0
    for i in range(1000):
        answer: Any = "well" if i % 5 == 0 else ConnectionLost("cut")
        refused += isinstance(await scene.get(answer), CircuitOpenError)
    assert refused > 970


async def test_trap_10_tiny_samples_do_not_open_it() -> None:
    scene = Scene()
    await scene.fail(5)
    assert scene.state == "closed"


async def test_trap_16_clock_jumps_of_the_wall_clock_do_not_matter(monkeypatch: Any) -> None:
    class Jumping:
        @staticmethod
        def now(tz: Any = None) -> None:
            raise AssertionError("the wall clock was read")

    monkeypatch.setattr(logging.getLogger("resilient_client.circuit_breaker"), "disabled", True)
    monkeypatch.setattr(pybreaker, "datetime", Jumping)
    monkeypatch.setattr("time.time", Jumping.now)
    breaker = CircuitBreaker(fail_max=1)
    with pytest.raises(ZeroDivisionError):
        breaker.call(lambda: 1 / 0)
    with pytest.raises(CircuitOpenError):
        breaker.call(int)
    breaker.half_open()
    breaker.call(int)


async def test_trap_16_a_jump_forward_of_the_clock_leads_to_probes_not_to_all_calls() -> None:
    scene = await Scene().opened()
    scene.clock.time += 3600
    before = scene.peer.calls
    await scene.flood(1000)
    assert scene.peer.calls - before == 3


@pytest.mark.parametrize(
    "error", [Throttled(), Overloaded("full"), CircuitOpenError("inner")], ids=repr
)
async def test_trap_18_local_rejections_and_throttles_are_no_failures(error: Exception) -> None:
    scene = Scene(fail_max=1)
    for _ in range(100):
        await scene.get(error)
    assert (scene.state, scene.breaker.calls) == ("closed", 0)


async def test_trap_18_nor_do_they_starve_half_open() -> None:
    scene = await Scene(probes=3).half_opened()
    for _ in range(100):
        await scene.get(Throttled())
    await scene.succeed(3)
    assert scene.state == "closed"


async def test_trap_18_a_deliberate_error_of_the_peer_is_an_answer_at_half_open_too() -> None:
    scene = await Scene(probes=1).half_opened()
    assert isinstance(await scene.get(RemoteError("no such user", status=404)), RemoteError)
    assert scene.state == "closed"


async def test_trap_19_lost_cause() -> None:
    scene = Scene(fail_max=1, name="stock")
    error = ConnectionLost("cut by the peer")
    assert await scene.get(error) is error
    refusal = await scene.refused()
    assert refusal.last_cause == "ConnectionLost: cut by the peer"
    assert refusal.__context__ is None


class Broken(Heard):
    """Raises in every hook."""

    def state_change(self, *args: Any) -> None:
        raise RuntimeError("state_change")

    def before_call(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("before_call")

    def success(self, *args: Any) -> None:
        raise RuntimeError("success")

    def failure(self, *args: Any) -> None:
        raise RuntimeError("failure")


async def test_trap_19_a_listener_that_breaks_the_breaker(caplog: Any) -> None:
    heard = Heard()
    scene = Scene(fail_max=1, probes=1, listeners=[Broken(), heard])
    await scene.succeed()
    await scene.fail()
    assert scene.state == "open"
    await scene.refused()
    scene.wait()
    await scene.succeed()
    assert scene.state == "closed"
    scene.breaker.open()
    assert scene.state == "open"
    assert heard.changes == [("closed", "open"), ("open", "half-open"), ("half-open", "closed"),
                             ("closed", "open")]  # fmt: skip
    for hook in ("state_change", "before_call", "success", "failure"):
        assert f"RuntimeError: {hook}" in caplog.text


async def test_trap_20_keying_one_bad_host_opens_its_own_breaker_only() -> None:
    template, clock = CircuitBreaker(fail_max=2), Clock()
    bad, good = Peer(), Peer()
    bad.answer = ConnectionLost("cut")
    guards = {
        peer: template.copy_for(f"math/host:{n}").wrap(peer, clock)
        for n, peer in enumerate((bad, good))
    }
    for _ in range(10):
        for peer, handler in guards.items():
            try:
                await handler(Call("x", "x", "send"))
            except (ConnectionLost, CircuitOpenError):
                assert peer is bad
    assert (bad.calls, good.calls) == (2, 10)
