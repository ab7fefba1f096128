"""When the breaker opens, what it lets through at half-open, and how it closes."""

from __future__ import annotations

import asyncio
import copy
import pickle
import random
from math import inf, nan
from typing import Any

import pybreaker
import pytest

from resilient_client.clock import MonotonicClock
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    InvalidPayloadError,
    NoHandlerError,
    Overloaded,
    PayloadError,
    ProtocolError,
    RejectedError,
    RemoteError,
    ReplyTimeout,
    Throttled,
)
from resilient_client.message import Call, Reply
from resilient_client.policies._circuit.leases import Leases
from resilient_client.policies.circuit_breaker import CircuitBreaker, CircuitOpenError
from tests.policies.breaker_kit import Clock, Heard, Items, Scene

QUICK = {"window": 4, "minimum_calls": 2, "probes": 1}


# ---- closed


async def test_opens_when_half_of_twenty_calls_failed() -> None:
    scene = Scene()
    for _ in range(10):
        await scene.succeed()
    await scene.fail(9)
    assert scene.state == "closed"
    await scene.fail()
    assert scene.state == "open"
    assert scene.changes == [("closed", "open", "failure_rate")]


async def test_does_not_open_before_the_minimum_of_calls() -> None:
    scene = Scene()
    await scene.fail(19)
    assert scene.state == "closed"


async def test_the_success_that_makes_the_minimum_can_open_it() -> None:
    scene = Scene()
    await scene.fail(19)
    await scene.succeed()
    assert scene.state == "open"


async def test_so_can_it_when_a_listener_follows_each_call() -> None:
    scene = Scene(listeners=[Heard()])
    await scene.fail(19)
    await scene.succeed()
    assert scene.state == "open"


async def test_below_the_rate_it_stays_closed_however_many_fail() -> None:
    scene = Scene()
    for i in range(1000):
        await (scene.fail() if i % 5 == 4 else scene.succeed())
    assert scene.state == "closed"
    assert (scene.breaker.calls, scene.breaker.failures) == (100, 20)


async def test_failures_leave_the_window_after_as_many_calls() -> None:
    scene = Scene(window=10, minimum_calls=10)
    await scene.succeed(6)
    await scene.fail(4)
    assert (scene.breaker.calls, scene.breaker.failures) == (10, 4)
    await scene.succeed(6)
    assert scene.breaker.failures == 4
    await scene.succeed(1)
    assert scene.breaker.failures == 3
    await scene.succeed(3)
    assert scene.breaker.failures == 0


async def test_a_rate_is_reached_exactly_whatever_floats_do() -> None:
    for rate, failures, size in ((0.1, 3, 30), (0.7, 7, 10), (0.29, 29, 100), (1 / 3, 1, 3)):
        scene = Scene(failure_rate=rate, window=size, minimum_calls=size)
        await scene.succeed(size - failures)
        await scene.fail(failures - 1)
        assert scene.state == "closed"
        await scene.fail()
        assert scene.state == "open", (rate, failures, size)


async def test_slow_calls_open_it_when_they_are_the_rate() -> None:
    scene = Scene(slow_call=1.0, slow_call_rate=0.5, window=10, minimum_calls=4)

    def slow(call: Call) -> str:
        scene.clock.time += 1.5
        return "late"

    await scene.succeed(2)
    await scene.get(slow)
    assert (scene.state, scene.breaker.slow_calls) == ("closed", 1)
    await scene.get(slow)
    assert scene.changes == [("closed", "open", "slow_rate")]


@pytest.mark.parametrize("rules", [{}, {"fail_max": 5}])
async def test_slow_calls_are_judged_with_the_call_that_makes_the_minimum(
    rules: dict[str, Any],
) -> None:
    scene = Scene(slow_call=1.0, slow_call_rate=0.5, window=10, minimum_calls=4, **rules)

    def slow(call: Call) -> str:
        scene.clock.time += 1.5
        return "late"

    await scene.get(slow)
    await scene.get(slow)
    await scene.succeed(1)
    assert scene.state == "closed"
    await scene.succeed(1)
    assert scene.changes == [("closed", "open", "slow_rate")]


