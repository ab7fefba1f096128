from __future__ import annotations

import asyncio
from functools import partial
from math import inf

import pytest

from resilient_client import ClientProxy
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    InvalidPayloadError,
    NoHandlerError,
    Overloaded,
    PayloadError,
    ProtocolError,
    RemoteError,
    ReplyTimeout,
    Throttled,
)
from resilient_client.message import Receipt, Reply
from resilient_client.policies.fallback import Fallback
from resilient_client.testing import NEVER, Delayed, ScriptedTransport, Streamed
from tests.policies.scene import Scene, drain

REFUSED = ConnectError("refused")

TROUBLE = [
    REFUSED,
    ConnectionLost("cut"),
    ReplyTimeout("slow"),
    ProtocolError("what"),
    DeadlineExceeded("over"),
    Overloaded("full"),
    Throttled(),
    RemoteError("Internal server error"),
    RemoteError("x", status=503),
    NoHandlerError(sent=False),
]
NO_TROUBLE = [
    RemoteError("boom"),
    NoHandlerError(),
    InvalidPayloadError("no"),
    PayloadError("big"),
    ConfigurationError("wrong"),
    ValueError("bug"),
    asyncio.CancelledError(),
]


def _name(error):
    return f"{type(error).__name__}-{error.args[0] if error.args else ''}"[:40]


@pytest.mark.parametrize("error", TROUBLE, ids=_name)
async def test_a_peer_in_trouble_is_replaced(error):
    assert await Scene([Fallback("instead")], [error]).ask() == "instead"


@pytest.mark.parametrize("error", NO_TROUBLE, ids=_name)
async def test_an_answer_a_mistake_and_a_cancellation_are_not_replaced(error):
    with pytest.raises(type(error)) as caught:
        await Scene([Fallback("instead")], [error]).ask()
    assert caught.value is error


async def test_an_answer_that_came_is_left_alone():
    assert await Scene([Fallback("instead")], ["answer"]).ask() == "answer"


@pytest.mark.parametrize(
    "on", [RemoteError, (RemoteError, ValueError), lambda error: "boom" in str(error)]
)
async def test_on_says_which_errors_instead(on):
    assert await Scene([Fallback(0, on=on)], [RemoteError("boom")]).ask() == 0
    with pytest.raises(ConnectError):
        await Scene([Fallback(0, on=on)], [REFUSED]).ask()


@pytest.mark.parametrize("on", [BaseException, asyncio.CancelledError])
async def test_cancellation_is_never_caught(on):
    with pytest.raises(asyncio.CancelledError):
        await Scene([Fallback(0, on=on)], [asyncio.CancelledError()]).ask()


@pytest.mark.parametrize("value", [None, 0, "", [], {"a": [1]}])
async def test_any_value_will_do(value):
    reply = await Scene([Fallback(value)], [REFUSED]).handler(Scene((), ()).call())
    assert (reply.body, reply.decoded) == (value, True)


class Stock:
    async def last(self, call, error):
        return [call.route, type(error)]


async def both(call, error):
    return [call.route, type(error)]


@pytest.mark.parametrize(
    "function",
    [
        lambda call, error: [call.route, type(error)],
        lambda error, call: [call.route, type(error)],
        lambda c, e: [c.route, type(e)],
        lambda c, error, extra=1: [c.route, type(error)],
        lambda e, call: [call.route, type(e)],
        lambda c, extra=1, error=None: [c.route, type(error)],
        lambda *both: [both[0].route, type(both[1])],
        lambda *, call, error: [call.route, type(error)],
        lambda call, *, error: [call.route, type(error)],
        lambda call, error=None: [call.route, type(error)],
        partial(lambda x, call, error: [call.route, type(error)], 1),
        both,
        Stock().last,
    ],
)
async def test_a_function_gets_the_call_and_the_error(function):
    assert await Scene([Fallback(function)], [REFUSED]).ask() == ["p", ConnectError]


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (lambda: 1, 1),
        (lambda call: call.route, "p"),
        (lambda c: c.route, "p"),
        (lambda error: error.args, ("refused",)),
        (lambda value=7: value, 7),
        (list, []),
        (partial(int, "9"), 9),
    ],
)
async def test_a_function_may_take_less(function, value):
    assert await Scene([Fallback(function)], [REFUSED]).ask() == value


@pytest.mark.parametrize("function", [lambda a, b, c: 0, lambda *, other: 0, lambda call, a, b: 0])
def test_a_function_that_takes_more_is_refused(function):
    with pytest.raises(ConfigurationError, match="more than the call and the error"):
        Fallback(function)


async def test_an_async_function_has_what_is_left_of_the_deadline():
    async def slow(call):
        await scene.clock.sleep(3)
        return "from the cache"

    scene = Scene([Fallback(slow)], [Delayed(2, REFUSED)], forever=True)
    assert await scene.ask(timeout=6) == "from the cache"
    started = scene.clock.now()
    with pytest.raises(ConnectError):
        await scene.ask(timeout=4)
    assert scene.clock.now() - started == 4
    assert await scene.ask(timeout=inf) == "from the cache"


async def test_the_original_error_comes_unchanged_when_the_fallback_is_late():
    async def never():
        await asyncio.Event().wait()

    lost = ConnectionLost("cut")
    lost.__cause__ = OSError("root")
    scene = Scene([Fallback(never)], [lost])
    with pytest.raises(ConnectionLost) as caught:
        await scene.ask(timeout=1)
    assert caught.value is lost
    assert isinstance(lost.__cause__, OSError)


