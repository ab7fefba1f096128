"""Consumer groups on kafka://: nothing is lost, and repeated is only what was unfinished.

Members are processes of their own where they are killed or frozen.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from resilient_client import ClientProxy, ConfigurationError, Context, Receipt, Server
from resilient_client.transports.kafka import _driver
from tests.contract.rigs import Service
from tests.peers.kafka import Kafka
from tests.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

SESSION = 6.0  # the least that a broker allows by default


class Members:
    """Three processes of one group, each with a journal of its events."""

    def __init__(self, broker: Kafka, group: str) -> None:
        url = f"{broker.url}?group={group}&partitions=6&session_timeout={SESSION}"
        self.services = [Service(url, {"concurrency": 2}, "asyncio") for _ in range(3)]

    async def __aenter__(self) -> Self:
        await asyncio.gather(*(each.start_async() for each in self.services))
        return self

    async def __aexit__(self, *_: object) -> None:
        for each in self.services:
            each.thaw()
            each.stop()

    def finished(self) -> Counter[int]:
        return Counter(n for each in self.services for n in each.journal("slow_event"))

    def begun(self, number: int) -> Counter[int]:
        return Counter(self.services[number].journal("slow_event_started"))

    def ended(self, number: int) -> set[int]:
        return set(self.services[number].journal("slow_event"))


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_a_member_that_dies_or_freezes_loses_nothing_and_repeats_only_the_unfinished(
    kafka_broker: Kafka, unique: str, how: str
) -> None:
    kafka_broker.create_topics("fault.slow_event", partitions=6)
    count = 72
    async with Members(kafka_broker, unique) as members:
        async with ClientProxy(kafka_broker.url, policies=(), telemetry=False) as client:
            for n in range(count):
                await client.emit("fault.slow_event", n, headers={"kafka-key": f"k{n % 24}"})
        await eventually(lambda: all(members.ended(m) for m in range(3)))
        await asyncio.sleep(0.75)
        victim = members.services[1]
        getattr(victim, how)()
        unfinished = set(members.begun(1)) - members.ended(1)
        # what it ended in the last moment may not have been committed
        fresh = set(victim.journal("slow_event")[-12:])
        await eventually(lambda: len(members.finished()) == count, 40)
        if how == "freeze":
            victim.thaw()
            await asyncio.sleep(2.0)  # what it had begun ends, its commits are refused
            async with ClientProxy(kafka_broker.url, policies=(), telemetry=False) as client:
                for n in range(count, count + 12):
                    await client.emit("fault.slow_event", n, headers={"kafka-key": f"k{n}"})
            await eventually(lambda: len(members.finished()) == count + 12, 40)
        repeated = {n for n, times in members.finished().items() if times > 1}
        begun_again = {
            n for n, times in sum((members.begun(m) for m in range(3)), Counter()).items()
            if times > 1
        }  # fmt: skip
        assert begun_again <= unfinished | fresh, (begun_again, unfinished)
        assert repeated <= unfinished | fresh
        assert len(begun_again) <= 12


async def test_members_that_come_and_go_in_order_repeat_nothing(
    kafka_broker: Kafka, unique: str
) -> None:
    done: list[tuple[str, int]] = []

    def member(name: str) -> Server:
        server = Server(
            kafka_broker.url, telemetry=False, group=unique, partitions=4, grace=5.0, concurrency=3
        )

        @server.event_pattern(f"{unique}.work")
        async def work(n: int, context: Context) -> None:
            await asyncio.sleep(0.05)
            done.append((name, n))

        return server

    async with ClientProxy(kafka_broker.url, policies=(), telemetry=False) as client:
        first, second, third = member("a"), member("b"), member("c")
        await first.start()

        async def produce() -> None:
            for n in range(300):
                await client.emit(f"{unique}.work", n, headers={"kafka-key": str(n % 40)})
                await asyncio.sleep(0.01)

        producing = asyncio.create_task(produce())
        await asyncio.sleep(0.5)
        await second.start()
        await asyncio.sleep(0.7)
        await third.start()
        await asyncio.sleep(0.7)
        await first.aclose()
        await producing
        await eventually(lambda: len(done) >= 300)
        await asyncio.sleep(0.5)
        await second.aclose()
        await third.aclose()
    assert sorted(n for _, n in done) == list(range(300))
    assert {name for name, _ in done} == {"a", "b", "c"}
    for key in range(40):
        of_key = [n for _, n in done if n % 40 == key]
        assert of_key == sorted(of_key)


async def test_a_member_that_drains_hands_over_what_it_still_finishes(
    kafka_broker: Kafka, unique: str
) -> None:
    heard: list[str] = []

    def member(name: str) -> Server:
        server = Server(kafka_broker.url, telemetry=False, group=unique, partitions=2)

        @server.event_pattern(unique)
        async def work(key: str) -> None:
            heard.append(f"{name}{key}")
            await asyncio.sleep(2.0)

        return server

    first, second, third = member("a"), member("b"), member("c")
    await first.start()
    async with ClientProxy(kafka_broker.url, policies=(), telemetry=False) as client:
        for key in "12345678":
            await client.emit(unique, key, headers={"kafka-key": key})
        await eventually(lambda: len(heard) == 8)
        await asyncio.gather(first.aclose(), second.start(), third.start())
        await asyncio.gather(second.aclose(), third.aclose())
    assert sorted(heard) == [f"a{key}" for key in "12345678"]


async def test_an_event_that_waits_for_another_attempt_goes_where_its_partition_goes(
    kafka_broker: Kafka, unique: str
) -> None:
    heard: list[tuple[str, int, int]] = []

    def member(name: str) -> Server:
        server = Server(kafka_broker.url, telemetry=False, group=unique, partitions=4, retry_wait=2)

        @server.event_pattern(unique)
        async def work(number: int, context: Context) -> None:
            heard.append((name, number, context.attempt))
            if name == "a" and number < 100 and context.attempt == 1:
                raise ValueError("not here")

        return server

    def numbers(name: str) -> set[int]:
        return {number for each, number, _ in heard if each == name}

    async def emit(numbers: range) -> None:
        async with ClientProxy(kafka_broker.url, policies=(), telemetry=False) as client:
            for number in numbers:
                await client.emit(unique, number, headers={"kafka-key": str(number % 100)})

    async with member("a"):
        await emit(range(16))
        await eventually(lambda: len(heard) == 16)
        joining = time.monotonic()
        async with member("b"):
            assert time.monotonic() - joining < 1.8  # what waits is not waited for
            await emit(range(100, 116))
            await eventually(lambda: len(numbers("a") | numbers("b")) == 32)
    taken = {number for number in numbers("b") if number < 100}
    assert 0 < len(taken) < 16
    for key in range(16):
        attempts = [(name, number) for name, number, _ in heard if number % 100 == key][1:]
        name = "b" if key in taken else "a"
        assert attempts == [(name, key), (name, 100 + key)]


async def test_an_event_that_waited_when_its_server_stopped_is_handled_when_that_starts_again(
    kafka_broker: Kafka, unique: str
) -> None:
    heard: list[int] = []
    server = Server(kafka_broker.url, telemetry=False, group=unique, retry_wait=60)

    @server.event_pattern(unique)
    async def work(number: int) -> None:
        heard.append(number)
        if len(heard) == 1:
            raise ValueError("not now")

    async with server, ClientProxy(kafka_broker.url, policies=(), telemetry=False) as client:
        await client.emit(unique, 1)
        await eventually(lambda: heard == [1])
    async with server:
        await eventually(lambda: heard == [1, 1])


async def test_an_event_that_a_stop_cut_short_is_handled_when_its_server_starts_again(
    kafka_broker: Kafka, unique: str
) -> None:
    heard: list[int] = []
    server = Server(kafka_broker.url, telemetry=False, group=unique, grace=0.1)

    @server.event_pattern(unique)
    async def work(number: int) -> None:
        heard.append(number)
        if len(heard) == 1:
            await asyncio.Event().wait()

    async with server, ClientProxy(kafka_broker.url, policies=(), telemetry=False) as client:
        await client.emit(unique, 1)
        await eventually(lambda: heard == [1])
    async with server:
        await eventually(lambda: heard == [1, 1])


async def test_only_what_is_finished_without_a_gap_is_committed(
    kafka_broker: Kafka, unique: str
) -> None:
    gate = asyncio.Event()
    done: list[int] = []
    server = Server(kafka_broker.url, telemetry=False, group=unique, partitions=1, grace=0.1)

    @server.event_pattern(f"{unique}.gap")
    async def gap(n: int) -> None:
        if n == 3:
            await gate.wait()
        done.append(n)

    async with ClientProxy(kafka_broker.url, policies=(), telemetry=False) as client:
        async with server:
            for n in range(10):
                await client.emit(f"{unique}.gap", n)
            await eventually(lambda: len(done) == 9)
            await asyncio.sleep(0.3)
            assert await committed(kafka_broker, unique, f"{unique}.gap") == 3
        # the server has left in the middle of 3: a new one does what is not committed
        again = Server(kafka_broker.url, telemetry=False, group=unique)
        repeated: list[int] = []
        again.event_pattern(f"{unique}.gap")(repeated.append)
        async with again:
            await eventually(lambda: len(repeated) == 7)
            await eventually_async(lambda: committed(kafka_broker, unique, f"{unique}.gap"), 10)
        assert sorted(repeated) == list(range(3, 10))


async def eventually_async(ask: Callable[[], Any], wanted: Any) -> None:
    for _ in range(100):
        if (found := await ask()) == wanted:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"it is {found}")


async def test_a_group_does_not_lag_behind_what_holds_no_record(
    kafka_broker: Kafka, unique: str
) -> None:
    heard: list[int] = []
    server = Server(kafka_broker.url, telemetry=False, group=unique, partitions=1)
    server.event_pattern(unique)(heard.append)
    producer = AIOKafkaProducer(bootstrap_servers=kafka_broker.bootstrap, transactional_id=unique)
    async with server:
        await producer.start()
        for value in (b"1", b"2"):
            await producer.begin_transaction()
            await producer.send_and_wait(unique, value)
            if value == b"1":
                await producer.commit_transaction()
            else:
                await producer.abort_transaction()
        await producer.stop()
        # two records, and the ends of two transactions
        await eventually_async(lambda: committed(kafka_broker, unique, unique), 4)
    assert heard == [1]


async def committed(broker: Kafka, group: str, topic: str, partition: int = 0) -> int | None:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker.bootstrap, group_id=f"{group}-server", enable_auto_commit=False
    )
    await consumer.start()
    try:
        offset: int | None = await consumer.committed(TopicPartition(topic, partition))
        return offset
    finally:
        await consumer.stop()


async def test_replicas_share_requests_and_every_group_hears_an_event(
    kafka_broker: Kafka, unique: str
) -> None:
    heard: Counter[str] = Counter()

    def member(group: str, name: str) -> Server:
        server = Server(kafka_broker.url, telemetry=False, group=group, partitions=4)
        server.event_pattern(f"{unique}.told")(lambda payload: heard.update([name]))
        if group == unique:
            server.message_pattern(f"{unique}.who")(lambda payload: name)
        return server

    async with (
        member(unique, "a"),
        member(unique, "b"),
        member(f"{unique}-other", "c"),
        ClientProxy(kafka_broker.url, policies=(), telemetry=False) as client,
    ):
        await asyncio.sleep(1.5)  # the first has given up half
        answers = Counter(
            await asyncio.gather(*(client.send(f"{unique}.who", n) for n in range(60)))
        )
        assert set(answers) == {"a", "b"}
        for n in range(30):
            await client.emit(f"{unique}.told", n)
        await eventually(lambda: heard.total() == 60)
        assert heard["c"] == 30
        assert heard["a"] + heard["b"] == 30


async def test_a_group_that_was_away_finds_what_came_meanwhile(
    kafka_broker: Kafka, unique: str
) -> None:
    heard: list[int] = []

    def member() -> Server:
        server = Server(kafka_broker.url, telemetry=False, group=unique, grace=0.1)
        server.event_pattern(f"{unique}.kept")(heard.append)
        return server

    async with ClientProxy(kafka_broker.url, policies=(), telemetry=False) as client:
        await client.emit(f"{unique}.kept", -1)  # before the group was: not for it
        async with member():
            pass  # nothing was handled, yet the group begins here
        for n in range(10):
            assert (await client.emit(f"{unique}.kept", n)).delivery == "stored"
        async with member():
            await eventually(lambda: len(heard) >= 10)
            await asyncio.sleep(0.2)
    assert sorted(heard) == list(range(10))


async def test_a_server_that_begins_again_goes_on_where_its_group_was_put_meanwhile(
    kafka_broker: Kafka, unique: str
) -> None:
    """As kafka-consumer-groups.sh --reset-offsets does."""
    heard: list[int] = []
    server = Server(kafka_broker.url, telemetry=False, group=unique, partitions=1)
    server.event_pattern(unique)(heard.append)
    async with ClientProxy(kafka_broker.url, policies=(), telemetry=False) as client:
        async with server:
            for n in range(3):
                await client.emit(unique, n)
            await eventually(lambda: heard == [0, 1, 2])
        consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka_broker.bootstrap, group_id=f"{unique}-server"
        )
        await consumer.start()
        try:
            place = TopicPartition(unique, 0)
            consumer.assign([place])
            await consumer.commit({place: 1})
        finally:
            await consumer.stop()
        async with server:
            await eventually(lambda: sorted(heard) == [0, 1, 1, 2, 2])


async def test_only_what_outlives_its_topics_retention_is_lost_to_a_group_that_was_away(
    kafka_broker: Kafka, unique: str
) -> None:
    """Its only member is killed with an event in work, and comes back after that one's time."""
    topic = "fault.slow_event"
    kafka_broker.create_topics(topic, partitions=6)
    query = f"?group={unique}&session_timeout={SESSION}"
    service = Service(kafka_broker.url + query, {}, "asyncio")
    key = {"kafka-key": unique}  # one partition
    try:
        await service.start_async()
        async with ClientProxy(kafka_broker.url, policies=(), telemetry=False) as client:
            assert await client.emit(topic, 1, headers=key) == Receipt("stored")
            await eventually(lambda: service.journal("slow_event_started") == [1])
            service.kill()
            await expire(kafka_broker, topic)
            await client.emit(topic, 2, headers=key)
            await service.start_async()
            await eventually(lambda: service.journal("slow_event") != [])
            await client.emit(topic, 3, headers=key)
            await eventually(lambda: 3 in service.journal("slow_event"))
        assert service.journal("slow_event") == [2, 3]
    finally:
        service.stop()