async def test_slow_failures_count_as_both() -> None:
    scene = Scene(slow_call=1.0, slow_call_rate=1.0, failure_rate=1.0, window=4, minimum_calls=4)

    def slow_failure(call: Call) -> Exception:
        scene.clock.time += 1.5
        return ConnectionLost("cut")

    await scene.get(slow_failure)
    assert (scene.breaker.failures, scene.breaker.slow_calls) == (1, 1)


async def test_without_the_slow_call_rule_a_closed_breaker_reads_no_clock() -> None:
    scene = Scene()
    scene.clock.reads = 0
    await scene.succeed(50)
    await scene.fail(5)
    assert scene.clock.reads == 0


async def test_consecutive_failures_open_it_as_in_pybreaker() -> None:
    scene = Scene(fail_max=3, reset_timeout=30)
    await scene.fail(2)
    await scene.succeed()
    await scene.fail(2)
    assert (scene.state, scene.breaker.fail_counter) == ("closed", 2)
    await scene.fail()
    assert scene.changes == [("closed", "open", "consecutive")]
    assert 30 <= scene.breaker.state.until - scene.clock.time <= 45


async def test_fail_max_alone_turns_the_rate_off_and_with_a_rate_both_hold() -> None:
    scene = Scene(fail_max=50)
    await scene.fail(49)
    assert scene.state == "closed"
    both = Scene(fail_max=50, failure_rate=0.5)
    await both.fail(20)
    assert both.changes == [("closed", "open", "failure_rate")]


# ---- what counts


@pytest.mark.parametrize(
    "error",
    [
        ConnectError("refused"),
        ConnectionLost("cut"),
        ReplyTimeout("late"),
        DeadlineExceeded("late", sent=True),
        DeadlineExceeded("late", sent=False),
        ProtocolError("what?"),
        RemoteError("Internal server error"),
        RemoteError("x", status=503),
        NoHandlerError(sent=False),
        ValueError("a bug in a handler of the user's own"),
    ],
    ids=repr,
)
async def test_counts_as_a_failure(error: Exception) -> None:
    scene = Scene()
    assert await scene.get(error) is error
    assert (scene.breaker.calls, scene.breaker.failures) == (1, 1)


@pytest.mark.parametrize(
    "error",
    [RemoteError("boom"), RemoteError("x", status=404), NoHandlerError(), InvalidPayloadError("x"),
     PayloadError("no such value", sent=True)],
    ids=repr,
)  # fmt: skip
async def test_an_answer_that_is_an_error_counts_as_a_success(error: Exception) -> None:
    scene = Scene()
    assert await scene.get(error) is error
    assert (scene.breaker.calls, scene.breaker.failures) == (1, 0)


@pytest.mark.parametrize(
    "error",
    [Throttled(), Throttled("slow down", retry_after=3),
     Overloaded("full"), CircuitOpenError("another's"), RejectedError("no"),
     asyncio.CancelledError(), KeyboardInterrupt(), GeneratorExit()],
    ids=repr,
)  # fmt: skip
async def test_counts_nothing(error: BaseException) -> None:
    scene = Scene()
    assert await scene.get(error) is error
    assert (scene.breaker.calls, scene.breaker.failures) == (0, 0)


async def test_an_excluded_exception_is_neutral_and_untouched() -> None:
    scene = Scene(exclude=[ConnectionLost, lambda error: "boring" in str(error)])
    lost, boring, other = ConnectionLost("cut"), ValueError("boring"), ValueError("bad")
    assert await scene.get(lost) is lost
    assert await scene.get(boring) is boring
    assert scene.breaker.calls == 0
    await scene.get(other)
    assert scene.breaker.failures == 1


async def test_an_exclusion_that_fails_excludes_nothing(caplog: Any) -> None:
    scene = Scene(exclude=[lambda error: 1 / 0])
    await scene.fail()
    assert scene.breaker.failures == 1
    assert "exclusion" in caplog.text


# ---- open


async def test_an_open_circuit_refuses_without_calling_and_says_why() -> None:
    scene = await Scene(name="stock", **QUICK).opened()
    error = await scene.refused()
    assert 5.0 <= error.retry_after <= 7.5  # type: ignore[operator]
    assert error.last_cause == "ConnectionLost: cut"
    assert (error.circuit, error.state) == ("stock", "open")
    assert error.sent is False
    assert error.retryable
    assert "circuit stock is open since ConnectionLost: cut" in str(error)
    assert scene.breaker.rejections == 1


