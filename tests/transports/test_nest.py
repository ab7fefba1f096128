from __future__ import annotations

from typing import Any

import pytest

from resilient_client.codecs import JsonCodec
from resilient_client.errors import NoHandlerError, PayloadError, RemoteError
from resilient_client.transports._nest import OVERTAKEN_KEPT, Overtaken, deliver
from resilient_client.transports._packets import no_handler_packet, read_response


class Replies:
    """Notes what is done to a table of pending replies."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.done.append((name, *arguments))


def delivered(raw: bytes) -> list[tuple[Any, ...]]:
    replies: Any = Replies()
    deliver(replies, "I", read_response(raw), JsonCodec())
    return replies.done


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"response":1,"id":"I"}', [("value", "I", b"1", False, {})]),
        (b'{"response":null,"isDisposed":true,"id":"I"}', [("value", "I", b"null", True, {})]),
        (b'{"isDisposed":true,"id":"I"}', [("end", "I")]),
        (b'{"id":"I"}', []),
        (b'{"hello":1,"id":"I"}', [("value", "I", b'{"hello":1,"id":"I"}', True, {})]),
    ],
)
def test_a_packet_reaches_whoever_waits(raw: bytes, expected: list[tuple[Any, ...]]) -> None:
    assert delivered(raw) == expected


def test_an_error_fails_the_call_with_what_the_peer_said() -> None:
    [(what, key, error)] = delivered(b'{"err":{"code":"E42","message":"boom"},"id":"I"}')
    assert (what, key) == ("fail", "I")
    assert isinstance(error, RemoteError)
    assert error.code == "E42"
    [(_, _, error)] = delivered(no_handler_packet(b'"I"'))
    assert isinstance(error, NoHandlerError)


def test_an_error_that_cannot_be_read_fails_that_call_alone() -> None:
    [(what, key, error)] = delivered(b'{"err":"\xff","isDisposed":true,"id":"I"}')
    assert (what, key) == ("fail", "I")
    assert isinstance(error, PayloadError)
    assert error.sent


def test_cancels_that_came_first_are_kept_within_bounds() -> None:
    overtaken = Overtaken()
    for number in range(OVERTAKEN_KEPT + 2):
        overtaken.add(b"%d" % number)
    overtaken.add(b"x" * 1000)
    assert not overtaken.take(b"0")
    assert not overtaken.take(b"x" * 1000)
    assert overtaken.take(b"2")
    assert not overtaken.take(b"2")
