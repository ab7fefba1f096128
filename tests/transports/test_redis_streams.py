"""Durable events on Redis Streams: what survives which death, is shared, repeated, set aside."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from resilient_client import (
    ClientProxy,
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    Context,
    RemoteError,
    ResilientClientError,
    Server,
    Throttled,
)
from resilient_client.events import Degraded
from tests.calls import error_of
from tests.contract.rigs import Service
from tests.peers.brokers import Redis
from tests.peers.proxy import TcpProxy
from tests.waiting import eventually

from .redis_peer import command
from .test_redis import NewBroker, client_of, server_of

pytestmark = [pytest.mark.broker]


def stream_server(url: str, stream: str, hear: Callable[..., Any], **options: Any) -> Server:
    server = server_of(url, stream=stream, **options)
    server.event_pattern("order.placed")(hear)
    return server


def pending(broker: Redis, stream: str, group: str | None = None) -> int:
    found: int = command(broker, "XPENDING", stream, group or stream)[0]
    return found


async def test_an_event_is_stored_before_anybody_hears_it_and_heard_once(
    redis_broker: Redis, unique: str
) -> None:
    heard: list[Any] = []

    async def hear(payload: Any, context: Context) -> None:
        heard.append((payload, context.pattern, context.correlation_id, context.idempotency_key))

    url = redis_broker.url
    async with client_of(url, stream=unique) as client:
        receipt = await client.emit(
            "order.placed", {"n": 1}, headers={"x-correlation-id": "c1"}, idempotency_key="k1"
        )
        assert (receipt.delivery, receipt.receivers) == ("stored", None)
        async with stream_server(url, unique, hear):
            await eventually(lambda: heard)
            await client.emit("order.placed", {"n": 2}, headers={"x-correlation-id": "c2"})
            await eventually(lambda: len(heard) == 2)
            await eventually(lambda: pending(redis_broker, unique) == 0)
        async with stream_server(url, unique, hear):
            await asyncio.sleep(0.1)
    assert heard == [
        ({"n": 1}, "order.placed", "c1", "k1"),
        ({"n": 2}, "order.placed", "c2", None),
    ]
    assert command(redis_broker, "XINFO", "CONSUMERS", unique, unique) == [], "they have left"


async def test_a_redis_that_writes_no_file_is_told(
    new_broker: NewBroker,
) -> None:
    broker = new_broker(Redis, persistent=False)
    told: list[Any] = []
    async with client_of(broker.url, stream="s", observers=[told.append]) as client:
        assert (await client.emit("order.placed", 1)).delivery == "stored"
    assert any(isinstance(event, Degraded) and "append-only" in event.reason for event in told)


async def test_requests_and_plain_events_are_heard_beside_the_stream(
    redis_broker: Redis, unique: str
) -> None:
    """A Nest client publishes its events: they are heard too, as pub/sub delivers them."""
    heard: list[Any] = []

    async def hear(payload: Any) -> None:
        heard.append(payload)

    server = server_of(redis_broker.url, stream=unique)
    server.event_pattern(f"{unique}.event")(hear)
    server.message_pattern(f"{unique}.echo")(hear)
    async with server, client_of(redis_broker.url) as client:
        assert (await client.emit(f"{unique}.event", 1)).receivers == 1
        assert await client.send(f"{unique}.echo", 2) is None
        await eventually(lambda: heard == [1, 2])


async def test_replicas_share_and_every_group_hears_everything(
    redis_broker: Redis, unique: str
) -> None:
    heard: Counter[tuple[str, int]] = Counter()
    worked: Counter[int] = Counter()

    def hearer(group: str, number: int) -> Any:
        async def hear(n: int) -> None:
            heard[group, n] += 1
            worked[number] += 1
            await asyncio.sleep(0.001)

        return hear

    url = redis_broker.url
    servers = [
        stream_server(url, unique, hearer(group, number), group=group, max_calls=2)
        for number, group in enumerate(("stock", "stock", "mail"))
    ]
    async with servers[0], servers[1], servers[2], client_of(url, stream=unique) as client:
        await asyncio.gather(*(client.emit("order.placed", n) for n in range(500)))
        await eventually(lambda: len(heard) == 1000)
        await eventually(lambda: pending(redis_broker, unique, "stock") == 0)
    assert set(heard.values()) == {1}
    assert worked[0] > 50
    assert worked[1] > 50
    assert worked[2] == 500


async def test_wildcards_and_numbers_and_mappings_are_found_in_a_stream(
    redis_broker: Redis, unique: str
) -> None:
    heard: list[Any] = []
    server = server_of(redis_broker.url, stream=unique)

    async def hear(payload: Any, context: Context) -> None:
        heard.append((payload, context.pattern))

    for pattern in ("order.*", {"event": "a", "b": 1}, 7):
        server.event_pattern(pattern)(hear)
    async with server, client_of(redis_broker.url, stream=unique) as client:
        await client.emit("order.placed", 1)
        await client.emit({"b": 1, "event": "a"}, 2)
        await client.emit(7, 3)
        await client.emit("nobody.hears", 4)
        await client.emit(7, 5)
        await eventually(lambda: len(heard) == 4)
        await eventually(lambda: pending(redis_broker, unique) == 0)
    assert sorted(heard) == [
        (1, "order.placed"), (2, '{"b":1,"event":"a"}'), (3, "7"), (5, "7"),
    ]  # fmt: skip


async def test_an_event_is_over_when_the_handlers_of_all_its_patterns_have_ended(
    redis_broker: Redis, unique: str
) -> None:
    heard: list[str] = []
    server = server_of(redis_broker.url, stream=unique, ack_wait=0.2)

    def handler(name: str, seconds: float) -> Any:
        async def hear() -> None:
            await asyncio.sleep(seconds)
            heard.append(name)
            if heard == ["exact"]:
                raise RemoteError("not yet")

        return hear

    for pattern, name, seconds in (
        ("order.placed", "exact", 0),
        ("order.*", "star", 0.1),
        ("*.placed", "other", 0.05),
        ("order.?", "none", 0),
    ):
        server.event_pattern(pattern)(handler(name, seconds))
    async with server, client_of(redis_broker.url, stream=unique) as client:
        await client.emit("order.placed", 1)
        await eventually(lambda: len(heard) == 6)
        await eventually(lambda: pending(redis_broker, unique) == 0)
    assert Counter(heard) == {"exact": 2, "star": 2, "other": 2}, "one failed: all were run again"


# ----------------------------------------------------------------------------------- deaths


async def test_a_killed_redis_loses_no_event_that_was_stored(new_broker: NewBroker) -> None:
    """With an append-only file; what was not confirmed is an error of emit."""
    broker = new_broker(Redis)
    heard: Counter[int] = Counter()

    async def hear(n: int) -> None:
        heard[n] += 1

    stored: set[int] = set()

    async def emit(client: ClientProxy, n: int) -> None:
        try:
            receipt = await client.emit("order.placed", n, timeout=1)
        except ResilientClientError:
            return
        assert receipt.delivery == "stored"
        stored.add(n)

    async with stream_server(broker.url, "s", hear), client_of(broker.url, stream="s") as client:
        async with asyncio.TaskGroup() as group:
            for n in range(300):
                group.create_task(emit(client, n))
                await asyncio.sleep(0.005)
                if n in (100, 200):
                    await asyncio.to_thread(broker.restart)
        await eventually(lambda: set(heard) >= stored)
    assert len(stored) > 150
    assert set(heard.values()) == {1}, "a repeated delivery is not run again in the same process"


async def test_an_acknowledgement_that_a_killed_redis_has_forgotten_is_given_again(
    redis_broker: Redis, unique: str
) -> None:
    """It may put off writing what it has answered; then it holds the event to be in work here."""
    heard: Counter[int] = Counter()

    async def hear(n: int) -> None:
        heard[n] += 1

    server = stream_server(redis_broker.url, unique, hear, group=unique)
    async with server, client_of(redis_broker.url, stream=unique) as client:
        await client.emit("order.placed", 1)
        await eventually(lambda: heard[1] == 1)
        await eventually(lambda: pending(redis_broker, unique, unique) == 0)
        name = server._listeners[0]._consumer.name  # type: ignore[attr-defined]
        [[entry, _]] = command(redis_broker, "XRANGE", unique, "-", "+")
        command(redis_broker, "XCLAIM", unique, unique, name, "0", entry, "FORCE", "JUSTID")
        assert pending(redis_broker, unique, unique) == 1
        command(redis_broker, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await eventually(lambda: pending(redis_broker, unique, unique) == 0)
        await client.emit("order.placed", 2)
        await eventually(lambda: heard[2] == 1)
    assert heard == {1: 1, 2: 1}


async def test_what_a_killed_server_had_begun_goes_to_another(new_broker: NewBroker) -> None:
    broker = new_broker(Redis)
    url = f"{broker.url}?stream=s&ack_wait=1"
    first, second = (Service(url, {}, "asyncio") for _ in range(2))
    try:
        await first.start_async()
        async with client_of(broker.url, stream="s") as client:
            for n in range(5):
                await client.emit("fault.slow_event", n)
            await eventually(lambda: len(first.journal("slow_event_started")) == 5)
            first.kill()
            assert first.journal("slow_event") == []
            await second.start_async()
            await eventually(lambda: len(second.journal("slow_event")) == 5)
        assert sorted(second.journal("slow_event")) == [0, 1, 2, 3, 4]
        await eventually(lambda: pending(broker, "s") == 0)
    finally:
        first.stop()
        second.stop()


async def test_a_handler_slower_than_the_wait_is_not_run_twice(
    redis_broker: Redis, unique: str
) -> None:
    """What is in work is renewed, so only a dead server's events go to another."""
    heard: list[int] = []

    async def hear(n: int) -> None:
        heard.append(n)
        await asyncio.sleep(3.2)

    url = redis_broker.url
    options: dict[str, Any] = {"ack_wait": 1.0, "grace": 5.0}
    one, two = (stream_server(url, unique, hear, **options) for _ in range(2))
    async with one, two, client_of(url, stream=unique) as client:
        await client.emit("order.placed", 1)
        await eventually(lambda: heard and not pending(redis_broker, unique))
    assert heard == [1]


