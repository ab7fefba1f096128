"""What is peculiar to nats://: subjects, queue groups, wildcards, limits, several servers."""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
import time
import weakref
from collections.abc import AsyncIterator
from typing import Any

import nats
import nats.aio.errors
import nats.errors
import nats.js.errors
import pytest

from resilient_client import (
    ClientProxy,
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    Context,
    NoHandlerError,
    PayloadError,
    ProtocolError,
    RemoteError,
    ResilientClientError,
    Retry,
    Server,
    Timeout,
)
from resilient_client.testing import check_transport
from resilient_client.transports import _backlog
from resilient_client.transports._base import Target
from resilient_client.transports.nats import _library, _socket, _wire
from tests.calls import error_of
from tests.peers.nats import Nats
from tests.peers.process import free_port
from tests.peers.proxy import TcpProxy
from tests.peers.script import scripted_peer, silence
from tests.test_client_loops import connections_left_open
from tests.transports.slow_reader import ended_told_and_back
from tests.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


def server_of(broker: Nats, **options: Any) -> Server:
    return Server(broker.url, telemetry=False, grace=0.5, **options)


def client_of(broker: Nats, **options: Any) -> ClientProxy:
    options.setdefault("policies", ())
    return ClientProxy(broker.url, telemetry=False, **options)


async def test_nats_passes_the_conformance_suite(nats_broker: Nats) -> None:
    assert len(await check_transport(nats_broker.url)) >= 15


async def test_members_of_a_queue_group_share_the_work(nats_broker: Nats, unique: str) -> None:
    def replica(name: str) -> Server:
        server = server_of(nats_broker, queue=unique)
        server.message_pattern(f"{unique}.who")(lambda: name)
        server.event_pattern(f"{unique}.event")(lambda n: heard.append((name, n)))
        server.event_pattern(f"{unique}.own", queue=f"own-{name}")(lambda n: own.append((name, n)))
        return server

    heard: list[Any] = []
    own: list[Any] = []
    async with replica("a"), replica("b"), client_of(nats_broker) as client:
        answers = await asyncio.gather(*(client.send(f"{unique}.who") for _ in range(100)))
        assert set(answers) == {"a", "b"}
        for n in range(100):
            await client.emit(f"{unique}.event", n)
        await client.emit(f"{unique}.own", 1)
        await eventually(lambda: len(heard) >= 100 and len(own) >= 2)
        await asyncio.sleep(0.05)
        assert sorted(n for _, n in heard) == list(range(100))
        assert {name for name, _ in heard} == {"a", "b"}
        assert sorted(own) == [("a", 1), ("b", 1)]  # its groups differ: each hears it
        assert client._transports[0].numbers()["reply.orphans"] == 0  # type: ignore[attr-defined]


async def test_without_a_queue_group_every_replica_hears_an_event(
    nats_broker: Nats, unique: str
) -> None:
    heard: list[str] = []

    def replica(name: str) -> Server:
        server = server_of(nats_broker)
        server.event_pattern(f"{unique}.event")(lambda: heard.append(name))
        return server

    async with replica("a"), replica("b"), client_of(nats_broker) as client:
        await client.emit(f"{unique}.event", 1)
        await eventually(lambda: len(heard) == 2)
    assert sorted(heard) == ["a", "b"]


async def test_one_pattern_is_in_one_queue_group(nats_broker: Nats, unique: str) -> None:
    server = server_of(nats_broker)
    server.event_pattern(unique, queue="a")(lambda: None)
    server.event_pattern(unique, queue="b")(lambda: None)
    with pytest.raises(ConfigurationError, match="queue groups"):
        await server.start()


