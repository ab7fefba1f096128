from __future__ import annotations

import asyncio
from math import inf

import backoff
import pytest

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
from resilient_client.events import RetryScheduled, RetrySuppressed
from resilient_client.message import Receipt
from resilient_client.policies.retry import Retry
from resilient_client.policies.retry_budget import RetryBudget
from resilient_client.testing import Delayed, Streamed
from tests.policies.scene import Scene, drain

REFUSED = ConnectError("refused")
BUG = ConfigurationError("wrong")


def retry(attempts: int = 3, **given):
    return Retry(attempts, jitter=None, **given)


# --------------------------------------------------------------------------------- what is repeated

ALWAYS = [
    ConnectError("refused"),
    NoHandlerError(sent=False),
    Throttled(),
    ConnectionLost(sent=False),
]
IF_IDEMPOTENT = [
    ConnectionLost("cut"),
    ReplyTimeout("slow"),
    ProtocolError("what"),
    RemoteError("Internal server error"),
    RemoteError("x", status=503),
]
NEVER_REPEATED = [
    RemoteError("boom"),
    RemoteError("gone", status=404),
    NoHandlerError(),
    InvalidPayloadError("no"),
    PayloadError("too big"),
    PayloadError("what is this", sent=True),
    ConfigurationError("wrong"),
    Overloaded("full"),
    ValueError("a bug"),
    asyncio.CancelledError(),
]


def _name(error):
    return f"{type(error).__name__}-{error.args[0] if error.args else ''}"


@pytest.mark.parametrize("error", ALWAYS, ids=_name)
@pytest.mark.parametrize("kind", ["send", "stream"])
async def test_what_was_never_executed_is_repeated(error, kind):
    scene = Scene([retry()], [error, error, 1])
    await scene.ask(kind)
    assert scene.attempts == 3


@pytest.mark.parametrize("error", IF_IDEMPOTENT, ids=_name)
async def test_what_may_have_been_executed_is_repeated_if_that_is_harmless(error):
    scene = Scene([retry()], [error, "twice"])
    assert await scene.ask(idempotent=True) == "twice"
    scene = Scene([retry()], [error, "twice"])
    with pytest.raises(type(error)):
        await scene.ask()
    assert scene.attempts == 1
    assert [event.reason for event in scene.events] == ["not_idempotent"]


@pytest.mark.parametrize("error", NEVER_REPEATED, ids=_name)
async def test_what_repeating_cannot_help_is_never_repeated(error):
    scene = Scene([retry()], [error, 1])
    with pytest.raises(type(error)) as caught:
        await scene.ask(idempotent=True)
    assert caught.value is error
    assert (scene.attempts, scene.events) == (1, [])


async def test_an_event_follows_the_same_rules():
    scene = Scene([retry()], [ConnectError("refused"), Receipt("stored")])
    assert await scene.ask("emit") == Receipt("stored")
    scene = Scene([retry()], [ConnectionLost("cut"), Receipt("stored")])
    with pytest.raises(ConnectionLost):
        await scene.ask("emit")


async def test_a_stream_is_repeated_before_its_first_item_and_not_after():
    scene = Scene([retry()], [Streamed(ConnectionLost("cut")), Streamed(1, 2)])
    assert await drain(await scene.ask("stream", idempotent=True)) == [b"1", b"2"]
    scene = Scene([retry()], [Streamed(1, ConnectionLost("cut")), Streamed(1, 2)])
    reply = await scene.ask("stream", idempotent=True)
    with pytest.raises(ConnectionLost):
        await drain(reply)
    assert scene.attempts == 1


# -------------------------------------------------------------------------------------------- `on=`


async def test_on_says_which_errors_are_worth_it():
    busy = RemoteError("busy", code="BUSY")
    scene = Scene([retry(on=lambda e: isinstance(e, RemoteError) and e.code == "BUSY")], [busy, 1])
    assert await scene.ask(idempotent=True) == 1
    scene = Scene([retry(on=(Throttled, ConnectionLost))], [ConnectError("refused"), 1])
    with pytest.raises(ConnectError):
        await scene.ask()


