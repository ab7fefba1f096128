"""mqtt:// against brokers that refuse, break off, fall silent or break the rules."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from resilient_client import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    NoHandlerError,
    PayloadError,
    ProtocolError,
    RemoteError,
    ResilientClientError,
    Server,
    Throttled,
)
from resilient_client.errors import Outcome
from resilient_client.transports.mqtt._codec import MESSAGE_EXPIRY, PUBLISH, publish, text
from resilient_client.transports.mqtt._reasons import (
    REASONS,
    connect_error,
    publish_error,
    subscribe_error,
)
from tests.calls import error_of
from tests.transports.mqtt_peers import Peer, broker, scripted_client

# MQTT 5, section 2.4, table 2-6: which codes which packet may carry
SUCCESS = {0x00, 0x01, 0x02, 0x04, 0x10, 0x11, 0x18, 0x19}
CONNACK_CODES = {
    0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95, 0x97, 0x99,
    0x9A, 0x9B, 0x9C, 0x9D, 0x9F,
}  # fmt: skip
PUBACK_CODES = {0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99}
SUBACK_CODES = {0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2}
DISCONNECT_CODES = {
    0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97,
    0x98, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2,
}  # fmt: skip
TEMPORARY = {0x80, 0x83, 0x88, 0x89, 0x91, 0x97, 0x9F}


# ------------------------------------------------------------------------------------ reason codes


def test_every_reason_code_of_the_standard_has_its_name() -> None:
    assert set(REASONS) - SUCCESS == (
        CONNACK_CODES | PUBACK_CODES | SUBACK_CODES | DISCONNECT_CODES | {0x92}
    )


def test_every_reason_code_becomes_an_error_of_ours() -> None:
    for code in range(256):
        told = {0x1F: "because"}
        error: ResilientClientError | None = connect_error("mqtt://h", code or 0x80, told)
        assert isinstance(error, ConfigurationError | ConnectError), code
        assert "because" in str(error)
        if code in CONNACK_CODES:
            assert isinstance(error, ConnectError) == (code in TEMPORARY), code
        error = subscribe_error("t", 5, code, told)
        assert isinstance(error, ConfigurationError | ConnectError), code
        if code in SUBACK_CODES:
            assert isinstance(error, ConnectError) == (code in TEMPORARY), code
        error = publish_error(code, told)
        if code == 0x10:
            assert isinstance(error, NoHandlerError)
        elif code < 0x80:
            assert error is None
        elif code in (0x96, 0x97):
            assert isinstance(error, Throttled)
            assert error.outcome is Outcome.THROTTLED
        elif code == 0x95:
            assert isinstance(error, PayloadError)
        elif code in PUBACK_CODES & TEMPORARY:
            assert isinstance(error, RemoteError)
            assert error.outcome is Outcome.FAILURE
            assert error.retryable
        else:
            assert isinstance(error, ConfigurationError | RemoteError)
        assert error is None or not error.sent, code
    for code, kind in {
        1: ConfigurationError, 2: ConfigurationError, 3: ConnectError, 4: ConfigurationError,
        5: ConfigurationError, 6: ConnectError,
    }.items():  # fmt: skip
        assert type(connect_error("mqtt://h", code, {})) is kind, code
    assert type(subscribe_error("t", 4, 0x80, {})) is ConfigurationError


# ---------------------------------------------------------------------------- brokers that refuse


async def hold() -> None:
    await asyncio.sleep(30)


@pytest.mark.parametrize(
    ("connack", "kind", "said"),
    [
        (b"\x20\x03\x00\x87\x00", ConfigurationError, "not authorized"),
        (b"\x20\x03\x00\x88\x00", ConnectError, "server unavailable"),
        (b"\x20\x02\x00\x01", ConfigurationError, "version=3.1.1"),
        (b"\x20\x02\x00\x05", ConfigurationError, "not authorized"),
        (b"\x20\x02\x00\x03", ConnectError, "server unavailable"),
        (b"\x20\x0b\x00\x9d\x08\x1c\x00\x05other", ConfigurationError, "other"),
        (b"\x20\x01\x00", ProtocolError, "without its code"),
        (b"\x20\x05\x00\x00\x02\x7f\x00", ProtocolError, "unknown property"),
        (b"\x20\x06\x00\x00\x03\x21\x00\x00", ProtocolError, "takes no message"),
        (b"\x20\x08\x00\x00\x05\x27\x00\x00\x00\x00", ProtocolError, "takes no message"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolError, "no MQTT broker"),
        (b"", ConnectError, "closed the connection"),
    ],
)
async def test_a_broker_that_refuses_is_understood_at_once(
    connack: bytes, kind: type[Exception], said: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome(connack)

    async with scripted_client(script) as client:
        started = time.monotonic()
        error = await error_of(client.send("x", 1, timeout=10))
        assert isinstance(error, kind), error
        assert said in str(error)
        assert time.monotonic() - started < 2


async def test_a_broker_that_says_nothing_bounds_connecting() -> None:
    async with scripted_client(lambda _peer: hold()) as client:
        started = time.monotonic()
        error = await error_of(client.send("x", 1, timeout=0.3))
        assert isinstance(error, ConnectError)
        assert time.monotonic() - started < 1.5


async def test_a_refused_subscription_is_final_on_either_end() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        while True:
            await peer.subscribed(0x87, b"\x1f\x00\x04why!")

    async with scripted_client(script) as client:
        for _ in range(2):
            error = await error_of(client.send("topic", 1, timeout=10))
            assert isinstance(error, ConfigurationError)
            assert "'topic/reply'" in str(error)
            assert "why!" in str(error)
            assert not error.sent
    async with broker(script) as url:
        server = Server(url, telemetry=False)
        server.message_pattern("topic")(lambda: None)
        with pytest.raises(ConfigurationError, match="topic"):
            await server.start()


async def test_a_reply_topic_that_is_refused_later_concerns_its_own_calls_alone() -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.welcome()
        await peer.subscribed(0 if connections == 1 else 0x87)
        if connections == 1:
            await peer.message()
            return  # the connection ends
        await peer.subscribed(0x87)  # the second call asks again
        message, _ = await peer.message()
        peer.write(b"\x40\x02" + (message.packet_id or 0).to_bytes(2, "big"))
        await hold()

    async with scripted_client(script) as client:
        assert isinstance(await error_of(client.send("x", 1, timeout=10)), ConnectionLost)
        error = await error_of(client.send("x", 1, timeout=10))
        assert isinstance(error, ConfigurationError)
        assert "'x/reply'" in str(error)
        assert (await client.emit("y", 1, timeout=10)).delivery == "accepted"
        assert connections == 2


async def test_a_subscription_without_an_answer_costs_the_call_its_time() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await hold()

    async with scripted_client(script) as client:
        errors = await asyncio.gather(
            *(error_of(client.send("x", n, timeout=0.3)) for n in range(5))
        )
        assert not any(error.sent for error in errors)


async def test_a_request_expires_with_its_deadline_and_an_event_never() -> None:
    seen: list[dict[int, Any]] = []

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.subscribed()
        for _ in range(4):
            message, properties = await peer.message()
            seen.append(properties)
            assert message.packet_id is not None
            peer.write(b"\x40\x02" + message.packet_id.to_bytes(2, "big"))
        await hold()

    async with scripted_client(script) as client:
        calls = [
            asyncio.ensure_future(error_of(client.send("x", 1, timeout=timeout)))
            for timeout in (0.2, 4.5, float("inf"))
        ]
        await asyncio.sleep(0.1)
        await client.emit("x", 1)
        assert [properties.get(MESSAGE_EXPIRY) for properties in seen] == [1, 5, None, None]
        await client.aclose()
        await asyncio.gather(*calls)


async def test_a_refused_request_and_a_refused_event_were_not_sent() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.subscribed()
        for code in (0x97, 0x80, 0x10, 0x97, 0x80):
            message, _ = await peer.message()
            assert message.packet_id is not None
            peer.write(b"\x40\x03" + message.packet_id.to_bytes(2, "big") + bytes([code]))
        await hold()

    async with scripted_client(script) as client:
        for kind in (Throttled, RemoteError, NoHandlerError):
            error = await error_of(client.send("x", 1, timeout=10))
            assert type(error) is kind
            assert not error.sent
        for kind in (Throttled, RemoteError):
            error = await error_of(client.emit("x", 1, timeout=10))
            assert type(error) is kind
            assert not error.sent


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (b"\xe0\x02\x8b\x00", "server shutting down"),
        (b"\xe0\x01\x98", "administrative action"),
        (b"\x40\x02\x01\x00", "acknowledges what was not sent"),
        (b"\x90\x04\x00\x63\x00\x00", "answers what was not asked"),
        (b"\x50\x02\x00\x01", "packet of kind 5"),
        (b"\x34\x06\x00\x01a\x00\x01\x00", "QoS"),
        (b"\x30\x03\x00\x05a", "ends inside"),
        (b"\x30\xff\xff\xff\xff\xff", "malformed length"),
        (b"", "closed the connection"),
    ],
)
async def test_a_connection_that_ends_says_why_and_fails_what_is_pending(
    last: bytes, said: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.subscribed()
        await peer.message()
        peer.write(last)

    async with scripted_client(script) as client:
        error = await error_of(client.send("x", 1, timeout=10))
        assert isinstance(error, ConnectionLost)
        assert said in str(error)
        assert error.sent


async def test_noise_on_a_reply_topic_disturbs_nobody() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.subscribed()
        message, _ = await peer.message()
        number = message.payload.rpartition(b'"id":')[2].rstrip(b"}")
        for payload in (
            b"",
            b"\xff\xfe",
            b"{",
            number,
            b"[" * 5000 + number,
            b'{"id":1}',
            b'"text"',
        ):
            peer.write(publish(text("x/reply"), payload, None, b""))
        peer.write(
            publish(text("x/reply"), b'{"response":7,"isDisposed":true,"id":%b}' % number, 9, b"")
        )
        assert await peer.packet(0x40) == b"\x00\x09"
        await hold()

    async with scripted_client(script) as client:
        assert await client.send("x", 1, timeout=10) == 7


async def test_a_session_that_is_taken_over_twice_is_not_fought_for() -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.welcome()
        peer.write(b"\xe0\x01\x8e")

    told: list[Any] = []
    async with scripted_client(script, client_id="me", observers=[told.append]) as client:
        error = await error_of(client.send("x", 1, timeout=10))
        assert not error.sent
        await asyncio.sleep(0.7)
        assert connections == 2
        assert client.status == "idle"
        assert any("taken over" in event.reason for event in told)
        assert "'me'" in told[-1].reason


async def test_a_broker_without_qos_1_is_told_apart() -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome(b"\x20\x05\x00\x00\x02\x24\x00")
        await peer.subscribed()
        await hold()

    async with scripted_client(script) as client:
        error = await error_of(client.emit("x", 1))
        assert isinstance(error, ConfigurationError)
        assert "qos=0" in str(error)
    async with scripted_client(script, qos=0) as client:
        assert (await client.emit("x", 1)).delivery == "written"


async def test_acknowledgements_leave_in_the_order_of_the_messages() -> None:
    acknowledged: list[int] = []

    async def script(peer: Peer) -> None:
        await peer.welcome()
        await peer.subscribed()
        for n in (1, 2, 3):
            peer.write(publish(text("x"), b'{"pattern":"x","data":%d}' % n, n, b""))
        while True:
            acknowledged.append(int.from_bytes((await peer.packet(0x40))[:2], "big"))

    async with broker(script) as url:
        server = Server(url, telemetry=False, grace=0.1)
        ended: list[int] = []

        @server.event_pattern("x")
        async def event(n: int) -> None:
            await asyncio.sleep(0.3 - 0.1 * n)
            ended.append(n)

        async with server:
            await asyncio.sleep(0.15)
            assert acknowledged == []
            await asyncio.sleep(0.25)
        assert ended == [3, 2, 1]
        assert acknowledged == [1, 2, 3]


async def test_a_server_survives_what_strangers_publish() -> None:
    heard: list[Any] = []
    replies: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.welcome()
        for _ in range(4):  # a subscription each, as there is a wildcard
            await peer.subscribed()
        for payload in (
            b"", b"plain text", b"\xff\xfe", b'{"some":"json"}', b"[" * 5000, b'{"pattern":1}',
            b'{"pattern":"x","data":1,"id":{"odd":[1]}}',
        ):  # fmt: skip
            peer.write(publish(text("x"), payload, None, b"\x26\x00\x01a\x00\x02\xff\xfe"))
        peer.write(publish(text("resilient_client.cancel"), b"{", None, b""))
        peer.write(publish(text("unknown/topic"), b"{}", 5, b""))
        for topic in (b"y/" + b"x" * 0xFFFD, b"y/" + b"\xff" * 0xFFFD):
            request = b'{"pattern":"y","data":1,"id":"1"}'
            peer.write(publish(b"\xff\xff" + topic, request, None, b""))
        while True:
            replies.append(await peer.packet(PUBLISH))

    async with broker(script) as url:
        server = Server(url, telemetry=False, grace=0.1)
        server.event_pattern("x")(lambda payload: heard.append(payload))
        server.message_pattern("y/#")(lambda payload: heard.append(payload))
        async with server:
            for _ in range(300):
                if len(heard) == 7:
                    break
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert server._listeners[0]._link.dials == 1  # type: ignore[attr-defined]
    assert len(heard) == 7
    assert all(value in heard for value in ("", "plain text", {"some": "json"}, None, 1))
    [reply] = replies
    assert b'"id":{"odd":[1]}' in reply
