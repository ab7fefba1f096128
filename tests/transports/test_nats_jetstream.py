"""Durable events at nats://: what a stream promises, and what is killed to prove it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import nats
import pytest

from resilient_client import (
    ClientProxy,
    ConfigurationError,
    Context,
    Receipt,
    ResilientClientError,
    Retry,
    Server,
    Throttled,
    Timeout,
)
from resilient_client.testing import check_transport
from resilient_client.transports.nats import _jetstream
from tests.contract.rigs import Service
from tests.peers.nats import Nats
from tests.peers.proxy import TcpProxy
from tests.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


@pytest.fixture
def broker(new_broker: Any) -> Nats:
    made: Nats = new_broker(Nats)
    return made


def server_of(broker: Nats, **options: Any) -> Server:
    settings = {"stream": "events", "queue": "workers", "ack_wait": 1.0, "grace": 0.5, **options}
    return Server(broker.url, telemetry=False, **settings)


def client_of(broker: Nats, **options: Any) -> ClientProxy:
    return ClientProxy(broker.url, telemetry=False, **{"stream": "events", **options})


async def config_of(broker: Nats, stream: str = "events") -> Any:
    raw = await nats.connect(broker.url)
    info = await raw.jetstream().stream_info(stream)
    await raw.close()
    return info.config, info.state


async def test_a_stream_passes_the_conformance_suite(broker: Nats) -> None:
    options = {"stream": "check", "queue": "check"}
    assert len(await check_transport(broker.url, options=options)) >= 15


async def test_an_event_outlives_its_client_the_broker_and_a_server_that_is_not_there(
    broker: Nats,
) -> None:
    async with client_of(broker, policies=()) as client:
        for n in range(20):
            assert await client.emit("orders.created", n) == Receipt("stored")
    config, state = await config_of(broker)
    assert (config.subjects, config.storage) == (["orders.created"], "file")
    assert config.max_age == _jetstream.KEPT == 7 * 86_400
    assert state.messages == 20
    broker.kill()
    broker.restart()
    heard: list[Any] = []
    server = server_of(broker)

    @server.event_pattern("orders.*")
    async def created(n: int, context: Context) -> None:
        heard.append((n, context.pattern))

    async with server:
        await eventually(lambda: len(heard) == 20)
    assert sorted(heard) == [(n, "orders.created") for n in range(20)]


async def test_replicas_share_and_each_event_is_handled_once(broker: Nats) -> None:
    heard: list[tuple[str, int]] = []

    def replica(name: str, **options: Any) -> Server:
        server = server_of(broker, **options)

        @server.event_pattern("shared")
        async def shared(n: int) -> None:
            await asyncio.sleep(0.001)
            heard.append((name, n))

        return server

    async with replica("a"), replica("b"), replica("other", queue="audit"):
        async with client_of(broker, policies=()) as client:
            await asyncio.gather(*(client.emit("shared", n) for n in range(300)))
        await eventually(lambda: len(heard) >= 600)
        await asyncio.sleep(0.1)
    workers = [n for name, n in heard if name != "other"]
    assert sorted(workers) == list(range(300))
    assert {name for name, _ in heard} == {"a", "b", "other"}
    assert sorted(n for name, n in heard if name == "other") == list(range(300))


async def test_an_event_whose_server_dies_before_the_end_is_delivered_to_another(
    broker: Nats,
) -> None:
    heard: list[str] = []
    begun = asyncio.Event()
    first = server_of(broker)

    @first.event_pattern("work")
    async def never_done(n: int) -> None:
        begun.set()
        await asyncio.sleep(60)

    second = server_of(broker)
    second.event_pattern("work")(lambda n: heard.append(n))
    async with client_of(broker, policies=()) as client:
        await first.start()
        await client.emit("work", 1)
        await begun.wait()
        listener: Any = first._listeners[0]
        connection = listener._current()
        listener._link.current = None  # as if the process were gone: no reconnection, no word
        connection.socket.transport.abort()
        async with second:
            await eventually(lambda: heard == [1])
        await first.aclose()


async def test_what_a_server_has_not_done_when_it_stops_another_gets_at_once(
    broker: Nats,
) -> None:
    heard: list[int] = []
    first = server_of(broker, ack_wait=30.0, grace=0.1)
    started: list[int] = []

    @first.event_pattern("work")
    async def slow(n: int) -> None:
        started.append(n)
        await asyncio.sleep(60)

    second = server_of(broker, ack_wait=30.0)
    second.event_pattern("work")(lambda n: heard.append(n))
    async with client_of(broker, policies=()) as client:
        async with first:
            for n in range(5):
                await client.emit("work", n)
            await eventually(lambda: len(started) == 5)
        begun = time.monotonic()
        async with second:
            await eventually(lambda: len(heard) == 5)
        assert time.monotonic() - begun < 10


async def test_a_failing_handler_gets_its_event_again_and_not_for_ever(broker: Nats) -> None:
    tries: Counter[str] = Counter()
    news: list[Any] = []
    server = server_of(broker, max_deliver=3, observers=[news.append])

    @server.event_pattern("flaky")
    async def flaky(payload: str) -> None:
        tries[payload] += 1
        if payload == "always" or tries[payload] < 2:
            raise RuntimeError("not today")

    @server.event_pattern("typed")
    async def typed(payload: int) -> None:
        tries["typed"] += 1

    async with server, client_of(broker, policies=()) as client:
        await client.emit("flaky", "once")
        await client.emit("flaky", "always")
        await client.emit("typed", "not a number")
        await eventually(lambda: tries["always"] == 3)
        given_up = lambda: [e.reason for e in news if "given up" in getattr(e, "reason", "")]  # noqa: E731
        await eventually(lambda: len(given_up()) == 2)
        await asyncio.sleep(0.5)
    assert tries == {"once": 2, "always": 3}
    assert any("after 1 deliveries" in reason for reason in given_up())  # of no use to anybody


async def test_an_event_that_is_older_than_its_stream_keeps_it_is_gone(broker: Nats) -> None:
    """Its server is killed with it in work, and none comes before the stream's max_age is over."""
    raw = await nats.connect(broker.url)
    await raw.jetstream().add_stream(name="events", subjects=["fault.slow_event"], max_age=2.0)
    await raw.close()
    service = Service(f"{broker.url}?stream=events", {"ack_wait": 1.0}, "asyncio")
    try:
        await service.start_async()
        async with client_of(broker, policies=()) as client:
            assert await client.emit("fault.slow_event", 1) == Receipt("stored")
            await eventually(lambda: service.journal("slow_event_started") == [1])
            service.kill()
            await asyncio.sleep(3.0)
            await service.start_async()
            assert await client.emit("fault.slow_event", 2) == Receipt("stored")
            await eventually(lambda: service.journal("slow_event"))
            await asyncio.sleep(0.2)
        assert service.journal("slow_event_started") == [1, 2]
        assert service.journal("slow_event") == [2]
    finally:
        service.stop()


