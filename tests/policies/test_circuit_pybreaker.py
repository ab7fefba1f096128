"""Whoever has a pybreaker breaker changes the class and nothing else."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABCMeta
from contextlib import asynccontextmanager
from typing import Any

import pybreaker
import pytest

from resilient_client.errors import ConfigurationError
from resilient_client.policies.circuit_breaker import CircuitBreaker, CircuitOpenError
from tests.policies.breaker_kit import Heard, Scene


def boom() -> None:
    raise OSError("boom")


def quick(**settings: Any) -> CircuitBreaker:
    return CircuitBreaker(fail_max=2, reset_timeout=60, success_threshold=1, **settings)


def trip(breaker: CircuitBreaker) -> None:
    for _ in range(2):
        with pytest.raises(OSError, match="boom"):
            breaker.call(boom)


def test_it_is_a_pybreaker_breaker() -> None:
    breaker = CircuitBreaker(name="stock")
    assert isinstance(breaker, pybreaker.CircuitBreaker)
    assert (breaker.name, breaker.current_state) == ("stock", pybreaker.STATE_CLOSED)
    assert isinstance(breaker.state, pybreaker.CircuitClosedState)
    breaker.open()
    assert isinstance(breaker.state, pybreaker.CircuitOpenState)
    assert breaker.state.name == breaker.current_state == pybreaker.STATE_OPEN
    breaker.half_open()
    assert isinstance(breaker.state, pybreaker.CircuitHalfOpenState)
    assert breaker.current_state == pybreaker.STATE_HALF_OPEN


def test_call_returns_what_the_function_returns_and_raises_what_it_raises() -> None:
    breaker = quick()
    assert breaker.call(lambda a, b: a + b, 1, b=2) == 3
    with pytest.raises(OSError, match="boom"):
        breaker.call(boom)
    assert breaker.fail_counter == 1


@pytest.mark.parametrize("name", ["function", "hook", "self"])
@pytest.mark.parametrize("listeners", [[], [pybreaker.CircuitBreakerListener()], [Heard()]])
def test_a_function_may_call_its_arguments_what_it_likes(name: str, listeners: list[Any]) -> None:
    breaker = quick(listeners=listeners)
    assert breaker(lambda **given: given)(**{name: 1}) == {name: 1}
    if name != "self":
        assert breaker.call(lambda **given: given, **{name: 1}) == {name: 1}


def test_failures_in_a_row_go_on_being_counted_over_open_and_half_open() -> None:
    scene = Scene(fail_max=2, success_threshold=2)
    breaker = scene.breaker
    seen: list[int] = []
    heard = pybreaker.CircuitBreakerListener()
    heard.state_change = lambda cb, old, new: seen.append(cb.fail_counter)  # type: ignore[method-assign]
    breaker.add_listener(heard)
    trip(breaker)
    assert (breaker.current_state, breaker.fail_counter) == ("open", 2)
    scene.clock.time = breaker.state.until
    with pytest.raises(OSError, match="boom"):
        breaker.call(boom)
    assert (breaker.current_state, breaker.fail_counter) == ("open", 3)
    breaker.half_open()
    assert breaker.fail_counter == 3
    breaker.call(lambda: "well")
    assert (breaker.current_state, breaker.fail_counter) == ("half-open", 0)
    breaker.call(lambda: "well")
    assert (breaker.current_state, breaker.fail_counter) == ("closed", 0)
    assert seen == [2, 2, 3, 3, 0]


def test_an_open_circuit_raises_pybreakers_error() -> None:
    breaker = quick()
    trip(breaker)
    with pytest.raises(pybreaker.CircuitBreakerError) as caught:
        breaker.call(boom)
    assert isinstance(caught.value, CircuitOpenError)


def test_the_tripping_call_raises_a_new_error_when_asked_to_and_keeps_the_cause() -> None:
    breaker = quick(throw_new_error_on_trip=True)
    with pytest.raises(OSError, match="boom"):
        breaker.call(boom)
    with pytest.raises(pybreaker.CircuitBreakerError) as caught:
        breaker.call(boom)
    assert isinstance(caught.value.__cause__, OSError)


def test_one_successful_probe_closes_with_success_threshold_one() -> None:
    breaker = quick()
    trip(breaker)
    breaker.half_open()
    breaker.call(int)
    assert breaker.current_state == "closed"


def test_settings_can_be_changed_at_run_time() -> None:
    breaker = CircuitBreaker()
    assert (breaker.fail_max, breaker.reset_timeout, breaker.success_threshold) == (0, 5.0, 3)
    breaker.fail_max = 2
    breaker.reset_timeout = 300
    breaker.success_threshold = 1
    trip(breaker)
    assert breaker.current_state == "open"
    with pytest.raises(CircuitOpenError) as caught:
        breaker.call(boom)
    assert 299 < caught.value.retry_after <= 450  # type: ignore[operator]
    breaker.half_open()
    breaker.call(int)
    assert breaker.current_state == "closed"
    with pytest.raises(ConfigurationError):
        breaker.fail_max = 0
    with pytest.raises(ConfigurationError):
        breaker.reset_timeout = -1
    with pytest.raises(ConfigurationError):
        breaker.success_threshold = 0


# ---- the decorator, calling() and async functions


def test_decorates_a_function() -> None:
    breaker = quick()

    @breaker
    def guarded(x: int) -> int:
        """Text."""
        return 1 // x

    assert guarded(1) == 1
    assert guarded.__doc__ == "Text."
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            guarded(0)
    with pytest.raises(CircuitOpenError):
        guarded(1)


async def test_decorates_a_coroutine_function_and_counts_it_when_it_ends() -> None:
    breaker = quick()

    @breaker()
    async def guarded() -> None:
        await asyncio.sleep(0)
        raise OSError("boom")

    assert asyncio.iscoroutinefunction(guarded)
    for _ in range(2):
        with pytest.raises(OSError, match="boom"):
            await guarded()
    assert breaker.current_state == "open"
    with pytest.raises(CircuitOpenError):
        await guarded()


async def test_call_and_call_async_await_what_needs_awaiting() -> None:
    breaker = quick()

    async def seven() -> int:
        return 7

    assert await breaker.call(seven) == 7
    assert await breaker.call_async(seven) == 7
    assert await breaker.call_async(lambda: 7) == 7
    assert breaker.calls == 3


async def test_calling_guards_a_block_with_awaits() -> None:
    breaker = quick()
    with breaker.calling():
        await asyncio.sleep(0)
    assert (breaker.calls, breaker.failures) == (1, 0)
    for _ in range(2):
        with pytest.raises(OSError, match="boom"), breaker.calling():
            boom()
    with pytest.raises(CircuitOpenError), breaker.calling():
        raise AssertionError("not reached")


def test_a_generator_counts_when_it_ends() -> None:
    breaker = quick()

    def numbers() -> Any:
        yield 1
        yield 2
        raise OSError("boom")

    generator = breaker.call(numbers)
    assert next(generator) == 1
    assert breaker.calls == 0
    with pytest.raises(OSError, match="boom"):
        list(generator)
    assert breaker.failures == 1
    abandoned = breaker.call(numbers)
    next(abandoned)
    abandoned.close()
    assert breaker.calls == 1

    def summed() -> Any:
        return (yield 1) + (yield 2)

    whole = breaker.call(summed)
    assert (next(whole), whole.send(3), breaker.calls) == (1, 2, 1)
    with pytest.raises(StopIteration) as ended:
        whole.send(4)
    assert ended.value.value == 7
    assert (breaker.calls, breaker.failures) == (2, 1)


async def test_an_async_generator_counts_when_it_ends() -> None:
    breaker = quick()

    @breaker
    async def numbers(*, cut: bool = False) -> Any:
        yield 1
        if cut:
            raise OSError("boom")

    assert [number async for number in numbers()] == [1]
    assert (breaker.calls, breaker.failures) == (1, 0)
    with pytest.raises(OSError, match="boom"):
        assert [number async for number in numbers(cut=True)] == []
    assert (breaker.calls, breaker.failures) == (2, 1)
    abandoned = numbers(cut=True)
    await anext(abandoned)
    await abandoned.aclose()
    assert breaker.calls == 2
    breaker.half_open()
    unread = numbers()
    assert breaker.current_state == "half-open"
    assert [number async for number in unread] == [1]
    assert breaker.current_state == "closed"


class Request:
    """May be awaited or entered, as what aiohttp's `session.get` returns."""

    method = "GET"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.closed = False

    async def _answer(self) -> str:
        if self.error is not None:
            raise self.error
        return "answer"

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def __aenter__(self) -> str:
        return await self._answer()

    async def __aexit__(self, *_: object) -> None:
        self.closed = True


