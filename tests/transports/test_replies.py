"""Replies that are waited for: what is kept of them, how long, and how each ends."""

from __future__ import annotations

import asyncio
from math import inf
from typing import Any

import pytest

from resilient_client import ConnectionLost, DeadlineExceeded, Overloaded, ReplyTimeout
from resilient_client.message import Call
from resilient_client.testing import FakeClock
from resilient_client.transports import _replies
from resilient_client.transports._replies import ItemStream, PendingReplies


class Table:
    """A table of replies, and what became of those who left."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.replies = PendingReplies(self.clock)
        self.left: list[str] = []

    def call(self, kind: Any, seconds: float = inf, **given: Any) -> Call:
        now = self.clock.now()
        return Call("p", "p", kind, started=now, attempt_deadline=now + seconds, **given)

    def stream(self, key: str = "1", seconds: float = inf) -> ItemStream:
        return self.replies.open(key, self.call("stream", seconds), lambda: self.left.append(key))

    def feed(self, *bodies: Any, key: str = "1") -> None:
        for body in bodies:
            self.replies.value(key, body, last=False)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setattr(_replies, "STREAM_ITEMS", 5)
    monkeypatch.setattr(_replies, "STREAM_BYTES", 1000)
    return Table()


async def read(items: ItemStream, number: int) -> list[Any]:
    return [await items.receive(inf) for _ in range(number)]


@pytest.mark.parametrize("body", [b"x" * 500, memoryview(b"x" * 500), object()])
async def test_a_stream_may_be_as_long_as_it_likes_while_its_consumer_keeps_up(
    table: Table, body: Any
) -> None:
    items = table.stream()
    for _ in range(600):
        table.feed(body, body)
        assert await read(items, 2) == [body, body]
    assert table.left == []


@pytest.mark.parametrize(("body", "kept"), [(b"x" * 400, 2), (b"x", 5), (object(), 5)])
async def test_a_consumer_too_far_behind_gets_what_is_buffered_and_then_the_error(
    table: Table, body: Any, kept: int
) -> None:
    items = table.stream()
    table.feed(*[body] * kept)
    assert table.left == []
    table.feed(body, body)
    assert (table.left, len(table.replies)) == (["1"], 0)
    assert await read(items, kept) == [body] * kept
    with pytest.raises(Overloaded, match="too far behind") as caught:
        await items.receive(inf)
    assert caught.value.sent
    with pytest.raises(StopAsyncIteration):
        await items.receive(inf)


@pytest.mark.parametrize("last", [True, False])
async def test_an_error_comes_after_the_values_before_it(table: Table, last: bool) -> None:
    items = table.stream()
    table.feed(b"1")
    table.replies.value("1", b"2", last=last)
    table.replies.fail("1", ConnectionLost("cut"))
    assert await read(items, 2) == [b"1", b"2"]
    with pytest.raises(StopAsyncIteration if last else ConnectionLost):
        await items.receive(inf)


async def test_a_stream_that_is_left_is_told_of_once_and_takes_no_more(table: Table) -> None:
    items = table.stream()
    table.feed(b"1")
    waiting = asyncio.ensure_future(read(items, 2))
    await asyncio.sleep(0)
    await items.aclose()
    await items.aclose()
    items.feed(b"2")
    assert (table.left, len(table.replies)) == (["1"], 0)
    with pytest.raises(StopAsyncIteration):
        await items.receive(inf)
    [ended] = await asyncio.gather(waiting, return_exceptions=True)
    assert isinstance(ended, StopAsyncIteration)


async def test_nobody_is_told_of_leaving_a_stream_that_has_ended(table: Table) -> None:
    items = table.stream()
    table.replies.value("1", b"1", last=True)
    await items.aclose()
    assert table.left == []


async def test_a_stream_waits_for_its_first_value_until_the_attempts_deadline(
    table: Table,
) -> None:
    opening = asyncio.ensure_future(table.stream(seconds=3.0).opened())
    await table.clock.advance(2.9)
    assert not opening.done()
    await table.clock.advance(0.1)
    with pytest.raises(ReplyTimeout):
        await opening
    assert (table.left, len(table.replies), table.clock.waiting) == (["1"], 0, 0)


async def test_each_reply_is_given_up_at_its_own_deadline(table: Table) -> None:
    times = [5.0, 1.0, inf, 3.0]
    futures = [
        table.replies.expect(number, table.call("send", seconds, deadline=1003.0))
        for number, seconds in enumerate(times)
    ]
    for second in range(1, 7):
        await table.clock.advance(1.0)
        gone = [at for at, future in zip(times, futures, strict=True) if future.done()]
        assert gone == [at for at in times if at <= second]
    errors = [type(future.exception()) for future in futures if future.done()]
    assert errors == [DeadlineExceeded, ReplyTimeout, DeadlineExceeded]
    assert 2 in table.replies
    assert len(table.replies) == 1
    table.replies.fail_all(lambda: ConnectionLost("cut"))
    assert isinstance(futures[2].exception(), ConnectionLost)
    assert table.clock.waiting == 0