async def test_an_acknowledgement_that_is_lost_is_given_again_and_nothing_run_twice(
    new_broker: NewBroker,
) -> None:
    broker = new_broker(Redis)
    heard: list[int] = []
    server: Server

    async def hear(n: int) -> None:
        heard.append(n)
        listener: Any = server._listeners[0]
        listener._link.current.abort()
        listener._link.lost(listener._link.current, "a test")

    server = stream_server(broker.url, "s", hear)
    async with server, client_of(broker.url, stream="s") as client:
        await client.emit("order.placed", 1)
        await eventually(lambda: heard == [1])
        await eventually(lambda: pending(broker, "s") == 0)
        await asyncio.sleep(0.1)
    assert heard == [1]


async def test_an_acknowledgement_that_was_refused_is_given_again_and_nothing_run_twice(
    new_broker: NewBroker,
) -> None:
    broker = new_broker(Redis)
    heard: list[int] = []

    async def hear(n: int) -> None:
        heard.append(n)

    server = stream_server(broker.url, "s", hear, ack_wait=0.3)
    async with server, client_of(broker.url, stream="s") as client:
        command(broker, "ACL", "SETUSER", "default", "-xack")
        for n in range(3):
            await client.emit("order.placed", n)
        await eventually(lambda: len(heard) == 3)
        assert pending(broker, "s") == 3
        command(broker, "ACL", "SETUSER", "default", "+xack")
        await eventually(lambda: pending(broker, "s") == 0)
    assert heard == [0, 1, 2]