async def test_the_call_that_opens_it_gets_its_own_error() -> None:
    scene = Scene(**QUICK)
    await scene.fail()
    error = ConnectionLost("the last straw")
    assert await scene.get(error) is error
    assert scene.state == "open"


async def test_credentials_do_not_travel_in_the_cause() -> None:
    scene = Scene(**QUICK)
    for _ in range(2):
        await scene.get(ConnectError("cannot reach redis://user:secret@host:1"))
    error = await scene.refused()
    assert "secret" not in f"{error} {error.last_cause} {error!r}"


async def test_a_cause_whose_text_cannot_be_made_is_no_reason_to_stay_closed() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    scene = Scene(**QUICK)
    for _ in range(2):
        await scene.get(MuteError())
    assert "MuteError" in str((await scene.refused()).last_cause)


async def test_it_stays_open_for_its_time_and_not_longer() -> None:
    scene = await Scene(**QUICK).opened()
    scene.clock.time = scene.breaker.state.until - 0.001
    assert not scene.breaker.admits()
    await scene.refused()
    scene.clock.time = scene.breaker.state.until
    assert scene.breaker.admits()
    await scene.succeed()


async def test_admits_changes_nothing() -> None:
    scene = await Scene(**QUICK).half_opened()
    for _ in range(10):
        assert scene.breaker.admits()
    assert scene.state == "open"


async def test_open_times_are_spread_and_double_up_to_the_maximum() -> None:
    random.seed(7)
    scene = Scene(open_for=2.0, open_for_max=20.0, **QUICK)
    await scene.opened()
    for base in (2, 4, 8, 16, 20, 20):
        drawn = scene.breaker.state.until - scene.clock.time
        assert base <= drawn <= 1.5 * base
        assert drawn != base
        scene.wait()
        await scene.fail()
        assert scene.state == "open"


async def test_the_open_time_starts_anew_when_it_was_closed_for_longer_than_it_was_open() -> None:
    scene = await Scene(**QUICK).ramping()
    scene.clock.time += 10
    await scene.opened()
    assert 5 <= scene.breaker.state.until - scene.clock.time <= 7.5


async def test_opening_again_soon_after_closing_is_a_reopening() -> None:
    scene = await Scene(**QUICK).ramping()
    await scene.opened()
    assert 10 <= scene.breaker.state.until - scene.clock.time <= 15


async def test_a_hand_at_the_switch_neither_lengthens_the_open_time_nor_remembers_it() -> None:
    scene = await Scene(**QUICK).half_opened()
    await scene.fail()
    scene.wait()
    scene.breaker.half_open()
    scene.breaker.open()
    assert 10 <= scene.breaker.state.until - scene.clock.time <= 15
    scene.breaker.close()
    await scene.opened()
    assert 5 <= scene.breaker.state.until - scene.clock.time <= 7.5


async def test_closed_by_hand_in_the_ramp_the_open_time_starts_anew() -> None:
    scene = await Scene(**QUICK).ramping()
    scene.breaker.close()
    await scene.opened()
    assert 5 <= scene.breaker.state.until - scene.clock.time <= 7.5


# ---- half-open


async def test_three_successful_probes_close_it() -> None:
    scene = await Scene().half_opened()
    await scene.succeed(2)
    assert scene.state == "half-open"
    assert scene.breaker.success_counter == 2
    await scene.succeed()
    assert scene.state == "closed"
    assert [c[2] for c in scene.changes] == ["failure_rate", "open_time_over", "probe_ok"]


async def test_the_first_failed_probe_opens_it_without_waiting_for_the_others() -> None:
    scene = await Scene().half_opened()
    gate = scene.peer.gate = asyncio.Event()
    others = [asyncio.create_task(scene.call()) for _ in range(2)]
    await asyncio.sleep(0)
    scene.peer.gate = None
    await scene.fail()
    assert scene.changes[-1] == ("half-open", "open", "probe_failed")
    gate.set()
    await asyncio.gather(*others, return_exceptions=True)
    assert scene.state == "open"


