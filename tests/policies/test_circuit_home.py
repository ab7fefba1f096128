"""One loop per breaker, steering from other threads, forks, and copies for endpoints."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import pybreaker
import pytest

from resilient_client.errors import ConfigurationError
from resilient_client.policies.circuit_breaker import CircuitBreaker
from tests.policies.breaker_kit import Clock, Heard, Peer, Scene


class Where(pybreaker.CircuitBreakerListener):
    """Notes the thread of each change of state."""

    def __init__(self) -> None:
        self.threads: list[str] = []

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        self.threads.append(threading.current_thread().name)


async def test_steering_from_another_thread_happens_on_the_loop_and_has_happened() -> None:
    where = Where()
    breaker = CircuitBreaker(listeners=[where])
    breaker.bind(asyncio.get_running_loop())

    def steer() -> str:
        breaker.open()
        return breaker.current_state

    assert await asyncio.to_thread(steer) == "open"
    assert where.threads == ["MainThread"]


async def test_steering_on_the_loop_is_direct() -> None:
    breaker = CircuitBreaker()
    breaker.bind(asyncio.get_running_loop())
    breaker.force_open()
    assert breaker.current_state == "forced-open"


def test_without_a_loop_steering_acts_in_the_calling_thread() -> None:
    where = Where()
    breaker = CircuitBreaker(listeners=[where])
    thread = threading.Thread(target=breaker.open, name="steering")
    thread.start()
    thread.join(10)
    assert breaker.current_state == "open"
    assert where.threads == ["steering"]


def test_after_its_loop_has_ended_steering_acts_directly() -> None:
    breaker = CircuitBreaker()

    async def use() -> None:
        breaker.bind(asyncio.get_running_loop())

    asyncio.run(use())
    breaker.open()
    assert breaker.current_state == "open"


async def test_steering_does_not_hang_when_the_loop_waits_for_the_thread_that_steers() -> None:
    breaker = CircuitBreaker()
    breaker.bind(asyncio.get_running_loop())
    thread = threading.Thread(target=breaker.open)
    thread.start()
    thread.join(10)  # blocks the loop
    assert not thread.is_alive()
    assert breaker.current_state == "open"
    await asyncio.sleep(0)
    assert breaker.current_state == "open"


async def test_news_from_a_thread_that_calls_is_told_on_the_loop() -> None:
    where = Where()
    breaker = CircuitBreaker(fail_max=1, listeners=[where])
    breaker.bind(asyncio.get_running_loop())

    def call() -> str:
        try:
            breaker.call(lambda: 1 / 0)
        except ZeroDivisionError:
            return breaker.current_state
        return "no error"

    assert await asyncio.to_thread(call) == "open"
    await asyncio.sleep(0)
    assert where.threads == ["MainThread"]


async def test_a_second_live_loop_is_a_configuration_error() -> None:
    breaker = CircuitBreaker(name="stock")
    breaker.bind(asyncio.get_running_loop())
    breaker.bind(asyncio.get_running_loop())

    def elsewhere() -> None:
        async def use() -> None:
            breaker.bind(asyncio.get_running_loop())

        asyncio.run(use())

    with pytest.raises(ConfigurationError, match="stock"):
        await asyncio.to_thread(elsewhere)


def test_after_its_loop_has_closed_it_may_live_on_another() -> None:
    breaker = CircuitBreaker()

    async def use() -> None:
        breaker.bind(asyncio.get_running_loop())

    asyncio.run(use())
    asyncio.run(use())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_bound_to_no_loop_and_finds_no_lock_taken() -> None:
    breaker = CircuitBreaker(fail_max=1)
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with breaker._lock:
            held.set()
            let_go.wait(30)

    holder = threading.Thread(target=hold)
    loop = asyncio.new_event_loop()
    runner = threading.Thread(target=loop.run_forever)
    runner.start()
    breaker.bind(loop)
    holder.start()
    assert held.wait(10)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            breaker.open()
            if breaker.current_state == "open":
                breaker.bind(asyncio.new_event_loop())
                code = 0
        finally:
            os.write(writing, bytes([code]))
            os._exit(code)
    let_go.set()
    holder.join(10)
    loop.call_soon_threadsafe(loop.stop)
    runner.join(10)
    loop.close()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        time.sleep(0.01)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        raise AssertionError("the child hangs")
    os.close(reading)
    os.close(writing)
    assert os.waitstatus_to_exitcode(status) == 0


# ---- copies


async def test_each_endpoint_gets_a_copy_with_its_own_window_and_the_same_listeners() -> None:
    heard = Heard()
    template = CircuitBreaker(fail_max=2, listeners=[heard], exclude=[KeyError], name="math")
    peer, clock = Peer(), Clock()
    first, second = (template.copy_for(f"math/host:{n}") for n in (1, 2))
    first.wrap(peer, clock)
    second.wrap(peer, Clock())
    assert (first.name, second.name) == ("math/host:1", "math/host:2")
    assert first.listeners == (heard,)
    assert first.excluded_exceptions == (KeyError,)
    first.open()
    assert (first.current_state, second.current_state) == ("open", "closed")
    assert template.current_state == "closed"
    assert heard.changes == [("closed", "open")]
    first.fail_max = 7
    first.add_listener(Heard())
    assert (second.fail_max, len(second.listeners)) == (2, 1)


def test_a_copy_of_a_subclass_is_of_that_class() -> None:
    class Mine(CircuitBreaker):
        def __init__(self, url: str) -> None:
            super().__init__(fail_max=2)
            self.url = url

    copy = Mine("tcp://x").copy_for("x")
    assert isinstance(copy, Mine)
    assert copy.url == "tcp://x"
    assert copy.describe() == Mine("y").describe()


def test_one_storage_for_several_endpoints_is_a_configuration_error() -> None:
    template = CircuitBreaker(state_storage=pybreaker.CircuitMemoryStorage("closed"))
    with pytest.raises(ConfigurationError, match="state_storage"):
        template.copy_for("math/host:1")


async def test_it_guards_an_endpoint() -> None:
    assert CircuitBreaker.scope == "endpoint"
    assert Scene().breaker.scope == "endpoint"
