"""Request/reply on the usual broker libraries, used as well as can be, with nothing around them.

`bare SCHEME server URL`, `bare SCHEME client URL SECONDS WHAT..`; WHAT as in `ours`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from benchmarks._contest import rate

Calls = tuple[Callable[[], Awaitable[Any]], Callable[[], Awaitable[Any]]]
BODY = b"[1,2,3]"


def add(body: bytes) -> bytes:
    return b"%d" % sum(json.loads(body))


class Pending:
    """Replies by id."""

    def __init__(self) -> None:
        self._ids = count(1)
        self._waiting: dict[str, asyncio.Future[bytes]] = {}

    def expect(self) -> tuple[str, asyncio.Future[bytes]]:
        key = str(next(self._ids))
        future = self._waiting[key] = asyncio.get_running_loop().create_future()
        return key, future

    def resolve(self, key: str, body: bytes) -> None:
        future = self._waiting.pop(key, None)
        if future is not None and not future.done():
            future.set_result(body)


# ------------------------------------------------------------------------------------------- redis


class RedisPublisher:
    """Publishes what was asked for in one turn of the loop in one pipeline."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._queue: list[tuple[str, bytes, asyncio.Future[int]]] = []
        self._flushing: asyncio.Task[None] | None = None

    def publish(self, channel: str, body: bytes) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.append((channel, body, future))
        if self._flushing is None:
            self._flushing = asyncio.ensure_future(self._flush())
        return future

    async def _flush(self) -> None:
        while self._queue:
            queue, self._queue = self._queue, []
            pipeline = self._client.pipeline(transaction=False)
            for channel, body, _ in queue:
                pipeline.publish(channel, body)
            for (_, _, future), receivers in zip(queue, await pipeline.execute(), strict=True):
                future.set_result(receivers)
        self._flushing = None


async def _redis_messages(client: Any, *channels: str) -> AsyncIterator[bytes]:
    pubsub = client.pubsub()
    await pubsub.subscribe(*channels)
    while True:
        kind, channel, body = await pubsub.parse_response(block=True)
        if kind == b"message":
            yield channel, body
        else:
            yield channel, None


async def redis_server(url: str, ready: Callable[[], Awaitable[None]]) -> None:
    import redis.asyncio

    publisher = RedisPublisher(redis.asyncio.Redis.from_url(url))
    reading = redis.asyncio.Redis.from_url(url, socket_timeout=None)
    async for channel, body in _redis_messages(reading, "bench.sum", "bench.event"):
        if body is None:
            if channel == b"bench.event":
                await ready()
        elif channel == b"bench.sum":
            key, _, data = body.partition(b" ")
            publisher.publish("bench.sum.reply", key + b" " + add(data))


@asynccontextmanager
async def redis_client(url: str) -> AsyncIterator[Calls]:
    import redis.asyncio

    pending = Pending()
    publisher = RedisPublisher(redis.asyncio.Redis.from_url(url))
    subscribed = asyncio.Event()

    async def read() -> None:
        reading = redis.asyncio.Redis.from_url(url, socket_timeout=None)
        async for _, body in _redis_messages(reading, "bench.sum.reply"):
            if body is None:
                subscribed.set()
            else:
                key, _, data = body.partition(b" ")
                pending.resolve(key.decode(), data)

    reader = asyncio.ensure_future(read())
    await subscribed.wait()

    async def send() -> None:
        key, future = pending.expect()
        publisher.publish("bench.sum", key.encode() + b" " + BODY)
        assert await future == b"6"

    async def emit() -> None:
        await publisher.publish("bench.event", BODY)

    yield send, emit
    reader.cancel()


# -------------------------------------------------------------------------------------------- nats


async def nats_server(url: str, ready: Callable[[], Awaitable[None]]) -> None:
    import nats

    client = await nats.connect(url)

    async def answer(message: Any) -> None:
        await client.publish(message.reply, add(message.data))

    async def event(message: Any) -> None: ...

    await client.subscribe("bench.sum", cb=answer)
    await client.subscribe("bench.event", cb=event)
    await client.flush()
    await ready()


@asynccontextmanager
async def nats_client(url: str) -> AsyncIterator[Calls]:
    import nats

    client = await nats.connect(url)
    pending = Pending()
    inbox = f"_INBOX.{uuid4().hex}"

    async def reply(message: Any) -> None:
        pending.resolve(message.subject.rpartition(".")[2], message.data)

    await client.subscribe(f"{inbox}.*", cb=reply)

    async def send() -> None:
        key, future = pending.expect()
        await client.publish("bench.sum", BODY, reply=f"{inbox}.{key}")
        assert await future == b"6"

    async def emit() -> None:
        await client.publish("bench.event", BODY)
        await asyncio.sleep(0)

    yield send, emit
    await client.close()


# -------------------------------------------------------------------------------------------- amqp


async def amqp_server(url: str, ready: Callable[[], Awaitable[None]]) -> None:
    import aio_pika

    connection = await aio_pika.connect(url)
    channel = await connection.channel(publisher_confirms=False)
    queue = await channel.declare_queue("bench.bare", durable=False, auto_delete=True)
    exchange = channel.default_exchange

    async def answer(message: Any) -> None:
        if message.reply_to:
            reply = aio_pika.Message(add(message.body), correlation_id=message.correlation_id)
            await exchange.publish(reply, message.reply_to, mandatory=False)

    await queue.consume(answer, no_ack=True)
    await ready()