async def test_only_as_many_probes_go_out_as_are_still_needed() -> None:
    scene = await Scene().half_opened()
    await scene.succeed()
    results = await scene.flood(10)
    assert sum(isinstance(r, Reply) for r in results) == 2
    assert scene.state == "closed"


async def test_a_refused_call_at_half_open_learns_when_a_permit_comes_back() -> None:
    scene = await Scene(probe_lease=3.0).half_opened()
    errors: list[CircuitOpenError] = []

    def late() -> None:
        scene.clock.time += 1.0

    results = await scene.flood(3, late)
    assert all(isinstance(r, Reply) for r in results)
    scene = await Scene(probe_lease=3.0).half_opened()
    results = await scene.flood(5)
    errors = [r for r in results if isinstance(r, CircuitOpenError)]
    assert [e.retry_after for e in errors] == [3.0, 3.0]
    assert [e.state for e in errors] == ["half-open", "half-open"]
    assert "half-open" in str(errors[0])


async def test_an_expired_lease_frees_its_permit_and_its_late_success_still_counts() -> None:
    scene = await Scene(probes=1).half_opened()
    gate = scene.peer.gate = asyncio.Event()
    hung = asyncio.create_task(scene.call())
    await asyncio.sleep(0)
    scene.peer.gate = None
    await scene.refused()
    scene.clock.time += 3.0
    assert scene.breaker.admits()
    gate.set()
    await hung
    assert scene.state == "closed"


async def test_the_late_return_of_an_expired_lease_frees_no_second_permit() -> None:
    scene = await Scene(probes=1, exclude=[ValueError]).half_opened()
    first_gate = scene.peer.gate = asyncio.Event()
    first = asyncio.create_task(scene.call())
    await asyncio.sleep(0)
    scene.clock.time += 3.0
    second_gate = scene.peer.gate = asyncio.Event()
    second = asyncio.create_task(scene.call())
    await asyncio.sleep(0)
    scene.peer.gate = None
    scene.peer.answer = ValueError("neutral")
    first_gate.set()
    with pytest.raises(ValueError):
        await first
    await scene.refused()
    scene.peer.answer = "well"
    second_gate.set()
    await second
    assert scene.state == "closed"


@pytest.mark.parametrize(
    "answer", [Throttled(), Overloaded("full"), asyncio.CancelledError(), KeyError("excluded")],
    ids=repr,
)  # fmt: skip
async def test_a_neutral_probe_gives_its_permit_back_and_decides_nothing(
    answer: BaseException,
) -> None:
    scene = await Scene(probes=1, exclude=[KeyError]).half_opened()
    for _ in range(20):
        assert await scene.get(answer) is answer
        assert scene.state == "half-open"
    await scene.succeed()
    assert scene.state == "closed"


async def test_probes_that_are_all_slow_reopen_it() -> None:
    scene = Scene(slow_call=1.0, probes=2, minimum_calls=2, window=4)
    await scene.half_opened()

    def slow(call: Call) -> str:
        scene.clock.time += 2
        return "late"

    await scene.get(slow)
    await scene.get(slow)
    assert scene.changes[-1] == ("half-open", "open", "probe_slow")


def test_no_more_permits_are_out_than_there_are_whoever_asks_first() -> None:
    leases = Leases(2, 3.0)
    holders: list[Any] = [object() for _ in range(4)]
    assert leases.free(0.0)  # two threads may hear so, and both take
    assert [leases.take(holder, 0.0) for holder in holders[:3]] == [True, True, False]
    assert leases.take(holders[2], 3.0)
    leases.give_back(holders[0])  # its time was up: that brings nothing back
    assert leases.take(holders[3], 3.0)
    assert not leases.free(3.0)


# ---- the ramp


async def test_after_half_open_calls_return_in_a_ramp() -> None:
    scene = await Scene(probes=1).ramping()
    admitted = []
    for _ in range(8):
        before = scene.peer.calls
        await scene.flood(100)
        admitted.append(scene.peer.calls - before)
        assert scene.state == "closed"
    assert admitted == [2, 4, 8, 16, 32, 100, 100, 100]
    assert scene.breaker.rejections == 800 - sum(admitted)


async def test_one_call_at_a_time_never_notices_the_ramp() -> None:
    scene = await Scene().ramping()
    await scene.succeed(500)


