from __future__ import annotations

from math import inf, nan

import pytest

from resilient_client.errors import ConfigurationError, ConnectError, DeadlineExceeded, ReplyTimeout
from resilient_client.policies import Timeout
from resilient_client.policies.retry import Retry
from resilient_client.testing import NEVER, Delayed, Streamed
from tests.policies.scene import Scene, drain


async def test_an_attempt_without_a_retry_outside_is_always_cut():
    scene = Scene([Timeout(3)], [NEVER])
    with pytest.raises(ReplyTimeout):
        await scene.ask(timeout=10)
    assert scene.clock.now() == 1003


async def test_a_call_that_may_not_be_repeated_has_all_the_time_there_is():
    scene = Scene([Retry(), Timeout(3)], [Delayed(8, "late")])
    assert await scene.ask(timeout=10) == "late"
    assert (scene.peer.requests[0].limit, scene.peer.requests[0].connect_limit) == (10, 3)


async def test_a_call_that_may_be_repeated_is_cut_at_each_attempt_but_the_last():
    scene = Scene([Retry(jitter=None), Timeout(3)], [NEVER, NEVER, Delayed(3.5, "third")])
    assert await scene.ask(timeout=10, idempotent=True) == "third"
    assert [round(request.limit, 3) for request in scene.peer.requests] == [3, 3, 3.7]


async def test_the_only_attempt_of_an_idempotent_call_has_all_the_time_too():
    scene = Scene([Retry(attempts=1), Timeout(3)], [Delayed(8, "late")])
    assert await scene.ask(timeout=10, idempotent=True) == "late"
    scene = Scene([Retry(), Timeout(3)], [Delayed(8, "late")])
    assert await scene.ask(timeout=10, idempotent=True, max_attempts=1) == "late"


async def test_connecting_is_bounded_for_every_call():
    scene = Scene([Retry(attempts=1), Timeout(3)], [Delayed(5, 1, connecting=True)])
    with pytest.raises(ConnectError):
        await scene.ask(timeout=10)
    assert scene.clock.now() == 1003


async def test_it_never_lengthens_what_is_left():
    scene = Scene([Timeout(3)], [NEVER])
    with pytest.raises(DeadlineExceeded):
        await scene.ask(timeout=2)
    assert scene.clock.now() == 1002


async def test_the_narrower_of_two_counts():
    scene = Scene([Timeout(1), Timeout(2)], [1])
    await scene.ask(timeout=10)
    assert scene.peer.requests[0].limit == 1


@pytest.mark.parametrize("answer", [1, ConnectError("refused")])
async def test_the_limits_are_as_before_when_it_is_done(answer):
    scene = Scene([Timeout(1)], [answer])
    try:
        await scene.ask(timeout=10)
    except ConnectError:
        assert isinstance(answer, ConnectError)
    assert scene.last is not None
    assert scene.last.limits == (inf, inf)


async def test_on_a_stream_it_bounds_the_opening_only():
    scene = Scene([Timeout(1)], [Streamed(1, Delayed(5, 2), Delayed(5, 3))])
    assert await drain(await scene.ask("stream")) == [b"1", b"2", b"3"]


async def test_no_limit_costs_nothing():
    async def handler(call):
        raise AssertionError

    assert Timeout(inf).wrap(handler, Scene((), ()).clock) is handler


@pytest.mark.parametrize("seconds", [0, -1, nan, -inf, "3", None, True])
def test_what_is_no_time_is_refused(seconds):
    with pytest.raises(ConfigurationError, match="above 0"):
        Timeout(seconds)