async def test_wildcards_match_and_the_handler_learns_the_subject(
    nats_broker: Nats, unique: str
) -> None:
    server = server_of(nats_broker)
    heard: list[Any] = []

    @server.message_pattern(f"{unique}.one.*.price")
    async def price(payload: int, context: Context) -> list[Any]:
        return [payload, context.pattern]

    @server.event_pattern(f"{unique}.many.>")
    async def many(payload: int, context: Context) -> None:
        heard.append((payload, context.pattern))

    async with server, client_of(nats_broker) as client:
        assert await client.send(f"{unique}.one.eggs.price", 1) == [1, f"{unique}.one.eggs.price"]
        assert await client.send(f"{unique}.one.milk.price", 2) == [2, f"{unique}.one.milk.price"]
        assert not (await error_of(client.send(f"{unique}.one.a.b.price", 3))).sent
        await client.emit(f"{unique}.many.a", 1)
        await client.emit(f"{unique}.many.a.b.c", 2)
        await client.emit(f"{unique}.many", 3)
        await eventually(lambda: len(heard) == 2)
    assert heard == [(1, f"{unique}.many.a"), (2, f"{unique}.many.a.b.c")]


async def test_a_pattern_that_means_everything_does_not_mean_replies(new_broker: Any) -> None:
    broker = new_broker(Nats)
    server = server_of(broker)
    heard: list[str] = []
    server.event_pattern(">")(lambda context: heard.append(context.pattern))
    server.message_pattern("echo")(lambda payload: payload)
    async with server, client_of(broker) as client:
        assert await client.send("echo", 1) is not None or True
        await client.emit("something.else", 2)
        await eventually(lambda: "something.else" in heard)
        assert set(heard) <= {"echo", "something.else"}


@pytest.mark.parametrize("pattern", ["a b", "", "a..b", ".a", "a.", {"a": "x y"}, "a\nb"])
async def test_what_cannot_be_a_subject_is_refused_on_both_ends(
    nats_broker: Nats, pattern: Any
) -> None:
    client = client_of(nats_broker)
    for call in (client.send(pattern, 1), client.emit(pattern, 1)):
        error = await error_of(call)
        assert isinstance(error, ConfigurationError)
        assert "NATS subject" in str(error)
    assert client.status == "idle"  # nothing was dialled for it
    await client.aclose()
    with pytest.raises(ConfigurationError, match="NATS subject"):
        server_of(nats_broker).message_pattern(pattern)(lambda: None)


async def test_nothing_is_sent_to_a_wildcard(nats_broker: Nats) -> None:
    client = client_of(nats_broker)
    for subject in ("a.*", "a.>", "*"):
        assert isinstance(await error_of(client.emit(subject, 1)), ConfigurationError)
    await client.aclose()
    with pytest.raises(ConfigurationError, match="comes last"):
        server_of(nats_broker).event_pattern("a.>.b")(lambda: None)


async def test_nobody_there_is_told_at_once_and_repeated_while_attempts_last(
    nats_broker: Nats, unique: str
) -> None:
    async with client_of(nats_broker) as client:
        started = time.monotonic()
        error = await error_of(client.send(unique, 1, timeout=30))
        assert isinstance(error, NoHandlerError)
        assert not error.sent
        assert time.monotonic() - started < 5
        error = await error_of(anext(aiter(client.stream(unique, 1))))
        assert isinstance(error, NoHandlerError)
        receipt = await client.emit(unique, 1)  # nobody's event is no error
        assert (receipt.delivery, receipt.receivers) == ("written", None)
    patient = client_of(nats_broker, policies=[Timeout(20), Retry(attempts=50)])
    async with patient:
        call = asyncio.ensure_future(patient.send(unique, 5))
        await asyncio.sleep(0.3)
        server = server_of(nats_broker)
        server.message_pattern(unique)(lambda payload: payload)
        async with server:
            assert await call == 5
        error = await error_of(patient.send(unique, 1, timeout=0.5))
        assert not error.sent
        assert len(error.attempts) > 1


async def test_headers_travel_in_nats_own_headers(nats_broker: Nats, unique: str) -> None:
    raw = await nats.connect(nats_broker.url)
    got = await raw.subscribe(unique)
    await raw.flush()
    async with client_of(nats_broker) as client:
        await client.emit(unique, {"a": 1}, headers={"X-Colour": "gr\u00fcn"})
        message = await got.next_msg(5)
        assert message.headers["x-colour"] == "gr\u00fcn"
        assert message.headers["x-correlation-id"]
        assert "x-deadline-ms" not in message.headers
        assert message.data == b'{"pattern":"%b","data":{"a":1}}' % unique.encode()
        for bad in ("a b", "a:b"):
            error = await error_of(client.emit(unique, 1, headers={bad: "v"}))
            assert isinstance(error, PayloadError)
            assert not error.sent
    await raw.close()