async def test_on_does_not_make_the_unsafe_safe():
    scene = Scene([retry(on=RemoteError)], [RemoteError("boom"), 1])
    with pytest.raises(RemoteError):
        await scene.ask()
    assert [event.reason for event in scene.events] == ["not_idempotent"]


@pytest.mark.parametrize("error", [Overloaded("full"), PayloadError("big"), BUG])
async def test_on_does_not_repeat_what_was_refused_on_this_side(error):
    scene = Scene([retry(on=Exception)], [error, 1])
    with pytest.raises(type(error)):
        await scene.ask(idempotent=True)
    assert scene.attempts == 1


async def test_an_error_of_a_users_policy_is_repeated_by_on_alone():
    class TokenExpiredError(Exception):
        pass

    class Tokens:
        def __init__(self):
            self.tries = 0

        def wrap(self, handler, clock):
            async def tokens(call):
                self.tries += 1
                if self.tries == 1:
                    raise TokenExpiredError
                return await handler(call)

            return tokens

    scene = Scene([retry(), Tokens()], [1])
    with pytest.raises(TokenExpiredError):
        await scene.ask()
    scene = Scene([retry(on=TokenExpiredError), Tokens()], [1])
    assert await scene.ask() == 1


async def test_an_error_of_another_library_is_harmless_only_while_nothing_was_sent():
    for idempotent, attempts in ((False, 1), (True, 2)):
        scene = Scene([retry(on=ValueError)], [ValueError("from inside, after writing"), 1])
        try:
            await scene.ask(idempotent=idempotent)
        except ValueError:
            assert not idempotent
        assert scene.attempts == attempts


@pytest.mark.parametrize("on", [BaseException, asyncio.CancelledError, lambda error: True])
async def test_on_does_not_repeat_a_cancelled_call(on):
    scene = Scene([retry(on=on)], [asyncio.CancelledError(), 1])
    with pytest.raises(asyncio.CancelledError):
        await scene.ask(idempotent=True)
    assert scene.attempts == 1


async def test_an_attempt_is_not_cut_short_when_a_timeout_would_not_be_repeated():
    from resilient_client.policies import Timeout

    scene = Scene([retry(on=Throttled), Timeout(3)], [Delayed(8, "late")])
    assert await scene.ask(idempotent=True, timeout=10) == "late"


# ---------------------------------------------------------------------------------------- the waits


async def test_the_waits_double_from_100_ms_and_stop_at_2_s():
    scene = Scene([retry(8)], [ConnectError("refused")], forever=True)
    with pytest.raises(ConnectError):
        await scene.ask()
    assert scene.slept == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


async def test_full_jitter_draws_between_nothing_and_the_wait():
    seen = []
    for _ in range(50):
        scene = Scene([Retry(4)], [ConnectError("refused")], forever=True)
        with pytest.raises(ConnectError):
            await scene.ask()
        assert all(
            0 <= slept <= most for slept, most in zip(scene.slept, [0.1, 0.2, 0.4], strict=True)
        )
        seen += scene.slept
    assert len(set(seen)) > 100


async def test_any_wait_generator_of_backoff_serves():
    scene = Scene([retry(5, wait=backoff.fibo)], [ConnectError("refused")], forever=True)
    with pytest.raises(ConnectError):
        await scene.ask()
    assert scene.slept == [1, 1, 2, 3]
    scene = Scene(
        [retry(5, wait=backoff.constant, interval=[1, 5])], [ConnectError("x")], forever=True
    )
    with pytest.raises(ConnectError):
        await scene.ask()
    assert (scene.slept, scene.attempts) == ([1, 5], 3)
    scene = Scene(
        [retry(wait=backoff.runtime, value=lambda error: len(str(error)))], [ConnectError("ab"), 1]
    )
    await scene.ask()
    assert scene.slept == [len(str(ConnectError("ab")))]


async def test_each_call_starts_its_own_waits():
    scene = Scene([retry()], [ConnectError("x"), ConnectError("x"), 1, ConnectError("x"), 2])
    assert await asyncio.gather(scene.ask(), scene.ask()) != []
    assert sorted(scene.slept) in ([0.1, 0.1, 0.2], [0.1, 0.1, 0.1])


