"""What every error keeps when it is copied, pickled and shown."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from resilient_client import ClientProxy, ConnectError, ConnectionLost, RemoteError, Retry
from resilient_client.testing import ScriptedTransport

TWINS = [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))]


@pytest.mark.parametrize("again", TWINS)
def test_notes_come_along_and_are_each_ones_own(again: Any) -> None:
    error = ConnectError("refused")
    error.add_note("first")
    twin = again(error)
    twin.add_note("second")
    assert (error.__notes__, twin.__notes__) == (["first"], ["first", "second"])


@pytest.mark.parametrize("again", TWINS)
def test_without_a_cause_the_context_of_a_twin_is_shown(again: Any) -> None:
    assert not again(RemoteError("x")).__suppress_context__


def test_a_copy_keeps_the_cause_itself() -> None:
    error = ConnectionLost("cut")
    error.__cause__ = cause = OSError("reset")
    assert copy.copy(error).__cause__ is cause


@pytest.mark.parametrize("again", TWINS)
async def test_a_twin_made_before_the_call_tells_of_the_calls_attempts(again: Any) -> None:
    peer = ScriptedTransport([again(ConnectError("refused")) for _ in range(3)])
    client = ClientProxy(peer, policies=[Retry(factor=0.001)], telemetry=False)
    with pytest.raises(ConnectError, match="3 attempts") as caught:
        await client.send("x")
    assert [each.number for each in caught.value.attempts] == [1, 2, 3]


@pytest.mark.parametrize("secret", ["pass", "p@ss"])
def test_no_text_of_an_error_shows_a_password(secret: str) -> None:
    error = ConnectError(f"amqp://user:{secret}@host/ refused", hint="see amqp://host/")
    for text in (str(error), repr(error)):
        assert "***@host/ refused" in text
        assert "ss@" not in text
