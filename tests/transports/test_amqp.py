"""What is peculiar to amqp://, against a real RabbitMQ."""

from __future__ import annotations

import asyncio
import gc
import logging
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pamqp import commands

from resilient_client import (
    ClientProxy,
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    Context,
    DeadlineExceeded,
    NoHandlerError,
    PayloadError,
    RemoteError,
    ResilientClientError,
    Retry,
    Server,
    Timeout,
)
from resilient_client.events import ConnectionChanged, Degraded
from resilient_client.testing import check_transport
from resilient_client.transports._base import Target
from resilient_client.transports.amqp import _connector
from resilient_client.transports.amqp import _wire as wire
from resilient_client.transports.amqp._connector import Login
from tests.calls import error_of, outcome
from tests.peers.brokers import RabbitMQ, require_broker
from tests.peers.certificates import certificates
from tests.peers.nest import NestClient, NestServer
from tests.peers.process import resident
from tests.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def own_broker() -> Iterator[RabbitMQ]:
    """One that tests of this module may kill, restart and starve; its TLS wants a certificate."""
    require_broker("rabbitmq")
    broker = RabbitMQ(
        tls=True,
        client_certificates=True,
        users={"client": "not used"},  # as the client's certificate calls itself
        plugins=["rabbitmq_auth_mechanism_ssl"],
        options=[
            "auth_mechanisms.1 = PLAIN",
            "auth_mechanisms.2 = EXTERNAL",
            "ssl_cert_login_from = common_name",
        ],
    )
    try:
        yield broker.start()
    finally:
        broker.stop()


def client_of(url: str, **options: Any) -> ClientProxy:
    options.setdefault("policies", ())
    return ClientProxy(url, telemetry=False, **options)


def server_of(url: str, **options: Any) -> Server:
    options.setdefault("grace", 0.5)
    server = Server(url, telemetry=False, **options)

    @server.message_pattern("echo")
    async def echo(payload: Any) -> Any:
        return payload

    return server


@asynccontextmanager
async def channel_to(broker: RabbitMQ) -> AsyncIterator[Any]:
    """A channel of the test's own."""
    login = Login(Target(broker.url))
    connection = await _connector.connect(login, 1 << 20, lambda *_: None)
    try:
        yield await connection.channel()
    finally:
        await connection.farewell()


def publish(channel: Any, queue: str, body: bytes, **properties: Any) -> None:
    """As a stranger does."""
    header = wire.ContentHeader(0, len(body), commands.Basic.Properties(**properties))
    channel.connection.send(
        wire.publish_frame(channel.number, "", queue, mandatory=False)
        + wire.method_frame(channel.number, header)
        + wire.HEAD.pack(wire.BODY, channel.number, len(body))
        + body
        + b"\xce"
    )


async def depth(broker: RabbitMQ, queue: str) -> int:
    """Messages that wait in a queue."""
    async with channel_to(broker) as channel:
        answer = await channel.call(commands.Queue.Declare(queue=queue, passive=True))
        return int(answer.message_count)


async def delete(broker: RabbitMQ, queue: str) -> None:
    async with channel_to(broker) as channel:
        await channel.call(commands.Queue.Delete(queue=queue))


@pytest.mark.parametrize(
    "options", [{}, {"ack": False, "durable": False}, {"exchange": "conformance"}], ids=str
)
async def test_amqp_passes_the_conformance_suite(
    rabbitmq_broker: RabbitMQ, unique: str, options: dict[str, Any]
) -> None:
    ran = await check_transport(rabbitmq_broker.url, options={"queue": unique, **options})
    assert len(ran) >= 15


