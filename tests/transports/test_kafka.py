"""What is peculiar to kafka://: topics, keys, order, dead letters, expiry, credentials."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import CreateAclsRequest
from aiokafka.record.util import calc_crc32c

from resilient_client import (
    ClientProxy,
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    Context,
    DeadlineExceeded,
    PayloadError,
    Receipt,
    RemoteError,
    ResilientClientError,
    Retry,
    Server,
    Timeout,
)
from resilient_client.events import Degraded
from resilient_client.testing import check_transport
from resilient_client.transports.kafka import _answers, _driver
from tests.calls import error_of, outcome
from tests.peers.brokers import require_peer
from tests.peers.certificates import certificates
from tests.peers.kafka import Kafka
from tests.peers.nest import NestClient, nest_missing
from tests.telemetry.kit import Recorded
from tests.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

IMPOSSIBLE = ("object_patterns", "no_handler")
"""What Kafka cannot: patterns that are no text, telling that nobody is there."""


@asynccontextmanager
async def client_of(url: str, **options: Any) -> AsyncIterator[ClientProxy]:
    async with ClientProxy(url, policies=(), telemetry=False, **options) as client:
        yield client


async def test_kafka_passes_the_conformance_suite(kafka_broker: Kafka, unique: str) -> None:
    options = {"group": unique}
    assert len(await check_transport(kafka_broker.url, skip=IMPOSSIBLE, options=options)) == 21


@pytest.mark.filterwarnings("ignore")  # what a closed loop's sockets say when they are collected
def test_a_client_moves_to_another_event_loop(kafka_broker: Kafka, unique: str) -> None:
    client = ClientProxy(kafka_broker.url, policies=(), telemetry=False)

    async def use(*, close: bool) -> None:
        assert (await client.emit(f"{unique}.moved", 1)).delivery == "stored"
        with pytest.raises(DeadlineExceeded):
            await client.send(f"{unique}.moved", 1, timeout=0.3)
        if close:
            await client.aclose()

    asyncio.run(use(close=False))
    asyncio.run(use(close=True))
    gc.collect()


async def test_calls_that_work_leave_no_complaint_in_the_log(
    kafka_broker: Kafka, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(kafka_broker.url, telemetry=False, group=unique)
    patterns = [f"{unique}.{n}" for n in range(3)]  # each makes the client read one more topic
    server.message_pattern(patterns)(lambda payload: payload)
    async with server, client_of(kafka_broker.url) as client:
        assert [await client.send(pattern, 1) for pattern in patterns] == [1, 1, 1]
        await asyncio.sleep(0.2)  # aiokafka's reader is told a moment later
    assert [each.getMessage() for each in caplog.records if each.levelname == "ERROR"] == []


async def test_a_frozen_broker_is_noticed_and_nothing_waits_beyond_its_time(
    new_broker: Callable[..., Kafka], unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker = await asyncio.to_thread(new_broker, Kafka)
    heard: list[int] = []
    server = Server(broker.url, telemetry=False, group=unique, request_timeout=1.5)
    server.message_pattern("echo")(lambda payload: payload)
    server.event_pattern("event")(heard.append)
    async with server, client_of(broker.url, request_timeout=1.5) as client:
        assert await client.send("echo", 1) == 1
        await client.emit("event", 0)
        broker.freeze()
        try:
            started = time.monotonic()
            late, lost, event = await asyncio.gather(
                error_of(client.send("echo", 2, timeout=0.5)),
                error_of(client.send("echo", 3, timeout=30)),
                error_of(client.emit("event", 1, timeout=30)),
            )
            assert isinstance(late, DeadlineExceeded)
            for error in (lost, event):
                assert isinstance(error, ConnectionLost), error
                assert error.sent
            assert time.monotonic() - started < 4.5
        finally:
            broker.thaw()
        deadline = time.monotonic() + 15
        while True:
            try:
                assert await client.send("echo", 4, timeout=2) == 4
            except ResilientClientError:
                assert time.monotonic() < deadline
            else:
                break
        await client.emit("event", 2)
        await eventually(lambda: 2 in heard)
    assert heard.count(0) == heard.count(2) == 1
    assert heard.count(1) <= 1
    gc.collect()
    assert [each for each in caplog.records if each.name == "asyncio"] == []


# ------------------------------------------------------------------------------------- topics


async def test_both_ends_make_the_topics_that_are_missing(kafka_broker: Kafka, unique: str) -> None:
    server = Server(kafka_broker.url, telemetry=False, group=unique, partitions=2)
    server.message_pattern(f"{unique}.echo")(lambda payload: payload)
    async with server:
        async with client_of(kafka_broker.url, partitions=5) as client:
            assert await client.send(f"{unique}.echo", 1) == 1
            await client.emit(f"{unique}.nobody", 1)
            topics: Any = client._transports[0]._link.current.topics  # type: ignore[attr-defined]
            assert topics.known(f"{unique}.echo") == 2
            assert topics.known(f"{unique}.nobody") == 5
    kafka_broker.delete_topics(f"{unique}.echo", f"{unique}.echo.reply", f"{unique}.nobody")


async def test_a_missing_topic_that_may_not_be_made_is_named(
    kafka_broker: Kafka, unique: str
) -> None:
    async with client_of(kafka_broker.url, declare=False) as client:
        for call in (client.send(f"{unique}.no", 1), client.emit(f"{unique}.no", 1)):
            error = await error_of(call)
            assert isinstance(error, ConfigurationError)
            assert f"topic {unique}.no" in str(error)
            assert "kafka-topics.sh" in error.hint
            assert not error.sent
    server = Server(kafka_broker.url, telemetry=False, declare=False, group=unique)
    server.message_pattern(f"{unique}.no")(lambda: None)
    with pytest.raises(ConfigurationError, match="is missing"):
        await server.start()
    assert f"{unique}.no" not in kafka_broker.topics()


async def test_a_server_needs_no_topics_but_its_own(kafka_broker: Kafka, unique: str) -> None:
    """Where it may make none it does without those by which pings and cancelled calls travel."""
    own = ["resilient_client.ping", "resilient_client.ping.reply", "resilient_client.cancel"]
    kafka_broker.delete_topics(*own)
    kafka_broker.create_topics(f"{unique}.echo", f"{unique}.echo.reply", f"{unique}.event")
    heard: list[Any] = []
    server = Server(kafka_broker.url, telemetry=False, declare=False, group=unique)
    server.message_pattern(f"{unique}.echo")(lambda payload: payload)
    server.event_pattern(f"{unique}.event")(heard.append)
    async with server, client_of(kafka_broker.url, declare=False) as client:
        assert await client.send(f"{unique}.echo", 1) == 1
        await client.emit(f"{unique}.event", 2)
        await eventually(lambda: heard == [2])
        health = await client.ping()
        assert isinstance(health.error, ConfigurationError), health
    assert not set(own) & set(kafka_broker.topics())


@pytest.mark.timeout(180)
async def test_more_replicas_than_brokers_are_named_as_the_reason(
    kafka_broker: Kafka, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resilient_client.transports.kafka.client.PREPARE_TIMEOUT", 1.0)
    async with client_of(kafka_broker.url, replication=3) as client:
        error = await error_of(client.emit(f"{unique}.many", 1))
    assert isinstance(error, ConnectError)
    assert "replication" in str(error).lower()
    assert "more brokers" in (error.hint or "")


async def test_a_call_waits_for_its_topic_as_long_as_it_may(
    kafka_broker: Kafka, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that has lost a broker takes seconds until it makes one."""
    monkeypatch.setattr("resilient_client.transports.kafka.client.PREPARE_TIMEOUT", 0.01)
    async with client_of(kafka_broker.url) as client:
        many = [client.emit(f"{unique}.slow", n, timeout=30) for n in range(3)]
        assert await asyncio.gather(*many) == [Receipt("stored")] * 3


