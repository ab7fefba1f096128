"""What is peculiar to redis://, against a real Redis."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from resilient_client import (
    ClientProxy,
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    Context,
    DeadlineExceeded,
    InvalidPayloadError,
    NoHandlerError,
    PayloadError,
    Retry,
    Server,
    Throttled,
    Timeout,
)
from resilient_client.events import ConnectionChanged, Degraded
from resilient_client.testing import check_transport
from resilient_client.transports import _backlog
from resilient_client.transports.redis import _connection
from resilient_client.transports.redis import client as redis_client
from resilient_client.transports.redis._connection import Connection, ignore
from resilient_client.transports.redis._session import Session
from tests.calls import error_of, outcome
from tests.contract.rigs import Service
from tests.peers.brokers import Redis
from tests.peers.certificates import Certificates, certificates, make_certificates
from tests.peers.nest import NestServer
from tests.peers.script import scripted_peer
from tests.transports.slow_reader import ended_told_and_back
from tests.waiting import eventually

from .redis_peer import command

pytestmark = [pytest.mark.broker]

NewBroker = Callable[..., Redis]


def client_of(url: str, **options: Any) -> ClientProxy:
    options.setdefault("policies", ())
    return ClientProxy(url, telemetry=False, **options)


def server_of(url: str, **options: Any) -> Server:
    options.setdefault("grace", 0.2)
    return Server(url, telemetry=False, **options)


def echo_server(url: str, name: str, **options: Any) -> Server:
    server = server_of(url, **options)
    server.message_pattern(f"{name}.echo")(_same)
    return server


async def _same(payload: Any) -> Any:
    return payload


async def test_redis_passes_the_conformance_suite(redis_broker: Redis) -> None:
    assert len(await check_transport(redis_broker.url)) >= 15


async def test_redis_with_a_stream_passes_the_conformance_suite(
    redis_broker: Redis, unique: str
) -> None:
    assert len(await check_transport(f"{redis_broker.url}?stream={unique}")) >= 15


# ------------------------------------------------------------------------------------- patterns


async def test_wildcards_hear_every_channel_they_match_and_know_which(
    redis_broker: Redis, unique: str
) -> None:
    server = server_of(redis_broker.url)
    heard: list[Any] = []

    @server.event_pattern(f"{unique}.*.created")
    async def created(payload: Any, context: Context) -> None:
        heard.append((context.pattern, payload))

    @server.message_pattern(f"{unique}.get.?")
    async def get(payload: Any, context: Context) -> str:
        heard.append(payload)
        return context.pattern

    async with server, client_of(redis_broker.url) as client:
        receipt = await client.emit(f"{unique}.user.created", 1)
        assert (receipt.delivery, receipt.receivers) == ("accepted", 1)
        assert await client.send(f"{unique}.get.a", 2) == f"{unique}.get.a"
        assert (await client.emit(f"{unique}.user.deleted", 3)).receivers == 0
        with pytest.raises(NoHandlerError):
            await client.send(f"{unique}.get.ab", 4)
        await asyncio.sleep(0.1)
    assert heard == [(f"{unique}.user.created", 1), 2], "a reply was heard as an event"


async def test_a_wildcard_does_not_hear_replies_nor_cancellations(
    redis_broker: Redis, unique: str
) -> None:
    server = server_of(redis_broker.url)
    heard: list[Any] = []

    @server.message_pattern("*")
    async def anything(payload: Any, context: Context) -> Any:
        if context.pattern.startswith(unique):
            heard.append(context.pattern)
            await asyncio.sleep(payload)
        return payload

    async with server, client_of(redis_broker.url) as client:
        assert await client.send(f"{unique}.a", 0) == 0
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.send(f"{unique}.b", 5), 0.2)
        assert await client.send(f"{unique}.c", 0) == 0
        await asyncio.sleep(0.1)
    assert heard == [f"{unique}.a", f"{unique}.b", f"{unique}.c"]


async def test_wildcards_can_be_turned_off(redis_broker: Redis, unique: str) -> None:
    server = server_of(redis_broker.url, wildcards=False)
    server.message_pattern(f"{unique}.*")(_same)
    async with server, client_of(redis_broker.url) as client:
        assert await client.send(f"{unique}.*", 1) == 1
        assert (await error_of(client.send(f"{unique}.a", 1))).sent is False


async def test_our_client_is_answered_by_a_nest_server_with_wildcards(
    redis_broker: Redis, unique: str
) -> None:
    """Nest answers on the concrete channel's reply channel, as we do."""
    async with NestServer(
        "redis", redis_broker.url, prefix=f"{unique}.", options={"wildcards": True}
    ):
        async with client_of(redis_broker.url, policies=[Timeout(10), Retry(attempts=9)]) as client:
            assert await client.send(f"{unique}.sum", [1, 2], returns=int) == 3
            assert command(redis_broker, "PUBSUB", "NUMSUB", f"{unique}.sum")[1] == 0


