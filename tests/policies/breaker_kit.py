"""A clock, a scripted peer, and ways to bring a breaker into a state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pybreaker

from resilient_client.errors import ConnectionLost
from resilient_client.message import Call, Reply
from resilient_client.policies.circuit_breaker import CircuitBreaker, CircuitOpenError
from resilient_client.testing import FakeClock


class Clock(FakeClock):
    """Can be set, and counts how often it is read."""

    reads = 0

    def now(self) -> float:
        self.reads += 1
        return super().now()

    @property
    def time(self) -> float:
        return self._now

    @time.setter
    def time(self, time: float) -> None:
        self._now = time


class Peer:
    """A handler that answers as told, and counts what reaches the wire."""

    def __init__(self) -> None:
        self.answer: Any = "well"  # a value, an exception, or a function of the call
        self.calls = 0
        self.in_flight = 0
        self.most = 0
        self.gate: asyncio.Event | None = None

    async def __call__(self, call: Call) -> Reply:
        self.calls += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            if self.gate is not None:
                await self.gate.wait()
            answer = self.answer(call) if callable(self.answer) else self.answer
            if isinstance(answer, BaseException):
                raise answer
            return answer if isinstance(answer, Reply) else Reply(answer)
        finally:
            self.in_flight -= 1


class Items:
    """Stands for a stream's values; nobody reads them here."""

    async def receive(self, deadline: float) -> Any:
        raise StopAsyncIteration

    async def aclose(self) -> None:
        return


class Scene:
    """A breaker around a peer on a fake clock."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.peer = Peer()
        self.breaker = CircuitBreaker(**settings)
        self.handler = self.breaker.wrap(self.peer, self.clock)
        self.changes: list[tuple[str, str, str]] = []
        self.breaker.observe(lambda e: self.changes.append((e.old, e.new, e.reason)))

    @property
    def state(self) -> str:
        return self.breaker.current_state

    async def call(self, kind: str = "send") -> Reply:
        return await self.handler(Call("x", "x", kind))  # type: ignore[arg-type]

    async def get(self, answer: Any) -> Any:
        """One call with this answer: the body, or the exception."""
        self.peer.answer = answer
        try:
            return (await self.call()).body
        except BaseException as error:
            return error
        finally:
            self.peer.answer = "well"

    async def fail(self, times: int = 1) -> None:
        for _ in range(times):
            assert isinstance(await self.get(ConnectionLost("cut")), ConnectionLost)

    async def succeed(self, times: int = 1) -> None:
        for _ in range(times):
            assert await self.get("well") == "well"

    async def refused(self) -> CircuitOpenError:
        before = self.peer.calls
        error = await self.get("well")
        assert isinstance(error, CircuitOpenError), error
        assert self.peer.calls == before
        return error

    async def opened(self) -> Scene:
        """Open by failures, with the default rules or stricter ones."""
        while self.state == "closed":
            await self.fail()
        assert self.state == "open"
        return self

    def wait(self) -> None:
        """Let the open time pass, whatever it was drawn to be."""
        assert self.state == "open"
        self.clock.time += (self.breaker.state.until - self.clock.time) + 1e-6

    async def half_opened(self) -> Scene:
        """The open time is over: the next call is a probe."""
        await self.opened()
        self.wait()
        return self

    async def ramping(self) -> Scene:
        """Just closed by successful probes."""
        await self.half_opened()
        while self.changes[-1][1] != "closed":
            await self.succeed()
        return self

    async def flood(self, number: int, during: Callable[[], None] | None = None) -> list[Any]:
        """So many calls at once, answered together."""
        self.peer.gate = asyncio.Event()
        tasks = [asyncio.create_task(self.call()) for _ in range(number)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if during is not None:
            during()
        self.peer.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        self.peer.gate = None
        return results


class Heard(pybreaker.CircuitBreakerListener):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []
        self.calls: list[str] = []

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        self.changes.append((old_state.name, new_state.name))

    def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        self.calls.append("before")

    def success(self, cb: Any) -> None:
        self.calls.append("success")

    def failure(self, cb: Any, exc: BaseException) -> None:
        self.calls.append("failure")