async def test_what_may_be_awaited_or_entered_is_counted_either_way() -> None:
    breaker = CircuitBreaker()
    request = Request()
    asked: Any = breaker.call(lambda: request)
    assert (asked.method, breaker.calls) == ("GET", 0)
    with pytest.raises(KeyError):  # of the block's own
        async with asked as answer:
            assert (answer, breaker.calls) == ("answer", 1)
            raise KeyError
    assert request.closed
    assert await breaker.call(Request) == "answer"  # type: ignore[misc]
    assert (breaker.calls, breaker.failures) == (2, 0)
    for error in (OSError("a"), OSError("b")):
        with pytest.raises(OSError, match=str(error)):
            async with breaker.call(Request, error):
                pytest.fail("it was entered")
        with pytest.raises(OSError, match=str(error)):
            await breaker.call(Request, error)  # type: ignore[misc]
    assert (breaker.calls, breaker.failures) == (6, 4)


async def test_an_async_generator_is_sent_and_thrown_what_its_wrapper_is() -> None:
    breaker = quick()
    steps: list[Any] = []

    @asynccontextmanager
    @breaker
    async def transaction() -> Any:
        try:
            yield "begun"
        except KeyError:
            steps.append("rolled back")
            raise
        finally:
            steps.append("closed")

    with pytest.raises(KeyError):
        async with transaction() as said:
            assert said == "begun"
            raise KeyError
    assert (steps, breaker.failures) == (["rolled back", "closed"], 1)

    @breaker
    async def echo() -> Any:
        said = yield None
        while True:
            try:
                said = yield said
            except ValueError as error:
                said = str(error)

    echoing = echo()
    await anext(echoing)
    assert await echoing.asend(1) == 1
    assert await echoing.athrow(ValueError("2")) == "2"
    assert await echoing.asend(3) == 3
    await echoing.aclose()


