"""A call cancelled at each of its await points: nothing stays taken, and nothing is counted."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine
from functools import partial
from typing import Any

import pytest

from resilient_client import ClientProxy
from resilient_client.errors import ConnectError, ConnectionLost
from resilient_client.message import Receipt
from resilient_client.policies import Timeout
from resilient_client.policies.bulkhead import Bulkhead
from resilient_client.policies.circuit_breaker import CircuitBreaker
from resilient_client.policies.fallback import Fallback
from resilient_client.policies.retry import Retry
from resilient_client.policies.retry_budget import RetryBudget
from resilient_client.testing import NEVER, Delayed, FakeClock, ScriptedTransport, Streamed

REFUSED = ConnectError("refused")
LOST = ConnectionLost("cut")


@types.coroutine
def cancelled_at(point: int, work: Coroutine[Any, Any, Any]) -> Any:
    """Run the work in the current task, which is cancelled at that suspension of it."""
    task = asyncio.current_task()
    assert task is not None
    step: Any = partial(work.send, None)
    for suspension in range(10_000):
        try:
            waited_for = step()
        except StopIteration as stop:
            return stop.value
        if suspension == point:
            task.cancel()
        try:
            yield waited_for
        except BaseException as error:
            step = partial(work.throw, error)
        else:
            step = partial(work.send, None)
    raise AssertionError("endless")


class Stage:
    """A client with every policy, each with the least that it can have."""

    def __init__(self, answers: list[Any], *, half_open: bool = False, telemetry: bool = False):
        self.clock = FakeClock(autojump=True)
        self.peer = ScriptedTransport(answers)
        self.budget = RetryBudget(ratio=0, reserve_per_second=1)
        self.breaker = CircuitBreaker(probes=1)
        if half_open:
            self.breaker.open()
            self.breaker.half_open()
        self.client = ClientProxy(
            self.peer,
            policies=[
                Timeout(20),
                Fallback(self._instead),
                Bulkhead(1),
                Retry(3, jitter=None, budget=self.budget),
                self.breaker,
                Timeout(3),
            ],
            clock=self.clock,
            telemetry=telemetry,
        )

    async def _instead(self) -> Any:
        await self.clock.sleep(1)
        return "instead"

    async def send(self) -> Any:
        return await self.client.send("p", idempotent=True)

    async def emit(self) -> Any:
        return await self.client.emit("p", 1, idempotent=True)

    async def stream(self) -> Any:
        return [item async for item in self.client.stream("p", idempotent=True, idle_timeout=9)]

    async def stream_in_a_context(self) -> Any:
        async with self.client.stream("p", idempotent=True, idle_timeout=9) as items:
            return [item async for item in items]

    async def check(self, point: int) -> None:
        """Everything is as if the cancelled call had never been."""
        for _ in range(3):
            await asyncio.sleep(0)
        requests = self.peer.requests
        said = f"cancelled at await point {point}, after {[each.outcome for each in requests]}"
        assert self.peer.open_streams == 0, said
        assert self.clock.waiting == 0, said
        assert self.budget._repeats == max(0, len(requests) - 1), said
        failed = [each for each in requests if each.outcome not in ("answered", "left")]
        assert self.breaker.failures == len(failed), said
        self.peer._answers.clear()
        self.peer._answers.append("fresh")
        assert await self.client.send("p") == "fresh", said  # slot and permit are free


SCENES: dict[str, tuple[str, list[Any], Any]] = {
    "a call": ("send", [Delayed(1, 1)], 1),
    "a call that is repeated": (
        "send",
        [Delayed(1, REFUSED, connecting=True), Delayed(1, LOST), Delayed(2, 1)],
        1,
    ),
    "a call that times out": ("send", [NEVER, Delayed(1, LOST), Delayed(1, LOST)], "instead"),
    "an event": ("emit", [Delayed(1, LOST), Delayed(1, Receipt("stored"))], Receipt("stored")),
    "a stream": (
        "stream",
        [Delayed(1, LOST), Delayed(1, Streamed(Delayed(1, 1), 2, Delayed(5, 3), Delayed(1, 4)))],
        [1, 2, 3, 4],
    ),
    "a stream in a context": (
        "stream_in_a_context",
        [Streamed(1, Delayed(5, 2), Delayed(5, 3))],
        [1, 2, 3],
    ),
}


@pytest.mark.parametrize("telemetry", [False, True])
@pytest.mark.parametrize("name", SCENES)
async def test_cancelled_anywhere_everything_comes_back(name: str, telemetry: bool) -> None:
    how, answers, result = SCENES[name]
    for point in range(100):
        stage = Stage(answers, telemetry=telemetry)
        task = asyncio.ensure_future(cancelled_at(point, getattr(stage, how)()))
        try:
            got = await task
        except asyncio.CancelledError:
            assert task.cancelled()
            await stage.check(point)
            continue
        assert got == result
        assert point >= len(answers), "too few await points were tried"
        return
    raise AssertionError("the call never ended by itself")


@pytest.mark.parametrize("name", ["a call", "a stream in a context"])
async def test_a_cancelled_probe_gives_its_permit_back(name: str) -> None:
    how, answers, result = SCENES[name]
    for point in range(100):
        stage = Stage(answers, half_open=True)
        assert stage.breaker.current_state == "half-open"
        task = asyncio.ensure_future(cancelled_at(point, getattr(stage, how)()))
        try:
            got = await task
        except asyncio.CancelledError:
            await stage.check(point)
            assert stage.breaker.current_state == "closed"
            continue
        assert got == result
        return
    raise AssertionError("the call never ended by itself")


async def test_many_cancelled_at_random_leave_every_slot_free() -> None:
    stage = Stage([Delayed(0.5, LOST)])
    stage.peer._forever = True
    bulkhead = Bulkhead(50)
    retry = Retry(5, budget=stage.budget)
    handler = bulkhead.wrap(retry.wrap(stage.peer.request, stage.clock), stage.clock)
    stage.peer._clock = stage.clock
    from resilient_client.message import Call

    def call() -> Any:
        now = stage.clock.now()
        return handler(Call("p", "p", "send", idempotent=True, started=now, deadline=now + 30))

    for turn in range(1, 30):
        tasks = [asyncio.ensure_future(call()) for _ in range(50)]
        for _ in range(turn):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [each for each in results if type(each).__name__ == "Overloaded"], turn
    assert stage.clock.waiting == 0