async def test_what_a_server_does_on_a_connection_ends_with_it(
    redis_broker: Redis, unique: str
) -> None:
    async with stream_server(redis_broker.url, unique, lambda: None, ack_wait=3600.0) as server:
        listener: Any = server._listeners[0]
        for _ in range(3):
            session = listener._link.current
            session.commands.transport.abort()
            await eventually(lambda session=session: listener._link.current not in (None, session))
        await eventually(lambda: len(listener._consumer._tasks) == 2)  # read, look after


async def test_a_server_that_closes_gives_back_what_it_did_not_end(
    redis_broker: Redis, unique: str
) -> None:
    """The next one need not wait for the whole of ack_wait."""
    heard: list[int] = []

    async def stuck(n: int) -> None:
        await asyncio.sleep(60)

    async def hear(n: int) -> None:
        heard.append(n)

    url = redis_broker.url
    async with client_of(url, stream=unique) as client:
        for n in range(8):
            await client.emit("order.placed", n)
        async with stream_server(url, unique, stuck, max_calls=3, grace=0.0):
            await eventually(lambda: pending(redis_broker, unique) == 8)
        async with stream_server(url, unique, hear):
            await eventually(lambda: len(heard) == 8, 5)
    assert sorted(heard) == list(range(8))


async def test_a_stream_that_is_removed_is_made_anew_and_that_is_told(
    redis_broker: Redis, unique: str
) -> None:
    heard: list[int] = []
    told: list[Any] = []

    async def hear(n: int) -> None:
        heard.append(n)

    server = stream_server(redis_broker.url, unique, hear, observers=[told.append])
    async with server, client_of(redis_broker.url, stream=unique) as client:
        await client.emit("order.placed", 1)
        await eventually(lambda: heard == [1])
        command(redis_broker, "DEL", unique)
        await client.emit("order.placed", 2)
        await eventually(lambda: heard == [1, 2])
    assert any(isinstance(event, Degraded) and "removed" in event.reason for event in told)


