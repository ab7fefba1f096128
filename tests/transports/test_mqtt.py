"""What is peculiar to mqtt://, on a real Mosquitto."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

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
    Server,
    SyncClientProxy,
)
from resilient_client.testing import check_transport
from resilient_client.transports.mqtt._codec import publish, text
from tests.calls import error_of
from tests.peers.brokers import Mosquitto
from tests.peers.certificates import certificates
from tests.peers.nest import NestClient, NestServer
from tests.server_thread import serving
from tests.test_sync import in_child, needs_fork
from tests.transports.mqtt_peers import Peer, scripted_client
from tests.waiting import eventually

pytestmark = pytest.mark.broker
NewBroker = Callable[..., Any]
QUEUE = ["max_queued_messages 1000"]  # at 0, Mosquitto 2.0.11 ends the connection after a refusal


@pytest.mark.parametrize(
    ("version", "qos"), [("5", 1), ("5", 0), ("3.1.1", 1), ("3.1.1", 0)], ids=str
)
@pytest.mark.timeout(120)
async def test_mqtt_passes_the_conformance_suite(
    mqtt_broker: Mosquitto, version: str, qos: int
) -> None:
    url = f"{mqtt_broker.url}?version={version}&qos={qos}"
    # only a broker of version 5 says, of a message at QoS 1, that nobody is subscribed
    skip = [] if (version, qos) == ("5", 1) else ["no_handler"]
    assert len(await check_transport(url, url, skip=skip)) >= 14


@needs_fork
def test_a_forked_client_is_another_to_the_broker(mqtt_broker: Mosquitto) -> None:
    news: list[Any] = []
    options: dict[str, Any] = {"policies": (), "telemetry": False, "observers": [news.append]}
    with serving(mqtt_broker.url), SyncClientProxy(mqtt_broker.url, **options) as client:
        assert client.send("sum", [1]) == 1
        del news[:]

        def child() -> Any:
            answers = [client.send("sum", [n], timeout=5) for n in range(20)]
            client.close()
            return answers

        assert in_child(child) == repr(list(range(20)))
        assert client.send("sum", [2]) == 2
        assert news == []  # its session was not taken over


def server_at(broker: Mosquitto, **options: Any) -> Server:
    return Server(broker.url, telemetry=False, grace=0.5, **options)


def client_of(broker: Mosquitto, **options: Any) -> ClientProxy:
    return ClientProxy(broker.url, policies=(), telemetry=False, **options)


def link_of(end: Any) -> Any:
    parts = end._transports if isinstance(end, ClientProxy) else end._listeners
    return parts[0]._link


# ------------------------------------------------------------------------------ who gets a message


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_wildcards_tell_the_topic_and_an_exact_pattern_goes_first(
    mqtt_broker: Mosquitto, unique: str, version: str
) -> None:
    server = server_at(mqtt_broker, version=version)
    heard: list[Any] = []
    calls: list[str] = []

    @server.message_pattern(f"{unique}/+/read")
    async def read(context: Context) -> list[str]:
        return ["wild", context.pattern]

    @server.message_pattern(f"{unique}/42/read")
    async def the_one(context: Context) -> list[str]:
        calls.append("exact")
        return ["exact", context.pattern]

    @server.event_pattern(f"{unique}-log/#")
    async def note(payload: Any, context: Context) -> None:
        heard.append((context.pattern, payload))

    @server.event_pattern(f"{unique}-log/+/b")
    async def registered_later() -> None:
        calls.append("later")

    async with server, client_of(mqtt_broker) as client:
        assert await client.send(f"{unique}/7/read") == ["wild", f"{unique}/7/read"]
        assert (await client.send(f"{unique}/42/read"))[0] == "exact"
        await client.emit(f"{unique}-log", 0)
        await client.emit(f"{unique}-log/a/b", 1)
        await eventually(lambda: len(heard) == 2)
        await asyncio.sleep(0.1)
    assert calls == ["exact"]  # each message once, though it comes for every pattern it fits
    assert sorted(heard) == [(f"{unique}-log", 0), (f"{unique}-log/a/b", 1)]


async def test_a_wildcard_does_not_hear_the_replies_below_it(
    mqtt_broker: Mosquitto, unique: str
) -> None:
    server = server_at(mqtt_broker)
    calls: list[str] = []

    @server.message_pattern(f"{unique}/#")
    async def anything(payload: Any, context: Context) -> Any:
        calls.append(context.pattern)
        return payload

    async with server, client_of(mqtt_broker) as client:
        assert await client.send(f"{unique}/a", {"n": 1}) == {"n": 1}
        assert await client.send(f"{unique}/b", 2) == 2
        await asyncio.sleep(0.1)
    assert calls == [f"{unique}/a", f"{unique}/b"]


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_replicas_share_the_work(mqtt_broker: Mosquitto, unique: str, version: str) -> None:
    done: list[tuple[str, str, int]] = []

    def replica(name: str) -> Server:
        server = server_at(mqtt_broker, share="workers", version=version)

        @server.message_pattern(f"{unique}.work")
        async def work(n: int) -> str:
            done.append((name, "request", n))
            return name

        @server.event_pattern(f"{unique}.event")
        async def event(n: int) -> None:
            done.append((name, "event", n))

        return server

    async with replica("a"), replica("b"), client_of(mqtt_broker, version=version) as client:
        names = await asyncio.gather(*(client.send(f"{unique}.work", n) for n in range(20)))
        await asyncio.gather(*(client.emit(f"{unique}.event", n) for n in range(20)))
        await eventually(lambda: len(done) == 40)
        await asyncio.sleep(0.1)
    assert set(names) == {"a", "b"}
    for kind in ("request", "event"):
        assert sorted(n for _, each, n in done if each == kind) == list(range(20))


async def test_a_pattern_may_name_its_own_group_as_in_nest(
    mqtt_broker: Mosquitto, unique: str
) -> None:
    def replica(name: str) -> Server:
        server = server_at(mqtt_broker)
        server.message_pattern(f"$share/g/{unique}/x")(lambda: name)
        server.message_pattern(f"{unique}/y", share="h")(lambda: name)
        return server

    async with replica("a"), replica("b"), client_of(mqtt_broker) as client:
        for topic in (f"{unique}/x", f"{unique}/y"):
            names = [await client.send(topic) for _ in range(10)]
            assert set(names) == {"a", "b"}


async def test_without_a_group_every_replica_hears_an_event(
    mqtt_broker: Mosquitto, unique: str
) -> None:
    heard: list[str] = []

    def replica(name: str) -> Server:
        server = server_at(mqtt_broker)

        @server.event_pattern(unique)
        async def event() -> None:
            heard.append(name)

        return server

    async with replica("a"), replica("b"), client_of(mqtt_broker) as client:
        await client.emit(unique)
        await eventually(lambda: len(heard) == 2)
    assert sorted(heard) == ["a", "b"]


async def test_nobody_there_is_told_at_once_by_version_5(
    mqtt_broker: Mosquitto, unique: str
) -> None:
    async with client_of(mqtt_broker) as client:
        started = time.monotonic()
        error = await error_of(client.send(unique, 1, timeout=20))
        assert type(error) is NoHandlerError
        assert not error.sent
        error = await error_of(anext(aiter(client.stream(unique, 1, timeout=20))))
        assert type(error) is NoHandlerError
        receipt = await client.emit(unique, 1)
        assert (receipt.delivery, receipt.receivers) == ("accepted", 0)
        assert time.monotonic() - started < 5
    async with client_of(mqtt_broker, qos=0) as client:
        receipt = await client.emit(unique, 1)
        assert (receipt.delivery, receipt.receivers) == ("written", None)
        error = await error_of(client.send(unique, 1, timeout=0.3))
        assert isinstance(error, DeadlineExceeded)
    async with client_of(mqtt_broker, version="3.1.1") as client:
        receipt = await client.emit(unique, 1)
        assert (receipt.delivery, receipt.receivers) == ("accepted", None)
        error = await error_of(client.send(unique, 1, timeout=0.3))
        assert isinstance(error, DeadlineExceeded)
        assert error.sent


async def test_nobody_there_is_tried_again_while_a_server_restarts(
    mqtt_broker: Mosquitto, unique: str
) -> None:
    server = server_at(mqtt_broker)
    server.message_pattern(unique)(lambda: "here")
    async with ClientProxy(mqtt_broker.url, telemetry=False) as client:
        call = asyncio.ensure_future(client.send(unique, timeout=10))
        await asyncio.sleep(0)
        async with server:
            assert await call == "here"


async def test_versions_meet_at_the_broker(mqtt_broker: Mosquitto, unique: str) -> None:
    old, new = server_at(mqtt_broker, version="3.1.1"), server_at(mqtt_broker)
    old.message_pattern(f"{unique}.old")(lambda context: context.headers.get("x-tenant"))
    new.message_pattern(f"{unique}.new")(lambda context: context.headers.get("x-tenant"))
    headers = {"x-tenant": "blue"}
    async with old, new:
        async with client_of(mqtt_broker, version="3.1.1") as client:
            assert await client.send(f"{unique}.new", headers=headers) == "blue"
            assert await client.send(f"{unique}.old", headers=headers) == "blue"
        async with client_of(mqtt_broker) as client:
            assert await client.send(f"{unique}.new", headers=headers) == "blue"
            # user properties do not reach a subscriber of version 3.1.1
            assert await client.send(f"{unique}.old", headers=headers) is None


# ------------------------------------------------------------------------------- what is not lost


async def test_a_broker_that_has_forgotten_a_lasting_session_is_told(
    new_broker: NewBroker, unique: str
) -> None:
    broker = new_broker(Mosquitto, options=["autosave_on_changes false", "autosave_interval 3600"])
    told: list[str] = []
    observe = lambda event: told.append(getattr(event, "reason", ""))  # noqa: E731
    server = server_at(broker, client_id=unique, session_expiry=60, observers=[observe])
    server.event_pattern(unique)(lambda: None)
    async with server:
        broker.kill()
        await broker.restart_async()
        await eventually(lambda: any("not kept the session" in reason for reason in told))


@asynccontextmanager
async def lasting(broker: Mosquitto, name: str, **options: Any) -> AsyncIterator[list[Any]]:
    """A service whose events are kept while it is away; what it has heard."""
    server = server_at(broker, client_id=name, session_expiry=300, **options)
    heard: list[Any] = []

    @server.event_pattern(name)
    async def event(payload: Any) -> None:
        heard.append(payload)

    async with server:
        yield heard


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_a_lasting_session_gets_the_events_of_its_absence_even_after_the_broker_is_killed(
    new_broker: NewBroker, unique: str, version: str
) -> None:
    broker = new_broker(Mosquitto)
    async with lasting(broker, unique, version=version):
        pass
    async with client_of(broker, version=version) as client:
        for n in range(20):
            receipt = await client.emit(unique, n)
            assert (receipt.delivery, receipt.receivers) == ("accepted", None)
    await asyncio.sleep(0.3)  # until it has written them
    broker.kill()
    await broker.restart_async()
    async with lasting(broker, unique, version=version) as heard:
        await eventually(lambda: len(heard) == 20)
    assert heard == list(range(20))


async def test_a_broker_killed_under_load_loses_at_most_what_it_had_not_written(
    new_broker: NewBroker, unique: str
) -> None:
    broker = new_broker(Mosquitto)
    accepted: dict[int, float] = {}

    async def emit(client: ClientProxy, n: int) -> None:
        with suppress(ConnectError, ConnectionLost, DeadlineExceeded):
            receipt = await client.emit(unique, n, timeout=1)
            assert receipt.receivers is None  # the session counts as somebody
            accepted[n] = time.monotonic()

    async with lasting(broker, unique) as heard, client_of(broker) as client:
        async with asyncio.TaskGroup() as group:
            for n in range(150):
                group.create_task(emit(client, n))
                await asyncio.sleep(0.01)
                if n == 50:
                    killed = time.monotonic()
                    broker.kill()
                elif n == 60:
                    await broker.restart_async()
        await eventually(lambda: len(set(heard)) >= len(accepted) - 3)
        await asyncio.sleep(0.2)
    lost = set(accepted) - set(heard)
    assert len(accepted) > 100
    assert len(lost) <= 3
    assert all(accepted[n] <= killed + 0.05 for n in lost)
    assert len(heard) - len(set(heard)) <= 5  # at least once


async def test_a_broker_that_dies_before_it_has_written_a_session_loses_it(
    new_broker: NewBroker, unique: str
) -> None:
    broker = new_broker(Mosquitto, options=["autosave_on_changes false", "autosave_interval 3600"])
    async with lasting(broker, unique):
        pass
    async with client_of(broker) as client:
        receipt = await client.emit(unique, "before")
        assert (receipt.delivery, receipt.receivers) == ("accepted", None)
    broker.kill()
    await broker.restart_async()
    async with lasting(broker, unique) as heard, client_of(broker) as client:
        await client.emit(unique, "after")
        await eventually(lambda: heard)
    assert heard == ["after"]


async def test_what_comes_when_the_brokers_queue_is_full_is_lost(
    new_broker: NewBroker, unique: str
) -> None:
    """For a server that is away, by its session; for one that is too slow, without one."""
    broker = new_broker(Mosquitto, options=["max_queued_messages 20", "max_inflight_messages 5"])
    async with lasting(broker, unique):
        pass
    async with client_of(broker) as client:
        for n in range(100):  # the broker does not tell
            assert (await client.emit(unique, n)).delivery == "accepted"
        async with lasting(broker, unique) as heard:
            await eventually(lambda: len(heard) == 20)
            await client.emit(unique, "after")
            await eventually(lambda: "after" in heard)
    assert heard == [*range(20), "after"]
    gate = asyncio.Event()
    told: list[str] = []
    late: list[Any] = []
    observe = lambda event: told.append(getattr(event, "reason", ""))  # noqa: E731
    # to one of version 5 it goes on writing, up to 65 535 that are not acknowledged
    options: dict[str, Any] = {"version": "3.1.1", "max_calls_per_connection": 2}
    server = server_at(broker, observers=[observe], **options)

    @server.event_pattern(f"{unique}.slow")
    async def slow(n: Any) -> None:
        await gate.wait()
        late.append(n)

    async with server, client_of(broker) as client:
        for n in range(100):
            assert (await client.emit(f"{unique}.slow", n)).delivery == "accepted"
        assert any("too slow" in reason for reason in told)
        gate.set()
        await eventually(lambda: len(late) == 25)
        await client.emit(f"{unique}.slow", "after")
        await eventually(lambda: "after" in late)
    assert late == [*range(25), "after"]


async def test_a_session_that_expires_takes_its_events_along(
    new_broker: NewBroker, unique: str
) -> None:
    broker = new_broker(Mosquitto)
    server = server_at(broker, client_id=unique, session_expiry=1)
    server.event_pattern(unique)(lambda: None)
    async with server:
        pass
    async with client_of(broker) as client:
        assert (await client.emit(unique, "before")).receivers is None
        async with asyncio.timeout(20):  # this broker looks now and then
            while (await client.emit(unique, "before")).receivers != 0:
                await asyncio.sleep(0.1)
        async with lasting(broker, unique) as heard:
            await client.emit(unique, "after")
            await eventually(lambda: heard)
    assert heard == ["after"]


async def test_an_event_whose_handler_did_not_end_comes_again(
    mqtt_broker: Mosquitto, unique: str
) -> None:
    begun: list[int] = []
    server = Server(
        mqtt_broker.url, telemetry=False, grace=0.0, client_id=unique, session_expiry=60
    )

    @server.event_pattern(unique)
    async def event(n: int) -> None:
        begun.append(n)
        if len(begun) < 3:
            await asyncio.sleep(30)

    async with client_of(mqtt_broker) as client:
        async with server:
            await client.emit(unique, 1)
            await eventually(lambda: begun == [1])
            # the connection breaks: as it was not acknowledged, it comes again
            link_of(server).current.transport.abort()
            await eventually(lambda: begun == [1, 1])
        async with lasting(mqtt_broker, unique) as heard:  # the process has ended, another begins
            await eventually(lambda: heard == [1])
        async with lasting(mqtt_broker, unique) as heard:  # that one has acknowledged it
            await asyncio.sleep(0.2)
            assert heard == []


async def test_an_event_whose_handler_failed_is_not_sent_again(
    mqtt_broker: Mosquitto, unique: str
) -> None:
    server = server_at(mqtt_broker, client_id=unique, session_expiry=60)
    begun: list[int] = []

    @server.event_pattern(unique)
    async def event(n: int) -> None:
        begun.append(n)
        raise KeyError(n)

    async with server, client_of(mqtt_broker) as client:
        await client.emit(unique, 1)
        await eventually(lambda: begun == [1])
    async with lasting(mqtt_broker, unique) as heard:
        await asyncio.sleep(0.2)
        assert heard == []


async def test_without_a_lasting_session_events_of_an_absence_are_lost(
    mqtt_broker: Mosquitto, unique: str
) -> None:
    async with client_of(mqtt_broker) as client:
        heard: list[int] = []
        server = server_at(mqtt_broker)
        server.event_pattern(unique)(lambda n: heard.append(n))
        async with server:
            await client.emit(unique, 1)
            await eventually(lambda: heard == [1])
        assert (await client.emit(unique, 2)).receivers == 0
        async with lasting(mqtt_broker, unique) as late:
            await asyncio.sleep(0.2)
        assert (heard, late) == ([1], [])


async def test_a_reply_finds_its_caller_although_the_server_has_reconnected(
    mqtt_broker: Mosquitto, unique: str
) -> None:
    server = server_at(mqtt_broker)

    @server.message_pattern(unique)
    async def slow() -> str:
        await asyncio.sleep(0.5)
        return "done"

    @server.message_pattern(f"{unique}.count")
    async def count() -> AsyncIterator[int]:
        for n in range(1000):
            yield n
            await asyncio.sleep(0.01)

    async with server, client_of(mqtt_broker) as client:
        call = asyncio.ensure_future(client.send(unique, timeout=10))
        got: list[int] = []

        async def read() -> None:
            async for n in client.stream(f"{unique}.count", timeout=30):
                got.append(n)  # noqa: PERF401

        stream = asyncio.ensure_future(error_of(read()))
        await eventually(lambda: len(got) > 3)
        link_of(server).current.transport.abort()
        assert await call == "done"
        error = await stream  # no gap in silence
        assert isinstance(error, RemoteError)
        assert error.status == 503
        assert got == list(range(len(got)))


async def test_a_retained_request_is_not_executed_and_a_retained_event_is_heard(
    mqtt_broker: Mosquitto, unique: str
) -> None:
    calls: list[Any] = []
    async with client_of(mqtt_broker) as client:
        connection = link_of(client).current
        for topic, packet in (
            (f"{unique}/request", b'{"pattern":"x","data":1,"id":"1"}'),
            (f"{unique}/state", b'{"pattern":"x","data":2}'),
        ):
            raw = bytearray(publish(text(topic), packet, None, b""))
            raw[0] |= 1
            connection.send(bytes(raw))
        await client.emit(unique)  # by then the broker has them
        for version in ("5", "3.1.1"):
            server = server_at(mqtt_broker, version=version)
            server.message_pattern(f"{unique}/request")(lambda n: calls.append(n))
            server.event_pattern(f"{unique}/state")(lambda n: calls.append(n))
            async with server:
                await eventually(lambda: calls)
                await asyncio.sleep(0.1)
            assert calls == [2], version
            calls.clear()


# -------------------------------------------------------------------------- who may, and who is who


async def test_tls_is_spoken_and_a_stranger_is_refused_for_good(
    new_broker: NewBroker, unique: str
) -> None:
    files = certificates()
    broker = new_broker(Mosquitto, tls=True)
    assert broker.url.startswith("mqtts://")
    server = server_at(broker, tls=files.client_context())
    server.message_pattern(unique)(lambda payload: payload)
    async with server:
        async with client_of(broker, tls=files.client_context()) as client:
            assert await client.send(unique, "x" * 100_000) == "x" * 100_000
        stranger = client_of(
            broker, tls=ssl.create_default_context(cafile=str(files.other_authority))
        )
        assert isinstance(await error_of(stranger.connect()), ConfigurationError)
        unknown = client_of(broker)  # the system's authorities
        assert isinstance(await error_of(unknown.send(unique, 1, timeout=5)), ConfigurationError)
        plain = ClientProxy(broker.url.replace("mqtts", "mqtt"), policies=(), telemetry=False)
        assert isinstance(await error_of(plain.send(unique, 1, timeout=5)), ConnectError)
        for client in (stranger, unknown, plain):
            await client.aclose()


async def test_mutual_tls_wants_the_clients_certificate(new_broker: NewBroker, unique: str) -> None:
    files = certificates()
    broker = new_broker(Mosquitto, tls=True, client_certificates=True)
    known = files.client_context(with_certificate=True)
    server = server_at(broker, tls=known)
    server.message_pattern(unique)(lambda payload: payload)
    async with server, client_of(broker, tls=known) as client:
        assert await client.send(unique, 1) == 1
    nobody = client_of(broker, tls=files.client_context())
    error = await error_of(nobody.send(unique, 1, timeout=5))
    assert isinstance(error, ConfigurationError)
    assert "certificate" in str(error)
    await nobody.aclose()


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_wrong_credentials_are_final_at_once_and_never_shown(
    new_broker: NewBroker, unique: str, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker = new_broker(Mosquitto, users={"alice": "s3cret-right"})
    server = server_at(broker, version=version)
    server.message_pattern(unique)(lambda payload: payload)
    async with server, client_of(broker, version=version) as client:
        assert await client.send(unique, 1) == 1
        assert "s3cret" not in client.explain() + repr(client) + repr(server.addresses)
    wrong = broker.url.replace("right", "wrong")
    started = time.monotonic()
    client = ClientProxy(wrong, telemetry=False, version=version)
    error = await error_of(client.send(unique, 1, timeout=10))
    assert isinstance(error, ConfigurationError), error
    assert error.hint
    with pytest.raises(ConfigurationError) as refused:
        await Server(wrong, telemetry=False, version=version).start()
    assert time.monotonic() - started < 3
    await asyncio.sleep(0.3)
    assert link_of(client).dials == 1
    assert client.status == "idle"
    shown = f"{error!r} {error} {refused.value!r} {refused.value} {error.__cause__} {caplog.text}"
    assert "s3cret" not in shown
    await client.aclose()


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_a_broker_that_gives_less_than_was_asked_for_is_refused(
    new_broker: NewBroker, version: str
) -> None:
    broker = new_broker(Mosquitto, options=["max_qos 0"])
    server = server_at(broker, version=version)
    server.event_pattern("orders")(print)
    with pytest.raises(ConfigurationError, match="no messages at QoS 1") as refused:
        await server.start()
    assert refused.value.hint == "use qos=0"
    async with (least := server_at(broker, version=version, qos=0)):
        assert least


async def test_a_topic_that_may_not_be_written_is_a_clear_error_at_once(
    new_broker: NewBroker, unique: str
) -> None:
    acl = f"user alice\ntopic readwrite {unique}/#\n"
    broker = new_broker(Mosquitto, users={"alice": "right"}, acl=acl, options=QUEUE)
    server = server_at(broker)
    server.message_pattern(f"{unique}/open")(lambda payload: payload)
    async with server, client_of(broker) as client:
        assert await client.send(f"{unique}/open", 1) == 1
        for call in (client.send("closed", 1, timeout=20), client.emit("closed", 1, timeout=20)):
            error = await error_of(call)
            assert isinstance(error, ConfigurationError)
            assert "not authorized" in str(error)
            assert not error.sent
        assert await client.send(f"{unique}/open", 2) == 2


async def test_two_clients_with_one_id_are_told_and_do_not_wear_the_broker_out(
    mqtt_broker: Mosquitto, unique: str
) -> None:
    reasons: list[str] = []

    def observe(event: Any) -> None:
        reasons.append(getattr(event, "reason", ""))

    async with client_of(mqtt_broker, client_id=unique, observers=[observe]) as first:
        async with client_of(mqtt_broker, client_id=unique) as second:
            # this broker closes without a word; one that says why: test_mqtt_hostile.py
            await eventually(lambda: any("does another client" in reason for reason in reasons))
            await asyncio.sleep(0.7)
            assert link_of(first).dials + link_of(second).dials < 15


# ------------------------------------------------------------------------------------------ limits


async def test_messages_at_qos_1_stay_within_what_the_broker_takes_at_once(
    new_broker: NewBroker, unique: str
) -> None:
    broker = new_broker(Mosquitto, options=["max_inflight_messages 5"])
    heard: list[int] = []
    server = server_at(broker)
    server.event_pattern(unique)(lambda n: heard.append(n))
    async with server, client_of(broker) as client:
        connection = link_of(client).current
        most = 0
        write = connection._write

        def watched(*arguments: Any) -> None:
            nonlocal most
            write(*arguments)
            most = max(most, len(connection._inflight))

        connection._write = watched
        receipts = await asyncio.gather(*(client.emit(unique, n) for n in range(500)))
        assert {receipt.delivery for receipt in receipts} == {"accepted"}
        await eventually(lambda: len(heard) == 500)
        assert most == connection._window <= 256
        assert sorted(heard) == list(range(500))


async def test_what_waits_for_its_turn_was_not_sent_and_never_is(unique: str) -> None:
    numbers: list[int] = []
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.welcome(b"\x20\x06\x00\x00\x03\x21\x00\x01")  # one at a time
        await peer.subscribed()
        while True:
            message, _ = await peer.message()
            numbers.append(message.payload.count(b"first"))
            await release.wait()
            peer.write(b"\x40\x02" + (message.packet_id or 0).to_bytes(2, "big"))

    async with scripted_client(script) as client:
        first = asyncio.ensure_future(error_of(client.send("x", "first", timeout=30)))
        await eventually(lambda: numbers == [1])
        late = await error_of(client.send("x", "late", timeout=0.1))
        assert isinstance(late, DeadlineExceeded)
        assert not late.sent
        late = await error_of(client.emit("x", "late", timeout=0.1))
        assert not late.sent
        late = await error_of(anext(aiter(client.stream("x", "late", timeout=0.1))))
        assert not late.sent
        for call in (client.send("x", "left"), client.emit("x", "left")):
            task = asyncio.ensure_future(call)
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        last = asyncio.ensure_future(client.emit("x", "first and last", timeout=30))
        await asyncio.sleep(0.05)
        release.set()
        assert (await last).delivery == "accepted"
        assert numbers == [1, 1]
        release.clear()
        sent = asyncio.ensure_future(error_of(client.emit("x", "first", timeout=30)))
        await eventually(lambda: len(numbers) == 3)
        waits = asyncio.ensure_future(error_of(client.emit("x", "never", timeout=30)))
        await asyncio.sleep(0.05)
        link_of(client).current.transport.abort()
        lost, unsent = await sent, await waits
        assert isinstance(lost, ConnectionLost)
        assert lost.sent
        assert isinstance(unsent, ConnectError)
        assert not unsent.sent
        assert isinstance(await first, ConnectionLost)


async def test_slow_event_handlers_stop_the_reading_and_nothing_is_lost(
    mqtt_broker: Mosquitto, unique: str
) -> None:
    told: list[str] = []
    server = server_at(
        mqtt_broker,
        max_calls_per_connection=8,
        observers=[lambda event: told.append(type(event).__name__)],
    )
    running = most = done = 0

    @server.event_pattern(unique)
    async def slow() -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        done += 1

    async with server, client_of(mqtt_broker) as client:
        await asyncio.gather(*(client.emit(unique, n) for n in range(400)))
        await eventually(lambda: done == 400)
    assert most == 8
    assert "Degraded" in told


async def test_a_message_at_qos_1_takes_no_longer_than_the_wire(
    mqtt_broker: Mosquitto, unique: str
) -> None:
    async with client_of(mqtt_broker) as client:
        started = time.monotonic()
        for n in range(100):
            await client.emit(unique, n)
        # Nagle's algorithm against delayed acknowledgements allows 25 a second
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_a_message_above_max_size_is_left_out_and_the_others_come(
    mqtt_broker: Mosquitto, unique: str, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[int] = []
    server = server_at(
        mqtt_broker, version=version, max_size=1000, client_id=unique, session_expiry=9
    )
    server.event_pattern(unique)(lambda text: heard.append(len(text)))
    async with server, client_of(mqtt_broker) as client:
        for size in (10, 5_000_000, 20):
            await client.emit(unique, "x" * size)
        await eventually(lambda: len(heard) == 2)
        assert server._listeners[0]._link.dials == 1
    assert heard == [10, 20]
    assert ("larger than max_size" in caplog.text) == (version != "5")  # 5: the broker keeps it


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_a_reply_above_max_size_is_an_error_at_once(
    mqtt_broker: Mosquitto, unique: str, version: str
) -> None:
    server = server_at(mqtt_broker, version=version, max_size=1000)
    server.message_pattern(unique)(lambda n: "x" * n)
    async with server, client_of(mqtt_broker, version=version, max_size=1000) as client:
        error = await error_of(client.send(unique, 200_000, timeout=20))
        assert isinstance(error, RemoteError)
        assert "max_size" in str(error)
        assert len(await client.send(unique, 1)) == 1


async def test_what_is_larger_than_the_broker_takes_is_an_error_on_either_end(
    new_broker: NewBroker, unique: str
) -> None:
    broker = new_broker(Mosquitto, options=["max_packet_size 10000"])
    server = server_at(broker)
    server.message_pattern(unique)(lambda n: "x" * n)
    async with server, client_of(broker) as client:
        assert len(await client.send(unique, 5_000)) == 5_000
        error = await error_of(client.send(unique, 20_000, timeout=20))
        assert isinstance(error, RemoteError)
        assert "larger than the broker takes" in str(error)
        for call in (client.send(unique, "x" * 20_000), client.emit(unique, "x" * 20_000)):
            error = await error_of(call)
            assert isinstance(error, PayloadError)
            assert not error.sent
        assert len(await client.send(unique, 1)) == 1


async def test_the_oldest_idle_topic_is_given_up(
    mqtt_broker: Mosquitto, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resilient_client.transports.mqtt.client.TOPICS", 3)
    server = server_at(mqtt_broker)

    @server.message_pattern(f"{unique}/+")
    async def echo(payload: Any) -> Any:
        await asyncio.sleep(0.1 if payload == "slow" else 0)
        return payload

    async with server, client_of(mqtt_broker) as client:
        slow = asyncio.ensure_future(client.send(f"{unique}/slow", "slow"))
        await asyncio.sleep(0.02)
        for n in range(10):
            assert await client.send(f"{unique}/{n}", n) == n
        transport: Any = client._transports[0]
        assert set(transport._topics) == {f"{unique}/{name}" for name in ("slow", 8, 9)}
        assert await slow == "slow"
        assert await client.send(f"{unique}/0", "again") == "again"


async def test_a_frozen_broker_is_noticed_by_its_silence(new_broker: NewBroker) -> None:
    broker = new_broker(Mosquitto)
    async with client_of(broker, keepalive=1) as client:
        call = asyncio.ensure_future(error_of(client.send("x", 1, timeout=30)))
        server = server_at(broker)
        server.message_pattern("x")(lambda: time.sleep(1))
        await asyncio.sleep(0)
        broker.freeze()
        try:
            started = time.monotonic()
            error = await call
            assert isinstance(error, ConnectError | ConnectionLost)
            assert time.monotonic() - started < 4
        finally:
            broker.thaw()


# -------------------------------------------------------------------------------------- the options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"qos": 2}, "qos=2"),
        ({"version": "3.1"}, "version='3.1'"),
        ({"keepalive": 70_000}, "keepalive"),
        ({"session_expiry": 60}, "name"),
        ({"session_expiry": -1, "client_id": "x"}, "session_expiry"),
        ({"share": "a/b"}, "share"),
        ({"client_id": "x" * 70_000}, "too long"),
    ],
)
def test_an_option_that_cannot_work_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Server("mqtt://127.0.0.1:1", telemetry=False, **options)


@pytest.mark.parametrize("pattern", ["", "a/#/b", "a+/b", "a/b#", "$share/g", "$share//x", "a\0"])
def test_a_pattern_that_is_no_topic_filter_is_refused_when_it_is_registered(pattern: str) -> None:
    server = Server("mqtt://127.0.0.1:1", telemetry=False)
    with pytest.raises(ConfigurationError):
        server.message_pattern(pattern)(lambda: None)
    with pytest.raises(ConfigurationError, match="share"):
        server.message_pattern("fine", share="a/b")(lambda: None)
    with pytest.raises(ConfigurationError, match="qos"):
        server.event_pattern("fine", qos=2)(lambda: None)


async def test_a_pattern_that_is_no_topic_is_refused_before_anything_is_sent(
    mqtt_broker: Mosquitto,
) -> None:
    async with client_of(mqtt_broker) as client:
        for pattern in ("", "a/+", "a/#", "$share/g/a", "$SYS/x", "x" * 70_000, "a\0b", "\ud800"):
            for call in (client.send(pattern, 1), client.emit(pattern, 1)):
                error = await error_of(call)
                assert isinstance(error, ConfigurationError), pattern[:10]
                assert not error.sent


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_what_a_broker_would_end_the_connection_for_costs_no_other_call(
    mqtt_broker: Mosquitto, unique: str, version: str
) -> None:
    release = asyncio.Event()
    server = server_at(mqtt_broker, version=version)

    @server.message_pattern(unique)
    async def slow(payload: int) -> int:
        await release.wait()
        return payload

    with pytest.raises(ConfigurationError, match="control character"):
        server.message_pattern(f"{unique}/\x85")(slow)
    async with server, client_of(mqtt_broker, version=version) as client:
        pending = asyncio.ensure_future(client.send(unique, 1))
        for unfit in "\t\x1b\x7f\x9f\ufdd0\uffff\U0010fffe":
            for call in (client.send(f"{unique}{unfit}", 1), client.emit(f"{unique}{unfit}", 1)):
                error = await error_of(call)
                assert isinstance(error, ConfigurationError), (unfit, error)
        if version == "5":  # a header is a user property
            error = await error_of(client.send(unique, 1, headers={"x-note": "a\tb"}))
            assert isinstance(error, PayloadError), error
        release.set()
        assert await pending == 1


async def test_a_broker_that_is_not_there_ends_the_start() -> None:
    started = time.monotonic()
    with pytest.raises(ConnectError):
        await Server("mqtt://127.0.0.1:1", telemetry=False).start()
    assert time.monotonic() - started < 6


def test_a_login_that_cannot_be_written_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ClientProxy(f"mqtt://user:{'s3cret' * 20_000}@127.0.0.1:1", telemetry=False)
    assert "s3cret" not in str(caught.value)


@pytest.mark.interop
async def test_nest_at_its_default_version_is_spoken_to_both_ways(
    mqtt_broker: Mosquitto, unique: str
) -> None:
    url, old = mqtt_broker.url, {"protocolVersion": 4}
    async with NestServer("mqtt", url, prefix=f"{unique}.", options=old):
        for version in ("3.1.1", "5"):
            async with client_of(mqtt_broker, version=version) as client:
                assert await client.send(f"{unique}.sum", [1, 2, 3], returns=int) == 6
                stream = client.stream(f"{unique}.observable_late", 1, returns=int)
                assert [n async for n in stream] == [1, 2, 3]
    server = server_at(mqtt_broker, version="3.1.1")
    heard: list[Any] = []
    server.message_pattern(f"{unique}.mine")(lambda numbers: sum(numbers))
    server.event_pattern(f"{unique}.event")(lambda payload: heard.append(payload))
    async with server, NestClient("mqtt", url=url, options=old) as nest:
        assert (await nest.send(f"{unique}.mine", [1, 2])).value == 3
        await nest.emit(f"{unique}.event", {"n": 1})
        await eventually(lambda: heard == [{"n": 1}])