async def test_text_that_is_no_json_is_an_event_of_its_channel(
    redis_broker: Redis, unique: str
) -> None:
    server = server_of(redis_broker.url)
    heard: list[Any] = []

    @server.event_pattern(unique)
    async def hear(payload: Any) -> None:
        heard.append(payload)

    async with server:
        for message in (b"plain text", b"\xff\xfe", b'{"hello":1,"id":"1"}', b"[1]", b"7"):
            command(redis_broker, "PUBLISH", unique, message)
        await eventually(lambda: len(heard) == 5)
    assert heard == ["plain text", "\ufffd\ufffd", {"hello": 1, "id": "1"}, [1], 7]


# ------------------------------------------------------------------------------------ who hears


async def test_every_replica_gets_every_message_and_sharing_is_refused(
    redis_broker: Redis, unique: str
) -> None:
    url = redis_broker.url
    ran: list[int] = []
    heard: list[int] = []

    def replica(number: int) -> Server:
        server = server_of(url)

        @server.message_pattern(f"{unique}.who")
        async def who() -> int:
            ran.append(number)
            return number

        @server.event_pattern(f"{unique}.event")
        async def event() -> None:
            heard.append(number)

        return server

    async with replica(1), replica(2), client_of(url) as client:
        assert await client.send(f"{unique}.who") in (1, 2)
        assert (await client.emit(f"{unique}.event", 1)).receivers == 2
        await eventually(lambda: len(heard) == 2)
        assert sorted(ran) == [1, 2], "each of them answers; the first answer wins"
    with pytest.raises(ConfigurationError, match="no queue groups") as caught:
        server_of(f"{url}?queue=q")
    assert "stream=" in caught.value.hint
    with pytest.raises(ConfigurationError, match="no queue groups"):
        client_of(f"{url}?queue=q")
    with pytest.raises(ConfigurationError, match="no queue groups"):
        server_of(url).event_pattern("x", queue="q")(_same)


async def test_nobody_there_is_known_at_once_and_nothing_was_sent(
    redis_broker: Redis, unique: str
) -> None:
    async with client_of(redis_broker.url) as client:
        started = time.monotonic()
        error = await error_of(client.send(f"{unique}.x", 1, timeout=30))
        assert type(error) is NoHandlerError
        assert (error.sent, error.retryable) == (False, True)
        with pytest.raises(NoHandlerError) as caught:
            async for _ in client.stream(f"{unique}.x", 1):
                pass
        assert not caught.value.sent
        receipt = await client.emit(f"{unique}.x", 1)
        assert (receipt.delivery, receipt.receivers) == ("accepted", 0)
        assert time.monotonic() - started < 5
        assert not (await client.ping(timeout=5)).reachable


async def test_nobody_there_is_repeated_because_a_restarting_server_looks_the_same(
    redis_broker: Redis, unique: str
) -> None:
    policies = [Timeout(20), Retry(attempts=50, wait=_steady, jitter=None)]
    async with client_of(redis_broker.url, policies=policies) as client:
        call = asyncio.ensure_future(client.send(f"{unique}.echo", 1))
        await asyncio.sleep(0.3)
        async with echo_server(redis_broker.url, unique):
            assert await call == 1


def _steady() -> Any:
    while True:
        yield 0.1


# ------------------------------------------------------------------------- TLS, users and rights


async def test_tls_is_spoken_and_a_stranger_is_refused_for_good(
    new_broker: NewBroker, unique: str
) -> None:
    files = certificates()
    broker = new_broker(Redis, tls=True)
    context = files.client_context()
    async with echo_server(broker.url, unique, tls=context):
        async with client_of(broker.url, ssl_ca_certs=str(files.authority)) as client:
            assert await client.send(f"{unique}.echo", "x" * 100_000) == "x" * 100_000
        stranger = ssl.create_default_context(cafile=str(files.other_authority))
        for options in ({"tls": stranger}, {}):
            client = client_of(broker.url, **options)
            with pytest.raises(ConfigurationError, match="not trusted"):
                await client.send(f"{unique}.echo", 1)
            await client.aclose()
        plain = client_of(broker.url.replace("rediss", "redis"))
        error = await error_of(plain.send(f"{unique}.echo", 1, timeout=2))
        assert isinstance(error, ConnectError)
        await plain.aclose()


async def test_mutual_tls_wants_the_clients_certificate(new_broker: NewBroker) -> None:
    files = certificates()
    broker = new_broker(Redis, tls=True, client_certificates=True)
    known = {
        "ssl_ca_certs": str(files.authority),
        "ssl_certfile": str(files.client),
        "ssl_keyfile": str(files.client_key),
    }
    async with echo_server(broker.url, "x", **known), client_of(broker.url, **known) as client:
        assert await client.send("x.echo", 1) == 1
    with pytest.raises(ConfigurationError, match="does not accept our certificate"):
        await client_of(broker.url, tls=files.client_context()).connect()
    with pytest.raises(ConfigurationError, match="TLS files"):
        client_of(broker.url, ssl_ca_certs="/nowhere.pem")