async def test_without_a_file_what_redis_had_is_gone_and_that_is_told(
    new_broker: NewBroker,
) -> None:
    broker = new_broker(Redis, persistent=False)
    heard: list[int] = []
    told: list[Any] = []

    async def hear(n: int) -> None:
        heard.append(n)
        await asyncio.sleep(60 if n == 1 else 0)

    server = stream_server(broker.url, "s", hear, max_calls=1, observers=[told.append], grace=0)
    async with server, client_of(broker.url, stream="s") as client:
        assert (await client.emit("order.placed", 1)).delivery == "stored"
        await eventually(lambda: heard == [1])
        assert (await client.emit("order.placed", 2)).delivery == "stored"
        await asyncio.to_thread(broker.restart)
        await eventually(
            lambda: any(isinstance(event, Degraded) and "removed" in event.reason for event in told)
        )
        assert pending(broker, "s") == 0
    assert heard == [1]


# ----------------------------------------------------------------------------------- poison


async def test_an_event_that_fails_is_tried_again_and_set_aside_in_the_end(
    redis_broker: Redis, unique: str
) -> None:
    tries: Counter[int] = Counter()
    told: list[Any] = []

    async def hear(n: int) -> None:
        tries[n] += 1
        if n == 13 or tries[n] < n:
            raise RemoteError(f"cannot do {n}")

    options: dict[str, Any] = {"ack_wait": 0.1, "max_deliver": 3, "observers": [told.append]}
    server = stream_server(redis_broker.url, unique, hear, **options)
    async with server, client_of(redis_broker.url, stream=unique) as client:
        for n in (1, 2, 13, 3):
            await client.emit("order.placed", n, headers={"x-correlation-id": f"c{n}"})
        dead = f"{unique}.dead"
        await eventually(lambda: command(redis_broker, "XLEN", dead) == 1)
        await eventually(lambda: pending(redis_broker, unique) == 0)
    assert tries == {1: 1, 2: 2, 13: 3, 3: 3}
    ((_, fields),) = command(redis_broker, "XRANGE", dead, "-", "+")
    entry = dict(zip(fields[::2], fields[1::2], strict=True))
    assert json.loads(entry[b"packet"])["data"] == 13
    assert (entry[b"reason"], entry[b"deliveries"]) == (b"cannot do 13", b"3")
    assert any(isinstance(event, Degraded) and "set aside" in event.reason for event in told)


async def test_an_event_that_no_server_survives_is_set_aside_unrun(
    redis_broker: Redis, unique: str
) -> None:
    heard: list[int] = []

    async def hear(n: int) -> None:
        heard.append(n)

    async with client_of(redis_broker.url, stream=unique) as client:
        await client.emit("order.placed", 1)
    command(redis_broker, "XGROUP", "CREATE", unique, unique, "0")
    command(redis_broker, "XREADGROUP", "GROUP", unique, "dead", "STREAMS", unique, ">")
    for _ in range(2):
        command(redis_broker, "XAUTOCLAIM", unique, unique, "dead", 0, "0")
    async with stream_server(redis_broker.url, unique, hear, ack_wait=0.1, max_deliver=3):
        await eventually(lambda: command(redis_broker, "XLEN", f"{unique}.dead") == 1)
        await eventually(lambda: pending(redis_broker, unique) == 0)
    assert heard == []


async def test_what_cannot_be_read_is_set_aside_at_once(redis_broker: Redis, unique: str) -> None:
    heard: list[int] = []

    async def hear(n: int) -> None:
        heard.append(n)

    for fields in (
        (b"packet", b"{not json"),
        (b"packet", b'{"data":1}'),
        (b"other", b"x"),
        (b"packet", b'{"pattern":"order.placed","data":"no number"}'),
        (b"packet", b'{"pattern":"order.placed","data":7}'),
    ):
        command(redis_broker, "XADD", unique, "*", *fields)
    async with stream_server(redis_broker.url, unique, hear):
        await eventually(lambda: command(redis_broker, "XLEN", f"{unique}.dead") == 4)
        await eventually(lambda: pending(redis_broker, unique) == 0)
    assert heard == [7]