@asynccontextmanager
async def amqp_client(url: str) -> AsyncIterator[Calls]:
    import aio_pika

    connection = await aio_pika.connect(url)
    channel = await connection.channel(publisher_confirms=False)
    confirmed = await connection.channel(publisher_confirms=True)
    pending = Pending()
    replies = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)

    async def reply(message: Any) -> None:
        pending.resolve(message.correlation_id, message.body)

    await replies.consume(reply, no_ack=True)
    exchange = channel.default_exchange

    async def send() -> None:
        key, future = pending.expect()
        message = aio_pika.Message(BODY, correlation_id=key, reply_to="amq.rabbitmq.reply-to")
        await exchange.publish(message, "bench.bare", mandatory=False)
        assert await future == b"6"

    async def emit() -> None:
        await confirmed.default_exchange.publish(aio_pika.Message(BODY), "bench.bare")

    yield send, emit
    await connection.close()


# -------------------------------------------------------------------------------------------- mqtt


def _aiomqtt(url: str) -> Any:
    import aiomqtt

    parts = urlsplit(url)
    client = aiomqtt.Client(parts.hostname, parts.port, protocol=aiomqtt.ProtocolVersion.V5)
    client.pending_calls_threshold = 100_000
    return client


async def mqtt_server(url: str, ready: Callable[[], Awaitable[None]]) -> None:
    async with _aiomqtt(url) as client:
        await client.subscribe("bench/sum")
        await client.subscribe("bench/event", qos=1)
        await ready()
        async for message in client.messages:
            if message.topic.value == "bench/sum":
                key, _, data = message.payload.partition(b" ")
                await client.publish("bench/sum/reply", key + b" " + add(data))


@asynccontextmanager
async def mqtt_client(url: str) -> AsyncIterator[Calls]:
    pending = Pending()
    async with _aiomqtt(url) as client:
        await client.subscribe("bench/sum/reply")

        async def read() -> None:
            async for message in client.messages:
                key, _, data = message.payload.partition(b" ")
                pending.resolve(key.decode(), data)

        reader = asyncio.ensure_future(read())

        async def send() -> None:
            key, future = pending.expect()
            await client.publish("bench/sum", key.encode() + b" " + BODY)
            assert await future == b"6"

        async def emit() -> None:
            await client.publish("bench/event", BODY, qos=1)

        yield send, emit
        reader.cancel()
        await asyncio.wait({reader})


# ------------------------------------------------------------------------------------------- kafka


async def kafka_server(url: str, ready: Callable[[], Awaitable[None]]) -> None:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

    address = urlsplit(url).netloc
    producer = AIOKafkaProducer(bootstrap_servers=address)
    await producer.start()
    consumer = AIOKafkaConsumer(bootstrap_servers=address, fetch_max_wait_ms=100)
    await consumer.start()
    requests = TopicPartition("bare.sum", 0)
    consumer.assign([requests])
    await consumer.seek_to_end(requests)
    await ready()
    async for message in consumer:
        await producer.send("bare.sum.reply", add(message.value), message.key, partition=0)


@asynccontextmanager
async def kafka_client(url: str) -> AsyncIterator[Calls]:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

    address = urlsplit(url).netloc
    producer = AIOKafkaProducer(bootstrap_servers=address, acks="all")
    await producer.start()
    consumer = AIOKafkaConsumer(bootstrap_servers=address, fetch_max_wait_ms=100)
    await consumer.start()
    replies = TopicPartition("bare.sum.reply", 0)
    consumer.assign([replies])
    await consumer.seek_to_end(replies)
    pending = Pending()

    async def read() -> None:
        async for message in consumer:
            pending.resolve(message.key.decode(), message.value)

    reader = asyncio.ensure_future(read())

    async def send() -> None:
        key, future = pending.expect()
        await producer.send("bare.sum", BODY, key.encode(), partition=0)
        assert await future == b"6"

    async def emit() -> None:
        await producer.send_and_wait("bare.event", BODY, partition=0)

    yield send, emit
    reader.cancel()
    await asyncio.wait({reader})
    await consumer.stop()
    await producer.stop()


# --------------------------------------------------------------------------------------------------


async def serve(scheme: str, url: str) -> None:
    async def ready() -> None:
        print("READY", url, flush=True)

    serving = asyncio.ensure_future(globals()[f"{scheme}_server"](url, ready))
    await asyncio.to_thread(sys.stdin.read)
    serving.cancel()


async def call(scheme: str, url: str, seconds: float, whats: list[str]) -> None:
    async with globals()[f"{scheme}_client"](url) as (send, emit):
        await rate(send, 64, 0.5)
        rates = {}
        for what in whats:
            kind, _, number = what.rpartition(":")
            rates[what] = await rate(emit if kind else send, int(number), seconds)
        print(json.dumps(rates), flush=True)


def main() -> None:
    import uvloop

    scheme, role, url, *rest = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if role == "server":
            runner.run(serve(scheme, url))
        else:
            runner.run(call(scheme, url, float(rest[0]), rest[1:]))


if __name__ == "__main__":
    main()