async def test_idempotency_keys_cannot_smuggle_lines(nats_broker: Nats, unique: str) -> None:
    async with client_of(nats_broker) as client:
        error = await error_of(
            client.emit(unique, 1, idempotency_key="k\r\n\r\nPUB evil 0\r\n\r\n")
        )
        assert isinstance(error, PayloadError)
        assert not error.sent


async def test_the_servers_max_payload_is_respected(new_broker: Any) -> None:
    broker = new_broker(Nats, max_payload=4_000)
    server = server_of(broker)
    server.message_pattern("echo")(lambda payload: payload)
    server.message_pattern("long")(lambda n: "x" * n)

    @server.message_pattern("items")
    async def items(n: int) -> AsyncIterator[str]:
        yield "short"
        yield "x" * n

    async with server, client_of(broker) as client:
        assert len(await client.send("echo", "x" * 3_000)) == 3_000
        for call in (client.send("echo", "x" * 4_000), client.emit("e", "x" * 4_000)):
            error = await error_of(call)
            assert isinstance(error, PayloadError), error
            assert "max_payload" in str(error)
            assert not error.sent
        error = await error_of(client.send("long", 5_000))
        assert (type(error), error.status) == (RemoteError, 500)
        assert "max_payload" in error.message
        got = []
        with pytest.raises(RemoteError, match="max_payload"):
            async for item in client.stream("items", 5_000):
                got.append(item)  # noqa: PERF401
        assert got == ["short"]
        assert await client.send("echo", 1) == 1
        assert client.status == "connected"