async def test_a_long_handler_keeps_its_event_to_itself(broker: Nats) -> None:
    heard: list[str] = []

    def replica(name: str) -> Server:
        server = server_of(broker, ack_wait=0.6)

        @server.event_pattern("long")
        async def long(payload: int) -> None:
            heard.append(name)
            await asyncio.sleep(2.5)

        return server

    async with replica("a"), replica("b"), client_of(broker, policies=()) as client:
        await client.emit("long", 1)
        await asyncio.sleep(3)
    assert len(heard) == 1


async def test_a_repeated_emit_is_stored_once(broker: Nats) -> None:
    async with client_of(broker, policies=()) as client:
        for _ in range(3):
            await client.emit("paid", 1, idempotency_key="order-1")
        await client.emit("paid", 1, idempotency_key="order-2")
        await client.emit("shipped", 1, idempotency_key="order-1")  # another event
        await client.emit("paid", 1)
        await client.emit("paid", 1)
    _, state = await config_of(broker)
    assert state.messages == 5


async def test_emits_through_a_killed_broker_are_all_stored_and_none_twice(broker: Nats) -> None:
    """What may have been lost is repeated, and kept once."""
    async with client_of(broker, policies=[Timeout(20), Retry(attempts=30)]) as client:
        results: list[Any] = []

        async def emit(n: int) -> None:
            try:
                results.append((n, await client.emit("steady", n)))
            except ResilientClientError as error:
                results.append((n, error))

        async with asyncio.TaskGroup() as group:
            for n in range(200):
                group.create_task(emit(n))
                await asyncio.sleep(0.005)
                if n == 60:
                    broker.kill()
                elif n == 90:
                    group.create_task(broker.restart_async())
    stored = {n for n, result in results if isinstance(result, Receipt)}
    raw = await nats.connect(broker.url)
    got = await raw.jetstream().pull_subscribe("steady", "check", stream="events")
    found = Counter()
    while len(found) < len(stored):
        for message in await got.fetch(100, timeout=5):
            found[message.data] += 1
            await message.ack()
    await raw.close()
    assert set(found.values()) == {1}
    assert len(stored) > 150
    assert {b'{"pattern":"steady","data":%d}' % n for n in stored} <= set(found)


async def test_both_ends_make_the_stream_take_what_it_does_not_yet(broker: Nats) -> None:
    raw = await nats.connect(broker.url)
    await raw.jetstream().add_stream(
        name="events", subjects=["orders.created", "other.>"], max_msgs=1000, description="theirs"
    )
    server = server_of(broker)
    heard: list[str] = []
    server.event_pattern(["orders.*", "users.>"])(lambda context: heard.append(context.pattern))
    async with server, client_of(broker, policies=()) as client:
        await asyncio.gather(
            *(client.emit(f"new.{n}", n) for n in range(5)), client.emit("orders.paid", 1)
        )
        await client.emit("users.a.b", 1)
        await eventually(lambda: len(heard) == 2)
    config, _ = await config_of(broker)
    assert set(config.subjects) == {
        "other.>",
        "orders.*",
        "users.>",
        *(f"new.{n}" for n in range(5)),
    }
    assert (config.max_msgs, config.description) == (1000, "theirs")  # the rest is left alone
    await raw.close()


