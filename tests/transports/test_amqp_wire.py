"""amqp:// without a broker: frames, hostile bytes, topics, and what each error means."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pamqp import commands, exceptions
from pamqp.frame import marshal, unmarshal
from pamqp.header import ContentHeader

from resilient_client import (
    ClientProxy,
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    NoHandlerError,
    PayloadError,
    ProtocolError,
    RemoteError,
    ResilientClientError,
    Server,
)
from resilient_client.codecs import JsonCodec
from resilient_client.errors import NO_HANDLER_MESSAGE
from resilient_client.message import Reply
from resilient_client.transports.amqp import _wire as wire
from resilient_client.transports.amqp._acknowledgements import Acknowledgements
from resilient_client.transports.amqp._consumer import _packet_of
from resilient_client.transports.amqp._errors import REPLY_CODES, closed_error, unroutable
from resilient_client.transports.amqp._topology import matches
from tests.peers.process import free_port
from tests.peers.script import scripted_peer, silence


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(b"3"), '{"response":3,"isDisposed":true}'),
        (Reply(), '{"isDisposed":true}'),
        (
            Reply(error=RemoteError("no")),
            '{"err":{"status":"error","message":"no"},"isDisposed":true}',
        ),
        (
            Reply(error=NoHandlerError()),
            f'{{"id":"7","err":"{NO_HANDLER_MESSAGE}","status":"error"}}',
        ),
    ],
    ids=["value", "end", "error", "no handler"],
)
def test_replies_are_written_as_nest_writes_them(reply: Reply, expected: str) -> None:
    assert _packet_of(reply, b'"7"', JsonCodec()) == expected.encode()


def header_of(data: bytes) -> wire.Delivery:
    message = wire.Delivery(b"", 1, False)
    message.read_header(data)
    return message


# ------------------------------------------------------------------------------------------ errors


def test_every_exception_of_the_codec_is_mapped() -> None:
    """Fails when a new version of pamqp knows a reply code, or raises what we do not expect."""
    known = {cls for _, cls in inspect.getmembers(exceptions, inspect.isclass)}
    codes = {cls.value for cls in known if hasattr(cls, "value")}
    assert codes == set(REPLY_CODES)
    others = {cls.__name__ for cls in known if not hasattr(cls, "value")}
    assert others == {
        "AMQPError", "AMQPHardError", "AMQPSoftError", "PAMQPException", "UnmarshalingException",
    }  # fmt: skip


@pytest.mark.parametrize("code", sorted({*REPLY_CODES, 0, 999}))
@pytest.mark.parametrize("dialling", [True, False])
def test_every_reply_code_is_an_error_of_ours(code: int, dialling: bool) -> None:
    error = closed_error(code, "TEXT", "amqp://mq", dialling=dialling)
    assert isinstance(
        error, ConfigurationError | ProtocolError | PayloadError | ConnectError | ConnectionLost
    )
    assert "TEXT" in str(error)
    if dialling:
        assert not error.sent


def test_what_passes_by_itself_is_not_fatal() -> None:
    for text in (
        "home node 'a@b' of durable queue 'q' is down or inaccessible",
        "access to vhost '/' refused for user 'u': connection limit (2) is reached",
    ):
        assert isinstance(closed_error(404, text, "", dialling=True), ConnectError)
    assert isinstance(closed_error(403, "limit", "", dialling=True), ConfigurationError)
    for text in (  # such words in a name or an argument
        "inequivalent arg 'x-delivery-limit' for queue 'q': received '5' but current is '3'",
        "inequivalent arg 'durable' for queue 'shut-down': received 'false' but current is 'true'",
    ):
        assert isinstance(closed_error(406, text, "", dialling=True), ConfigurationError)
    few = "number of channels opened (1) has reached the negotiated channel_max (1)"
    assert "virtual host" not in str(closed_error(530, few, "", dialling=True))
    assert "virtual host" in str(closed_error(530, "vhost 'x' not found", "", dialling=True))
    assert not unroutable("NO_ROUTE", "queue 'q'").sent
    assert isinstance(unroutable("NO_ROUTE", "queue 'q'"), NoHandlerError)


# ------------------------------------------------------------------------------------------ frames


def test_what_is_packed_here_is_what_the_codec_reads() -> None:
    table = wire.table({"traceparent": "00-ab", "x-text": "Z\u00f6e"})
    cases = {
        wire.request_properties(table, b"k1", b"250"): {
            "headers": {"traceparent": "00-ab", "x-text": "Z\u00f6e"}, "delivery_mode": 1,
            "correlation_id": "k1", "reply_to": "amq.rabbitmq.reply-to", "expiration": "250",
            "app_id": "resilient_client",
        },
        wire.request_properties(wire.table({}), b"k1", None): {
            "headers": {}, "delivery_mode": 1, "correlation_id": "k1",
            "reply_to": "amq.rabbitmq.reply-to", "app_id": "resilient_client",
        },
        wire.event_properties(table, b"m1", persistent=True): {
            "headers": {"traceparent": "00-ab", "x-text": "Z\u00f6e"}, "delivery_mode": 2,
            "message_id": "m1", "app_id": "resilient_client",
        },
        wire.reply_properties(b"k1"): {"headers": {}, "correlation_id": "k1"},
        wire.greeting_properties(b"k1"): {
            "correlation_id": "k1", "reply_to": "amq.rabbitmq.reply-to",
            "app_id": "resilient_client",
        },
    }  # fmt: skip
    for properties, expected in cases.items():
        for size in (0, 1, 4088, 4089, 20_000):
            body = random.randbytes(size)
            data = wire.content_frames(3, properties, body, 4096)
            used, channel, header = unmarshal(data)
            assert isinstance(header, ContentHeader)
            assert (channel, header.body_size) == (3, size)
            found = {name: value for name, value in header.properties if value not in (None, "")}
            assert found == expected
            got = b""
            while used < len(data):
                more, channel, piece = unmarshal(data[used:])
                assert more <= 4096
                used += more
                got += piece.value  # type: ignore[union-attr]
            assert got == body


def test_methods_packed_here_are_what_the_codec_reads() -> None:
    _, _, publish = unmarshal(wire.publish_frame(2, "ex", "r\u00f6ute", mandatory=True))
    assert isinstance(publish, commands.Basic.Publish)
    assert (publish.exchange, publish.routing_key) == ("ex", "r\u00f6ute")
    assert (publish.mandatory, publish.immediate) == (True, False)
    _, channel, ack = unmarshal(wire.ack_frame(5, 2**40, multiple=True))
    assert (channel, ack.delivery_tag, ack.multiple) == (5, 2**40, True)  # type: ignore[union-attr]
    for requeue in (True, False):
        _, _, nack = unmarshal(wire.nack_frame(5, 7, requeue=requeue))
        assert (nack.delivery_tag, nack.multiple) == (7, False)  # type: ignore[union-attr]
        assert nack.requeue is requeue  # type: ignore[union-attr]


def test_properties_written_by_the_codec_are_read() -> None:
    properties = commands.Basic.Properties(
        content_type="application/json", content_encoding="utf-8",
        headers={"a": "1", "B": 2, "c": True, "d": {"x": [1]}, "e": None, "f": 1.5, "g": "\n"},
        delivery_mode=2, priority=1, correlation_id="c", reply_to="r", expiration="1",
        message_id="m", message_type="t", app_id="app",
    )  # fmt: skip
    data = marshal(ContentHeader(0, 12, properties), 1)[7:-1]
    message = header_of(data)
    assert message.headers == {"a": "1", "b": "2", "c": "true", "f": "1.5"}
    assert (message.correlation_id, message.reply_to, message.size) == (b"c", b"r", 12)
    assert (message.message_id, message.app_id) == (b"m", b"app")
    assert message.properties.headers == properties.headers
    for end in range(len(data)):
        with pytest.raises(ValueError, match=r"truncated|longer|unknown"):
            header_of(data[:end])


def test_random_bytes_raise_nothing_else_than_a_value_error() -> None:
    rng = random.Random(7)
    good = marshal(
        ContentHeader(0, 5, commands.Basic.Properties(headers={"a": "b", "n": 1}, app_id="x")), 1
    )[7:-1]
    reads: list[Callable[[bytes], Any]] = [
        header_of, wire.delivery, wire.read_confirm, wire.read_method,
    ]  # fmt: skip
    for _ in range(3000):
        data = bytearray(good if rng.random() < 0.7 else rng.randbytes(rng.randrange(60)))
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        for read in reads:
            with contextlib.suppress(ValueError):
                read(bytes(data))


def test_a_deep_or_huge_table_costs_nothing() -> None:
    nested = b""
    for _ in range(5000):
        nested = b"\x01aF" + wire.LONG.pack(len(nested)) + nested
    assert wire.read_table(nested, 0, len(nested)) == {}
    many = b"".join(b"\x04%04dS\x00\x00\x00\x01x" % n for n in range(9999))
    assert len(wire.read_table(many, 0, len(many))) == 32
    many += b"\x0fidempotency-keyS\x00\x00\x00\x01k"
    assert wire.read_table(many, 0, len(many))["idempotency-key"] == "k"


# ------------------------------------------------------------------------------------------ topics


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a.*", ["a.b", "a."], ["a", "a.b.c", "b.a"]),
        ("#", ["", "a", "a.b.c"], []),
        ("a.#", ["a", "a.b", "a.b.c"], ["b", "aa"]),
        ("#.z", ["z", "a.z", "a.b.z"], ["z.a", ""]),
        ("a.#.z", ["a.z", "a.b.z", "a.b.c.z"], ["a", "z", "a.b"]),
        ("*.b.#.*", ["a.b.c", "a.b.c.d"], ["a.b", "b.c.d"]),
    ],
)
def test_topics_match_as_rabbitmq_does(pattern: str, yes: list[str], no: list[str]) -> None:
    words = pattern.split(".")
    assert [key for key in yes if not matches(words, key.split("."))] == []
    assert [key for key in no if matches(words, key.split("."))] == []


def test_a_topic_made_to_be_slow_is_not() -> None:
    assert not matches(["#", "a"] * 60 + ["z"], ["a"] * 120)


# -------------------------------------------------------------------------------- acknowledgements


async def test_acknowledgements_settle_each_message_once_whatever_the_order() -> None:
    class Broker:
        """Follows RabbitMQ's rule: what is acknowledged must be outstanding."""

        closed = False
        loop = asyncio.get_running_loop()

        def __init__(self) -> None:
            self.outstanding: set[int] = set()
            self.frames = 0

        def send(self, data: bytes) -> None:
            while data:
                used, _, method = unmarshal(data)
                data = data[used:]
                self.frames += 1
                tag: Any = method.delivery_tag  # type: ignore[union-attr]
                assert tag in self.outstanding, "PRECONDITION_FAILED: unknown delivery tag"
                if method.multiple:  # type: ignore[union-attr]
                    self.outstanding -= {each for each in self.outstanding if each <= tag}
                else:
                    self.outstanding.discard(tag)

    for seed in range(200):
        rng = random.Random(seed)
        broker: Any = Broker()
        acks = Acknowledgements(broker, 1)
        open_tags: list[int] = []
        last = 0
        for _ in range(100):
            for _ in range(rng.randrange(4)):
                last += 1
                acks.add(last)
                broker.outstanding.add(last)
                open_tags.append(last)
            if open_tags and rng.random() < 0.7:
                tag = open_tags.pop(rng.choice([0, rng.randrange(len(open_tags))]))
                if rng.random() < 0.1:
                    acks.nack(tag, requeue=False)
                else:
                    acks.ack(tag)
                acks.ack(tag)  # a second time changes nothing
            if rng.random() < 0.3:
                acks.flush()
                assert broker.outstanding == set(open_tags), "acknowledged before it was handled"
        for tag in open_tags:
            acks.ack(tag)
        acks.flush()
        await asyncio.sleep(0)
        assert not broker.outstanding
        assert not acks._settled