async def test_when_the_ramp_is_over_calls_take_the_fast_path_again() -> None:
    scene = await Scene(probes=1).ramping()
    await scene.succeed(61)
    assert not scene.breaker.state.plain
    await scene.succeed()
    assert scene.breaker.state.plain
    wider = await Scene(probes=2).ramping()
    await wider.succeed(123)
    assert not wider.breaker.state.plain
    await wider.succeed()
    assert wider.breaker.state.plain
    streamed = await Scene(probes=1).ramping()
    for _ in range(62):
        streamed.peer.answer = Reply(items=Items())
        await streamed.call("stream")
    assert streamed.breaker.state.plain


async def test_a_failure_in_the_ramp_gives_its_place_back_without_widening_it() -> None:
    scene = await Scene(probes=1).ramping()
    await scene.fail(5)
    before = scene.peer.calls
    await scene.flood(100)
    assert scene.peer.calls - before == 2


async def test_calls_that_hang_in_the_ramp_lose_their_places_after_the_lease() -> None:
    scene = await Scene(probes=1, probe_lease=3.0).ramping()
    gate = scene.peer.gate = asyncio.Event()
    hung = [asyncio.create_task(scene.call()) for _ in range(2)]
    await asyncio.sleep(0)
    scene.peer.gate = None
    error = await scene.refused()
    assert error.retry_after == 3.0
    assert error.state == "closed"
    scene.clock.time += 3.0
    await scene.succeed()
    gate.set()
    await asyncio.gather(*hung)


async def test_a_failing_peer_in_the_ramp_opens_it_by_the_usual_rule() -> None:
    scene = await Scene(probes=1).ramping()
    await scene.fail(20)
    assert scene.state == "open"


# ---- streams


async def test_a_stream_counts_once_at_its_end() -> None:
    scene = Scene()
    for error, seen, counted in (
        (None, True, (1, 0)),
        (ConnectionLost("cut"), True, (2, 1)),
        (asyncio.CancelledError(), True, (3, 1)),
        (asyncio.CancelledError(), False, (3, 1)),
        (ReplyTimeout("idle"), True, (4, 2)),
        (RemoteError("boom"), True, (5, 2)),
        (Throttled(), True, (5, 2)),
    ):
        reply = Reply(items=Items())
        scene.peer.answer = reply
        before = scene.breaker.calls, scene.breaker.failures
        assert await scene.call("stream") is reply
        assert (scene.breaker.calls, scene.breaker.failures) == before
        reply.complete(error, seen=seen)
        reply.complete(None, seen=True)
        assert (scene.breaker.calls, scene.breaker.failures) == counted


async def test_at_half_open_the_first_item_of_a_stream_is_the_success() -> None:
    scene = await Scene(probes=1).half_opened()
    reply = scene.peer.answer = Reply(items=Items())
    await scene.call("stream")
    assert scene.state == "closed"
    reply.complete(ConnectionLost("cut"), seen=True)
    assert scene.breaker.failures == 0


async def test_a_stream_in_the_ramp_gives_its_place_back_at_its_first_item() -> None:
    scene = await Scene(probes=1).ramping()
    streams = []
    for _ in range(50):
        scene.peer.answer = Reply(items=Items())
        streams.append(await scene.call("stream"))
    assert scene.breaker.calls == 0
    for stream in streams:
        stream.complete(None, seen=True)
    assert scene.breaker.calls == 50


async def test_a_slow_stream_is_one_whose_first_item_was_slow() -> None:
    scene = Scene(slow_call=1.0, minimum_calls=2)
    reply = scene.peer.answer = Reply(items=Items())
    await scene.call("stream")
    scene.clock.time += 100
    reply.complete(None, seen=True)
    assert (scene.breaker.calls, scene.breaker.slow_calls) == (1, 0)
    late = Reply(items=Items())

    def slow(call: Call) -> Reply:
        scene.clock.time += 2
        return late

    scene.peer.answer = slow
    await scene.call("stream")
    late.complete(None, seen=True)
    assert scene.breaker.slow_calls == 1


# ---- by hand


async def test_forced_open_holds_until_it_is_closed() -> None:
    scene = Scene()
    scene.breaker.force_open()
    assert scene.state == "forced-open"
    scene.clock.time += 1e9
    error = await scene.refused()
    assert error.retry_after is None
    assert error.last_cause is None
    assert not scene.breaker.admits()
    scene.breaker.close()
    await scene.succeed(100)