# ----------------------------------------------------------------------------------- bounds


async def test_a_slow_consumer_reads_no_more_than_it_can_hold(
    redis_broker: Redis, unique: str
) -> None:
    go = asyncio.Event()
    heard: list[int] = []

    async def hear(n: int) -> None:
        await go.wait()
        heard.append(n)

    server = stream_server(redis_broker.url, unique, hear, max_calls=3)
    async with server, client_of(redis_broker.url, stream=unique) as client:
        await asyncio.gather(*(client.emit("order.placed", n) for n in range(1000)))
        await asyncio.sleep(0.3)
        assert 3 <= pending(redis_broker, unique) <= 67, "the rest stays in Redis"
        go.set()
        await eventually(lambda: len(heard) == 1000)
    assert sorted(heard) == list(range(1000))


async def test_a_stream_keeps_about_as_many_as_it_was_told_and_loses_the_oldest(
    redis_broker: Redis, unique: str
) -> None:
    """The only server is killed with an event in work, and comes back when many newer ones came."""
    query = f"?stream={unique}"
    service = Service(redis_broker.url + query, {"ack_wait": 0.5}, "asyncio")
    try:
        await service.start_async()
        async with client_of(redis_broker.url, stream=unique, stream_length=100) as client:
            await client.emit("fault.slow_event", "old")
            await eventually(lambda: service.journal("slow_event_started") == ["old"])
            service.kill()
            await asyncio.gather(*(client.emit("fault.event", n) for n in range(1000)))
            assert 100 <= command(redis_broker, "XLEN", unique) < 300
            await service.start_async()
            await client.emit("fault.slow_event", "new")
            await eventually(lambda: service.journal("slow_event"))
        heard = service.journal("event")
        assert heard == list(range(1000 - len(heard), 1000))
        assert 100 <= len(heard) < 300
        await eventually(lambda: pending(redis_broker, unique) == 0)
        assert service.journal("slow_event_started") == ["old", "new"]
        assert service.journal("slow_event") == ["new"]
    finally:
        service.stop()


async def test_a_key_that_is_no_stream_is_refused(redis_broker: Redis, unique: str) -> None:
    command(redis_broker, "SET", unique, "text")

    async def hear() -> None: ...

    with pytest.raises(ConfigurationError, match="WRONGTYPE"):
        await stream_server(redis_broker.url, unique, hear).start()
    async with client_of(redis_broker.url, stream=unique) as client:
        error = await error_of(client.emit("order.placed", 1))
        assert isinstance(error, ConfigurationError)
        assert not error.sent


async def test_a_full_redis_refuses_events_as_throttled(new_broker: NewBroker) -> None:
    broker = new_broker(Redis, options=["maxmemory 100kb", "maxmemory-policy noeviction"])
    async with client_of(broker.url, stream="s") as client:
        error = await error_of(client.emit("order.placed", 1))
        assert isinstance(error, Throttled)
        assert not error.sent


async def test_an_emit_under_way_when_the_connection_breaks_may_have_been_stored(
    redis_broker: Redis, unique: str
) -> None:
    async with TcpProxy(redis_broker.port) as proxy:
        async with client_of(f"redis://127.0.0.1:{proxy.port}", stream=unique) as client:
            proxy.blackhole("down")
            call = asyncio.ensure_future(error_of(client.emit("order.placed", 1, timeout=20)))
            await eventually(lambda: command(redis_broker, "XLEN", unique) == 1)
            proxy.cut()
            error = await call
            assert isinstance(error, ConnectionLost)
            assert error.sent


@pytest.mark.parametrize("right", ["xreadgroup", "xpending", "xclaim", "xautoclaim", "xack"])
async def test_a_user_who_may_not_work_on_a_stream_is_refused_when_the_server_starts(
    new_broker: NewBroker, right: str
) -> None:
    broker = new_broker(Redis, acl=[f"user worker on >s ~* &* +@all -{right}"])
    server = stream_server(f"redis://worker:s@127.0.0.1:{broker.port}", "orders", print)
    with pytest.raises(ConfigurationError, match=f"{right.upper()} orders: Redis says NOPERM"):
        await server.start()


