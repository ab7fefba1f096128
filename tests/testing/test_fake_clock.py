from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from math import inf
from threading import Event

import pytest

from resilient_client import DeadlineExceeded, SyncClientProxy
from resilient_client.clock import Clock, Deadlines, call_later
from resilient_client.testing import NEVER, Delayed, FakeClock, ScriptedTransport


def test_it_stands_still_and_moves_at_once_without_a_loop():
    clock = FakeClock(start=5.0)
    assert isinstance(clock, Clock)
    assert clock.now() == clock.now() == 5.0
    fired = []
    clock.call_later(2, lambda: fired.append(clock.now()))
    clock.call_later(1, lambda: fired.append(clock.now()))
    clock.call_later(3.5, lambda: fired.append(clock.now()))
    clock.advance(3)
    assert (clock.now(), fired, clock.waiting) == (8.0, [6.0, 7.0], 1)


async def test_a_sleeper_wakes_at_its_own_time_and_may_sleep_again():
    clock = FakeClock(start=0)
    woke = []

    async def every_second():
        while True:
            await clock.sleep(1)
            woke.append(clock.now())

    task = asyncio.ensure_future(every_second())
    await clock.advance(3.5)
    assert woke == [1, 2, 3]
    await clock.advance(0.5)
    assert (woke, clock.now()) == ([1, 2, 3, 4], 4.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert clock.waiting == 0
    assert clock.sleeps == [1] * 5


async def test_tenths_add_up():
    clock = FakeClock(start=1000)
    woken = asyncio.ensure_future(clock.sleep(1))
    for _ in range(10):
        assert not woken.done()
        await clock.advance(0.1)
    assert woken.done()


async def test_timers_of_one_moment_fire_in_the_order_they_were_set():
    clock = FakeClock()
    fired: list[int] = []
    for number in range(5):
        clock.call_later(1, lambda number=number: fired.append(number))
    cancelled = clock.call_later(1, lambda: fired.append(99))
    cancelled.cancel()
    await clock.advance(1)
    assert fired == [0, 1, 2, 3, 4]


async def test_tasks_run_to_where_they_wait_before_and_after():
    clock = FakeClock()
    seen = []

    async def many_steps():
        for _ in range(20):
            await asyncio.sleep(0)
        seen.append("before")
        await clock.sleep(1)
        for _ in range(20):
            await asyncio.sleep(0)
        seen.append("after")

    task = asyncio.ensure_future(many_steps())
    await clock.advance(1)
    assert seen == ["before", "after"]
    await task


async def test_with_autojump_waiting_takes_no_time():
    clock = FakeClock(start=0, autojump=True)
    started = time.perf_counter()
    await clock.sleep(3600)
    order = []

    async def sleeper(seconds):
        await clock.sleep(seconds)
        order.append((seconds, clock.now()))

    await asyncio.gather(*(sleeper(seconds) for seconds in (300, 100, 200)))
    assert order == [(100, 3700), (200, 3800), (300, 3900)]
    assert time.perf_counter() - started < 5


async def test_several_clocks_on_one_loop_do_not_keep_each_other_awake():
    clocks = [FakeClock(start=0, autojump=True) for _ in range(5)]
    await asyncio.gather(*(clock.sleep(10 * n) for n, clock in enumerate(clocks)))
    assert [clock.now() for clock in clocks] == [0, 10, 20, 30, 40]


async def test_without_timers_an_autojumping_clock_lets_the_loop_rest():
    clock = FakeClock(autojump=True)
    await clock.sleep(1)
    for _ in range(10):
        await asyncio.sleep(0)
    assert clock._watching is None


async def test_it_serves_the_packages_own_timers():
    clock = FakeClock(start=0)
    expired: list[tuple[str, float]] = []
    deadlines = Deadlines(clock, lambda key: expired.append((key, clock.now())))
    for key, at in (("b", 2.0), ("a", 1.0), ("c", 3.0), ("never", inf)):
        deadlines.add(key, at)
    deadlines.discard("b")
    await clock.advance(5)
    assert expired == [("a", 1.0), ("c", 3.0)]
    fired = []
    call_later(clock, 1, lambda: fired.append(clock.now()))
    await clock.advance(1)
    assert fired == [6]


async def test_time_does_not_go_back():
    with pytest.raises(ValueError, match="does not go back"):
        FakeClock().advance(-1)


async def test_a_sleep_without_end_ends_only_by_cancellation():
    clock = FakeClock(autojump=True)
    task = asyncio.ensure_future(clock.sleep(inf))
    await clock.advance(1e9)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_thread_without_a_loop_moves_the_time_of_a_sync_client():
    arrived = Event()

    def answer(call):
        arrived.set()
        return Delayed(3, "late") if call.data else NEVER

    clock, peer = FakeClock(), ScriptedTransport([answer], forever=True)
    with (
        SyncClientProxy(peer, clock=clock, telemetry=False) as client,
        ThreadPoolExecutor() as pool,
    ):
        asking = pool.submit(client.send, "p", timeout=5)
        assert arrived.wait(30)
        while not clock.waiting:  # it sets its timer in a moment
            time.sleep(0.001)
        clock.advance(4.9)
        assert not asking.done()
        clock.advance(0.2)
        with pytest.raises(DeadlineExceeded):
            asking.result(timeout=30)
        arrived.clear()
        asking = pool.submit(client.send, "p", 1, timeout=5)
        assert arrived.wait(30)
        clock.advance(3)
        assert asking.result(timeout=30) == "late"
    assert clock.now() == pytest.approx(1008.1)
