"""Whose cancellation it was that ended a wait."""

from __future__ import annotations

import asyncio
import time
from math import inf

import pytest

from resilient_client.clock import MonotonicClock
from resilient_client.transports.grpc._waits import Waits


def begun() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def waited(waits: Waits, seconds: float) -> str:
    """What a transport does with a wait."""
    wait = waits.begin(time.monotonic() + seconds)
    try:
        await asyncio.sleep(5)
    except asyncio.CancelledError:
        if waits.expired(wait):
            return "expired"
        if begun().cancelling() > wait[1]:
            raise
        return "closed"
    finally:
        waits.end(wait)
    return "done"


async def test_a_wait_ends_by_its_time_and_its_task_is_as_before() -> None:
    waits = Waits(MonotonicClock())
    started = time.monotonic()
    assert await waited(waits, 0.05) == "expired"
    assert time.monotonic() - started < 1.0
    assert not begun().cancelling()
    await asyncio.sleep(0)


async def test_a_task_that_was_cancelled_before_has_its_time_too() -> None:
    """What cleans up after a cancellation makes calls as well."""
    waits = Waits(MonotonicClock())

    async def cleaning() -> str:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            return await waited(waits, 0.05)
        return ""

    task = asyncio.ensure_future(cleaning())
    await asyncio.sleep(0)
    task.cancel()
    assert await asyncio.wait_for(task, 1.0) == "expired"
    assert task.cancelling() == 1


@pytest.mark.parametrize("first", ["caller", "time"])
async def test_its_callers_cancellation_counts_more(first: str) -> None:
    waits = Waits(MonotonicClock())
    task = asyncio.ensure_future(waited(waits, 60))
    await asyncio.sleep(0)
    (wait,) = waits._waiting
    if first == "caller":
        task.cancel()
    waits._expire(wait)
    if first == "time":
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelling() == 1
    assert not waits._waiting
    assert not waits._over


async def test_a_cancellation_that_was_swallowed_is_taken_back() -> None:
    waits = Waits(MonotonicClock())
    wait = waits.begin(time.monotonic() + 0.01)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(5)
    waits.end(wait)
    assert not begun().cancelling()
    assert not waits._over


async def test_closing_ends_those_without_a_deadline_as_well() -> None:
    waits = Waits(MonotonicClock())
    tasks = [asyncio.ensure_future(waited(waits, seconds)) for seconds in (inf, 60)]
    await asyncio.sleep(0)
    waits.close()
    assert await asyncio.wait_for(asyncio.gather(*tasks), 1.0) == ["closed", "closed"]
    assert [task.cancelling() for task in tasks] == [0, 0]
