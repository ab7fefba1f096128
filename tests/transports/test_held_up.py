"""A client whose loop or process stood still: what came meanwhile counts, not the timers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from resilient_client import ClientProxy, DeadlineExceeded, ReplyTimeout, Server
from resilient_client.clock import CATCH_UP, Deadlines
from resilient_client.testing import FakeClock


class HeldUp(FakeClock):
    """A clock on which nothing happens for a while, and then what should have, late."""

    async def stand_still(self, seconds: float) -> None:
        self._now += seconds
        await self.advance(0)


@pytest.fixture
def clock() -> HeldUp:
    return HeldUp()


def served(url: str, gate: asyncio.Event, started: asyncio.Event) -> Server:
    server = Server(url, telemetry=False, grace=0.1)

    @server.message_pattern("wait")
    async def wait(payload: Any) -> Any:
        started.set()
        await gate.wait()
        return payload

    @server.message_pattern("items")
    async def items(payload: Any) -> AsyncIterator[int]:
        yield 1
        await wait(payload)
        yield 2

    return server


async def first(client: ClientProxy, asked: asyncio.Event) -> Any:
    asked.set()
    return await client.send("wait", 2, timeout=20)


async def last(client: ClientProxy, asked: asyncio.Event) -> Any:
    async with client.stream("items", 2, idle_timeout=20) as values:
        assert await anext(values) == 1
        asked.set()
        return await anext(values)


@pytest.mark.parametrize("scheme", ["memory", "tcp", "http", "grpc"])
@pytest.mark.parametrize("ask", [first, last])
async def test_an_answer_that_came_meanwhile_is_read_before_a_call_is_given_up(
    scheme: str, ask: Callable[[ClientProxy, asyncio.Event], Awaitable[Any]], clock: HeldUp
) -> None:
    gate, started, asked = asyncio.Event(), asyncio.Event(), asyncio.Event()
    where = "memory://held-up" if scheme == "memory" else f"{scheme}://127.0.0.1:0"

    async def waiting() -> asyncio.Future[Any]:
        for each in (gate, started, asked):
            each.clear()
        answer = asyncio.ensure_future(ask(client, asked))
        await started.wait()
        await asked.wait()
        return answer

    async with served(where, gate, started) as server:
        async with ClientProxy(server.addresses[0], clock=clock, telemetry=False) as client:
            answer = await waiting()
            await clock.stand_still(30)
            gate.set()
            assert await answer == 2
            await clock.advance(CATCH_UP)
            unanswered = await waiting()
            await clock.stand_still(30)
            assert not unanswered.done()
            await clock.advance(CATCH_UP)
            with pytest.raises((DeadlineExceeded, ReplyTimeout)):
                await unanswered


async def test_a_timer_in_time_gives_nobody_more(clock: HeldUp) -> None:
    expired: list[str] = []
    deadlines = Deadlines(clock, expired.append)
    deadlines.add("first", clock.now() + 1)
    deadlines.add("second", clock.now() + 2)
    await clock.advance(1)
    assert expired == ["first"]
    await clock.stand_still(2)
    assert expired == ["first"]
    deadlines.add("third", clock.now() + 0.01)
    await clock.advance(0.01)
    assert expired == ["first", "second", "third"]