async def test_topics_that_are_removed_are_made_again(
    new_broker: Callable[..., Kafka], unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_driver, "METADATA_AGE", 1.0)
    options = ["auto.create.topics.enable=false"]
    broker = await asyncio.to_thread(new_broker, Kafka, options=options)
    heard: list[int] = []
    server = Server(broker.url, telemetry=False, group=unique)
    server.message_pattern("echo")(lambda payload: payload)
    server.event_pattern("event")(heard.append)
    async with server, client_of(broker.url) as client:

        async def answered(number: int) -> None:
            async with asyncio.timeout(60):
                while True:
                    try:
                        assert await client.send("echo", number, timeout=1) == number
                        await client.emit("event", number, timeout=1)
                    except DeadlineExceeded:
                        continue
                    return

        await answered(1)
        await asyncio.to_thread(broker.delete_topics, "echo", "echo.reply", "event")
        await answered(2)
        await eventually(lambda: 2 in heard)


@pytest.mark.timeout(180)
async def test_a_reply_topic_may_get_more_partitions_and_be_made_again_with_fewer(
    new_broker: Callable[..., Kafka], unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_driver, "METADATA_AGE", 0.5)
    broker = await asyncio.to_thread(new_broker, Kafka, options=["auto.create.topics.enable=false"])
    replies = f"{unique}.reply"
    server = Server(broker.url, telemetry=False, group=unique, partitions=1)
    server.message_pattern(unique)(lambda payload: payload)
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server)
        await admin.create_partitions({replies: NewPartitions(5)})
        clients = [await stack.enter_async_context(client_of(broker.url)) for _ in range(6)]
        for client in clients:
            assert await client.send(unique, "more", timeout=5) == "more"
        await asyncio.to_thread(broker.delete_topics, replies)
        await eventually(lambda: replies not in broker.topics())
        await asyncio.to_thread(broker.create_topics, replies)
        for client in clients:
            answers = [await outcome(client.send(unique, "fewer", timeout=2)) for _ in range(4)]
            assert answers[-1] == "fewer", answers
    await admin.close()


async def test_a_pattern_that_is_no_topic_is_refused_by_the_client(kafka_broker: Kafka) -> None:
    async with client_of(kafka_broker.url) as client:
        for call in (client.send({"cmd": "x"}, 1), client.emit("a b", 1)):
            assert isinstance(await error_of(call), ConfigurationError)