async def test_what_jetstream_refuses_is_a_clear_error(broker: Nats, new_broker: Any) -> None:
    raw = await nats.connect(broker.url)
    await raw.jetstream().add_stream(name="theirs", subjects=["taken.>"])
    await raw.jetstream().add_stream(
        name="full", subjects=["full"], max_msgs=1, discard=nats.js.api.DiscardPolicy.NEW
    )
    await raw.close()
    async with client_of(broker, policies=()) as client:
        with pytest.raises(ConfigurationError, match="overlap") as caught:
            await client.emit("taken.event", 1)
        assert not caught.value.sent
    async with client_of(broker, policies=(), stream="full") as client:
        await client.emit("full", 1)
        with pytest.raises(Throttled, match="maximum messages") as full:
            await client.emit("full", 2)
        assert (full.value.sent, full.value.status) == (False, 503)
    server = server_of(broker)
    server.event_pattern("taken.event")(lambda: None)
    with pytest.raises(ConfigurationError, match="overlap"):
        await server.start()
    plain = new_broker(Nats, jetstream=False)
    async with client_of(plain, policies=()) as client:
        with pytest.raises(ConfigurationError, match="JetStream"):
            await client.emit("event", 1)
    server = server_of(plain)
    server.event_pattern("event")(lambda: None)
    with pytest.raises(ConfigurationError, match="JetStream"):
        await server.start()
    for bad in ("a b", "a.b", "a*"):
        with pytest.raises(ConfigurationError, match="stream's name"):
            client_of(broker, stream=bad)


async def test_a_stream_that_is_deleted_is_made_again(broker: Nats) -> None:
    heard: list[int] = []
    news: list[Any] = []
    server = server_of(broker, observers=[news.append])
    server.event_pattern("event")(lambda n: heard.append(n))
    async with server, client_of(broker, policies=()) as client:
        await client.emit("event", 1)
        await eventually(lambda: heard == [1])
        raw = await nats.connect(broker.url)
        await raw.jetstream().delete_stream("events")
        await raw.close()
        await client.emit("event", 2)
        await eventually(lambda: heard == [1, 2])
    assert any("is gone" in getattr(each, "reason", "") for each in news)


async def test_slow_handlers_take_no_more_than_they_can(broker: Nats) -> None:
    running = most = done = 0
    server = server_of(broker, max_calls_per_connection=5)

    @server.event_pattern("burst")
    async def burst(n: int) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        done += 1

    async with client_of(broker, policies=()) as client:
        await asyncio.gather(*(client.emit("burst", n) for n in range(500)))
    async with server:
        consumer: Any = server._listeners[0]._consumers[0]  # type: ignore[attr-defined]
        held = 0
        while done < 500:
            held = max(held, len(consumer._unacknowledged))
            await asyncio.sleep(0.005)
    assert most == 5
    assert held <= 2 * _jetstream._BATCH


async def test_what_others_put_into_a_stream_is_seen_with_the_metadata_of_its_packet(
    broker: Nats,
) -> None:
    heard: list[Any] = []
    server = server_of(broker)

    @server.event_pattern("orders.*")
    async def created(n: int, context: Context) -> None:
        heard.append((n, dict(context.headers)))

    async with server:
        raw = await nats.connect(broker.url)
        packet = b'{"pattern":"orders.new","data":1,"metadata":{"x-tenant":"blue"}}'
        await raw.publish("orders.new", packet)
        await raw.publish("orders.new", packet, headers={"x-other": "1"})
        await raw.close()
        await eventually(lambda: len(heard) == 2)
    assert heard == [(1, {"x-tenant": "blue"}), (1, {"x-tenant": "blue", "x-other": "1"})]


async def test_requests_are_as_ever_beside_a_stream(broker: Nats) -> None:
    server = server_of(broker)
    server.message_pattern("ask")(lambda payload: payload)
    server.event_pattern("told")(lambda payload: None)
    async with server, client_of(broker, policies=()) as client:
        assert await client.send("ask", 1) == 1
    config, _ = await config_of(broker)
    assert config.subjects == ["told"]


async def test_an_acknowledgement_waits_for_a_connection_that_was_lost(broker: Nats) -> None:
    begun, done = asyncio.Event(), asyncio.Event()
    raw = await nats.connect(broker.url)

    async def unacknowledged() -> int:
        (consumer,) = await raw.jetstream().consumers_info("events")
        return consumer.num_ack_pending

    async with TcpProxy(broker.port) as way:
        server = Server(f"nats://127.0.0.1:{way.port}", stream="events", ack_wait=3600)

        @server.event_pattern("orders.created")
        async def created() -> None:
            begun.set()
            await done.wait()

        async with server, client_of(broker) as client:
            await client.emit("orders.created")
            await begun.wait()
            assert await unacknowledged() == 1
            way.refuse()
            way.cut()
            listener: Any = server._listeners[0]
            await eventually(lambda: listener._link.current is None)
            done.set()
            await eventually(lambda: listener._link.dials > 3)  # and none of them has found it
            way.accept()
            async with asyncio.timeout(20):
                while await unacknowledged():
                    await asyncio.sleep(0.02)
    await raw.close()