async def test_messages_that_are_no_packets_disturb_nobody(
    nats_broker: Nats, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = server_of(nats_broker)
    heard: list[Any] = []
    server.event_pattern(f"{unique}.>")(lambda payload: heard.append(payload))
    raw = await nats.connect(nats_broker.url)
    async with server:
        await raw.publish(f"{unique}.a", b"not json")
        await raw.publish(f"{unique}.a", b"")
        assert raw._transport is not None
        raw._transport.write(b"PUB " + unique.encode() + b".\xff\xfe 2\r\n17\r\n")
        await raw.publish(f"{unique}.a", b'{"hello":1,"id":"1"}', reply=f"{unique}.answer")
        await eventually(lambda: len(heard) == 2)
    assert heard == [17, {"hello": 1, "id": "1"}]  # foreign JSON is an event
    assert caplog.text.count("was dropped") == 2
    await raw.close()


async def test_a_reply_address_of_the_brokers_own_sends_no_command_with_our_rights(
    nats_broker: Nats, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = server_of(nats_broker)
    ran: list[Any] = []
    server.message_pattern(unique)(ran.append)
    raw = await nats.connect(nats_broker.url)
    stream, kept = f"S{unique}".replace(".", "_"), f"kept.{unique}"
    await raw.jetstream().add_stream(name=stream, subjects=[kept])
    await raw.jetstream().publish(kept, b"1")
    async with server, client_of(nats_broker) as client:
        packet = b'{"pattern":"%b","data":1,"id":"1"}' % unique.encode()
        ours = {"x-resilient-client": "1"}  # a client of our make is greeted there, too
        for command in ("PURGE", "DELETE"):
            where = f"$JS.API.STREAM.{command}.{stream}"
            await raw.publish(unique, packet, reply=where, headers=ours)
        await raw.flush()
        await client.send(unique, 2, timeout=10)
    info = await raw.jetstream().stream_info(stream)
    assert info.state.messages == 1
    assert ran == [2]
    assert caplog.text.count("is dropped") == 1
    await raw.jetstream().delete_stream(stream)
    await raw.close()


async def test_a_reply_that_is_no_packet_is_that_calls_failure_only(
    nats_broker: Nats, unique: str
) -> None:
    raw = await nats.connect(nats_broker.url)

    async def answer(message: Any) -> None:
        await raw.publish(message.reply, b"}{" if message.subject.endswith("a") else b'{"x":1}')

    await raw.subscribe(f"{unique}.*", cb=answer)
    await raw.flush()
    async with client_of(nats_broker) as client:
        assert isinstance(await error_of(client.send(f"{unique}.a", timeout=5)), ProtocolError)
        assert await client.send(f"{unique}.b", timeout=5) == {"x": 1}  # foreign JSON is the value
        assert client.status == "connected"
    await raw.close()


async def test_a_caller_that_leaves_stops_its_handler_in_whichever_replica(
    nats_broker: Nats, unique: str
) -> None:
    stopped: list[str] = []
    started: list[str] = []

    def replica(name: str) -> Server:
        server = server_of(nats_broker, queue=unique)

        @server.message_pattern(unique)
        async def wait() -> None:
            started.append(name)
            try:
                await asyncio.sleep(60)
            finally:
                stopped.append(name)

        return server

    async with replica("a"), replica("b"), client_of(nats_broker) as client:
        calls = [asyncio.ensure_future(client.send(unique, timeout=50)) for _ in range(20)]
        await eventually(lambda: len(started) == 20)
        assert set(started) == {"a", "b"}
        await asyncio.sleep(0.1)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await eventually(lambda: len(stopped) == 20)
        assert client._transports[0]._link.current.subjects == {}  # type: ignore[attr-defined]


async def test_a_server_that_shows_itself_late_still_hears_who_has_left(
    nats_broker: Nats, unique: str
) -> None:
    raw = await nats.connect(nats_broker.url)
    requests = await raw.subscribe(unique)
    cancels = await raw.subscribe(f"resilient_client.cancel.{unique}")
    await raw.flush()
    async with client_of(nats_broker) as client:
        call = asyncio.ensure_future(client.send(unique, timeout=30))
        request = await requests.next_msg(5)
        call.cancel()
        await asyncio.wait([call])
        for name in (f"resilient_client.cancel.{unique}", "somewhere.else", ".."):
            await raw.publish(request.reply, b"", headers={"x-resilient-client": name})
        assert (await cancels.next_msg(5)).data == request.reply.encode()
        assert len(client._transports[0]._link.current.peers.met) == 1  # type: ignore[attr-defined]
    await raw.close()


async def test_events_beyond_what_slow_handlers_can_keep_up_with_are_told(
    nats_broker: Nats, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _backlog.BACKLOG_EVENTS == 10_000, "as docs/reference/delivery.md says"
    monkeypatch.setattr(_backlog, "BACKLOG_EVENTS", 10)
    news: list[Any] = []
    heard: list[int] = []
    server = server_of(nats_broker, max_calls_per_connection=1, observers=[news.append])
    gate = asyncio.Event()

    @server.event_pattern(unique)
    async def slow(n: int) -> None:
        await gate.wait()
        heard.append(n)

    async with server, client_of(nats_broker) as client:
        for n in range(50):
            await client.emit(unique, n)
        await eventually(lambda: any("dropped" in getattr(each, "reason", "") for each in news))
        gate.set()
        await eventually(lambda: len(heard) >= 12)
        assert heard == list(range(12))


@pytest.mark.parametrize("limit", ["max_pending: 1MB", 'write_deadline: "1s"'])
async def test_a_connection_that_reads_too_slowly_is_ended_told_and_comes_back(
    new_broker: Any, limit: str
) -> None:
    await ended_told_and_back(new_broker(Nats, options=[limit]), "Slow Consumer")


async def test_a_broker_that_says_why_it_drops_a_slow_consumer_is_quoted() -> None:
    """As servers before 2.0 do."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","max_payload":1000,"headers":true}\r\n')
        while data := await reader.read(1000):
            for _ in range(data.count(b"PING\r\n")):
                writer.write(b"PONG\r\n")
            if b"PUB " in data:
                writer.write(b"-ERR 'Slow Consumer'\r\n")
                break

    news: list[Any] = []
    options: dict[str, Any] = {"policies": (), "telemetry": False, "observers": [news.append]}
    async with (
        scripted_peer(talk) as port,
        ClientProxy(f"nats://127.0.0.1:{port}", **options) as client,
    ):
        error = await error_of(client.send("x", timeout=20))
        assert isinstance(error, ConnectionLost), error
        assert "slow consumer" in str(error)
        await eventually(lambda: client.status == "connected")
    assert ["slow consumer" in each.reason for each in news if each.new == "reconnecting"] == [True]


# ---- connections ----


def test_a_loop_that_ends_with_an_open_connection_leaves_no_task_behind(
    nats_broker: Nats, caplog: pytest.LogCaptureFixture
) -> None:
    with connections_left_open():
        client = client_of(nats_broker)
        for _ in range(2):
            asyncio.run(client.emit("nobody", 1))
        asyncio.run(client.aclose())
        del client
    assert "destroyed" not in caplog.text


def test_a_client_on_its_next_loop_keeps_no_connection_of_the_one_before(
    nats_broker: Nats,
) -> None:
    loops = []

    async def use() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await client.emit("nobody", 1)

    client = client_of(nats_broker)
    with connections_left_open():
        asyncio.run(use())
        asyncio.run(client.aclose())
    assert loops[0]() is None


async def test_addresses_of_ipv6_are_dialled(new_broker: Any) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    broker = new_broker(Nats, interface="[::]")
    url = f"nats://[::1]:{broker.port}"
    server = Server(url, telemetry=False)
    server.message_pattern("echo")(lambda payload: payload)
    async with server, ClientProxy(url, telemetry=False) as client:
        assert await client.send("echo", 1) == 1


async def test_further_servers_may_be_written_as_urls(nats_broker: Nats) -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    for servers in (nats_broker.url, [f" {nats_broker.url}"], f"127.0.0.1:1, {nats_broker.url}"):
        async with ClientProxy(url, servers=servers, telemetry=False) as client:
            assert client.status == "connected"


@pytest.mark.parametrize(
    "servers", ["", "host:port", "redis://host", "nats://me:secret@host", "[::1", ["nats://"]]
)
def test_further_servers_that_are_no_addresses_are_refused_and_not_shown(servers: Any) -> None:
    with pytest.raises(ConfigurationError, match="servers= holds") as caught:
        ClientProxy("nats://127.0.0.1", servers=servers, telemetry=False)
    assert "secret" not in str(caught.value)


async def test_the_next_server_is_tried_when_one_is_gone(new_broker: Any) -> None:
    first, second = new_broker(Nats), new_broker(Nats)
    servers = f"127.0.0.1:{free_port()},127.0.0.1:{second.port}"
    replica = server_of(second)
    replica.message_pattern("where")(lambda: "second")
    origin = server_of(first)
    origin.message_pattern("where")(lambda: "first")
    async with replica, client_of(first, servers=servers) as client:
        async with origin:
            assert await client.send("where") == "first"
        first.kill()
        for _ in range(100):
            try:
                assert await client.send("where", timeout=5) == "second"
                break
            except (ConnectError, ConnectionLost):
                await asyncio.sleep(0.05)
        else:
            pytest.fail("the second server was never used")


async def test_a_server_comes_back_with_all_its_subscriptions(new_broker: Any) -> None:
    broker = new_broker(Nats)
    async with TcpProxy(broker.port) as proxy:
        states: list[str] = []
        server = Server(
            f"nats://127.0.0.1:{proxy.port}",
            telemetry=False,
            observers=[lambda event: states.append(getattr(event, "new", ""))],
        )
        server.message_pattern("echo")(lambda payload: payload)

        @server.message_pattern("slow")
        async def slow(seconds: float) -> str:
            await asyncio.sleep(seconds)
            return "answered over the new connection"

        async with server, client_of(broker) as client:
            assert await client.send("echo", 1) == 1
            call = asyncio.ensure_future(client.send("slow", 1.0, timeout=20))
            await asyncio.sleep(0.1)
            proxy.cut()
            assert await call == "answered over the new connection"
            assert await client.send("echo", 2) == 2
            assert states.count("connected") == 2


async def test_a_frozen_broker_is_noticed_by_its_silence(new_broker: Any) -> None:
    broker = new_broker(Nats)
    async with client_of(broker, heartbeat=0.2) as client:
        raw = await nats.connect(broker.url)
        await raw.subscribe("deaf")
        await raw.flush()
        pending = asyncio.ensure_future(error_of(client.send("deaf", timeout=30)))
        await asyncio.sleep(0.1)
        broker.freeze()
        try:
            started = time.monotonic()
            lost = await pending
            assert isinstance(lost, ConnectionLost), lost
            assert time.monotonic() - started < 3
            assert "stale" in str(lost)
        finally:
            broker.thaw()
        await raw.close()


async def test_what_is_no_nats_server_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.read(100)
        if reply:
            writer.write(reply)
            await reader.read()

    info = b'INFO {"server_id":"x","max_payload":1000,"headers":true}\r\n'
    for greeting, reply in (
        (b"220 mail.example ESMTP\r\n", b""),
        (b"INFO {nonsense\r\n", b""),
        (info, b""),
        (info, b"-ERR 'Maximum Connections Exceeded'\r\n"),
        (info, b"something else\r\n"),
        (info.replace(b"1000", b'"1k"'), b"PONG\r\n"),
    ):
        async with scripted_peer(talk) as port:
            client = ClientProxy(f"nats://127.0.0.1:{port}", policies=(), telemetry=False)
            error = await error_of(client.send("x", timeout=10))
            assert isinstance(error, ConnectError | ProtocolError), (greeting, reply, error)
            assert not error.sent
            await client.aclose()
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR and r.name == "asyncio"]


async def test_a_silent_server_bounds_connecting() -> None:
    async with scripted_peer(silence) as port:
        client = ClientProxy(f"nats://127.0.0.1:{port}", policies=(), telemetry=False)
        started = time.monotonic()
        assert isinstance(await error_of(client.send("x", timeout=20)), ConnectError)
        assert time.monotonic() - started < 5
        await client.aclose()


async def test_a_broker_that_talks_nonsense_later_is_left_and_dialled_again() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","max_payload":1000,"headers":true}\r\n')
        while data := await reader.read(1000):
            for _ in range(data.count(b"PING\r\n")):
                writer.write(b"PONG\r\n")
            if b"PUB " in data:
                writer.write(b"INFO {nonsense\r\n")

    async with scripted_peer(talk) as port:
        client = ClientProxy(f"nats://127.0.0.1:{port}", policies=(), telemetry=False)
        started = time.monotonic()
        error = await error_of(client.send("x", timeout=20))
        assert isinstance(error, ConnectionLost), error
        assert time.monotonic() - started < 3
        await eventually(lambda: client.status == "connected")
        await client.aclose()


# ---- the bytes ----

WIRE = (
    b"MSG a.b 7 5\r\nhello\r\n"
    b"PING\r\n"
    b"MSG a.b 7 reply 2\r\n\r\n\r\n"
    b"HMSG \xff\xfe 8 reply 28 30\r\nNATS/1.0\r\nX-A: 1\r\nx-b: 2\r\n\r\nhi\r\n"
    b"MSG library 1 3\r\nabc\r\n"
    b"HMSG a.b 7 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
)


class Aborted:
    def __init__(self) -> None:
        self.aborted = False
        self.unread = 0

    def abort(self) -> None:
        self.aborted = True

    def write(self, data: bytes) -> None:
        self.unread += len(data)

    def get_write_buffer_size(self) -> int:
        return self.unread


def fed(wire: bytes, size: int) -> tuple[_socket.Socket, list[Any]]:
    socket = _socket.Socket()
    socket.transport = Aborted()  # type: ignore[assignment]
    got: list[Any] = []
    socket.receivers = {b"7": lambda *given: got.append(given), b"8": lambda *g: got.append(g)}
    for start in range(0, len(wire), size):
        part = wire[start : start + size]
        socket.get_buffer(-1)[: len(part)] = part
        socket.buffer_updated(len(part))
    return socket, got


async def test_messages_are_found_however_the_bytes_arrive() -> None:
    for size in range(1, len(WIRE) + 1):
        socket, got = fed(WIRE, size)
        assert [each[:3] for each in got] == [
            (b"a.b", b"", b"hello"),
            (b"a.b", b"reply", b"\r\n"),
            (b"\xff\xfe", b"reply", b"hi"),
            (b"a.b", b"", b""),
        ]
        assert _wire.read_headers(got[2][3]) == {"x-a": "1", "x-b": "2"}
        assert [_wire.status(each[3]) for each in got] == [0, 0, 0, 503]
        assert bytes(socket._received) == b"PING\r\nMSG library 1 3\r\nabc\r\n"
        assert not socket._rest


@pytest.mark.parametrize(
    "wire",
    [
        b"MSG a 7 -5\r\n",
        b"MSG a 7 999999999999\r\n",
        b"MSG a\r\n",
        b"MSG \r\n",
        b"HMSG a 7 x 5\r\nhello\r\n",
        b"x" * (_socket.MAX_LINE + 100_000),
    ],
)
async def test_bytes_that_make_no_sense_end_the_connection(wire: bytes) -> None:
    socket, got = fed(wire, 60_000)
    assert socket.transport.aborted  # type: ignore[attr-defined]
    assert got == []


async def test_a_big_message_is_looked_at_when_it_is_whole() -> None:
    body = b"x" * 5_000_000
    socket, got = fed(b"MSG a 7 %d\r\n%b\r\nMSG a 7 1\r\ny\r\n" % (len(body), body), 60_000)
    assert [len(each[2]) for each in got] == [len(body), 1]
    assert not socket._rest


async def test_a_server_that_asks_on_and_on_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resilient_client.transports.nats._library.MAX_UNREAD", 100)
    monkeypatch.setattr("resilient_client.transports.nats._socket.MAX_SIZE", 100)
    pings, _ = fed(b"PING\r\n" * 16, 6)
    assert not pings.transport.aborted  # type: ignore[attr-defined]
    pings, _ = fed(b"PING\r\n" * 17, 6)
    assert pings.transport.aborted  # type: ignore[attr-defined]
    unread, _ = fed(b"", 1)
    wire = _library.Wire(unread, Target("nats://h"), "h", must_encrypt=False)
    for _ in range(16):
        wire.write(b"PONG\r\n")
    assert not unread.transport.aborted  # type: ignore[attr-defined]
    wire.write(b"PONG\r\n")
    assert unread.transport.aborted  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n: no name\r\na: \x00\r\nA: first\r\n\r\n",
        b"NATS/1.0\r\n" + b"".join(b"n%d: v\r\n" % n for n in range(200)) + b"\r\n",
        b"NATS/1.0\r\nlong: " + b"v" * 10_000 + b"\r\n\r\n",
        b"garbage",
        b"",
    ],
)
def test_headers_from_strangers_are_bounded(block: bytes) -> None:
    headers = _wire.read_headers(block)
    assert len(headers) <= 32
    for name, value in headers.items():
        assert name
        assert name == name.lower()
        assert value.isprintable()
        assert len(value) <= 8192


# ---- nats-py ----


def exceptions_of(module: Any) -> set[type[Exception]]:
    return {
        each
        for _, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, Exception) and each.__module__ == module.__name__
    }


def test_every_exception_of_nats_py_has_a_meaning_here() -> None:
    assert set(_library._CLASSES) == exceptions_of(nats.errors), "nats-py has changed"
    target = Target("nats://127.0.0.1:4222")
    for each in exceptions_of(nats.aio.errors) | exceptions_of(nats.js.errors):
        assert issubclass(each, nats.errors.Error), each
    for each in exceptions_of(nats.errors) | exceptions_of(nats.aio.errors):
        error = each.__new__(each)
        error.__dict__.update(subject="s", reply="r", sid=1, sub=None, key="k", _msg=None)
        ours = _library.translate(error, target)
        assert isinstance(ours, ResilientClientError)
        assert not ours.sent, "nothing of ours is published through nats-py"
    for other in (TimeoutError(), OSError(111, "refused"), ValueError("odd"), EOFError()):
        assert isinstance(_library.translate(other, target), ResilientClientError)