async def test_a_stranger_cannot_have_topics_made_by_asking_for_replies_there(
    kafka_broker: Kafka, unique: str
) -> None:
    handled: list[Any] = []
    server = Server(kafka_broker.url, telemetry=False, group=unique)
    server.message_pattern(f"{unique}.echo")(handled.append)
    producer = AIOKafkaProducer(bootstrap_servers=kafka_broker.bootstrap)
    await producer.start()
    try:
        async with server:
            for topic in (f"{unique}.planted", "not a topic", "\ufffd" * 300):
                headers = [("kafka_correlationId", b"1"), ("kafka_replyTopic", topic.encode())]
                await producer.send_and_wait(f"{unique}.echo", b"1", headers=headers)
            await eventually(lambda: len(handled) == 3)
            await asyncio.sleep(0.3)
            async with client_of(kafka_broker.url) as client:
                await client.send(f"{unique}.echo", 4)
    finally:
        await producer.stop()
    assert f"{unique}.planted" not in kafka_broker.topics()


async def test_a_reply_topic_that_is_made_later_gets_its_replies(
    kafka_broker: Kafka, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_answers, "METADATA_AGE", 0.0)
    handled: list[Any] = []
    server = Server(kafka_broker.url, telemetry=False, group=unique)
    server.message_pattern(unique)(lambda payload: handled.append(payload) or payload)
    headers = [("kafka_correlationId", b"1"), ("kafka_replyTopic", f"{unique}.late".encode())]
    producer = AIOKafkaProducer(bootstrap_servers=kafka_broker.bootstrap)
    await producer.start()
    try:
        async with server:
            await producer.send_and_wait(unique, b"early", headers=headers)
            await eventually(lambda: handled == ["early"])
            await asyncio.to_thread(kafka_broker.create_topics, f"{unique}.late")
            await producer.send_and_wait(unique, b"later", headers=headers)
            replies = await records_of(kafka_broker, f"{unique}.late", 1)
    finally:
        await producer.stop()
    assert [reply.value for reply in replies][-1] == b"later"


async def test_a_header_whose_name_is_no_utf8_costs_nobody_elses_records(
    kafka_broker: Kafka, unique: str
) -> None:
    heard: list[Any] = []
    told: list[Any] = []
    server = Server(
        kafka_broker.url, telemetry=False, group=unique, partitions=1, observers=[told.append]
    )
    server.event_pattern(unique)(heard.append)
    server.message_pattern(f"{unique}.echo")(lambda payload: payload)
    async with server, client_of(kafka_broker.url) as client:
        assert await client.send(f"{unique}.echo", "a") == "a"
        for number in range(3):
            await client.emit(unique, number)
            for topic in (unique, f"{unique}.echo.reply", "resilient_client.cancel"):
                await send_unreadable(kafka_broker, topic)
            await client.emit(unique, 10 + number)
            assert await client.send(f"{unique}.echo", "b", timeout=5) == "b"
        await eventually(lambda: len(heard) == 6)
    assert heard == [0, 10, 1, 11, 2, 12]
    reasons = [event.reason for event in told if isinstance(event, Degraded)]
    assert len(reasons) == 3
    assert f"{unique}/0: what is between 1 and 1 cannot be read" in reasons[0]


async def send_unreadable(broker: Kafka, topic: str) -> None:
    """A record with a header as only producers of other languages write it."""
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap)
    await producer.start()
    try:
        batch = producer.create_batch()
        batch.append(key=None, value=b"?", timestamp=None, headers=[("QQQQ", b"v")])
        batch.close()
        raw = bytearray(batch._build())
        at = raw.index(b"QQQQ")
        raw[at : at + 2] = b"\xff\xfe"
        raw[17:21] = calc_crc32c(memoryview(raw)[21:]).to_bytes(4, "big")
        batch._buffer = raw
        await (await producer.send_batch(batch, topic, partition=0))
    finally:
        await producer.stop()


async def test_a_message_above_the_brokers_limit_is_a_payload_error(
    kafka_broker: Kafka, unique: str
) -> None:
    server = Server(kafka_broker.url, telemetry=False, group=unique)

    @server.message_pattern(f"{unique}.big")
    async def big(size: int) -> str:
        return "x" * size

    async with server, client_of(kafka_broker.url) as client:
        error = await error_of(client.emit(f"{unique}.big", "x" * 2_000_000))
        assert isinstance(error, PayloadError), error
        assert "max.message.bytes" in error.hint
        assert not error.sent
        error = await error_of(client.send(f"{unique}.big", 2_000_000))
        assert isinstance(error, RemoteError)
        assert await client.send(f"{unique}.big", 1000) == "x" * 1000


async def test_bytes_are_the_value_itself_both_ways(kafka_broker: Kafka, unique: str) -> None:
    server = Server(kafka_broker.url, telemetry=False, group=unique)

    @server.message_pattern(f"{unique}.turned")
    async def turned(payload: bytes) -> bytes:
        return payload[::-1]

    async with server, client_of(kafka_broker.url) as client:
        assert await client.send(f"{unique}.turned", b"\xff\x00", returns=bytes) == b"\x00\xff"
        assert await client.send(f"{unique}.turned", b"\xff\x00") == b"\x00\xff"
        records = await records_of(kafka_broker, f"{unique}.turned", 2)
    assert [record.value for record in records] == [b"\xff\x00"] * 2