# ----------------------------------------------------------------------------- settings, refusals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs the name of a queue"),
        ({"queue": "q" * 256}, "more than 255 bytes"),
        ({"queue": "q", "auth": "kerberos"}, "neither plain nor external"),
        ({"queue": "q", "heartbeat": -1}, "from 0 to 65535"),
        ({"queue": "q", "ack": "later"}, "requeue"),
        ({"queue": "q", "prefetch": 65536}, "prefetch"),
        ({"queu": "q"}, "queue"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Server("amqp://127.0.0.1", telemetry=False, **options)
    if not options.keys() & {"ack", "prefetch"}:
        with pytest.raises(ConfigurationError, match=said):
            ClientProxy("amqp://127.0.0.1", telemetry=False, **options)


async def test_a_pattern_too_long_for_a_routing_key_is_refused(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    options = {"queue": unique, "exchange": unique}
    server = server_of(rabbitmq_broker.url, **options)
    with pytest.raises(ConfigurationError, match="routing key"):
        server.event_pattern("x" * 256)(print)
    async with client_of(rabbitmq_broker.url, **options) as client:
        with pytest.raises(ConfigurationError, match="routing key"):
            await client.emit("x" * 256, 1)
        with pytest.raises(PayloadError, match="header's name"):
            await client.emit("x", 1, headers={"x" * 256: "1"})
        with pytest.raises(PayloadError, match="a frame at most") as raised:
            await client.emit("x", 1, headers={f"x-{n}": "x" * 8000 for n in range(20)})
        assert not raised.value.sent


async def refused(url: str, said: str, **options: Any) -> None:
    """Both ends fail for good, at once, with no loop of retries and no password in any text."""
    started = time.monotonic()
    seen: list[Any] = []
    policies = [Timeout(20), Retry(attempts=5)]
    client = client_of(url, policies=policies, observers=[seen.append], **options)
    error = await error_of(client.send("echo", 1))
    await client.aclose()
    server = server_of(url, **options)
    with pytest.raises(ConfigurationError) as raised:
        await server.start()
    assert time.monotonic() - started < 5
    assert isinstance(error, ConfigurationError), error
    assert len(error.attempts) == 1
    assert sum(isinstance(e, ConnectionChanged) and e.new == "connecting" for e in seen) == 1
    for text in (str(error), repr(error), str(raised.value), repr(client), repr(seen)):
        assert "secret" not in text
    assert said in str(error), error
    assert said in str(raised.value), raised.value


async def test_wrong_credentials_and_hosts_are_refused_for_good(
    rabbitmq_broker: RabbitMQ, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    place = f"127.0.0.1:{rabbitmq_broker.port}"
    await refused(f"amqp://alice:wrong-secret@{place}", "ACCESS_REFUSED", queue=unique)
    await refused(f"amqp://alice:alice-secret@{place}/nowhere", "nowhere", queue=unique)
    await refused(f"amqp://{place}", "does not offer EXTERNAL", queue=unique, auth="external")
    assert "secret" not in caplog.text
    url = f"amqp://alice:alice-secret@{place}/%2F"
    async with (
        server_of(url, queue=unique, auto_delete=True),
        client_of(url, queue=unique, auto_delete=True) as client,
    ):
        assert await client.send("echo", 1) == 1


async def test_a_user_without_permissions_is_told_at_once(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    url = f"amqp://limited:limited-secret@127.0.0.1:{rabbitmq_broker.port}"
    await refused(url, "ACCESS_REFUSED", queue=unique)
    async with client_of(rabbitmq_broker.url, queue=unique):
        pass
    async with client_of(url, queue=unique, declare=False, policies=[Retry()]) as client:
        for call in (client.send("echo", 1, timeout=5), client.emit("echo", 1, timeout=5)):
            error = await error_of(call)
            assert isinstance(error, ConfigurationError), error
            assert "secret" not in str(error)


async def test_a_queue_that_must_be_there_and_is_not_is_fatal(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    await refused(rabbitmq_broker.url, "NOT_FOUND", queue=unique, declare=False)
    await refused(rabbitmq_broker.url, "NOT_FOUND", queue=unique, declare=False, exchange=unique)
    async with server_of(rabbitmq_broker.url, queue=unique):
        await refused(rabbitmq_broker.url, "PRECONDITION_FAILED", queue=unique, durable=False)
        async with client_of(rabbitmq_broker.url, queue=unique, declare=False) as client:
            assert await client.send("echo", 1) == 1


async def test_tls_is_spoken_and_a_stranger_is_refused_for_good(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    files = certificates()
    url = rabbitmq_broker.tls_url
    options = {"queue": unique, "tls": files.client_context()}
    async with server_of(url, **options), client_of(url, **options) as client:
        assert await client.send("echo", "x" * 100_000) == "x" * 100_000
    stranger = ssl.create_default_context(cafile=str(files.other_authority))
    await refused(url, "not trusted", queue=unique, tls=stranger)
    plain = client_of(url.replace("amqps", "amqp"), queue=unique)
    assert isinstance(await error_of(plain.send("echo", 1, timeout=10)), ResilientClientError)
    await plain.aclose()


async def test_mutual_tls_wants_the_clients_certificate(own_broker: RabbitMQ, unique: str) -> None:
    files = certificates()
    known = {"queue": unique, "tls": files.client_context(with_certificate=True)}
    url = own_broker.tls_url
    async with server_of(url, **known), client_of(url, **known) as client:
        assert await client.send("echo", 1) == 1
    unknown = client_of(url, queue=unique, tls=files.client_context())
    error = await error_of(unknown.send("echo", 1, timeout=10))
    assert isinstance(error, ConfigurationError | ConnectError), error  # the system may be faster
    assert "certificate" in str(error)
    await unknown.aclose()


# ------------------------------------------------------------------------------------ what it does


async def test_a_certificate_says_who_its_owner_is(own_broker: RabbitMQ, unique: str) -> None:
    url, files = f"{own_broker.tls_url}?auth=external", certificates()
    options = {"queue": unique, "tls": files.client_context(with_certificate=True)}
    async with server_of(url, **options), client_of(url, **options) as client:
        assert await client.send("echo", 1) == 1
        assert (await client.emit("echo", 1)).delivery == "stored"
        assert set(own_broker.ctl("list_connections", "user").split()) == {"user", "client"}
    stranger = files.client_context()
    stranger.load_cert_chain(files.server, files.server_key)  # of a name that is no user's
    await refused(url, "ACCESS_REFUSED", queue=unique, tls=stranger)


async def test_servers_of_a_queue_share_its_work(rabbitmq_broker: RabbitMQ, unique: str) -> None:
    took: list[str] = []

    def replica(name: str) -> Server:
        server = server_of(rabbitmq_broker.url, queue=unique, prefetch=1)

        @server.message_pattern("work")
        async def work(n: int) -> int:
            took.append(name)
            await asyncio.sleep(0.02)
            return n

        return server

    async with (
        replica("a"),
        replica("b"),
        client_of(rabbitmq_broker.url, queue=unique) as client,
    ):
        answers = await asyncio.gather(*(client.send("work", n) for n in range(40)))
    assert answers == list(range(40))
    assert len(took) == 40
    assert min(took.count("a"), took.count("b")) >= 10


async def test_topics_have_wildcards_and_the_handler_sees_the_key(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    options = {"queue": unique, "exchange": unique}
    server = server_of(rabbitmq_broker.url, **options)
    heard: list[Any] = []

    @server.message_pattern("price.*")
    async def price(payload: Any, context: Context) -> list[Any]:
        return [context.pattern, context.raw.method.exchange, context.raw.method.routing_key]

    @server.event_pattern("order.#")
    async def order(payload: Any, context: Context) -> None:
        heard.append((context.pattern, payload))

    @server.event_pattern("order.paid")
    async def paid(payload: Any) -> None:
        heard.append(("exactly", payload))

    async with server, client_of(rabbitmq_broker.url, **options) as client:
        assert await client.send("price.lamp", 1) == ["price.lamp", unique, "price.lamp"]
        for key in ("order", "order.new", "order.new.eu", "order.paid"):
            assert (await client.emit(key, 1)).delivery == "stored"
        await eventually(lambda: len(heard) == 4)
        assert sorted(key for key, _ in heard) == ["exactly", "order", "order.new", "order.new.eu"]
        # nothing leads anywhere: told by the broker
        error = await error_of(client.send("nobody.here", 1))
        assert isinstance(error, NoHandlerError), error
        assert not error.sent
        assert "NO_ROUTE" in str(error)
        assert [i async for i in client.stream("price.lamp", 1)] != []
        with pytest.raises(NoHandlerError):
            async for _ in client.stream("nobody.here", 1):
                pass
        receipt = await client.emit("nobody.here", 1)
        assert (receipt.delivery, receipt.receivers) == ("accepted", 0)


async def test_a_queue_deleted_under_both_ends_is_told_and_made_again(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    seen: list[Any] = []
    server = server_of(rabbitmq_broker.url, queue=unique, observers=[seen.append])
    async with server, client_of(rabbitmq_broker.url, queue=unique) as client:
        assert await client.send("echo", 1) == 1
        await delete(rabbitmq_broker, unique)
        await eventually(lambda: [e for e in seen if isinstance(e, Degraded)])
        retrying = client_of(rabbitmq_broker.url, queue=unique, declare=False)
        await eventually(lambda: seen[-1].new == "connected" if hasattr(seen[-1], "new") else False)
        assert await client.send("echo", 2) == 2
        assert await retrying.send("echo", 3) == 3
        await retrying.aclose()
    async with client_of(rabbitmq_broker.url, queue=unique) as client:
        await delete(rabbitmq_broker, unique)
        error = await error_of(client.send("echo", 1))
        assert isinstance(error, NoHandlerError), error
        assert not error.sent
        assert (await client.emit("echo", 1)).receivers == 0


async def test_an_exchange_deleted_under_both_ends_is_made_again_and_leads_to_the_queue(
    rabbitmq_broker: RabbitMQ, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resilient_client.transports.amqp._consumer.BIND_AGAIN", 0.3)
    options = {"queue": unique, "exchange": unique}
    heard: list[int] = []
    states: list[str] = []
    server = server_of(
        rabbitmq_broker.url, observers=[lambda e: states.append(getattr(e, "new", ""))], **options
    )
    server.event_pattern("order.*")(heard.append)
    async with server, client_of(rabbitmq_broker.url, **options) as client:
        await client.emit("order.new", 1)
        async with channel_to(rabbitmq_broker) as channel:
            await channel.call(commands.Exchange.Delete(exchange=unique))
        error = await error_of(client.emit("order.new", 2))
        assert isinstance(error, ConnectionLost), error  # not for good: coming back makes it anew
        assert "no exchange" in str(error)
        for n in range(3, 203):
            receipt = await outcome(client.emit("order.new", n))
            if getattr(receipt, "delivery", "") == "stored":
                break
            await asyncio.sleep(0.05)
        await eventually(lambda: heard == [1, n])
        assert states == ["connecting", "connected"]  # the server has not had to come back


async def test_a_server_that_may_not_declare_its_queue_again_says_so_and_ends_trying(
    rabbitmq_broker: RabbitMQ, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_of(rabbitmq_broker.url, queue=unique):
        pass
    seen: list[Any] = []
    options = {"queue": unique, "declare": False}
    async with server_of(rabbitmq_broker.url, observers=[seen.append], **options):
        await delete(rabbitmq_broker, unique)
        await eventually(lambda: any(getattr(each, "new", "") == "idle" for each in seen))
        assert "not serving any more" in caplog.text
        assert "NOT_FOUND" in caplog.text


async def test_a_server_comes_back_when_its_connection_for_replies_breaks(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    server = server_of(rabbitmq_broker.url, queue=unique)
    server.message_pattern("slow")(_slow)
    async with server, client_of(rabbitmq_broker.url, queue=unique) as client:
        assert await client.send("echo", 1) == 1
        call = asyncio.ensure_future(error_of(client.send("slow", 1, timeout=20)))
        listener: Any = server._listeners[0]
        first = listener.link.current
        await eventually(lambda: first._slots.jobs)
        first.replying.transport.abort()
        error = await call  # RabbitMQ handed it out again: for its caller to judge
        assert isinstance(error, RemoteError), error
        assert error.status == 503
        assert first.consuming.closed
        assert await client.send("echo", 2) == 2


async def _slow(payload: Any) -> Any:
    await asyncio.sleep(10)
    return payload


async def test_a_request_expires_with_its_caller(rabbitmq_broker: RabbitMQ, unique: str) -> None:
    ran: list[Any] = []
    async with client_of(rabbitmq_broker.url, queue=unique) as client:
        error = await error_of(client.send("late", 1, timeout=0.2))
        assert isinstance(error, DeadlineExceeded)
        assert error.sent
        server = server_of(rabbitmq_broker.url, queue=unique)
        server.message_pattern("late")(ran.append)
        async with server:
            assert await client.send("echo", 1) == 1
        assert ran == []
    assert await depth(rabbitmq_broker, unique) == 0


async def test_headers_travel_as_headers_and_numbers_are_shown_as_text(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    server = server_of(rabbitmq_broker.url, queue=unique)
    heard: list[Any] = []

    @server.event_pattern("seen")
    async def seen(payload: Any, context: Context) -> None:
        heard.append((dict(context.headers), context.raw.properties))

    async with server, channel_to(rabbitmq_broker) as channel:
        publish(
            channel,
            unique,
            b'{"pattern":"seen","data":1}',
            content_type="application/json",
            headers={"X-Text": "t", "x-number": 7, "x-truth": True, "x-table": {"deep": {}}},
            message_id="m1",
            app_id="other",
        )
        await eventually(lambda: heard)
    headers, raw = heard[0]
    assert headers == {"x-text": "t", "x-number": "7", "x-truth": "true"}
    assert raw.headers["x-table"] == {"deep": {}}
    assert raw.message_id == "m1"


async def test_what_is_no_packet_is_refused_and_its_sender_told_where_it_asks(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{unique}-dead"}
    async with (
        server_of(rabbitmq_broker.url, queue=unique, arguments=dead),
        channel_to(rabbitmq_broker) as channel,
    ):
        await channel.call(commands.Queue.Declare(queue=f"{unique}-dead"))
        answers: asyncio.Queue[Any] = asyncio.Queue()
        channel.on_delivery = answers.put_nowait
        reply_to = "amq.rabbitmq.reply-to"
        await channel.call(commands.Basic.Consume(queue=reply_to, no_ack=True))
        asking = {"headers": {}, "correlation_id": "c1", "reply_to": reply_to}
        for body, said in ((b"text", b"not JSON"), (b'{"x":1}', b"without a pattern")):
            for properties in ({}, asking):
                publish(channel, unique, body, **properties)
            answer = await asyncio.wait_for(answers.get(), 5)
            assert answer.correlation_id == b"c1"
            assert said in answer.body
            assert b'"code":"INVALID_PAYLOAD"' in answer.body
        while await depth(rabbitmq_broker, f"{unique}-dead") < 4:
            await asyncio.sleep(0.02)


async def test_a_foreign_servers_reply_may_name_an_address_of_its_own(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    async with (
        client_of(rabbitmq_broker.url, queue=unique) as client,
        channel_to(rabbitmq_broker) as channel,
    ):

        def serve(message: Any) -> None:
            publish(
                channel, message.reply_to.decode(), b'{"response":7,"isDisposed":true}',
                headers={}, correlation_id=message.correlation_id.decode(), reply_to=unique,
            )  # fmt: skip

        channel.on_delivery = serve
        await channel.call(commands.Basic.Consume(queue=unique, no_ack=True))
        assert await client.send("sum", 1, timeout=5) == 7


async def test_a_message_over_the_limit_is_refused_on_both_ends(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    server = server_of(rabbitmq_broker.url, queue=unique, max_size=1000)
    server.message_pattern("big")(lambda: "x" * 100_000)
    async with server, client_of(rabbitmq_broker.url, queue=unique) as client:
        error = await error_of(client.send("echo", "x" * 100_000))
        assert isinstance(error, RemoteError)
        assert error.code == "INVALID_PAYLOAD"
        assert await client.send("echo", 1) == 1
        small = client_of(rabbitmq_broker.url, queue=unique, max_size=1000)
        error = await error_of(small.send("big", 1))
        assert isinstance(error, PayloadError)
        assert error.sent
        assert await small.send("echo", 1) == 1
        await small.aclose()


# ------------------------------------------------------------------------ acknowledged, or again


def failing_server(url: str, queue: str, tried: list[Any], **options: Any) -> Server:
    server = server_of(url, queue=queue, **options)

    @server.event_pattern("fails")
    async def fails(payload: Any, context: Context) -> None:
        tried.append((payload, context.raw.redelivered))
        raise ValueError(payload)

    @server.event_pattern("typed")
    async def typed(payload: int) -> None:
        tried.append((payload, False))

    return server


async def test_an_event_that_fails_goes_to_the_dead_letters_once_or_after_a_second_try(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    dead: list[Any] = []
    morgue = server_of(rabbitmq_broker.url, queue=f"{unique}-dead")

    @morgue.event_pattern(["fails", "typed", "unknown"])
    async def bury(payload: Any, context: Context) -> None:
        dead.append((context.pattern, payload))

    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{unique}-dead"}
    for ack, tries in ((True, [(1, False)]), ("requeue", [(1, False), (1, True)])):
        tried: list[Any] = []
        queue = f"{unique}-{ack}"
        options = {"queue": queue, "arguments": arguments}
        server = failing_server(rabbitmq_broker.url, tried=tried, ack=ack, **options)
        dead.clear()
        async with morgue if ack is True else server_of(rabbitmq_broker.url, queue="unused"):
            if ack is not True:
                morgue = server_of(rabbitmq_broker.url, queue=f"{unique}-dead")
                morgue.event_pattern(["fails", "typed", "unknown"])(bury)
                await morgue.start()
            async with server, client_of(rabbitmq_broker.url, **options) as client:
                for pattern in ("fails", "typed", "unknown"):
                    await client.emit(pattern, 1 if pattern == "fails" else "no number")
                await eventually(lambda: len(dead) == 3)
                assert tried == tries
                assert {p for p, _ in dead} == {"fails", "typed", "unknown"}
            if ack is not True:
                await morgue.aclose()
        assert await depth(rabbitmq_broker, queue) == 0


async def test_an_event_that_fails_is_dropped_where_its_queue_has_no_dead_letters(
    rabbitmq_broker: RabbitMQ, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[Any] = []
    server = failing_server(rabbitmq_broker.url, unique, tried)
    async with server, client_of(rabbitmq_broker.url, queue=unique) as client:
        assert (await client.emit("fails", 1)).delivery == "stored"
        await eventually(lambda: tried)
        assert await client.send("echo", 1) == 1
    async with failing_server(rabbitmq_broker.url, unique, tried):
        await asyncio.sleep(0.2)
    assert tried == [(1, False)]
    assert await depth(rabbitmq_broker, unique) == 0
    assert "fails" in caplog.text


async def test_an_event_in_work_when_its_connection_drops_is_finished_and_delivered_again(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    notes: list[Any] = []
    server = server_of(rabbitmq_broker.url, queue=unique)

    @server.event_pattern("slow")
    async def slow(payload: Any, context: Context) -> None:
        notes.append(("started", context.raw.redelivered))
        await asyncio.sleep(0.3)
        notes.append(("ended", context.raw.redelivered))

    async with server, client_of(rabbitmq_broker.url, queue=unique) as client:
        await client.emit("slow", 1)
        await eventually(lambda: notes)
        listener: Any = server._listeners[0]
        listener.link.current.consuming.transport.abort()
        await eventually(lambda: ("ended", True) in notes)
        assert notes.count(("ended", False)) == 1
        assert await client.send("echo", 1) == 1
    assert await depth(rabbitmq_broker, unique) == 0


async def test_a_request_whose_server_died_is_told_and_only_a_repeatable_one_runs_again(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    ran: list[Any] = []

    def replica(seconds: float) -> Server:
        server = server_of(rabbitmq_broker.url, queue=unique, grace=0)

        @server.message_pattern("work")
        async def work(payload: Any) -> Any:
            ran.append(payload)
            await asyncio.sleep(seconds)
            return payload

        return server

    first = replica(60)
    await first.start()
    async with client_of(rabbitmq_broker.url, queue=unique) as client:
        once = asyncio.ensure_future(error_of(client.send("work", "once", timeout=20)))
        again = asyncio.ensure_future(client.send("work", "again", idempotency_key="k", timeout=20))
        await eventually(lambda: len(ran) == 2)
        await first.aclose()
        async with replica(0):
            error = await once
            assert isinstance(error, RemoteError), error
            assert error.status == 503
            assert await again == "again"
    assert sorted(ran) == ["again", "again", "once"]


async def test_events_survive_the_broker_only_when_queue_and_event_are_durable(
    own_broker: RabbitMQ, unique: str
) -> None:
    """The rows of the table of delivery: the broker is killed with events in its queues."""
    lasting = {"queue": f"{unique}-lasting"}
    fleeting = {"queue": f"{unique}-fleeting", "durable": False}
    url = own_broker.url
    async with client_of(url, **lasting) as one, client_of(url, **fleeting) as other:
        await asyncio.to_thread(own_broker.settle)  # the queue itself
        stored = await asyncio.gather(*(one.emit("e", n) for n in range(200)))
        accepted = await asyncio.gather(*(other.emit("e", n) for n in range(200)))
        assert {each.delivery for each in stored} == {"stored"}
        assert {each.delivery for each in accepted} == {"accepted"}
        await asyncio.to_thread(own_broker.kill)
        assert isinstance(await error_of(one.emit("e", 1, timeout=1)), ResilientClientError)
    await own_broker.restart_async()
    heard: dict[str, list[int]] = {"lasting": [], "fleeting": []}

    def listener(name: str, options: dict[str, Any]) -> Server:
        server = server_of(url, **options)
        server.event_pattern("e")(heard[name].append)
        return server

    async with listener("lasting", lasting), listener("fleeting", fleeting):
        await eventually(lambda: len(heard["lasting"]) >= 200)
        assert sorted(set(heard["lasting"])) == list(range(200))
        assert heard["fleeting"] == []


async def test_without_acknowledgements_a_dead_server_loses_what_it_was_handed(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    """The row of the table of delivery for ack=False: the server's connection is cut."""
    started: list[Any] = []
    server = server_of(rabbitmq_broker.url, queue=unique, ack=False, max_calls_per_connection=2)

    @server.event_pattern("slow")
    async def slow(payload: Any) -> None:
        started.append(payload)
        await asyncio.sleep(60)

    await server.start()
    async with client_of(rabbitmq_broker.url, queue=unique) as client:
        for n in range(20):
            await client.emit("slow", n)
        await eventually(lambda: len(started) == 2)
        listener: Any = server._listeners[0]
        assert listener.link.current.consuming.paused  # nothing more is read than can run
    await server.aclose()
    assert await depth(rabbitmq_broker, unique) == 0


# ---------------------------------------------------------------------------------- under pressure


async def test_a_memory_alarm_is_told_bounds_every_call_and_holds_up_no_acknowledgement(
    own_broker: RabbitMQ, unique: str
) -> None:
    seen: list[Any] = []
    heard: list[Any] = []
    server = server_of(own_broker.url, queue=unique)
    release = asyncio.Event()

    @server.event_pattern("held")
    async def held(payload: Any) -> None:
        await release.wait()
        heard.append(payload)

    async with (
        server,
        client_of(own_broker.url, queue=unique, observers=[seen.append]) as client,
    ):
        await client.emit("held", 1)
        await asyncio.to_thread(own_broker.ctl, "set_vm_memory_high_watermark", "0.00001")
        try:
            for _ in range(3):
                started = time.monotonic()
                error = await error_of(client.send("echo", 1, timeout=0.5))
                assert isinstance(error, DeadlineExceeded), error
                assert time.monotonic() - started < 1.5
            assert not error.sent
            assert not (await error_of(client.emit("held", 2, timeout=0.3))).sent
            reasons = [each.reason for each in seen if isinstance(each, Degraded)]
            assert "memory" in reasons[0]
            before, payload = resident(), "x" * 500_000
            for _ in range(5):  # 80 MB in all find no room
                calls = (_sent(client.emit("held", payload, timeout=0.2)) for _ in range(32))
                assert set(await asyncio.gather(*calls)) == {False}
            assert resident() - before < 40 * 1024 * 1024
            release.set()
            await eventually(lambda: heard)
        finally:
            await asyncio.to_thread(own_broker.ctl, "set_vm_memory_high_watermark", "0.4")
        started = time.monotonic()
        while isinstance(answer := await outcome(client.send("echo", 2, timeout=1)), Exception):
            assert time.monotonic() - started < 10, answer
        assert heard == [1]


async def _sent(call: Any) -> bool:
    """Of a call that fails; the error itself keeps the call it is of."""
    return bool((await error_of(call)).sent)


async def test_a_full_queue_that_refuses_is_a_reason_to_slow_down(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    arguments = {"x-max-length": 2, "x-overflow": "reject-publish"}
    async with client_of(rabbitmq_broker.url, queue=unique, arguments=arguments) as client:
        results = [await outcome(client.emit("e", n)) for n in range(4)]
    assert [type(each).__name__ for each in results] == ["Receipt", "Receipt"] + ["Throttled"] * 2


async def test_a_broker_that_freezes_is_noticed_by_its_silence(
    own_broker: RabbitMQ, unique: str
) -> None:
    async with server_of(own_broker.url, queue=unique):
        client = client_of(own_broker.url, queue=unique, heartbeat=2)
        assert await client.send("echo", 1) == 1
        own_broker.freeze()
        try:
            started = time.monotonic()
            error = await error_of(client.send("echo", 2, timeout=30))
            assert isinstance(error, ConnectionLost), error
            assert "silent for 4 s" in str(error)
            assert time.monotonic() - started < 8
        finally:
            own_broker.thaw()
            await client.aclose()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # of what the first loop left open
def test_a_client_whose_loop_has_ended_connects_anew(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    client = client_of(rabbitmq_broker.url, queue=unique)

    async def main(n: int) -> None:
        async with server_of(rabbitmq_broker.url, queue=unique):
            assert await client.send("echo", n) == n
            if n == 2:
                await client.aclose()

    for n in (1, 2):
        asyncio.run(main(n))
    gc.collect()


async def test_calls_that_are_cancelled_leave_nothing(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    async with client_of(rabbitmq_broker.url, queue=unique) as client:
        for wait in (0, 0.001, 0.005):
            tasks = [asyncio.ensure_future(client.emit("e", n)) for n in range(50)]
            tasks += [asyncio.ensure_future(client.send("e", n)) for n in range(50)]
            await asyncio.sleep(wait)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        transport: Any = client._transports[0]
        session = transport._link.current
        assert len(session.replies) == len(session.confirms) == 0
        await eventually(lambda: not session._unconfirmed)
        assert (await client.emit("e", 1)).delivery == "stored"


async def test_a_stream_that_is_left_while_its_request_waits_in_the_queue_is_not_begun(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    """The cancel goes straight to the server, and so comes first."""
    server = server_of(rabbitmq_broker.url, queue=unique)

    @server.message_pattern("endless")
    async def endless() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async with server, client_of(rabbitmq_broker.url, queue=unique) as client:

        async def read() -> None:
            async for _ in client.stream("endless"):
                continue

        assert await client.send("echo", 1) == 1  # the two know each other
        for turns in range(40):
            reading = asyncio.ensure_future(read())
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait({reading})
        assert await client.send("echo", 2) == 2
        await eventually(lambda: not server._app.running)


# --------------------------------------------------------------------------------------- with Nest


@pytest.mark.interop
async def test_a_nest_client_is_told_that_nobody_handles_its_pattern(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    options = {"queue": unique, "durable": False}
    async with (
        server_of(rabbitmq_broker.url, **options),
        NestClient("rmq", rabbitmq_broker.url, queue=unique) as client,
    ):
        answer = await client.send("nobody", 1)
        assert answer.error == "There is no matching message handler defined in the remote service."
        assert (await client.send("echo", 1)).value == 1


@pytest.mark.interop
async def test_topics_are_shared_with_nest_both_ways(
    rabbitmq_broker: RabbitMQ, unique: str
) -> None:
    options = {"queue": unique, "durable": False, "exchange": unique}
    nest = {"queue": unique, "options": {"wildcards": True, "exchange": unique}}
    server = server_of(rabbitmq_broker.url, **options)

    @server.message_pattern(f"{unique}.price.*")
    async def price(payload: Any, context: Context) -> str:
        return context.pattern

    async with server, NestClient("rmq", rabbitmq_broker.url, **nest) as client:
        assert (await client.send(f"{unique}.price.lamp", 1)).value == f"{unique}.price.lamp"
    await delete(rabbitmq_broker, unique)
    async with (
        NestServer("rmq", rabbitmq_broker.url, prefix=f"{unique}.", **nest),
        client_of(rabbitmq_broker.url, **options) as ours,
    ):
        assert await ours.send(f"{unique}.sum", [1, 2]) == 3
        assert await ours.send({"cmd": f"{unique}.sum"}, [1, 2]) == 3