# --------------------------------------------------------------------- a peer that is not a broker


@asynccontextmanager
async def peer(script: Callable[[Any, Any], Any]) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await script(reader, writer)
        await silence(reader, writer)

    async with scripted_peer(serve) as port:
        yield f"amqp://127.0.0.1:{port}?queue=q"


START = marshal(commands.Connection.Start(0, 9, {"product": "fake"}, "PLAIN AMQPLAIN", "en_US"), 0)


def close(code: int, text: str) -> bytes:
    return marshal(commands.Connection.Close(code, text, 0, 0), 0)


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolError, "does not speak AMQP"),
        (b"AMQP\x00\x00\x09\x01", ProtocolError, "does not speak AMQP"),
        (b"\x01\x00\x00\x7f\xff\xff\xff", ProtocolError, "does not speak AMQP"),
        (b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x0a\xce", ProtocolError, "speak AMQP"),
        (START[:-1] + b"\x00", ProtocolError, "does not speak AMQP"),
        (b"\x03\x00\x00\x00\x00\x00\x01x\xce", ProtocolError, "does not speak AMQP"),
        (b"\x01\x00\x09" + START[3:], ProtocolError, "channel 9"),
        (START + close(403, "ACCESS_REFUSED"), ConfigurationError, "ACCESS_REFUSED"),
        (START + close(320, "CONNECTION_FORCED"), ConnectError, "CONNECTION_FORCED"),
        (
            START + marshal(commands.Connection.Tune(0, 100, 0), 0),
            ProtocolError,
            "frame size of 100",
        ),
        (START + marshal(commands.Queue.BindOk(), 0), ProtocolError, "Queue.BindOk"),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_a_peer_that_is_no_broker_is_told_at_once(
    said: bytes, kind: type[ResilientClientError], text: str
) -> None:
    async def script(reader: Any, writer: Any) -> None:
        await reader.readexactly(8)
        if said.startswith(START):
            writer.write(START)
            await reader.readexactly(8)
        writer.write(said.removeprefix(START))

    async with peer(script) as url:
        client = ClientProxy(url, policies=(), telemetry=False)
        with pytest.raises(kind, match=text) as raised:
            await client.send("x", 1, timeout=5)
        assert not raised.value.sent
        await client.aclose()
        with pytest.raises(ResilientClientError):
            await Server(url, telemetry=False).start()


async def test_a_peer_that_says_nothing_or_leaves_costs_the_deadline_at_most() -> None:
    async def silent(reader: Any, writer: Any) -> None:
        await reader.readexactly(8)

    async def leaves(reader: Any, writer: Any) -> None:
        writer.close()

    for script in (silent, leaves):
        async with peer(script) as url:
            client = ClientProxy(url, policies=(), telemetry=False)
            with pytest.raises(ConnectError):
                await client.send("x", 1, timeout=0.5)
            await client.aclose()


async def test_frames_may_be_cut_anywhere() -> None:
    from resilient_client.transports._base import Target
    from resilient_client.transports.amqp._connection import Connection
    from resilient_client.transports.amqp._connector import Login

    connection = Connection(Login(Target("amqp://mq")), 1 << 20, lambda *_: None)
    got: list[Any] = []
    from resilient_client.transports.amqp._channel import Channel

    channel = connection._channels[1] = Channel(connection, 1)
    channel.on_delivery = got.append
    data = b""
    bodies = [random.randbytes(size) for size in (0, 1, 10, 131_000, 400_000)]
    for tag, body in enumerate(bodies, 1):
        data += marshal(commands.Basic.Deliver("c", tag, False, "", "q"), 1)
        data += wire.content_frames(1, wire.reply_properties(b"k"), body, wire.FRAME_MAX)
        data += wire.HEARTBEAT_FRAME
    rng = random.Random(3)
    for most in (1000, 50_000, 300_000):
        got.clear()
        at = 0
        while at < len(data):
            room = connection.get_buffer(-1)
            assert len(room) > 0
            piece = data[at : at + min(len(room), rng.randint(1, most))]
            room[: len(piece)] = piece
            connection.buffer_updated(len(piece))
            at += len(piece)
        assert [message.body for message in got] == bodies
        assert [message.tag for message in got] == [1, 2, 3, 4, 5]


async def test_a_server_that_finds_no_broker_keeps_nothing_of_its_tries() -> None:
    server = Server(f"amqp://127.0.0.1:{free_port()}?queue=away", telemetry=False)
    for _ in range(3):
        with pytest.raises(ConnectError):
            await server.start()
    assert not server._app._slots