async def test_the_peers_own_time_is_a_floor_and_jittered_upwards_only():
    for _ in range(100):
        scene = Scene([Retry()], [Throttled(retry_after=2.0), 1])
        await scene.ask(timeout=10)
        assert 2.0 <= scene.slept[0] <= 2.2
    scene = Scene([retry()], [Throttled(retry_after=2.0), 1])
    await scene.ask()
    assert scene.slept == [2.0]
    scene = Scene([retry()], [Throttled(retry_after=0.01), 1])
    await scene.ask()
    assert scene.slept == [0.1]


async def test_a_peers_time_beyond_the_deadline_fails_at_once():
    scene = Scene([Retry()], [Throttled(retry_after=5.0), 1])
    with pytest.raises(Throttled):
        await scene.ask(timeout=4)
    assert (scene.slept, scene.clock.now()) == ([], 1000)
    assert [event.reason for event in scene.events] == ["deadline"]


async def test_a_wait_that_would_pass_the_deadline_is_not_begun():
    scene = Scene(
        [retry(wait=backoff.constant, interval=1)], [Delayed(0.5, ConnectError("x"))], forever=True
    )
    with pytest.raises(ConnectError):
        await scene.ask(timeout=2.1)
    assert (scene.slept, scene.clock.now()) == ([1], 1002.0)


async def test_a_wait_that_took_too_long_is_followed_by_no_attempt():
    scene = Scene([retry()], [ConnectError("refused"), 1])
    sleep = scene.clock.sleep

    async def oversleep(seconds):
        await sleep(seconds + 5)

    scene.clock.sleep = oversleep
    scene.handler = retry().wrap(scene._transmit, scene.clock)
    with pytest.raises(ConnectError):
        await scene.ask(timeout=1)
    assert scene.attempts == 1


# ---------------------------------------------------------------------- attempts, and what is noted


@pytest.mark.parametrize("attempts", [1, 2, 5])
async def test_attempts_is_how_often_it_is_tried_in_all(attempts):
    scene = Scene([retry(attempts)], [ConnectError("refused")], forever=True)
    with pytest.raises(ConnectError):
        await scene.ask()
    assert [request.attempt for request in scene.peer.requests] == list(range(1, attempts + 1))
    assert scene.events[-1].reason == "attempts"


async def test_a_patterns_own_number_of_attempts_comes_first():
    for most in (1, 5):
        scene = Scene([retry(3)], [ConnectError("refused")], forever=True)
        with pytest.raises(ConnectError):
            await scene.ask(max_attempts=most)
        assert scene.attempts == most


async def test_the_call_knows_the_attempts_given_up_and_whether_another_may_follow():
    may_repeat = []

    def look(call):
        may_repeat.append(call.may_repeat)
        return Delayed(1, ConnectionLost("cut"))

    scene = Scene([retry()], [look], forever=True)
    with pytest.raises(ConnectionLost):
        await scene.ask(idempotent=True, timeout=60)
    assert may_repeat == [True, True, False]
    assert scene.last is not None
    assert [(n, round(a, 1), round(b, 1), type(e)) for n, _, a, b, e in scene.last.failures] == [
        (1, 1000.0, 1001.0, ConnectionLost),
        (2, 1001.1, 1002.1, ConnectionLost),
    ]
    assert scene.last.attempt == 3


async def test_observers_hear_of_each_wait_and_of_the_end():
    scene = Scene([retry(2)], [ConnectError("one"), ConnectError("two")])
    with pytest.raises(ConnectError, match="two"):
        await scene.ask()
    scheduled, suppressed = scene.events
    assert isinstance(scheduled, RetryScheduled)
    assert (scheduled.pattern, scheduled.attempt, scheduled.delay) == ("p", 1, 0.1)
    assert isinstance(suppressed, RetrySuppressed)
    assert (suppressed.attempt, suppressed.reason) == (2, "attempts")