async def test_certificates_that_are_renewed_are_read_anew(
    new_broker: NewBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = new_broker(Redis, tls=True, client_certificates=True)
    names = {"ca": "authority", "client": "client", "key": "client_key"}
    mine = {name: tmp_path / f"{name}.pem" for name in names}

    def renew(files: Certificates) -> None:
        for name, of in names.items():
            shutil.copy(getattr(files, of), mine[name])

    renew(certificates())
    known = {f"ssl_{n}": str(mine[m]) for n, m in [("ca_certs", "ca"), ("certfile", "client")]}
    known["ssl_keyfile"] = str(mine["key"])
    (tmp_path / "new").mkdir()
    new = make_certificates(tmp_path / "new")
    async with echo_server(broker.url, "x", **known), client_of(broker.url, **known) as client:
        assert await client.send("x.echo", 1) == 1
        mine["key"].write_text("half of a k")  # in the middle of the renewal
        broker.terminate()
        await eventually(lambda: client.status == "reconnecting")
        assert isinstance(await error_of(client.send("x.echo", 2)), ConnectError)
        renew(new)
        conf = broker.folder / "redis.conf"
        conf.write_text(conf.read_text().replace(str(certificates().folder), str(new.folder)))
        monkeypatch.setattr(broker, "answers", lambda: True)  # who asks has the old ones
        await broker.start_async()
        async with asyncio.timeout(20):
            while await outcome(client.send("x.echo", 3)) != 3:
                await asyncio.sleep(0.05)


SECRET = "s3cret-w0rd"


async def test_user_and_password_and_what_happens_when_they_are_wrong(
    new_broker: NewBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker = new_broker(Redis, user="alice", password="right-one")
    place = f"127.0.0.1:{broker.port}"
    async with echo_server(broker.url, "x"):
        async with client_of(f"redis://{place}", username="alice", password="right-one") as client:
            assert await client.send("x.echo", 1) == 1
            assert "right-one" not in repr(client) + client.explain()
    caplog.set_level(logging.DEBUG)
    events: list[Any] = []
    for url in (
        f"redis://alice:{SECRET}@{place}",
        f"redis://{SECRET}:{SECRET}@{place}",
        f"redis://:{SECRET}@{place}",
        f"redis://{place}?username=alice&password={SECRET}",
        f"redis://{place}",
    ):
        client = client_of(url, policies=None, observers=[events.append])
        started = time.monotonic()
        with pytest.raises(ConfigurationError) as caught:
            await client.send("x.echo", 1)
        assert time.monotonic() - started < 2, "it tried again"
        assert "user and password" in caught.value.hint
        assert len(caught.value.attempts) == 1
        assert client.status == "idle"
        with pytest.raises(ConfigurationError):
            await client.connect()
        with pytest.raises(ConfigurationError) as refused:
            await server_of(url).start()
        told = f"{caught.value} {caught.value!r} {refused.value} {client!r} {client.explain()}"
        assert SECRET not in f"{told} {caplog.text} {events}"
        await client.aclose()


async def test_a_password_that_nobody_asked_for_is_refused(redis_broker: Redis) -> None:
    client = client_of(f"redis://:{SECRET}@127.0.0.1:{redis_broker.port}")
    with pytest.raises(ConfigurationError) as caught:
        await client.connect()
    assert SECRET not in str(caught.value)


async def test_refused_rights_are_fatal_and_say_what_is_missing(
    new_broker: NewBroker, caplog: pytest.LogCaptureFixture
) -> None:
    acl = [
        "user sender on >s ~* resetchannels &orders* +@all",
        "user hearer on >s ~* resetchannels &orders* &resilient_client.* +@all -publish -xadd",
        "user mute on >s ~* &* +@all -subscribe -ping",
        "user homebound on >s ~* &* +@all -select",
    ]
    broker = new_broker(Redis, acl=acl)
    place = f"127.0.0.1:{broker.port}"
    async with echo_server(broker.url, "orders"), echo_server(broker.url, "secret"):
        async with client_of(f"redis://sender:s@{place}", policies=None) as client:
            assert await client.send("orders.echo", 1) == 1
            error = await error_of(client.send("secret.echo", 1))
            assert isinstance(error, ConfigurationError)
            assert "SUBSCRIBE secret.echo.reply" in str(error)
            assert not error.sent
            error = await error_of(client.emit("secret.echo", 1))
            assert isinstance(error, ConfigurationError)
            assert not error.sent
            assert await client.send("orders.echo", 2) == 2, "the connection is well"
        async with client_of(f"redis://hearer:s@{place}?stream=s") as client:
            for call in (client.send("orders.echo", 1), client.emit("orders.echo", 1)):
                error = await error_of(call)
                assert isinstance(error, ConfigurationError)
                assert not error.sent
        async with client_of(f"redis://mute:s@{place}") as client:
            assert (await client.emit("orders.echo", 1)).receivers == 1, "it need not ping"
        async with client_of(f"redis://:@{place}") as client:
            assert (await client.emit("orders.echo", 1)).receivers == 1, "no password is none"
    with pytest.raises(ConfigurationError, match="'select' command"):
        await client_of(f"redis://homebound:s@{place}/3").connect()
    async with echo_server(f"redis://sender:s@{place}", "orders"):
        assert "channels of this package are refused" in caplog.text
    with pytest.raises(ConfigurationError, match=r"SUBSCRIBE secret\.echo"):
        await echo_server(f"redis://sender:s@{place}", "secret").start()


async def test_the_log_says_why_a_server_is_not_back_yet_and_says_it_once(
    new_broker: NewBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker = new_broker(Redis)
    async with echo_server(broker.url, "orders"):
        broker.kill()
        await eventually(lambda: "not back yet" in caplog.text)
        await asyncio.sleep(1.0)  # it tries several times
        assert caplog.text.count("not back yet") == 1
        assert "refused" in caplog.text


async def test_what_a_url_cannot_say_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="does not name a database"):
        client_of("redis://127.0.0.1/orders")
    with pytest.raises(ConfigurationError, match="stream_length"):
        client_of("redis://127.0.0.1?stream_lenght=5")
    client = client_of("redis://127.0.0.1:1/3")
    with pytest.raises(ConnectError, match="refused"):
        await client.send("x", timeout=2)
    await client.aclose()


async def test_a_pattern_that_no_channel_can_be_named_after_is_refused(
    redis_broker: Redis,
) -> None:
    async with client_of(redis_broker.url) as client:
        for call in (client.send("\ud800", 1), client.emit("\ud800", 1)):
            error = await error_of(call)
            assert isinstance(error, ConfigurationError)
            assert not error.sent
    with pytest.raises(ConfigurationError, match="named so"):
        server_of(redis_broker.url).message_pattern("\ud800")(_same)


async def test_a_database_that_does_not_exist_is_refused(redis_broker: Redis) -> None:
    with pytest.raises(ConfigurationError, match="out of range"):
        await client_of(f"{redis_broker.url}/99").connect()
    async with client_of(f"{redis_broker.url}/3"):
        pass


# -------------------------------------------------------------------------------- reconnection


async def test_connections_that_redis_kills_come_back_and_pending_calls_fail_at_once(
    new_broker: NewBroker,
) -> None:
    broker = new_broker(Redis)
    server = server_of(broker.url)

    @server.message_pattern("slow")
    async def slow(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    states: list[str] = []
    server_states: list[str] = []
    server._app.observers.append(lambda event: server_states.append(getattr(event, "new", "")))
    async with server, client_of(broker.url) as client:
        client.listen(lambda event: states.append(getattr(event, "new", "")))
        for kind in ("pubsub", "normal"):
            pending = asyncio.ensure_future(error_of(client.send("slow", 30, timeout=60)))
            await asyncio.sleep(0.2)
            started = time.monotonic()
            command(broker, "CLIENT", "KILL", "TYPE", kind)
            lost = await pending
            assert time.monotonic() - started < 1
            assert type(lost) is ConnectionLost
            assert lost.sent
            await eventually(lambda: client.status == "connected")
            await eventually(lambda: command(broker, "PUBSUB", "NUMSUB", "slow")[1] == 1)
            assert await client.send("slow", 0, timeout=5) == 0
        assert states.count("reconnecting") == 2
        assert states.count("connected") == 2
        assert server_states.count("reconnecting") == 2


async def test_a_reply_waits_for_the_servers_new_connection(new_broker: NewBroker) -> None:
    broker = new_broker(Redis)
    server = server_of(broker.url)

    @server.message_pattern("cut")
    async def cut() -> str:
        listener: Any = server._listeners[0]
        listener._link.current.commands.transport.abort()
        await asyncio.sleep(0)
        return "answered"

    async with server, client_of(broker.url) as client:
        assert await client.send("cut", timeout=5) == "answered"


async def test_a_plain_event_dies_with_the_server_that_heard_it(new_broker: NewBroker) -> None:
    broker = new_broker(Redis)
    first, second = (Service(broker.url, {}, "asyncio") for _ in range(2))
    try:
        await first.start_async()
        async with client_of(broker.url) as client:
            receipt = await client.emit("fault.slow_event", 1)
            assert (receipt.delivery, receipt.receivers) == ("accepted", 1)
            await eventually(lambda: first.journal("slow_event_started") == [1])
            first.kill()
            await second.start_async()
            await client.emit("fault.slow_event", 2)
            await eventually(lambda: second.journal("slow_event") == [2])
    finally:
        first.stop()
        second.stop()


async def test_a_server_that_starts_without_redis_is_told_and_can_be_cancelled(
    new_broker: NewBroker,
) -> None:
    broker = new_broker(Redis)
    broker.freeze()
    task = asyncio.ensure_future(echo_server(broker.url, "x").start())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 3)
    broker.kill()
    server = echo_server(broker.url, "x")
    with pytest.raises(ConnectError, match="refused"):
        await server.start()
    await broker.start_async()
    async with server, client_of(broker.url) as client:
        assert await client.send("x.echo", 1) == 1
    async with server, client_of(broker.url) as client:
        assert await client.send("x.echo", 2) == 2, "a server may be started again"


async def test_a_connection_that_ends_while_it_is_made_ready_is_not_used(
    redis_broker: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def subscribe(session: Session, command: str, name: str | bytes) -> None:
        session.commands.transport.abort()
        await asyncio.sleep(0.05)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "subscribe", subscribe)
        with pytest.raises(ConnectError, match="has ended"):
            await echo_server(redis_broker.url, "x").start()


async def test_a_frozen_redis_is_noticed_without_any_call(new_broker: NewBroker) -> None:
    broker = new_broker(Redis)
    async with client_of(broker.url) as client:
        noticed: list[Any] = []
        client.listen(noticed.append)
        broker.freeze()
        started = time.monotonic()
        await eventually(lambda: client.status != "connected", 8)
        assert time.monotonic() - started < 5.5
        broker.thaw()
        await eventually(lambda: client.status == "connected")
        assert isinstance(noticed[0], ConnectionChanged)
        assert noticed[0].reason == "Redis was silent for 3.0 s"


async def test_a_server_that_redis_does_not_take_back_ends_with_that_error(
    new_broker: NewBroker,
) -> None:
    broker = new_broker(Redis, password="old")
    server = server_of(broker.url, health="http://127.0.0.1:0")
    serving = asyncio.ensure_future(server.serve())
    async with client_of(broker.url) as client:
        await eventually(lambda: server._health is not None and server._health.address[-2:] != ":0")
        health = server._health.address.rpartition(":")[2]
        assert (await client.ping(timeout=5)).reachable

        async def ready() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", health)
            writer.write(b"GET /readyz HTTP/1.1\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return answer

        assert b"200 OK" in await ready()
        broker.kill()
        await eventually(lambda: server._absent)
        assert (await ready()).endswith(b"\r\n\r\nnot connected\n")
        broker.restart()
        await eventually(lambda: not server._absent)
        assert b"200 OK" in await ready()
        command(broker, "CONFIG", "SET", "requirepass", "new")
        broker.password = "new"
        command(broker, "CLIENT", "KILL", "TYPE", "pubsub")
        with pytest.raises(ConfigurationError, match="WRONGPASS"):
            await asyncio.wait_for(serving, 10)


async def test_credentials_that_change_end_the_reconnecting_with_an_error(
    new_broker: NewBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker = new_broker(Redis, password="old")
    async with echo_server(broker.url, "x"), client_of(broker.url) as client:
        assert await client.send("x.echo", 1) == 1
        command(broker, "CONFIG", "SET", "requirepass", "new")
        broker.password = "new"
        command(broker, "CLIENT", "KILL", "TYPE", "pubsub")
        await eventually(lambda: client.status == "idle")
        with pytest.raises(ConfigurationError):
            await client.send("x.echo", 1)
        await eventually(lambda: "not serving any more" in caplog.text)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_redis_with_too_many_clients_is_as_one_that_is_not_there(
    new_broker: NewBroker, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    broker = new_broker(Redis, options=["maxclients 10"])

    async def connect() -> None:
        clients = [client_of(broker.url) for _ in range(6)]
        for each in clients[:5]:
            await each.connect()
        # uvloop hears of it before it has written anything
        with pytest.raises(ConnectError, match="max number of clients"):
            await clients[5].connect()
        for each in clients:
            await each.aclose()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(connect())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_client_that_is_closed_in_the_moment_it_connects_pings_nobody(
    redis_broker: Redis,
    loop: Callable[[], asyncio.AbstractEventLoop],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Connection] = []
    failures: list[dict[str, Any]] = []
    monkeypatch.setattr("resilient_client.transports.redis._connection.HEARTBEAT", 0.0)

    async def connect() -> None:
        running = asyncio.get_running_loop()
        running.set_exception_handler(lambda _, context: failures.append(context))
        dialling = asyncio.ensure_future(client_of(redis_broker.url)._transports[0]._dial())

        own = Connection.connection_made

        def connection_made(self: Connection, transport: Any) -> None:
            own(self, transport)
            made.append(self)
            dialling.cancel()

        monkeypatch.setattr(Connection, "connection_made", connection_made)
        with pytest.raises(asyncio.CancelledError):
            await dialling
        for _ in range(50):  # turns of the loop
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(connect())
    assert made
    assert failures == []


async def test_what_redis_says_before_it_is_asked_is_why_it_hangs_up() -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"-DENIED Redis is running in protected mode\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        connection = Connection(None, ignore)
        port = server.sockets[0].getsockname()[1]
        await asyncio.get_running_loop().create_connection(lambda: connection, "127.0.0.1", port)
        await eventually(lambda: connection.closed)
        client = client_of(f"redis://127.0.0.1:{port}")
        with pytest.raises(ConfigurationError, match="protected mode"):
            await client.connect()
        await client.aclose()
    assert "protected mode" in str(connection.ended_by)


# ---------------------------------------------------------------------------- bounds and malice


async def test_reply_channels_are_given_up_when_there_are_many(
    redis_broker: Redis, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "REPLY_CHANNELS", 4)
    server = server_of(redis_broker.url)
    for n in range(12):
        server.message_pattern(f"{unique}.{n}")(_same)

    @server.message_pattern(f"{unique}.slow")
    async def slow() -> str:
        await asyncio.sleep(0.5)
        return "still heard"

    async with server, client_of(redis_broker.url) as client:
        pending = asyncio.ensure_future(client.send(f"{unique}.slow"))
        for turn in range(2):
            for n in range(12):
                assert await client.send(f"{unique}.{n}", turn) == turn
        assert len(command(redis_broker, "PUBSUB", "CHANNELS", f"{unique}.*.reply")) <= 5
        assert await asyncio.gather(*(client.send(f"{unique}.{n}", n) for n in range(12))) == [
            *range(12)
        ]
        assert await pending == "still heard"


async def test_slow_handlers_cost_events_that_are_told_never_memory(
    redis_broker: Redis,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert _backlog.BACKLOG_EVENTS == 10_000, "as docs/reference/delivery.md says"
    monkeypatch.setattr(_backlog, "BACKLOG_EVENTS", 20)
    told: list[Any] = []
    server = server_of(redis_broker.url, max_calls=3, observers=[told.append])
    go = asyncio.Event()
    heard: list[int] = []

    @server.event_pattern(f"{unique}.event")
    async def slow(n: int) -> None:
        await go.wait()
        heard.append(n)

    server.message_pattern(f"{unique}.echo")(_same)
    async with server, client_of(redis_broker.url) as client:
        for n in range(100):
            assert (await client.emit(f"{unique}.event", n)).receivers == 1
        await eventually(lambda: any(isinstance(event, Degraded) for event in told))
        assert isinstance(await error_of(client.send(f"{unique}.echo", 1)), Throttled)
        go.set()
        await eventually(lambda: sum(isinstance(event, Degraded) for event in told) == 2)
        await eventually(lambda: len(heard) == 24)
        assert sorted(heard) == list(range(24)), "in order, up to the bounds"
        assert "76 events were dropped" in caplog.text
        await client.emit(f"{unique}.event", 100)
        await eventually(lambda: 100 in heard)


async def test_a_connection_that_reads_too_slowly_is_ended_told_and_comes_back(
    new_broker: NewBroker,
) -> None:
    limit = "client-output-buffer-limit pubsub 1mb 512kb 1"
    await ended_told_and_back(new_broker(Redis, options=[limit]), "output buffer limits")


BACK = ["reconnecting", "connected"]


async def test_a_burst_within_the_bounds_loses_nothing(redis_broker: Redis, unique: str) -> None:
    server = server_of(redis_broker.url)
    heard: list[int] = []

    @server.event_pattern(unique)
    async def hear(n: int) -> None:
        await asyncio.sleep(0)
        heard.append(n)

    async with server, client_of(redis_broker.url) as client:
        await asyncio.gather(*(client.emit(unique, n) for n in range(5_000)))
        await eventually(lambda: len(heard) == 5_000)
    assert sorted(heard) == list(range(5_000))


async def test_a_payload_over_the_limit_is_refused_on_the_side_that_gets_it(
    redis_broker: Redis, unique: str
) -> None:
    server = echo_server(redis_broker.url, unique, max_size=1000)

    @server.message_pattern(f"{unique}.big")
    async def big() -> str:
        return "x" * 10_000

    async with server, client_of(redis_broker.url, max_size=5000) as client:
        error = await error_of(client.send(f"{unique}.echo", "x" * 2000))
        assert isinstance(error, InvalidPayloadError)
        error = await error_of(client.send(f"{unique}.big"))
        assert isinstance(error, PayloadError)
        assert error.sent
        assert not (await error_of(client.send(f"{unique}.echo", "x" * 6000))).sent
        await client.emit(f"{unique}.echo", "x" * 2000)
        assert await client.send(f"{unique}.echo", 1) == 1


async def test_strange_messages_on_a_reply_channel_harm_nobody(
    redis_broker: Redis, unique: str
) -> None:
    server = echo_server(redis_broker.url, unique)

    @server.message_pattern(f"{unique}.wait")
    async def wait() -> int:
        await asyncio.sleep(0.4)
        return 1

    async with server, client_of(redis_broker.url) as client:
        pending = asyncio.ensure_future(client.send(f"{unique}.wait"))
        await asyncio.sleep(0.1)
        session: Any = client._transports[0]._link.current  # type: ignore[attr-defined]
        (key,) = session.replies._table
        for message in (
            b"", b"text", b"[]", b"{}", key.encode(), f'"{key}"'.encode(), f'["{key}"]'.encode(),
            json.dumps({"id": "other", "response": key}).encode(),
            json.dumps({"id": key + "0", "response": 0}).encode(),
            json.dumps({"id": key}).encode(),
            f'{{"id":"{key}'.encode(),
        ):  # fmt: skip
            command(redis_broker, "PUBLISH", f"{unique}.wait.reply", message)
        assert await pending == 1
        assert client.status == "connected"


async def test_calls_of_many_clients_on_one_pattern_do_not_meet(
    redis_broker: Redis, unique: str
) -> None:
    async with echo_server(redis_broker.url, unique):
        clients = [client_of(redis_broker.url) for _ in range(4)]

        async def use(number: int, client: ClientProxy) -> None:
            values = [[number, n] for n in range(60)]
            assert (
                await asyncio.gather(*(client.send(f"{unique}.echo", each) for each in values))
                == values
            )

        await asyncio.gather(*(use(*each) for each in enumerate(clients)))
        for client in clients:
            orphans = client._transports[0].numbers()["reply.orphans"]  # type: ignore[attr-defined]
            assert orphans == 0
            await client.aclose()


async def test_a_stream_whose_reader_has_gone_stops_its_handler(
    redis_broker: Redis, unique: str
) -> None:
    """Nobody is subscribed to the reply channel any more: Redis says so."""
    server = server_of(redis_broker.url)
    ended = asyncio.Event()

    @server.message_pattern(unique)
    async def endless() -> AsyncIterator[int]:
        try:
            for i in range(1_000_000):
                yield i
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    async with server:
        client = client_of(redis_broker.url)
        items = client.stream(unique)
        assert [await anext(items) for _ in range(3)] == [0, 1, 2]
        session: Any = client._transports[0]._link.current  # type: ignore[attr-defined]
        session.abort()
        await asyncio.wait_for(ended.wait(), 5)
        await client.aclose()


async def test_something_that_is_no_redis_is_told() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with scripted_peer(talk) as port:
        client = client_of(f"redis://127.0.0.1:{port}")
        error = await error_of(client.send("x", timeout=2))
        assert isinstance(error, ConnectError)
        assert "no Redis" in str(error)
        await client.aclose()


@pytest.mark.parametrize(
    "message",
    [
        b"*0\r\n",
        b"*3\r\n$7\r\nmessage\r\n:1\r\n:2\r\n",
        b"*3\r\n$7\r\nmessage\r\n$7\r\nx.reply\r\n$-1\r\n",
        b"*4294967295\r\n",
        b"%1\r\n*0\r\n+b\r\n",
        b">1\r\n$7\r\nmessage\r\n",
    ],
)
async def test_messages_that_are_none_end_the_connection_and_the_call_at_once(
    message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    subscribed = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal subscribed
        while data := await reader.read(1 << 16):
            if b"SUBSCRIBE" in data:
                subscribed += 1
                writer.write(b"*3\r\n$9\r\nsubscribe\r\n$7\r\nx.reply\r\n:1\r\n" + message)
            else:
                writer.write(b"+PONG\r\n" * data.count(b"PING"))

    async with scripted_peer(talk) as port:
        client = client_of(f"redis://127.0.0.1:{port}")
        error = await error_of(client.send("x", timeout=5))
        assert isinstance(error, ConnectError)
        assert not isinstance(error, DeadlineExceeded)
        assert not error.sent
        assert "no Redis" in str(error)
        assert subscribed == 1
        await client.aclose()
    assert not caplog.records


async def test_a_redis_that_repeats_its_login_gives_no_password_away() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        said = f"unknown command 'AUTH', with args beginning with: '{SECRET}' "
        writer.write(f"-ERR {said}\r\n+PONG\r\n".encode())

    async with scripted_peer(talk) as port:
        client = client_of(f"redis://:{SECRET}@127.0.0.1:{port}")
        error = await error_of(client.send("x", timeout=5))
        assert isinstance(error, ConfigurationError)
        assert "unknown command" in str(error)
        assert SECRET not in f"{error} {error!r} {error.attempts}"
        await client.aclose()


async def test_a_request_whose_time_is_up_is_not_run(redis_broker: Redis, unique: str) -> None:
    server = server_of(redis_broker.url)
    ended: list[str] = []

    @server.message_pattern(unique)
    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async with server, client_of(redis_broker.url) as client:
        assert isinstance(await error_of(client.send(unique, timeout=0.3)), DeadlineExceeded)
        await eventually(lambda: ended == ["cancelled"])
        packet = {"pattern": unique, "data": 1, "id": "late", "metadata": {"x-deadline-ms": "0"}}
        command(redis_broker, "PUBLISH", unique, json.dumps(packet))
        await asyncio.sleep(0.1)
        assert ended == ["cancelled"]


async def test_calls_that_begin_while_their_reply_channel_is_being_confirmed_are_made(
    redis_broker: Redis, unique: str
) -> None:
    async with echo_server(redis_broker.url, unique), client_of(redis_broker.url) as client:
        calls: list[asyncio.Future[Any]] = []
        while not any(call.done() for call in calls):  # one in each turn of the loop
            calls.append(asyncio.ensure_future(client.send(f"{unique}.echo", len(calls))))
            await asyncio.sleep(0)
        assert await asyncio.gather(*calls) == list(range(len(calls)))


async def test_a_caller_that_leaves_stops_every_handler_that_its_pattern_has_found(
    redis_broker: Redis, unique: str
) -> None:
    server = server_of(redis_broker.url)
    began: list[str] = []
    ended: list[str] = []

    @server.message_pattern([f"{unique}.one", f"{unique}.*"])
    async def slow(context: Context) -> None:
        began.append(context.pattern)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append(context.pattern)
            raise

    async with server, client_of(redis_broker.url) as client:
        call = asyncio.ensure_future(client.send(f"{unique}.one", timeout=20))
        await eventually(lambda: len(began) == 2)
        call.cancel()
        await eventually(lambda: len(ended) == 2)


async def test_stopping_ends_the_subscriptions_before_the_handlers(
    redis_broker: Redis, unique: str
) -> None:
    server = server_of(redis_broker.url, grace=5.0)

    @server.message_pattern(unique)
    async def slow() -> str:
        await asyncio.sleep(0.4)
        return "finished"

    await server.start()
    async with client_of(redis_broker.url) as client:
        pending = asyncio.ensure_future(client.send(unique))
        await asyncio.sleep(0.1)
        closing = asyncio.ensure_future(server.aclose())
        await asyncio.sleep(0.1)
        assert not (await error_of(client.send(unique))).sent
        assert await pending == "finished"
        await closing


# ------------------------------------------------------------------------------ the library's


def test_every_exception_of_the_library_is_accounted_for() -> None:
    """hiredis raises nothing but a protocol error here: a refusal is a reply, of our own class."""
    hiredis = _connection.hiredis
    known = {"HiredisError", "ProtocolError", "ReplyError"}
    found = {
        name
        for module in (hiredis, hiredis.hiredis)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert found == known
    assert issubclass(hiredis.ProtocolError, hiredis.HiredisError)
    reader = hiredis.Reader(replyError=_connection.Refused)
    reader.feed(b"-NOPERM no\r\n")
    assert type(reader.gets()) is _connection.Refused


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("WRONGPASS invalid username-password pair", ConfigurationError),
        ("NOAUTH Authentication required.", ConfigurationError),
        ("ERR AUTH <password> called without any password configured", ConfigurationError),
        ("NOPERM this user has no permissions", ConfigurationError),
        ("MOVED 3999 127.0.0.1:6381", ConfigurationError),
        ("WRONGTYPE Operation against a key", ConfigurationError),
        ("ERR unknown command", ConfigurationError),
        ("LOADING Redis is loading the dataset in memory", ConnectError),
        ("READONLY You can't write against a read only replica.", ConnectError),
        ("MASTERDOWN Link with MASTER is down", ConnectError),
        ("CLUSTERDOWN Hash slot not served", ConnectError),
        ("MISCONF Redis is configured to save RDB snapshots", ConnectError),
        ("NOREPLICAS Not enough good replicas to write.", ConnectError),
        ("ERR max number of clients reached", ConnectError),
        ("OOM command not allowed when used memory > 'maxmemory'.", Throttled),
    ],
)
def test_every_refusal_is_one_of_our_errors_and_was_not_sent(text: str, kind: type) -> None:
    error = _connection.error_of(_connection.Refused(text), "PUBLISH x")
    assert type(error) is kind
    assert not error.sent
    assert text in str(error)


async def test_replies_that_are_refused_are_told_once_not_each(
    new_broker: NewBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker = new_broker(Redis, acl=["user mute on >secret ~* &* +@all -publish"])
    handled: list[int] = []
    server = Server(f"redis://mute:secret@127.0.0.1:{broker.port}")
    server.message_pattern("echo")(handled.append)
    async with server, client_of(broker.url) as client:
        async with asyncio.TaskGroup() as group:
            for n in range(20):
                group.create_task(outcome(client.send("echo", n, timeout=0.3)))
        await eventually(lambda: len(handled) == 20)
    told = [record for record in caplog.records if "replies are refused" in record.getMessage()]
    assert len(told) == 1
    assert "NOPERM" in told[0].getMessage()
