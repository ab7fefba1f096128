"""Requests handled in the task of whoever took them in: nothing of them is left on it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from resilient_client import (
    Context,
    NoHandlerError,
    RemoteError,
    Server,
    correlation_id,
    current_context,
)
from resilient_client.message import Message, Reply
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Guest:
    """A server, and what a transport of it does for one request."""

    def __init__(self, **options: Any) -> None:
        self.server = Server("memory://guest", **options)
        self.app = self.server._app
        self.slots = self.app.slots(lambda: None, lambda: None)
        self.replies: list[Reply] = []

    async def respond(self, reply: Reply, /) -> None:
        self.replies.append(reply)

    async def serve(self, route: str, **headers: str) -> Any:
        message = Message(route, b"1", headers, True, received=self.app.clock.now())
        return await self.app.serve(message, self.respond, self.slots, "guest")

    @property
    def running(self) -> int:
        return len(self.slots.jobs)


@pytest.fixture
def guest() -> Guest:
    guest = Guest(max_calls_per_connection=1)

    @guest.server.message_pattern("task")
    async def task(payload: int, context: Context) -> list[Any]:
        assert current_context() is context
        return [str(id(asyncio.current_task())), correlation_id.get()]

    @guest.server.message_pattern("slow")
    async def slow(payload: int) -> None:
        await asyncio.sleep(60)

    @guest.server.message_pattern("deaf")
    async def deaf(payload: int) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "late, but here"
        raise AssertionError

    @guest.server.message_pattern("stream")
    async def stream(payload: int) -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(60)

    return guest


async def test_the_handler_runs_in_the_callers_task_and_leaves_no_context_behind(
    guest: Guest,
) -> None:
    correlation_id.set("callers-own")
    await guest.serve("task", **{"x-correlation-id": "abc"})
    here = id(asyncio.current_task())
    assert guest.app.codec.decode(guest.replies[0].body) == [str(here), "abc"]
    assert correlation_id.get() == "callers-own"
    assert current_context() is None
    assert guest.running == 0


async def test_a_deadline_ends_the_handler_and_not_the_caller(guest: Guest) -> None:
    job = await guest.serve("slow", **{"x-deadline-ms": "20"})
    error = guest.replies[0].error
    assert error is not None
    assert (error.code, job.expired) == ("DEADLINE_EXCEEDED", True)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0.01)  # and no cancellation comes later
    assert guest.running == 0


async def test_a_handler_that_swallows_its_cancellation_does_not_leave_it_to_the_caller(
    guest: Guest,
) -> None:
    await guest.serve("deaf", **{"x-deadline-ms": "20"})
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert guest.app.codec.decode(guest.replies[0].body) == "late, but here"


async def test_the_callers_own_cancellation_passes_through(guest: Guest) -> None:
    task = asyncio.ensure_future(guest.serve("slow"))
    await asyncio.sleep(0)
    assert guest.running == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (guest.running, guest.replies) == (0, [])


async def test_the_callers_cancellation_passes_through_even_with_the_deadlines(
    guest: Guest,
) -> None:
    task = asyncio.ensure_future(guest.serve("slow", **{"x-deadline-ms": "5000"}))
    await asyncio.sleep(0)
    (job,) = guest.slots.jobs
    job.expire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (guest.running, guest.replies) == (0, [])


async def test_a_timeout_around_it_is_its_owners(guest: Guest) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await guest.serve("slow", **{"x-deadline-ms": "5000"})
    assert guest.running == 0


async def test_closed_slots_end_it_without_an_answer(guest: Guest) -> None:
    task = asyncio.ensure_future(guest.serve("slow"))
    await asyncio.sleep(0)
    guest.slots.close()
    job = await task
    assert (job.cancelled, guest.replies, guest.running) == (True, [], 0)
    assert task.cancelling() == 0


async def test_what_arrives_too_late_is_not_begun(guest: Guest) -> None:
    job = await guest.serve("task", **{"x-deadline-ms": "0"})
    assert [reply.error.code for reply in guest.replies if reply.error] == ["DEADLINE_EXCEEDED"]
    assert (job.expired, len(guest.replies), guest.running) == (True, 1, 0)


@pytest.mark.parametrize("told", ["\u00b2", "\u0661\u0660", "-5", "1e3", "", "1.5", "0" * 13])
async def test_a_deadline_that_is_no_number_counts_as_none(guest: Guest, told: str) -> None:
    job = await guest.serve("task", **{"x-deadline-ms": told})
    assert (guest.replies[0].error, job.expired) == (None, False)


async def test_slots_that_close_while_an_event_is_handled_are_forgotten_when_it_has_ended(
    guest: Guest,
) -> None:
    go = asyncio.Event()

    @guest.server.event_pattern("news")
    async def news(payload: int) -> None:
        await go.wait()

    known = guest.app._slots
    for _ in range(2):  # one runs, one waits
        guest.app.accept(Message("news", b"1", {}), None, guest.slots, "guest")
    guest.slots.close()
    assert guest.slots in known
    go.set()
    await eventually(lambda: guest.slots not in known)
    assert (guest.app.running, len(guest.app.queue)) == (0, 0)


async def test_a_deadline_within_a_stream_ends_it(guest: Guest) -> None:
    async def respond(reply: Reply, /) -> None:
        assert reply.items is not None
        while True:
            await reply.items.receive(60)

    message = Message("stream", b"1", {"x-deadline-ms": "20"}, True, received=guest.app.clock.now())
    job = await guest.app.serve(message, respond, guest.slots, "guest")
    assert job is not None
    assert (job.expired, guest.running) == (True, 0)
    assert job.unanswered().code == "DEADLINE_EXCEEDED"


async def test_the_caps_hold(guest: Guest) -> None:
    task = asyncio.ensure_future(guest.serve("slow"))
    await asyncio.sleep(0)
    assert await guest.serve("task") is None
    assert isinstance(guest.replies[0].error, RemoteError)
    assert (
        guest.replies[0].error.code == "RESOURCE_EXHAUSTED" or guest.replies[0].error.status == 429
    )
    task.cancel()
    await asyncio.wait({task})
    assert await guest.serve("task") is not None


async def test_draining_waits_for_the_answer_to_what_is_refused(guest: Guest) -> None:
    read = asyncio.Event()

    async def respond(reply: Reply, /) -> None:
        await read.wait()
        guest.replies.append(reply)

    message = Message("nobody", b"1", {}, True, received=guest.app.clock.now())
    assert guest.app.accept(message, respond, guest.slots, "guest") is None
    draining = asyncio.ensure_future(guest.app.drain(600))
    await asyncio.sleep(0)
    assert len(guest.app._under_way()) == 1
    read.set()
    await draining
    assert [type(reply.error) for reply in guest.replies] == [NoHandlerError]


async def test_draining_waits_for_the_handler_and_not_for_the_task(guest: Guest) -> None:
    began = asyncio.get_running_loop().time()

    async def caller() -> None:
        await guest.serve("slow", **{"x-deadline-ms": "50"})
        await asyncio.sleep(60)

    task = asyncio.ensure_future(caller())
    await asyncio.sleep(0)
    await guest.app.drain(5.0)
    assert asyncio.get_running_loop().time() - began < 2.0
    assert (guest.running, task.done()) == (0, False)
    task.cancel()


async def test_the_end_of_the_grace_time_cancels_the_handler_and_not_the_task(
    guest: Guest,
) -> None:
    ended = asyncio.Event()

    async def caller() -> Any:
        job = await guest.serve("slow")
        ended.set()
        await asyncio.sleep(0)
        return job

    task = asyncio.ensure_future(caller())
    await asyncio.sleep(0)
    await guest.app.drain(0.01)
    assert ended.is_set()
    job = await task
    assert (job.cancelled, job.expired, guest.replies) == (True, False, [])
    assert job.unanswered().status == 503