async def test_the_last_error_comes_as_it_was_raised():
    cause = OSError("root")

    async def handler(call):
        try:
            raise cause
        except OSError as error:
            raise ConnectError(f"attempt {call.attempt}") from error

    scene = Scene((), ())
    with pytest.raises(ConnectError) as caught:
        await retry().wrap(handler, scene.clock)(scene.call())
    assert caught.value.args == ("attempt 3",)
    assert caught.value.__cause__ is cause
    assert caught.value.__context__ is cause


async def test_cancellation_passes_through_while_it_waits():
    scene = Scene([Retry(wait=backoff.constant, interval=50, jitter=None)], [ConnectError("x"), 1])
    task = asyncio.ensure_future(scene.ask())
    scene.clock._autojump = False
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (scene.attempts, scene.clock.waiting) == (1, 0)


# ------------------------------------------------------------------------------------ with a budget


async def test_without_budget_left_the_error_comes_at_once():
    budget = RetryBudget(ratio=0, reserve_per_second=0.1)
    scene = Scene([retry(budget=budget)], [ConnectError("refused")], forever=True)
    with pytest.raises(ConnectError):
        await scene.ask()
    assert scene.attempts == 2
    assert scene.events[-1].reason == "budget"


async def test_each_call_adds_to_the_budget_once():
    budget = RetryBudget(ratio=0.5, reserve_per_second=0)
    scene = Scene(
        [retry(budget=budget)], [1, ConnectError("refused"), 2, ConnectError("refused"), 3]
    )
    assert [await scene.ask() for _ in range(2)] == [1, 2]
    with pytest.raises(ConnectError):
        await scene.ask()


async def test_a_cancelled_wait_gives_its_part_of_the_budget_back():
    budget = RetryBudget(ratio=0, reserve_per_second=0.1)
    scene = Scene([retry(budget=budget)], [ConnectError("refused"), ConnectError("refused"), 1])
    scene.clock._autojump = False
    task = asyncio.ensure_future(scene.ask())
    for _ in range(5):
        await asyncio.sleep(0)
    assert scene.slept == [0.1]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    scene.clock._autojump = True
    assert await scene.ask() == 1


# ----------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"attempts": 0}, "attempts=0"),
        ({"attempts": 2.5}, "attempts=2.5"),
        ({"attempts": True}, "attempts=True"),
        ({"max_tries": 3}, "max_tries"),
        ({"wait": 3}, "wait=int"),
        ({"wait": lambda: [1]}, "wait generator"),
        ({"jitter": 1}, "jitter=1"),
        ({"jitter": asyncio.sleep}, "jitter=.*sleep.* is a coroutine function"),
        ({"base": "2"}, "wait generator"),
        ({"factor": [1]}, "wait generator"),
        ({"on": asyncio.sleep}, "on=.*sleep.* is a coroutine function"),
        ({"on": 503}, "on=503"),
        ({"on": (ValueError, 1)}, "on="),
        ({"budget": 0.2}, "RetryBudget"),
    ],
)
def test_settings_that_cannot_work_are_refused(given, text):
    with pytest.raises(ConfigurationError, match=text):
        Retry(**given)


def test_a_budget_is_handed_over_in_a_copy():
    mine = Retry(attempts=5)
    budget = RetryBudget()
    other = mine.with_budget(budget)
    assert (mine.budget, other.budget, other.attempts) == (None, budget, 5)


def test_it_describes_itself():
    assert Retry(budget=RetryBudget()).describe() == (
        "3 attempts; wait expo, factor=0.1, max_value=2.0; full jitter;"
        " budget 0.2 of calls + 10/s over 10 s"
    )
    assert "on Throttled, ConnectionLost" in Retry(on=(Throttled, ConnectionLost)).describe()
    assert inf not in Retry().arguments.values()


async def test_a_deadline_in_flight_is_not_repeated_without_time():
    scene = Scene([retry()], [DeadlineExceeded("over", sent=True), 1])
    with pytest.raises(DeadlineExceeded):
        await scene.ask(idempotent=True, timeout=0.05)
    assert scene.attempts == 1
