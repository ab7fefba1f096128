from __future__ import annotations

import asyncio

import pytest

from resilient_client.errors import ConfigurationError, ConnectError, Overloaded
from resilient_client.message import Receipt
from resilient_client.policies.bulkhead import Bulkhead
from resilient_client.testing import NEVER, Delayed, Streamed
from tests.policies.scene import Scene, drain


async def filled(scene, number, kind="send", **given):
    """That many calls in flight."""
    tasks = [asyncio.ensure_future(scene.ask(kind, **given)) for _ in range(number)]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def free(scene, number):
    """Whether exactly that many slots are free."""
    scene.peer._answers.clear()
    scene.peer._answers.append(NEVER)
    scene.peer._forever = True
    tasks = await filled(scene, number)
    assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
    with pytest.raises(Overloaded):
        await scene.ask()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_more_than_fits_is_refused_at_once():
    scene = Scene([Bulkhead(3)], [Delayed(5, 1)], forever=True)
    tasks = await filled(scene, 3)
    with pytest.raises(Overloaded, match="3 calls are already in flight") as caught:
        await scene.ask()
    assert (caught.value.sent, caught.value.retryable, scene.attempts) == (False, True, 3)
    assert await asyncio.gather(*tasks) == [1, 1, 1]
    assert await scene.ask() == 1


async def test_sends_emits_and_streams_count_alike():
    scene = Scene([Bulkhead(3)], [NEVER, NEVER, NEVER, 1])
    tasks = [asyncio.ensure_future(scene.ask(kind)) for kind in ("send", "emit", "stream")]
    for _ in range(3):
        await asyncio.sleep(0)
    for kind in ("send", "emit", "stream"):
        with pytest.raises(Overloaded):
            await scene.ask(kind)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await free(scene, 3)


async def test_a_slot_comes_back_however_the_call_ends():
    scene = Scene(
        [Bulkhead(1)], [1, ConnectError("x"), ValueError("bug"), Receipt("stored"), NEVER]
    )
    assert await scene.ask() == 1
    for error in (ConnectError, ValueError):
        with pytest.raises(error):
            await scene.ask()
    assert await scene.ask("emit") == Receipt("stored")
    (task,) = await filled(scene, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await free(scene, 1)


async def test_a_refused_call_takes_no_slot():
    scene = Scene([Bulkhead(1)], [Delayed(1, 1)], forever=True)
    (task,) = await filled(scene, 1)
    for _ in range(5):
        with pytest.raises(Overloaded):
            await scene.ask()
    assert await task == 1
    await free(scene, 1)


async def test_a_stream_holds_its_slot_to_its_end():
    scene = Scene([Bulkhead(1)], [Streamed(1, 2)])
    reply = await scene.ask("stream")
    with pytest.raises(Overloaded):
        await scene.ask()
    assert await drain(reply) == [b"1", b"2"]
    await free(scene, 1)


@pytest.mark.parametrize("error", [None, ConnectError("cut"), asyncio.CancelledError()])
@pytest.mark.parametrize("seen", [True, False])
async def test_a_streams_slot_comes_back_once_however_it_ends(error, seen):
    scene = Scene([Bulkhead(2)], [Streamed(1, 2), NEVER])
    reply = await scene.ask("stream")
    reply.complete(error, seen=seen)
    reply.complete(error, seen=seen)
    await free(scene, 2)


async def test_two_clients_of_one_object_have_a_cap_each():
    bulkhead = Bulkhead(1)
    for _ in range(2):
        scene = Scene([bulkhead], [NEVER])
        tasks = await filled(scene, 1)
        with pytest.raises(Overloaded):
            await scene.ask()
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("pending", [0, -1, 1.5, True, None, "9"])
def test_what_is_no_number_of_calls_is_refused(pending):
    with pytest.raises(ConfigurationError, match="from 1"):
        Bulkhead(pending)