# ---- listeners


async def test_listeners_hear_what_pybreakers_hear() -> None:
    heard = Heard()
    scene = Scene(fail_max=2, probes=1, listeners=[heard])
    await scene.succeed()
    await scene.fail(2)
    await scene.refused()
    scene.wait()
    await scene.succeed()
    assert heard.changes == [("closed", "open"), ("open", "half-open"), ("half-open", "closed")]
    assert heard.calls == ["before", "success", "before", "failure", "before", "failure",
                           "before", "success"]  # fmt: skip


async def test_a_neutral_call_is_heard_before_it_and_not_after() -> None:
    heard = Heard()
    scene = Scene(listeners=[heard])
    await scene.get(asyncio.CancelledError())
    assert heard.calls == ["before"]


async def test_listeners_come_and_go() -> None:
    heard = Heard()
    scene = Scene()
    scene.breaker.add_listener(heard)
    assert scene.breaker.listeners == (heard,)
    await scene.succeed()
    scene.breaker.remove_listener(heard)
    await scene.succeed()
    assert heard.calls == ["before", "success"]
    assert scene.breaker.calls == 2
    with pytest.raises(ConfigurationError):
        scene.breaker.add_listener(object())  # type: ignore[arg-type]


async def test_a_listener_of_state_changes_alone_costs_the_calls_nothing() -> None:
    class Changes(pybreaker.CircuitBreakerListener):
        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None: ...

    scene = Scene(listeners=[Changes()])
    assert scene.breaker.state.plain
    scene.breaker.add_listener(Heard())
    assert not scene.breaker.state.plain