async def test_a_consumer_that_died_long_ago_is_struck_off_when_it_has_nothing_in_work(
    redis_broker: Redis, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resilient_client.transports.redis._consumer._ABSENT", 0.2)
    dead, busy, foreign = "host-1-deadbeef", "host-2-deadbeef", "reports"

    def ask(*words: str | bytes | int) -> Any:
        return command(redis_broker, *words)

    def names() -> set[str]:
        return {each[1].decode() for each in ask("XINFO", "CONSUMERS", unique, unique)}

    ask("XGROUP", "CREATE", unique, unique, 0, "MKSTREAM")
    for name in (dead, foreign):
        ask("XGROUP", "CREATECONSUMER", unique, unique, name)
    packet = json.dumps({"pattern": "order.placed", "data": 1})
    ask("XADD", unique, "*", "packet", packet)
    ask("XREADGROUP", "GROUP", unique, busy, "STREAMS", unique, ">")
    await asyncio.sleep(2.1)  # ten times the wait, which is more
    heard: list[Any] = []
    async with stream_server(redis_broker.url, unique, heard.append, ack_wait=0.2):
        await eventually(lambda: dead not in names())
        await eventually(lambda: heard == [1])  # taken over from the one that had it
        await eventually(lambda: busy not in names())
        assert foreign in names()
        assert len(names()) == 2


async def test_a_redis_that_has_become_a_replica_is_left_for_whoever_has_its_name_now(
    new_broker: NewBroker, unique: str
) -> None:
    old, new = new_broker(Redis), new_broker(Redis)
    async with TcpProxy(old.port) as name:
        async with client_of(f"redis://127.0.0.1:{name.port}", stream=unique) as client:
            await client.emit("order.placed", 1)
            name.target = (new.host, new.port)  # connections that are open stay where they are
            command(old, "REPLICAOF", new.host, new.port)
            error = await error_of(client.emit("order.placed", 2))
            assert isinstance(error, ConnectError), error
            assert not error.sent
            await eventually(lambda: name.accepted > 2)  # two for each session
            await eventually(lambda: client.status == "connected")
            assert (await client.emit("order.placed", 3)).delivery == "stored"
    assert command(new, "XLEN", unique) == 1


async def test_a_server_whose_redis_has_become_a_replica_reads_from_whoever_has_its_name_now(
    new_broker: NewBroker, unique: str
) -> None:
    old, new = new_broker(Redis), new_broker(Redis)
    heard: list[int] = []

    async def hear(n: int) -> None:
        heard.append(n)

    async with TcpProxy(old.port) as name:
        async with stream_server(f"redis://127.0.0.1:{name.port}", unique, hear):
            name.target = (new.host, new.port)  # connections that are open stay where they are
            command(old, "REPLICAOF", new.host, new.port)
            async with client_of(new.url, stream=unique) as client:
                await client.emit("order.placed", 1)
            await eventually(lambda: heard == [1])


@pytest.mark.parametrize("lacks", ["memory", "disk"])
async def test_a_server_comes_back_to_a_redis_without_room_and_reads_on_when_there_is_some(
    lacks: str, new_broker: NewBroker, unique: str
) -> None:
    broker = new_broker(Redis, options=["dbfilename taken"])
    told: list[Any] = []
    heard: list[int] = []

    async def hear(n: int) -> None:
        heard.append(n)

    def room(there: bool) -> None:
        if lacks == "memory":
            command(broker, "CONFIG", "SET", "maxmemory", 0 if there else 1)
        else:
            command(broker, "CONFIG", "SET", "save", "" if there else "3600 1")

    (broker.folder / "taken").mkdir()
    command(broker, "BGSAVE")
    server = stream_server(broker.url, unique, hear, max_calls=100)
    server.message_pattern("sum")(sum)
    async with server, client_of(broker.url, stream=unique, observers=[told.append]) as client:
        await client.emit("order.placed", 1)
        await eventually(lambda: heard == [1])
        await eventually(
            lambda: b"rdb_last_bgsave_status:err" in command(broker, "INFO", "persistence")
        )
        room(False)
        error = await error_of(client.emit("order.placed", 2))
        assert isinstance(error, Throttled if lacks == "memory" else ConnectError)
        assert not error.sent
        for kind in ("normal", "pubsub"):
            command(broker, "CLIENT", "KILL", "TYPE", kind)
        await eventually(
            lambda: [getattr(each, "new", "") for each in told].count("connected") == 2
        )
        assert await client.send("sum", [1, 2], timeout=5) == 3
        room(True)
        await client.emit("order.placed", 3)
        await eventually(lambda: heard == [1, 3])
