"""The mirror in a pybreaker storage: openings travel, and a dead storage changes nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pybreaker
import pytest

from resilient_client.clock import MonotonicClock
from resilient_client.message import Call
from resilient_client.policies._circuit import mirror
from resilient_client.policies.circuit_breaker import CircuitBreaker, CircuitOpenError
from resilient_client.testing import FakeClock
from tests.policies.breaker_kit import Peer
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: Any) -> None:
    monkeypatch.setattr(mirror, "POLL", 0.02)


class Storage(pybreaker.CircuitMemoryStorage):
    """In memory, and notes who touches it; can hang or fail."""

    def __init__(self, state: str = "closed") -> None:
        self.threads: set[str] = set()
        self.trouble: Callable[[], None] | None = None
        self.written: list[str] = []
        super().__init__(state)

    def _touched(self) -> None:
        self.threads.add(threading.current_thread().name)
        if self.trouble is not None:
            self.trouble()

    @property
    def state(self) -> str:
        self._touched()
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        self._touched()
        self._state = state
        self.written.append(state)

    @property
    def opened_at(self) -> datetime | None:
        self._touched()
        return self._opened_at

    @opened_at.setter
    def opened_at(self, at: datetime) -> None:
        self._touched()
        self._opened_at = at

    def elsewhere(self, state: str, at: datetime | None = None) -> None:
        """Another process writes."""
        self._opened_at = at or datetime.now(UTC)
        self._state = state


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("circuit-storage")]


async def settle() -> None:
    """Several polls."""
    await asyncio.sleep(0.1)


async def test_transitions_are_published_by_the_thread_and_by_nobody_else() -> None:
    storage = Storage()
    breaker = CircuitBreaker(fail_max=1, probes=1, state_storage=storage, name="stock")
    handler = breaker.wrap(Peer(), MonotonicClock())
    await breaker.start()
    breaker.open()
    await eventually(lambda: storage.written == ["open"])
    assert isinstance(storage._opened_at, datetime)
    breaker.half_open()
    await eventually(lambda: storage.written[-1] == "half-open")
    await handler(Call("x", "x", "send"))
    await eventually(lambda: storage.written[-1] == "closed")
    assert breaker.current_state == "closed"
    await breaker.stop()
    assert storage.threads == {"circuit-storage-stock"}
    assert threads() == []


async def test_what_happened_last_is_published_before_the_mirror_ends() -> None:
    storage = Storage()
    breaker = CircuitBreaker(state_storage=storage)
    await breaker.start()
    breaker.open()
    await breaker.stop()
    assert storage._state == "open"


async def test_an_opening_found_at_the_start_opens_this_breaker_before_the_first_call() -> None:
    storage = Storage()
    storage.elsewhere("open")
    breaker = CircuitBreaker(state_storage=storage)
    changes: list[Any] = []
    breaker.observe(changes.append)
    handler = breaker.wrap(Peer(), MonotonicClock())
    await breaker.start()
    assert breaker.current_state == "open"
    assert [c.reason for c in changes] == ["storage"]
    with pytest.raises(CircuitOpenError):
        await handler(Call("x", "x", "send"))
    await breaker.stop()
    assert storage.written == []


async def test_an_opening_of_unknown_age_counts_in_full() -> None:
    breaker = CircuitBreaker(state_storage=Storage("open"))
    await breaker.start()
    assert breaker.current_state == "open"
    assert not breaker.admits()
    await breaker.stop()


async def test_an_opening_of_long_ago_leaves_only_the_probes() -> None:
    storage = Storage()
    storage.elsewhere("open", datetime.now(UTC) - timedelta(hours=3))
    breaker = CircuitBreaker(state_storage=storage)
    await breaker.start()
    assert breaker.current_state == "open"
    assert breaker.admits()
    await breaker.stop()


async def test_a_storage_whose_clock_is_ahead_or_without_a_zone_does_no_harm() -> None:
    for at in (datetime.now(UTC) + timedelta(hours=3), datetime.now(UTC).replace(tzinfo=None)):
        storage = Storage()
        storage.elsewhere("open", at)
        breaker = CircuitBreaker(open_for=5, state_storage=storage)
        await breaker.start()
        with pytest.raises(CircuitOpenError) as caught:
            breaker.call(int)
        assert caught.value.retry_after <= 7.5  # type: ignore[operator]
        await breaker.stop()


async def test_a_later_opening_elsewhere_opens_this_breaker_and_a_closing_closes_nothing() -> None:
    storage = Storage()
    breaker = CircuitBreaker(state_storage=storage)
    await breaker.start()
    storage.elsewhere("open")
    await eventually(lambda: breaker.current_state == "open")
    storage.elsewhere("half-open")
    await settle()
    storage.elsewhere("closed")
    await settle()
    assert breaker.current_state == "open"
    await breaker.stop()


async def test_an_opening_is_taken_over_once() -> None:
    storage = Storage()
    storage.elsewhere("open")
    breaker = CircuitBreaker(state_storage=storage)
    await breaker.start()
    breaker.half_open()
    storage._state = "open"  # the other process has not noticed
    await settle()
    breaker.close()
    await eventually(lambda: storage.written[-1] == "closed")
    await settle()
    assert breaker.current_state == "closed"
    storage.elsewhere("open")
    await eventually(lambda: breaker.current_state == "open")
    await breaker.stop()


async def test_its_own_opening_does_not_come_back_to_it() -> None:
    storage = Storage()
    breaker = CircuitBreaker(state_storage=storage)
    changes: list[Any] = []
    breaker.observe(changes.append)
    await breaker.start()
    breaker.open()
    await eventually(lambda: storage.written == ["open"])
    breaker.half_open()
    await settle()
    assert [c.new for c in changes] == ["open", "half-open"]
    await breaker.stop()


@pytest.mark.parametrize("hold", ["force_open", "disable", "metrics_only"])
async def test_an_opening_elsewhere_does_not_undo_what_was_steered_by_hand(hold: str) -> None:
    storage = Storage()
    breaker = CircuitBreaker(state_storage=storage)
    await breaker.start()
    getattr(breaker, hold)()
    held = breaker.current_state
    storage.elsewhere("open")
    await settle()
    assert breaker.current_state == held
    await breaker.stop()
    assert storage.written == []  # and is no other process's business


async def test_a_storage_that_hangs_delays_connecting_by_half_a_second_and_nothing_else() -> None:
    storage, release = Storage(), threading.Event()
    storage.trouble = lambda: (release.wait(30), None)[1]
    breaker = CircuitBreaker(fail_max=2, state_storage=storage, name="hanging")
    started = time.monotonic()
    await breaker.start()
    waited = time.monotonic() - started
    assert 0.4 < waited < 3
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            breaker.call(lambda: 1 / 0)
    with pytest.raises(CircuitOpenError):
        breaker.call(int)
    breaker.close()
    assert time.monotonic() - started < 0.4
    await breaker.stop()
    release.set()
    await eventually(lambda: not threads())


async def test_a_storage_that_fails_is_said_once_and_the_breaker_goes_on(caplog: Any) -> None:
    storage = Storage()

    def down() -> None:
        raise ConnectionError("store down")

    storage.trouble = down
    breaker = CircuitBreaker(state_storage=storage, name="alone")
    await breaker.start()
    breaker.open()
    await settle()
    assert breaker.current_state == "open"
    assert caplog.text.count("store down") == 1
    storage.trouble = None  # it comes back, and what was not told is told
    await eventually(lambda: storage.written == ["open"])
    await breaker.stop()


async def test_of_what_a_dead_storage_missed_only_the_newest_is_told() -> None:
    storage = Storage()
    storage.trouble = lambda: 1 / 0  # type: ignore[assignment,return-value]
    breaker = CircuitBreaker(state_storage=storage)
    await breaker.start()
    for _ in range(1000):
        breaker.open()
        breaker.close()
    breaker.half_open()
    storage.trouble = None
    await eventually(lambda: storage.written == ["half-open"])
    await breaker.stop()


async def test_a_factory_is_called_in_the_thread_with_the_breakers_name() -> None:
    made: dict[str, Storage] = {}

    def make(name: str) -> Storage:
        assert threading.current_thread().name == f"circuit-storage-{name}"
        if name not in made:
            made[name] = Storage()
            raise ConnectionError("not yet")  # tried again at the next poll
        return made[name]

    template = CircuitBreaker(state_storage=make)
    breakers = [template.copy_for(name) for name in ("math/a:1", "math/b:2")]
    for breaker in breakers:
        await breaker.start()
    breakers[0].open()
    await eventually(lambda: made["math/a:1"].written == ["open"])
    assert made["math/b:2"].written == []
    assert breakers[1].current_state == "closed"
    for breaker in breakers:
        await breaker.stop()
    assert threads() == []


async def test_breakers_that_share_a_storage_share_one_thread_and_their_openings() -> None:
    storage = Storage()
    one, two = (CircuitBreaker(state_storage=storage, name=n) for n in ("one", "two"))
    await one.start()
    one.open()
    await eventually(lambda: storage.written == ["open"])
    await two.start()
    assert two.current_state == "open"
    assert len(threads()) == 1
    two.close()
    one.close()
    await settle()
    two.open()
    await eventually(lambda: one.current_state == "open")
    await one.stop()
    assert len(threads()) == 1
    await two.stop()
    assert threads() == []


async def test_an_opening_elsewhere_holds_where_the_open_time_has_passed_unseen() -> None:
    storage, clock = Storage(), FakeClock()
    one = CircuitBreaker(state_storage=storage, clock=clock)
    two = CircuitBreaker(state_storage=storage)
    for breaker in (one, two):
        await breaker.start()
    one.open()
    await eventually(lambda: two.current_state == "open")
    await clock.advance(10)
    assert one.admits()
    two.half_open()
    two.open()
    await eventually(lambda: not one.admits())
    assert one.current_state == "open"
    for breaker in (one, two):
        await breaker.stop()


async def test_the_mirror_runs_until_its_last_user_has_stopped() -> None:
    breaker = CircuitBreaker(state_storage=Storage())
    first, second = object(), object()
    await breaker.start(first)
    await breaker.start(first)
    await breaker.start(second)
    await breaker.stop(first)
    await breaker.stop(first)
    assert len(threads()) == 1
    await breaker.stop(second)
    assert threads() == []
    await breaker.start(first)
    assert len(threads()) == 1
    await breaker.stop(first)


async def test_without_a_storage_there_is_no_thread() -> None:
    breaker = CircuitBreaker()
    await breaker.start()
    assert threads() == []
    await breaker.stop()


async def test_a_plain_pybreaker_on_the_same_storage_understands() -> None:
    storage = Storage()
    plain = pybreaker.CircuitBreaker(fail_max=2, reset_timeout=60, state_storage=storage)
    ours = CircuitBreaker(state_storage=storage)
    await ours.start()
    ours.open()
    await eventually(lambda: plain.current_state == "open")
    ours.half_open()
    await eventually(lambda: plain.current_state == "half-open")
    ours.close()
    await eventually(lambda: plain.current_state == "closed")
    for _ in range(2):
        with pytest.raises((ZeroDivisionError, pybreaker.CircuitBreakerError)):
            plain.call(lambda: 1 / 0)
    await eventually(lambda: ours.current_state == "open")
    await ours.stop()


@pytest.mark.broker
async def test_two_breakers_with_pybreakers_redis_storage(redis_broker: Any, unique: str) -> None:
    redis = pytest.importorskip("redis")

    def make(name: str) -> pybreaker.CircuitRedisStorage:
        client = redis.Redis.from_url(redis_broker.url, socket_timeout=5)
        return pybreaker.CircuitRedisStorage("closed", client, namespace=f"{unique}-{name[:1]}")

    one, two = (CircuitBreaker(state_storage=make, name=n) for n in ("s-one", "s-two"))
    await one.start()
    await two.start()
    one.open()
    await eventually(lambda: two.current_state == "open")
    two.half_open()
    two.close()
    await settle()
    assert (one.current_state, two.current_state) == ("open", "closed")
    late = CircuitBreaker(state_storage=make, name="s-late")
    await late.start()
    assert late.current_state == "closed"
    for breaker in (one, two, late):
        await breaker.stop()
    assert threads() == []