async def test_disabled_lets_everything_pass_and_counts_nothing() -> None:
    scene = Scene()
    scene.breaker.disable()
    await scene.fail(200)
    await scene.succeed(5)
    assert scene.state == "disabled"
    assert (scene.breaker.calls, scene.breaker.failures) == (0, 0)
    scene.breaker.reset()
    await scene.opened()


async def test_metrics_only_counts_and_never_opens() -> None:
    scene = Scene(fail_max=3, failure_rate=0.5)
    scene.breaker.metrics_only()
    await scene.fail(200)
    assert scene.state == "metrics-only"
    assert (scene.breaker.calls, scene.breaker.failures) == (100, 100)


async def test_opened_by_hand_it_probes_when_its_time_is_over() -> None:
    scene = Scene(probes=1)
    assert scene.breaker.open() is False
    error = await scene.refused()
    assert 5 <= error.retry_after <= 7.5  # type: ignore[operator]
    assert error.last_cause is None
    scene.wait()
    await scene.succeed()
    assert scene.state == "closed"
    assert scene.changes[0] == ("closed", "open", "manual")


async def test_opening_an_open_circuit_does_not_prolong_it() -> None:
    scene = await Scene(**QUICK).opened()
    until = scene.breaker.state.until
    scene.clock.time += 1
    scene.breaker.open()
    assert scene.breaker.state.until == until
    assert len(scene.changes) == 1


async def test_opening_a_circuit_whose_open_time_has_passed_unseen_opens_it_anew() -> None:
    scene = await Scene(**QUICK).opened()
    scene.wait()
    scene.breaker.open()
    error = await scene.refused()
    assert 5 <= error.retry_after <= 7.5  # type: ignore[operator]
    assert scene.changes[1:] == [
        ("open", "half-open", "open_time_over"),
        ("half-open", "open", "manual"),
    ]


async def test_half_open_by_hand_probes_at_once() -> None:
    scene = await Scene().opened()
    scene.breaker.half_open()
    results = await scene.flood(10)
    assert sum(isinstance(r, Reply) for r in results) == 3
    assert scene.state == "closed"


async def test_half_open_again_gives_no_fresh_permits() -> None:
    scene = await Scene().opened()
    scene.breaker.half_open()
    results = await scene.flood(10, scene.breaker.half_open)
    assert sum(isinstance(r, Reply) for r in results) == 3


async def test_closed_by_hand_there_is_no_ramp_and_the_window_is_fresh() -> None:
    scene = await Scene().opened()
    scene.breaker.close()
    assert scene.breaker.calls == 0
    results = await scene.flood(500)
    assert all(isinstance(r, Reply) for r in results)


async def test_setting_the_state_by_name_is_steering() -> None:
    scene = Scene()
    scene.breaker.state = "open"
    assert scene.state == "open"
    with pytest.raises(ConfigurationError, match="ajar"):
        scene.breaker.state = "ajar"


# ---- the error


def test_the_error_can_be_raised_with_one_string() -> None:
    error = CircuitOpenError("open")
    assert isinstance(error, RejectedError)
    assert isinstance(error, pybreaker.CircuitBreakerError)
    assert (error.sent, error.retry_after, error.last_cause) == (False, None, None)
    assert str(error).startswith("open")
    assert CircuitOpenError("open", retry_after=2.0, last_cause="x").retry_after == 2.0


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]
)
async def test_the_error_survives_pickling_and_copying(again: Any) -> None:
    scene = await Scene(name="stock", **QUICK).opened()
    error = await scene.refused()
    assert error.args == ("circuit stock is open since ConnectionLost: cut",)
    assert repr(error) == f"CircuitOpenError({error.args[0]!r})"
    twin = again(error)
    assert type(twin) is CircuitOpenError
    assert str(twin) == str(error)
    for name in ("retry_after", "last_cause", "circuit", "state", "sent", "hint", "args"):
        assert getattr(twin, name) == getattr(error, name)
    own = again(CircuitOpenError("open", retry_after=1.5))
    assert (str(own), own.retry_after) == (str(CircuitOpenError("open")), 1.5)