async def test_what_a_transaction_wrote_counts_when_it_is_committed(
    kafka_broker: Kafka, unique: str
) -> None:
    heard: list[int] = []
    server = Server(kafka_broker.url, telemetry=False, group=unique)
    server.event_pattern(f"{unique}.event")(heard.append)
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka_broker.bootstrap, transactional_id=unique, enable_idempotence=True
    )
    async with server:
        await producer.start()
        for value in (b"1", b"2", b"3"):
            await producer.begin_transaction()
            await producer.send_and_wait(f"{unique}.event", value, key=b"one")
            if value == b"2":
                await producer.abort_transaction()
            else:
                await producer.commit_transaction()
        await producer.stop()
        await eventually(lambda: 3 in heard)
    assert heard == [1, 3]


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_what_others_have_compressed_is_read(
    kafka_broker: Kafka, unique: str, codec: str
) -> None:
    heard: list[Any] = []
    server = Server(kafka_broker.url, telemetry=False, group=unique)
    server.event_pattern(unique)(heard.append)
    producer = AIOKafkaProducer(bootstrap_servers=kafka_broker.bootstrap, compression_type=codec)
    await producer.start()
    try:
        async with server:
            await producer.send_and_wait(unique, b"abc" * 10_000)
            await eventually(lambda: heard == ["abc" * 10_000])
    finally:
        await producer.stop()


async def test_a_message_above_the_limit_fails_alone(kafka_broker: Kafka, unique: str) -> None:
    async with client_of(f"{kafka_broker.url}?partitions=1") as client:
        for _ in range(2):
            small, error, other = await asyncio.gather(
                *(client.emit(f"{unique}.big", "x" * size) for size in (1, 2_000_000, 10)),
                return_exceptions=True,
            )
            assert isinstance(error, PayloadError), error
            assert isinstance(small, Receipt), small
            assert isinstance(other, Receipt), other
        for _ in range(3):
            assert (await client.emit(f"{unique}.big", "x")).delivery == "stored"


# ----------------------------------------------------------------------------- keys and order


@pytest.mark.interop
async def test_messages_that_fit_one_by_one_are_not_too_large_together(
    kafka_broker: Kafka, unique: str
) -> None:
    heard: list[int] = []
    server = Server(kafka_broker.url, telemetry=False, group=unique)
    server.event_pattern(unique)(lambda payload: heard.append(payload["n"]))
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap)
    await admin.start()
    try:
        await admin.create_topics(
            [NewTopic(unique, 1, 1, topic_configs={"max.message.bytes": "20000"})]
        )
    finally:
        await admin.close()
    async with server, client_of(kafka_broker.url) as client:
        every = [client.emit(unique, {"n": n, "text": "x" * 1000}) for n in range(300)]
        large = client.emit(unique, {"n": 300, "text": "x" * 30_000})
        *_, error = await asyncio.gather(*every, outcome(large))
        assert isinstance(error, PayloadError), error
        await eventually(lambda: len(heard) == 300)
    assert sorted(heard) == list(range(300))


async def test_a_key_chooses_the_partition_that_kafkajs_chooses(
    kafka_broker: Kafka, unique: str
) -> None:
    require_peer(nest_missing(12))
    seen: dict[str, set[tuple[str, int]]] = defaultdict(set)
    server = Server(kafka_broker.url, telemetry=False, group=unique, partitions=7)

    @server.event_pattern(f"{unique}.keyed")
    async def keyed(who: str, context: Context) -> None:
        seen[context.headers["kafka-key"]].add((who, context.raw.partition))

    keys = [f"user-{n}" for n in range(20)] + ["Zoë", "x"]
    async with server, client_of(kafka_broker.url) as client:
        for key in keys:
            await client.emit(f"{unique}.keyed", "ours", headers={"kafka-key": key})
        async with NestClient("kafka", kafka_broker.url) as nest:
            for key in keys:
                answer = await nest.emit(f"{unique}.keyed", {"key": key, "value": "nests"})
                assert answer.complete
        await eventually(lambda: sum(map(len, seen.values())) == 2 * len(keys))
    assert len({partition for each in seen.values() for _, partition in each}) > 3
    for key, both in seen.items():
        assert len({partition for _, partition in both}) == 1, (key, both)