async def test_a_listener_sees_the_state_that_is_told() -> None:
    seen = []

    class Looks(pybreaker.CircuitBreakerListener):
        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
            seen.append((cb.current_state, new_state.name))

    scene = await Scene(listeners=[Looks()]).opened()
    assert seen == [("open", "open")]
    assert scene.state == "open"


async def test_a_listener_that_steers_is_told_of_it_in_order() -> None:
    heard = Heard()

    class Stubborn(pybreaker.CircuitBreakerListener):
        def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
            if new_state.name == "open":
                cb.close()

    scene = Scene(listeners=[Stubborn(), heard])
    await scene.fail(20)
    assert scene.state == "closed"
    assert heard.changes == [("closed", "open"), ("open", "closed")]


async def test_an_observer_can_leave_and_its_errors_go_no_further(caplog: Any) -> None:
    scene = Scene(fail_max=1)
    scene.breaker.observe(lambda change: 1 / 0)
    heard: list[Any] = []
    leave = scene.breaker.observe(heard.append)
    leave()
    leave()
    await scene.fail()
    assert scene.state == "open"
    assert heard == []
    assert "ZeroDivisionError" in caplog.text


# ---- exclusions


class Meta(ABCMeta):
    pass


class MetaclassError(Exception, metaclass=Meta):
    pass


def test_excluding_a_class_with_a_metaclass_excludes_that_class_only() -> None:
    breaker = CircuitBreaker(exclude=[MetaclassError])
    assert not breaker.is_system_error(MetaclassError())
    assert breaker.is_system_error(OSError())


def test_exclusions_come_and_go() -> None:
    breaker = quick()
    breaker.add_excluded_exception(OSError)
    breaker.add_excluded_exceptions(KeyError, ValueError)
    assert breaker.excluded_exceptions == (OSError, KeyError, ValueError)
    for _ in range(5):
        with pytest.raises(OSError, match="boom"):
            breaker.call(boom)
    assert breaker.calls == 0
    breaker.remove_excluded_exception(OSError)
    trip(breaker)
    assert breaker.current_state == "open"


# ---- threads


def test_nothing_is_locked_while_a_function_runs() -> None:
    breaker = CircuitBreaker()
    barrier = threading.Barrier(8, timeout=10)
    threads = [
        threading.Thread(target=breaker.call, args=(barrier.wait,), daemon=True) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert (breaker.calls, breaker.failures) == (8, 0)


def test_counts_from_many_threads_are_complete() -> None:
    breaker = CircuitBreaker(window=100_000, minimum_calls=100_000)

    def work(number: int) -> None:
        for i in range(500):
            try:
                breaker.call(boom if i % 5 == number % 5 else int)
            except OSError:
                continue

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (breaker.calls, breaker.failures) == (4000, 800)


def test_of_many_threads_only_as_many_as_probes_pass_at_half_open() -> None:
    breaker = quick()
    trip(breaker)
    breaker.half_open()
    inside, refused, release = [], [], threading.Event()

    def work() -> None:
        try:
            breaker.call(lambda: (inside.append(1), release.wait(10)))
        except CircuitOpenError:
            refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(50)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 10
    while len(refused) < 49 and time.monotonic() < end:
        time.sleep(0.005)
    assert (len(inside), len(refused)) == (1, 49)
    release.set()
    for thread in threads:
        thread.join(10)
    assert breaker.current_state == "closed"
