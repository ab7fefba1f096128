"""What every error keeps when it is copied, pickled and shown."""

from __future__ import annotations

import copy
import pickle
from math import inf
from typing import Any

import pytest

from resilient_client import (
    ClientProxy,
    ConnectError,
    ConnectionLost,
    PayloadError,
    RemoteError,
    Retry,
    Server,
    Throttled,
)
from resilient_client.errors import remote_error
from resilient_client.events import ConnectionChanged, Degraded
from resilient_client.testing import ScriptedTransport
from resilient_client.transports._nest import error_in

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


@pytest.mark.parametrize("payload", ["text", 5, ["a"], {"message": "another"}])
def test_a_message_beside_a_payload_stays_the_errors_text(payload: Any) -> None:
    error = RemoteError("boom", payload=payload)
    assert (error.message, error.payload) == ("boom", payload)


@pytest.mark.parametrize("secret", ["pass", "p@ss"])
def test_no_text_of_an_error_shows_a_password(secret: str) -> None:
    error = ConnectError(f"amqp://user:{secret}@host/ refused", hint="see amqp://host/")
    for text in (str(error), repr(error)):
        assert "***@host/ refused" in text
        assert "ss@" not in text


@pytest.mark.parametrize("wait", [10**400, 1e308, -5, True, "5", None])
@pytest.mark.parametrize("status", [429, 503])
def test_whatever_wait_a_peer_asks_for_its_error_can_be_made(wait: Any, status: int) -> None:
    error = remote_error({"status": status, "message": "full", "retry_after": wait})
    assert isinstance(error, RemoteError)
    assert getattr(error, "retry_after", None) in (None, inf, 1e308)


def test_a_peers_text_is_shown_in_one_bounded_line_and_kept_as_it_was() -> None:
    text = "first\nERROR forged \x1b[31mred\x9b \u2028 \ud800 caf\u00e9 " + "x" * 10_000
    error = remote_error({"message": text, "status": "error"})
    assert isinstance(error, RemoteError)
    assert error.message == text
    for shown in (str(error), repr(error)):
        assert shown.isprintable()
        assert len(shown) < 3000
        assert "caf\u00e9" in shown
        assert r"first\nERROR forged \x1b[31mred\x9b" in shown.replace(r"\\n", r"\n")


def test_what_a_broker_says_is_shown_in_one_line_too() -> None:
    for event in (Degraded("url", "a\nb\x1b"), ConnectionChanged("url", "idle", "closed", "a\nb")):
        assert event.reason.startswith(r"a\nb")


def test_an_error_that_cannot_be_read_is_an_error_all_the_same() -> None:
    def decode(raw: bytes) -> Any:
        raise LookupError("no such type")

    error = error_in(b"{}", decode)
    assert isinstance(error, PayloadError)
    assert error.sent
    assert isinstance(error.__cause__, LookupError)


@pytest.mark.parametrize("again", TWINS)
async def test_an_error_of_another_library_without_a_text_hides_nothing(again: Any) -> None:
    class SilentError(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    def fail(_: Any) -> Any:
        raise ConnectError("refused") from SilentError()

    peer = ScriptedTransport([SilentError(), fail])
    client = ClientProxy(peer, policies=[Retry(2, on=Exception, factor=0.001)], telemetry=False)
    with pytest.raises(ConnectError, match="2 attempts") as caught:
        await client.send("x", idempotent=True)
    first, second = again(caught.value).attempts
    assert (first.error, first.cause) == ("SilentError", "(no text: ValueError)")
    assert second.cause == "refused"


def test_who_is_asked_to_wait_is_not_told_of_a_fault_whatever_the_status() -> None:
    assert Throttled("full", status=503).hint == Throttled("full").hint
    assert Throttled("full", status=503, hint="mine").hint == "mine"


@pytest.mark.parametrize(
    ("wait", "sent"), [(inf, 1e9), (2.5, 2.5), (0, 0), (-5, None), (float("nan"), None)]
)
@pytest.mark.parametrize("scheme", ["memory", "tcp", "http", "grpc"])
async def test_a_wait_that_a_handler_asks_for_arrives_or_is_none(
    scheme: str, wait: float, sent: float | None
) -> None:
    server = Server("memory://wait" if scheme == "memory" else f"{scheme}://127.0.0.1:0")

    @server.message_pattern("x")
    async def busy() -> None:
        raise Throttled("busy", retry_after=wait)

    async with server, ClientProxy(server.addresses[0], policies=(), telemetry=False) as client:
        with pytest.raises(Throttled) as caught:
            await client.send("x", timeout=10)
    if scheme == "http" and sent is None:
        sent = 1.0  # which always says when
    assert caught.value.retry_after == sent