async def test_without_time_left_a_value_comes_and_so_does_what_need_not_wait():
    async def at_once():
        return "at once"

    async def waiting():
        await asyncio.sleep(0)
        await scene.clock.sleep(0.1)

    for made, got in (("a value", "a value"), (at_once, "at once")):
        scene = Scene([Fallback(made)], [NEVER])
        assert await scene.ask(timeout=1) == got
    scene = Scene([Fallback(waiting)], [NEVER])
    with pytest.raises(DeadlineExceeded):
        await scene.ask(timeout=1)
    assert scene.clock.now() == 1001


async def test_a_fallbacks_own_error_is_raised_and_shows_the_first():
    def broken():
        raise KeyError("bug")

    scene = Scene([Fallback(broken)], [REFUSED])
    with pytest.raises(KeyError) as caught:
        await scene.ask()
    assert isinstance(caught.value.__context__, ConnectError)


async def test_a_fallbacks_own_timeout_is_not_taken_for_the_deadlines():
    async def broken():
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await Scene([Fallback(broken)], [REFUSED]).ask(timeout=5)


async def test_a_caller_that_leaves_cancels_the_fallback():
    left = []

    async def slow():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            left.append(True)
            raise

    task = asyncio.ensure_future(Scene([Fallback(slow)], [REFUSED]).ask())
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left == [True]


# ------------------------------------------------------------------------------ streams and events


def numbers():
    yield 1
    yield 2


async def numbers_async():
    yield 1
    yield 2


async def later():
    return [1, 2]


@pytest.mark.parametrize(
    "made", [[1, 2], (1, 2), range(1, 3), numbers, numbers_async, later, lambda: iter([1, 2])]
)
async def test_a_streams_fallback_is_its_items(made):
    scene = Scene([Fallback(made)], [REFUSED])
    reply = await scene.ask("stream")
    assert reply.decoded
    assert await drain(reply) == [1, 2]


@pytest.mark.parametrize("value", [7, "text", {"a": 1}, b"bytes", None])
async def test_what_is_no_sequence_is_one_item(value):
    assert await drain(await Scene([Fallback(value)], [REFUSED]).ask("stream")) == [value]


async def test_a_streams_fallback_must_begin_within_the_idle_limit():
    async def never():
        await asyncio.Event().wait()

    scene = Scene([Fallback(never)], [REFUSED])
    call = scene.call("stream")
    call.idle_timeout = 5
    with pytest.raises(ConnectError):
        await scene.handler(call)
    assert scene.clock.now() == 1005


async def test_after_the_first_item_a_stream_has_no_fallback():
    scene = Scene([Fallback([9])], [Streamed(1, ConnectionLost("cut"))])
    with pytest.raises(ConnectionLost):
        await drain(await scene.ask("stream"))


async def test_a_fallbacks_stream_can_be_left_and_can_be_silent():
    closed = []

    async def slow():
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    scene = Scene([Fallback(slow)], [REFUSED], forever=True)
    reply = await scene.ask("stream")
    assert await reply.items.receive(scene.clock.now() + 5) == 1
    with pytest.raises(ReplyTimeout):
        await reply.items.receive(scene.clock.now() + 5)
    assert scene.clock.now() == 1005
    await reply.items.aclose()
    reply = await scene.ask("stream")
    assert await reply.items.receive(inf) == 1
    await reply.items.aclose()
    assert closed == [True, True]


async def test_leaving_a_fallbacks_stream_of_another_client_ends_that_at_once():
    peer = ScriptedTransport([Streamed(1, 2, 3)])
    other = ClientProxy(peer, policies=(), telemetry=False)
    reply = await Scene([Fallback(lambda: other.stream("x"))], [REFUSED]).ask("stream")
    assert await reply.items.receive(inf) == 1
    assert peer.open_streams == 1
    await reply.items.aclose()
    assert peer.open_streams == 0


@pytest.mark.parametrize("made", ["value", None, lambda: None, lambda: "value"])
async def test_an_event_has_no_fallback_value(made):
    with pytest.raises(ConnectError):
        await Scene([Fallback(made)], [REFUSED]).ask("emit")


async def test_an_event_may_be_kept_by_a_function_that_gives_a_receipt():
    kept = []

    async def keep(call):
        kept.append(call.data)
        return Receipt("stored", 0)

    scene = Scene([Fallback(keep)], [REFUSED])
    assert await scene.ask("emit", data={"id": 1}) == Receipt("stored", 0)
    assert kept == [{"id": 1}]


async def test_a_whole_reply_is_passed_on():
    reply = Reply("x", decoded=True, headers={"from": "cache"})
    scene = Scene([Fallback(lambda: reply)], [REFUSED])
    assert await scene.handler(scene.call()) is reply


def test_it_describes_itself():
    def cached():
        return 1

    assert Fallback(cached).describe() == "cached() on a peer in trouble"
    assert Fallback(1, on=(Throttled, ReplyTimeout)).describe() == (
        "a fixed value on Throttled, ReplyTimeout"
    )
    with pytest.raises(ConfigurationError, match="on="):
        Fallback(1, on="ConnectError")