async def test_records_of_a_key_are_handled_in_order_and_keys_side_by_side(
    kafka_broker: Kafka, unique: str
) -> None:
    done: dict[str, list[int]] = defaultdict(list)
    running = most = 0
    server = Server(kafka_broker.url, telemetry=False, group=unique, partitions=2)

    @server.event_pattern(f"{unique}.ordered")
    async def ordered(n: int, context: Context) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02 if n % 3 else 0.001)
        running -= 1
        done[context.headers["kafka-key"]].append(n)

    async with server, client_of(kafka_broker.url) as client:
        for n in range(20):
            await asyncio.gather(
                *(
                    client.emit(f"{unique}.ordered", n, headers={"kafka-key": f"k{key}"})
                    for key in range(6)
                )
            )
        await eventually(lambda: sum(map(len, done.values())) == 120)
    assert all(each == list(range(20)) for each in done.values()), done
    assert most > 2


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_concurrency_bounds_what_one_partition_runs(
    kafka_broker: Kafka, unique: str, concurrency: int
) -> None:
    order: list[int] = []
    running = most = 0
    server = Server(
        kafka_broker.url, telemetry=False, group=unique, partitions=1, concurrency=concurrency
    )

    @server.event_pattern(f"{unique}.bounded")
    async def bounded(n: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        order.append(n)

    async with server, client_of(kafka_broker.url) as client:
        for n in range(30):
            await client.emit(f"{unique}.bounded", n)
        await eventually(lambda: len(order) == 30)
    assert most == concurrency
    if concurrency == 1:
        assert order == list(range(30))


async def test_slow_handlers_hold_the_reading_and_lose_nothing(
    kafka_broker: Kafka, unique: str
) -> None:
    done: list[int] = []
    running = most = 0
    server = Server(
        kafka_broker.url, telemetry=False, group=unique, max_calls_per_connection=8, concurrency=20
    )

    @server.event_pattern(f"{unique}.slow")
    async def slow(n: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        done.append(n)

    async with server, client_of(kafka_broker.url) as client:
        await asyncio.gather(*(client.emit(f"{unique}.slow", n) for n in range(3000)))
        await eventually(lambda: len(done) == 3000, 30)
    assert sorted(done) == list(range(3000))
    assert most == 8


async def test_a_handler_of_batches_gets_lists_in_order(kafka_broker: Kafka, unique: str) -> None:
    batches: list[list[int]] = []
    server = Server(kafka_broker.url, telemetry=False, group=unique, partitions=1, retry_wait=0.01)

    @server.event_pattern(f"{unique}.batched", batch=10)
    async def batched(items: list[int]) -> None:
        if 13 in items and len(batches) < 2:
            batches.append([])
            raise KeyError("not yet")
        await asyncio.sleep(0.01)
        batches.append(items)

    async with server, client_of(kafka_broker.url) as client:
        await client.emit(f"{unique}.batched", 0)
        await asyncio.gather(*(client.emit(f"{unique}.batched", n) for n in range(1, 40)))
        await eventually(lambda: sum(map(len, batches)) == 40)
    assert [n for batch in batches for n in batch] == list(range(40))
    assert max(map(len, batches)) == 10


async def test_a_batch_is_linked_to_each_of_its_senders_and_continues_no_trace(
    kafka_broker: Kafka, unique: str
) -> None:
    recorded = Recorded()
    sizes: list[int] = []
    server = Server(kafka_broker.url, telemetry=recorded.settings, group=unique)

    @server.event_pattern(f"{unique}.traced", batch=10)
    async def traced(items: list[int]) -> None:
        sizes.append(len(items))

    options = {"telemetry": recorded.settings}
    async with server, ClientProxy(kafka_broker.url, **options) as client:  # type: ignore[arg-type]
        await asyncio.gather(*(client.emit(f"{unique}.traced", n) for n in range(12)))
        await eventually(lambda: sum(sizes) == 12)
    sent = [span for span in recorded.spans if span.kind.name == "PRODUCER"]
    taken = [span for span in recorded.spans if span.kind.name == "CONSUMER"]
    assert len(taken) == len(sizes) < len(sent) == 12
    assert [span.parent for span in taken] == [None] * len(taken)
    assert [(span.attributes or {})["messaging.batch.message_count"] for span in taken] == sizes
    linked = [link.context.span_id for span in taken for link in span.links]
    assert sorted(linked) == sorted(span.context.span_id for span in sent)
    assert recorded.value("messaging.client.consumed.messages") == 12


async def test_of_a_batch_that_fails_only_the_culprit_is_set_aside(
    kafka_broker: Kafka, unique: str
) -> None:
    heard: list[int] = []
    server = Server(
        kafka_broker.url,
        telemetry=False,
        group=unique,
        partitions=1,
        retry_wait=0.01,
        max_deliver=2,
    )

    @server.event_pattern(f"{unique}.mixed", batch=5)
    async def mixed(items: list[int]) -> None:
        if 3 in items:
            raise KeyError("never")
        await asyncio.sleep(0.02)
        heard.extend(items)

    async with server, client_of(kafka_broker.url) as client:
        await client.emit(f"{unique}.mixed", 0)
        values: list[Any] = [1, 2, 3, 4, "no number", 5, 6]
        await asyncio.gather(*(client.emit(f"{unique}.mixed", each) for each in values))
        await eventually(lambda: sorted(heard) == [0, 1, 2, 4, 5, 6])
        dead = await records_of(kafka_broker, f"{unique}.mixed.dead", 2)
    assert sorted(record.value for record in dead) == [b"3", b"no number"]


# ------------------------------------------------------------------------- what always fails


async def records_of(broker: Kafka, topic: str, count: int) -> list[Any]:
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        partitions = await consumer._client._wait_on_metadata(topic)
        places = [TopicPartition(topic, number) for number in partitions]
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        found: list[Any] = []
        async with asyncio.timeout(10):
            while len(found) < count:
                for each in (await consumer.getmany(timeout_ms=200)).values():
                    found += each
        return found
    finally:
        await consumer.stop()


async def test_what_fails_every_time_is_set_aside_and_the_rest_goes_on(
    kafka_broker: Kafka, unique: str
) -> None:
    tried: list[tuple[Any, int]] = []
    told: list[Any] = []
    server = Server(
        kafka_broker.url,
        telemetry=False,
        group=unique,
        partitions=1,
        max_deliver=3,
        retry_wait=0.01,
        observers=[told.append],
    )

    @server.event_pattern(f"{unique}.poison")
    async def poison(n: int, context: Context) -> None:
        tried.append((n, context.attempt))
        if n == 1:
            raise KeyError("never")
        if n == 2 and context.attempt == 1:
            raise KeyError("once")

    async with server, client_of(kafka_broker.url) as client:
        for value in (0, 1, "no number", 2, 3):
            headers = {"kafka-key": "one", "x-kept": "yes"}
            await client.emit(f"{unique}.poison", value, headers=headers)
        await eventually(lambda: (3, 1) in tried)
        dead = await records_of(kafka_broker, f"{unique}.poison.dead", 2)
    # in the key's order, each until it is over
    assert tried == [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1)]
    assert sorted((record.key, record.value) for record in dead) == [
        (b"one", b"1"),
        (b"one", b"no number"),
    ]
    headers = dict(next(each for each in dead if each.value == b"1").headers)
    assert headers["x-kept"] == b"yes"
    assert headers["x-dead-letter-topic"] == f"{unique}.poison".encode()
    assert headers["x-dead-letter-offset"] == b"1"
    assert headers["x-dead-letter-attempts"] == b"3"
    assert b"never" in headers["x-dead-letter-error"]
    assert sum(isinstance(each, Degraded) for each in told) == 2


async def test_an_error_that_quotes_half_a_character_is_set_aside_like_any_other(
    kafka_broker: Kafka, unique: str
) -> None:
    heard: list[str] = []
    options: dict[str, Any] = {"max_deliver": 1, "partitions": 1, "group": unique}
    server = Server(kafka_broker.url, telemetry=False, **options)

    @server.event_pattern(f"{unique}.quoted")
    async def quoted(payload: dict[str, str]) -> None:
        heard.append(payload["text"])
        if payload["text"] != "fine":
            raise ValueError(f"no {payload['text']}")

    async with server, client_of(kafka_broker.url) as client:
        for text in ("\ud800", "fine"):
            await client.emit(f"{unique}.quoted", {"text": text}, headers={"kafka-key": "one"})
        await eventually(lambda: heard == ["\ud800", "fine"])
        [dead] = await records_of(kafka_broker, f"{unique}.quoted.dead", 1)
    assert dict(dead.headers)["x-dead-letter-error"] == rb"no \ud800"


async def test_what_is_as_large_as_may_be_is_set_aside_without_what_is_said_about_it(
    kafka_broker: Kafka, unique: str
) -> None:
    told: list[Any] = []
    server = Server(
        kafka_broker.url,
        telemetry=False,
        group=unique,
        max_deliver=1,
        observers=[told.append],
    )

    @server.event_pattern(f"{unique}.poison")
    async def poison(text: str) -> None:
        raise KeyError("never")

    large = b"x" * (1_048_588 - 80)  # the broker's limit is for a batch
    producer = AIOKafkaProducer(bootstrap_servers=kafka_broker.bootstrap, max_request_size=2**21)
    async with server:
        await producer.start()
        await producer.send_and_wait(f"{unique}.poison", large)
        await producer.stop()
        [dead] = await records_of(kafka_broker, f"{unique}.poison.dead", 1)
    assert (dead.value, dead.headers) == (large, ())
    reasons = [each.reason for each in told if isinstance(each, Degraded)]
    assert ["could not be set aside" in each for each in reasons] == [True, False]


async def test_without_a_dead_letter_topic_it_is_dropped_and_told(
    kafka_broker: Kafka, unique: str
) -> None:
    told: list[Any] = []
    heard: list[int] = []
    tried: list[int] = []
    options: dict[str, Any] = {"dead_letter": "", "max_deliver": 3, "retry_wait": 0.01}
    server = Server(
        kafka_broker.url, telemetry=False, group=unique, observers=[told.append], **options
    )

    @server.event_pattern(f"{unique}.fails")
    async def fails(n: int) -> None:
        tried.append(n)
        raise KeyError(n)

    @server.event_pattern(f"{unique}.typed")
    async def typed(n: int) -> None:
        heard.append(n)

    def dropped() -> list[str]:
        return [each.reason for each in told if isinstance(each, Degraded)]

    async with server, client_of(kafka_broker.url) as client:
        await client.emit(f"{unique}.typed", "x")
        await client.emit(f"{unique}.typed", 1)
        await eventually(lambda: heard == [1])
        await eventually(lambda: len(dropped()) == 1)
        await client.emit(f"{unique}.fails", 7)
        await eventually(lambda: len(dropped()) == 2)
    assert tried == [7, 7, 7]
    late: list[int] = []
    again = Server(kafka_broker.url, telemetry=False, group=unique, **options)
    again.event_pattern(f"{unique}.fails")(late.append)
    async with again:
        await asyncio.sleep(0.5)
    assert late == [], "it was committed: it does not come again"
    assert f"{unique}.fails.dead" not in kafka_broker.topics()
    assert f"{unique}.typed.dead" not in kafka_broker.topics()


# ------------------------------------------------------------------------------------ expiry


async def test_a_request_whose_time_is_over_is_not_handled(
    kafka_broker: Kafka, unique: str
) -> None:
    handled: list[tuple[Any, float]] = []
    server = Server(kafka_broker.url, telemetry=False, group=unique, from_beginning=True)

    @server.message_pattern(f"{unique}.late")
    async def late(payload: Any, context: Context) -> None:
        handled.append((payload, context.remaining or 0.0))

    producer = AIOKafkaProducer(bootstrap_servers=kafka_broker.bootstrap)
    await producer.start()
    kafka_broker.create_topics(f"{unique}.late")

    async def ask(value: bytes, age: float, allowed: float) -> None:
        headers = [
            ("kafka_correlationId", b"1"),
            ("kafka_replyTopic", f"{unique}.late.reply".encode()),
            ("x-deadline-ms", b"%d" % (allowed * 1000)),
        ]
        when = int((time.time() - age) * 1000)
        await producer.send_and_wait(f"{unique}.late", value, headers=headers, timestamp_ms=when)

    try:
        async with server:
            await ask(b"over", age=30, allowed=10)
            await ask(b"skewed", age=10.1, allowed=10)  # a second is allowed for the clocks
            await ask(b"old", age=21, allowed=60)
            await ask(b"ahead", age=-60, allowed=10)
            await eventually(lambda: len(handled) == 3)
            await asyncio.sleep(0.2)
    finally:
        await producer.stop()
    remaining = dict(handled)
    assert set(remaining) == {"skewed", "old", "ahead"}
    assert 35 < remaining["old"] <= 40.5
    assert 9 < remaining["ahead"] <= 10


async def test_nobody_there_costs_the_deadline(kafka_broker: Kafka, unique: str) -> None:
    async with client_of(kafka_broker.url) as client:
        started = time.monotonic()
        error = await error_of(client.send(f"{unique}.nobody", 1, timeout=1))
        assert isinstance(error, DeadlineExceeded)
        assert error.sent
        assert time.monotonic() - started < 2


# -------------------------------------------------------------------------------- credentials


def secure_urls(broker: Kafka, user: str = "alice:alice-secret") -> list[tuple[str, bool]]:
    return [
        (f"kafka://{broker.host}:{broker.ssl_port}?", True),
        (f"kafka://{user}@{broker.host}:{broker.sasl_port}?sasl=PLAIN", False),
        (f"kafka://{user}@{broker.host}:{broker.sasl_port}?sasl=SCRAM-SHA-256", False),
        (f"kafka://{user}@{broker.host}:{broker.sasl_ssl_port}?sasl=SCRAM-SHA-512", True),
        (f"kafkas://{user}@{broker.host}:{broker.sasl_ssl_port}?sasl=PLAIN", True),
    ]


@pytest.mark.parametrize("which", range(5))
async def test_tls_and_sasl_are_spoken_on_both_ends(
    kafka_broker: Kafka, unique: str, which: int
) -> None:
    url, tls = secure_urls(kafka_broker)[which]
    options: dict[str, Any] = {"tls": certificates().client_context()} if tls else {}
    heard: list[Any] = []
    server = Server(url, telemetry=False, group=unique, **options)
    server.message_pattern(f"{unique}.echo")(lambda payload: payload)
    server.event_pattern(f"{unique}.event")(heard.append)
    async with server, client_of(url, **options) as client:
        assert await client.send(f"{unique}.echo", {"a": 1}) == {"a": 1}
        await client.emit(f"{unique}.event", 1)
        await eventually(lambda: heard == [1])


async def test_wrong_credentials_are_refused_at_once_and_not_repeated(
    kafka_broker: Kafka, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    files = certificates()
    for url, tls in secure_urls(kafka_broker, "alice:wrong-secret")[1:]:
        options: dict[str, Any] = {"tls": files.client_context()} if tls else {}
        client = ClientProxy(
            url, policies=[Timeout(20), Retry(attempts=5)], telemetry=False, **options
        )
        started = time.monotonic()
        error = await error_of(client.send(f"{unique}.echo", 1))
        assert isinstance(error, ConfigurationError), error
        assert time.monotonic() - started < 5
        assert len(error.attempts) == 1
        assert "password" in error.hint
        assert client.status == "idle"
        await client.aclose()
        server = Server(url, telemetry=False, group=unique, **options)
        server.message_pattern(f"{unique}.echo")(lambda: None)
        refused = await error_of(server.start())
        assert isinstance(refused, ConfigurationError), refused
        texts = "".join(str(each) + repr(each) + str(each.attempts) for each in (error, refused))
        assert "wrong-secret" not in texts + caplog.text


async def test_a_broker_that_is_not_trusted_or_speaks_otherwise_is_a_clear_error(
    kafka_broker: Kafka, unique: str
) -> None:
    import ssl

    stranger = ssl.create_default_context(cafile=str(certificates().other_authority))
    url = f"kafka://{kafka_broker.host}:{kafka_broker.ssl_port}"
    async with asyncio.timeout(20):
        client = ClientProxy(url, policies=(), telemetry=False, tls=stranger)
        error = await error_of(client.send(f"{unique}.echo", 1))
        assert isinstance(error, ConfigurationError), error
        assert "not trusted" in str(error)
        await client.aclose()
        mechanism = f"kafka://a:b@{kafka_broker.host}:{kafka_broker.port}"
        for wrong in (url, mechanism):  # plain words to TLS; SASL where there is none
            client = ClientProxy(wrong, policies=(), telemetry=False, request_timeout=2)
            error = await error_of(client.send(f"{unique}.echo", 1, timeout=5))
            assert isinstance(error, ConfigurationError | ConnectError), error
            await client.aclose()
        in_tls = f"kafkas://{kafka_broker.host}:{kafka_broker.port}"
        with_user = f"kafka://{kafka_broker.host}:{kafka_broker.sasl_port}"
        for wrong, hint in ((url, "tls="), (in_tls, "tls="), (with_user, "a user")):
            client = ClientProxy(wrong, policies=(), telemetry=False)
            error = await error_of(client.send(f"{unique}.echo", 1, timeout=5))
            assert isinstance(error, ConnectError), error
            assert hint in error.hint
            await client.aclose()


async def test_wrong_credentials_are_told_whichever_server_is_there(
    kafka_broker: Kafka, unique: str
) -> None:
    servers = f"{kafka_broker.host}:{kafka_broker.sasl_port}"
    url = "kafka://alice:wrong@127.0.0.1:1"
    client = ClientProxy(url, policies=(), telemetry=False, servers=servers)
    error = await error_of(client.emit(f"{unique}.event", 1))
    await client.aclose()
    assert isinstance(error, ConfigurationError), error
    assert "password" in error.hint


@pytest.mark.timeout(180)
async def test_mutual_tls_and_access_rules(new_broker: Callable[..., Kafka], unique: str) -> None:
    broker = await asyncio.to_thread(
        new_broker, Kafka, secure=True, client_certificates=True, authorizer=True
    )
    files = certificates()
    url = f"kafka://{broker.host}:{broker.ssl_port}"
    client = ClientProxy(url, policies=(), telemetry=False, tls=files.client_context())
    error = await error_of(client.send(f"{unique}.echo", 1, timeout=8))
    assert isinstance(error, ConfigurationError | ConnectError), error
    await client.aclose()
    # with its certificate it is let in, but has no rights
    known = files.client_context(with_certificate=True)
    for place, options in (
        (url, {"tls": known}),
        (f"kafka://alice:alice-secret@{broker.host}:{broker.sasl_port}", {}),
    ):
        client = ClientProxy(place, policies=(), telemetry=False, **options)
        for call in (client.send(f"{unique}.echo", 1), client.emit(f"{unique}.echo", 1)):
            started = time.monotonic()
            error = await error_of(call)
            assert isinstance(error, ConfigurationError), error
            assert time.monotonic() - started < 5
        await client.aclose()
        server = Server(place, telemetry=False, **options)
        server.message_pattern(f"{unique}.echo")(lambda: None)
        refused = await error_of(server.start())
        assert isinstance(refused, ConfigurationError), refused


DESCRIBE, READ, WRITE = 8, 3, 4  # of Kafka's operations


@pytest.mark.timeout(180)
async def test_a_request_whose_reply_may_not_be_read_is_not_sent_and_costs_no_other_call(
    new_broker: Callable[..., Kafka], unique: str
) -> None:
    broker = await asyncio.to_thread(new_broker, Kafka, secure=True, authorizer=True)
    handled: list[str] = []
    begun, go_on = asyncio.Event(), asyncio.Event()
    server = Server(broker.url, telemetry=False, group=unique)

    @server.message_pattern(f"{unique}.mine")
    async def mine(payload: str) -> str:
        begun.set()
        await go_on.wait()
        return payload

    server.message_pattern(f"{unique}.other")(handled.append)
    url = f"kafka://alice:alice-secret@{broker.host}:{broker.sasl_port}"
    async with server:
        for topic, operation in (
            (f"{unique}.mine", WRITE),
            (f"{unique}.mine.reply", READ),
            (f"{unique}.other", WRITE),
            (f"{unique}.other.reply", DESCRIBE),
        ):
            await grant(broker, topic, operation)
        async with client_of(url) as client:
            pending = asyncio.create_task(client.send(f"{unique}.mine", "a"))
            await begun.wait()
            error = await error_of(client.send(f"{unique}.other", "b"))
            go_on.set()
            assert await pending == "a"
    assert isinstance(error, ConfigurationError), error
    assert not error.sent
    assert "ACLs" in error.hint
    assert handled == []
    # a server may not read what it would handle
    server = Server(url, telemetry=False, group=unique)
    server.message_pattern(f"{unique}.mine")(handled.append)
    error = await error_of(server.start())
    assert isinstance(error, ConfigurationError), error
    assert f"{unique}.mine" in str(error)


async def grant(broker: Kafka, topic: str, operation: int) -> None:
    """Allow it to alice, from wherever."""
    client = AIOKafkaClient(bootstrap_servers=broker.bootstrap)
    await client.bootstrap()
    try:
        topics, literal, allow = 2, 3, 3
        what = (topics, topic, literal, "User:alice", "*", operation, allow)
        await client.send(client.get_random_node(), CreateAclsRequest(*what))
    finally:
        await client.close()