async def expire(broker: Kafka, topic: str) -> None:
    """Let the retention of all that is in a topic now be over."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=broker.bootstrap)
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await consumer.start()
    await admin.start()
    try:
        places = list(consumer.assignment())
        ends = await consumer.end_offsets(places)
        await retain(admin, topic, 1)
        async with asyncio.timeout(20):
            while await consumer.beginning_offsets(places) != ends:
                await asyncio.sleep(0.1)
        await retain(admin, topic, 3_600_000)
        await asyncio.sleep(1)  # until the broker has noticed
    finally:
        await consumer.stop()
        await admin.close()


async def retain(admin: AIOKafkaAdminClient, topic: str, milliseconds: int) -> None:
    config = {"retention.ms": str(milliseconds)}
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, config)])


async def test_new_partitions_and_a_topic_made_anew_are_read_from_their_beginning(
    kafka_broker: Kafka, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_driver, "METADATA_AGE", 1.0)
    topic = f"{unique}.event"
    heard: list[int] = []
    server = Server(kafka_broker.url, telemetry=False, group=unique, partitions=1)
    server.event_pattern(topic)(heard.append)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap)
    await admin.start()
    try:
        async with server:
            async with ClientProxy(kafka_broker.url, policies=(), telemetry=False) as client:
                for number in range(5):
                    await client.emit(topic, number)
                await eventually(lambda: len(heard) == 5)

            await admin.create_partitions({topic: NewPartitions(3)})
            await written(kafka_broker, topic, range(5, 11), partitions=3)
            await eventually(lambda: sorted(heard) == list(range(11)))

            await asyncio.sleep(0.5)  # all is committed
            await admin.delete_topics([topic])
            await eventually(lambda: topic not in kafka_broker.topics())
            await asyncio.sleep(2.0)  # the group knows
            await admin.create_topics([NewTopic(topic, 1, 1)])  # or the broker was first
            await written(kafka_broker, topic, range(11, 14), partitions=1)
            await eventually(lambda: sorted(heard) == list(range(14)))
    finally:
        await admin.close()


async def written(broker: Kafka, topic: str, numbers: range, *, partitions: int) -> None:
    """Numbers in a topic, in turn over so many partitions, as soon as it has them."""
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, metadata_max_age_ms=100)
    await producer.start()
    try:
        while len(await producer.partitions_for(topic)) < partitions:
            await asyncio.sleep(0.1)
        for number in numbers:
            await producer.send_and_wait(topic, b"%d" % number, partition=number % partitions)
    finally:
        await producer.stop()


async def test_a_killed_broker_loses_no_event_and_repeats_none(
    new_broker: Callable[..., Kafka], unique: str
) -> None:
    """`emit` says "stored": each such event is handled, once, although the broker is killed."""
    broker = await asyncio.to_thread(new_broker, Kafka)
    heard: Counter[int] = Counter()
    server = Server(broker.url, telemetry=False, group=unique)
    server.event_pattern("kept")(lambda n: heard.update([n]))
    stored: list[int] = []
    tasks: list[asyncio.Future[None]] = []
    async with server, ClientProxy(broker.url, policies=(), telemetry=False) as client:

        async def emit(n: int) -> None:
            try:
                await client.emit("kept", n, timeout=1)
            except Exception:
                return
            stored.append(n)

        for n in range(200):
            tasks.append(asyncio.ensure_future(emit(n)))
            await asyncio.sleep(0.005)
            if n == 100:
                broker.kill()
                started = time.monotonic()
        await broker.restart_async()
        await asyncio.gather(*tasks)
        for n in range(200, 260):
            await emit(n)
            await asyncio.sleep(0.02)
        await eventually(lambda: set(stored) <= set(heard))
        assert time.monotonic() - started < 60
    assert len(stored) > 100
    assert max(heard.values()) == 1, json.dumps(heard)


async def test_a_server_that_drains_still_answers_and_commits_what_it_did(
    kafka_broker: Kafka, unique: str
) -> None:
    server = Server(kafka_broker.url, telemetry=False, group=unique, partitions=1, grace=5.0)
    started = asyncio.Event()

    @server.message_pattern(f"{unique}.slow")
    async def slow(n: int) -> int:
        started.set()
        await asyncio.sleep(0.3)
        return n

    async with ClientProxy(kafka_broker.url, policies=(), telemetry=False) as client:
        async with server:
            calls = [asyncio.ensure_future(client.send(f"{unique}.slow", n)) for n in range(20)]
            await started.wait()
            await asyncio.sleep(0.1)
        assert await asyncio.gather(*calls) == list(range(20))
    assert await committed(kafka_broker, unique, f"{unique}.slow") == 20


def wear_out(producer: Any) -> None:
    """What aiokafka does when the broker refuses its sequence numbers."""
    producer._sender._fail_all = lambda task: None
    producer._sender._maybe_wait_for_pid = None
    producer._message_accumulator._waiter_future.set_result(None)


async def test_a_server_whose_producer_gave_up_begins_anew(
    kafka_broker: Kafka, unique: str
) -> None:
    states: list[str] = []
    server = Server(
        kafka_broker.url,
        telemetry=False,
        group=unique,
        observers=[lambda event: states.append(getattr(event, "new", ""))],
    )
    server.message_pattern(f"{unique}.echo")(lambda payload: payload)
    async with server, ClientProxy(kafka_broker.url, policies=(), telemetry=False) as client:
        assert await client.send(f"{unique}.echo", 1) == 1
        listener: Any = server._listeners[0]
        before = listener._producer
        wear_out(before)
        await eventually(lambda: listener._producer not in (None, before))
        await eventually(lambda: states[-1] == "connected")
        assert await client.send(f"{unique}.echo", 2, timeout=20) == 2
    assert states == ["connecting", "connected", "reconnecting", "connected", "closed"]


async def test_a_server_that_its_broker_will_not_have_again_ends(
    kafka_broker: Kafka, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(kafka_broker.url, telemetry=False, group=unique)
    server.message_pattern(f"{unique}.echo")(lambda payload: payload)
    listener: Any = server._listeners[0]

    async def refused() -> None:
        raise ConfigurationError("the password is another by now")

    serving = asyncio.ensure_future(server.serve())
    await eventually(lambda: listener._link.status == "connected")
    monkeypatch.setattr(listener, "_join", refused)
    wear_out(listener._producer)
    with pytest.raises(ConfigurationError, match="another by now"):
        await asyncio.wait_for(serving, 20)