async def test_a_refusal_tells_the_state_it_was_refused_in_even_later() -> None:
    scene = await Scene(**QUICK).opened()
    error = await scene.refused()
    scene.breaker.close()
    assert error.state == "open"


# ---- settings


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"failure_rate": 0}, "failure_rate"),
        ({"failure_rate": 1.5}, "failure_rate"),
        ({"failure_rate": 5}, "fail_max=5"),
        ({"failure_rate": nan}, "failure_rate"),
        ({"failure_rate": "half"}, "failure_rate"),
        ({"failure_rate": True}, "failure_rate"),
        ({"window": 0}, "window"),
        ({"window": 1.5}, "window"),
        ({"minimum_calls": 0}, "minimum_calls"),
        ({"minimum_calls": 50, "window": 10}, "minimum_calls=50"),
        ({"slow_call": 0}, "slow_call"),
        ({"slow_call_rate": 0}, "slow_call_rate"),
        ({"open_for": 0}, "open_for"),
        ({"open_for": inf}, "open_for"),
        ({"open_for": -1}, "open_for"),
        ({"open_for": 5.0, "open_for_max": 2.0}, "open_for_max"),
        ({"open_for": 9, "reset_timeout": 8}, "reset_timeout"),
        ({"reset_timeout": 0}, "reset_timeout"),
        ({"probes": 0}, "probes"),
        ({"probe_lease": 0}, "probe_lease"),
        ({"fail_max": 0}, "fail_max"),
        ({"success_threshold": 0}, "success_threshold"),
        ({"name": 7}, "name"),
        ({"listeners": [object()]}, "listener"),
        ({"listeners": [pybreaker.CircuitBreakerListener]}, "listener"),
        ({"exclude": ["OSError"]}, "exclude"),
        ({"exclude": [int]}, "exclude"),
        ({"state_storage": "redis://"}, "state_storage"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(settings: Any, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        CircuitBreaker(**settings)


def test_a_small_window_is_judged_when_it_is_full() -> None:
    assert "at least 10 calls" in CircuitBreaker(window=10).describe()


def test_a_long_open_time_raises_the_default_maximum() -> None:
    assert "open 300 s doubling to 300 s" in CircuitBreaker(reset_timeout=300).describe()


def test_describes_its_rules_and_shows_its_state() -> None:
    breaker = CircuitBreaker(slow_call=2.0, fail_max=5, failure_rate=0.25, name="stock")
    assert breaker.describe() == (
        "opens when 5 failures in a row or 0.25 of the last 100 calls failed or 1 of the last 100"
        " calls took over 2 s (at least 20 calls); open 5 s doubling to 60 s, up to 50% longer by"
        " jitter; then 3 probes leased for 3 s, closed by 3 that succeed, and a ramp"
    )
    assert repr(breaker) == "<CircuitBreaker 'stock' closed: 0 of 0 failed>"


# ---- clocks


async def test_a_breaker_shared_by_two_clients_is_one_breaker() -> None:
    scene = Scene(**QUICK)
    other = scene.breaker.wrap(scene.peer, scene.clock)
    await scene.opened()
    with pytest.raises(CircuitOpenError):
        await other(Call("x", "x", "send"))


def test_two_clocks_on_one_breaker_are_a_configuration_error() -> None:
    breaker = CircuitBreaker()
    breaker.wrap(Scene().peer, Clock())
    with pytest.raises(ConfigurationError, match="clock"):
        breaker.wrap(Scene().peer, Clock())


def test_every_real_clock_is_the_same_clock() -> None:
    breaker = CircuitBreaker()
    breaker.wrap(Scene().peer, MonotonicClock())
    breaker.wrap(Scene().peer, MonotonicClock())


async def test_what_was_opened_by_hand_before_the_client_came_keeps_its_time() -> None:
    breaker = CircuitBreaker(open_for=5.0)
    breaker.open()
    clock = Clock(start=3.0)
    handler = breaker.wrap(Scene().peer, clock)
    with pytest.raises(CircuitOpenError) as caught:
        await handler(Call("x", "x", "send"))
    assert 4.0 < caught.value.retry_after <= 7.5  # type: ignore[operator]
    clock.time += 7.6
    await handler(Call("x", "x", "send"))
