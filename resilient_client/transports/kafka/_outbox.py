"""Records on their way out: straight into the batches of an aiokafka producer where they fit."""

from __future__ import annotations

import asyncio
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any

from resilient_client.clock import Deadlines
from resilient_client.errors import ConnectionLost
from resilient_client.message import STORED
from resilient_client.transports.kafka._aiokafka import (
    AIOKafkaProducer,
    TopicPartition,
    errors,
    murmur2,
)
from resilient_client.transports.kafka._driver import ask_first, take_back
from resilient_client.transports.kafka._errors import REFUSED, TOO_LARGE, ours

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_client.clock import Clock
    from resilient_client.errors import ResilientClientError
    from resilient_client.message import Call, Receipt
    from resilient_client.transports.kafka._headers import Headers


BATCH_SIZE = 256 * 1024
"""Bytes that may wait for one partition: what is sent together while a request is under way."""
_OVERHEAD = 64 * 1024  # bytes: headers, and what a record costs around its value
_REFUSED = (*TOO_LARGE, *REFUSED)
_WAKE = 128  # callers, in one turn of the loop


def new_producer(made: Mapping[str, Any], max_size: int) -> AIOKafkaProducer:
    """A producer of acknowledged records, each stored once, with these settings beside."""
    producer = AIOKafkaProducer(
        **made,
        acks="all",
        enable_idempotence=True,
        linger_ms=0,
        max_batch_size=BATCH_SIZE,
        max_request_size=max_size + _OVERHEAD,
    )
    # How long a partition may be without a leader is for each call's deadline to say; and what was
    # sent once must not be given up: its sequence number would be missing from then on.
    producer._message_accumulator._batch_ttl = inf  # noqa: SLF001
    ask_first(producer.client, made["bootstrap_servers"][0])
    return producer


class Batch:
    """Records that go to one partition together, and who waits until the broker has them.

    Attributes:
        error: why they were not stored.
        tokens: of those who are told by the outbox's `told`.
    """

    __slots__ = ("_before", "_calls", "_deadline", "_futures", "_new_future", "_outbox",
                 "append", "builder", "error", "taken", "tokens", "wait_drain")  # fmt: skip

    def __init__(self, outbox: Outbox, builder: Any, batch: Any) -> None:
        self.builder = builder
        self.append = builder._builder.append  # noqa: SLF001
        self.taken = batch._drain_waiter.done  # noqa: SLF001
        self.wait_drain = batch.wait_drain
        self.error: BaseException | None = None
        self.tokens: list[Any] = []
        self._outbox = outbox
        self._new_future = outbox.new_future
        self._futures: list[asyncio.Future[Receipt]] = []
        self._calls: list[Call | None] = []
        self._before: set[int] = set()  # which of the calls had been sent already
        self._deadline = inf

    def wait(self, call: Call | None = None) -> asyncio.Future[Receipt]:
        """A future for the last record that was appended: it ends by the call's deadline.

        An error that says that nothing was stored takes `call.sent` back.
        """
        future = self._new_future()
        self._futures.append(future)
        self._calls.append(call)
        if call is None:
            return future
        if call.sent:
            self._before.add(id(call))
        call.sent = True
        if call.attempt_deadline < self._deadline:
            self._deadline = call.attempt_deadline
            self._outbox.deadlines.add(self, self._deadline)
        return future

    def expire(self, now: float) -> None:
        """Fail those whose time is up."""
        self._deadline = inf
        for future, call in zip(self._futures, self._calls, strict=True):
            if call is not None and not future.done():
                if call.attempt_deadline <= now:
                    future.set_exception(call.expired(sent=True))
                elif call.attempt_deadline < self._deadline:
                    self._deadline = call.attempt_deadline
        self._outbox.deadlines.add(self, self._deadline)

    def stored(self) -> None:
        """The broker has them: wake who waits, some in each turn of the loop.

        Thousands at once would be as many handles at once: the garbage collector then goes through
        all that is in flight, in every round.
        """
        self._calls = []
        futures, self._futures = self._futures[:_WAKE], self._futures[_WAKE:]
        if self._futures:
            asyncio.get_running_loop().call_soon(self.stored)
        for future in futures:
            try:
                future.set_result(STORED)
            except asyncio.InvalidStateError:
                continue  # nobody waits for this one any more

    def fail(self, make: Callable[[], ResilientClientError]) -> None:
        """It has not: each gets an error of its own."""
        for future, call in zip(self._futures, self._calls, strict=True):
            if not future.done():
                error = make()
                if call is not None and not error.sent:
                    call.sent = id(call) in self._before
                future.set_exception(error)


class Outbox:
    """Appends to a producer's batches, without a future of aiokafka's for every record.

    `AIOKafkaProducer.send` costs many times as much.

    Args:
        limits: bytes that a topic takes together, where that is known.
        told: called with every token of a batch at its end, and the error if it was not stored.
        worn_out: called when the broker will take nothing more from this producer.
    """

    def __init__(
        self,
        producer: Any,
        endpoint: str,
        clock: Clock,
        limits: dict[str, int],
        told: Callable[[Any, ResilientClientError | None], object],
        worn_out: Callable[[], object],
    ) -> None:
        self.producer = producer
        self.new_future = asyncio.get_running_loop().create_future
        self.deadlines = Deadlines(clock, lambda batch: batch.expire(clock.now()))
        self._endpoint = endpoint
        self._limits = limits
        self._told = told
        self._worn_out = worn_out
        self._accumulator = producer._message_accumulator  # noqa: SLF001
        self._cluster = producer.client.cluster
        self._topics: dict[str, _Topic] = {}
        self._open: dict[Any, Batch] = {}  # the last one of each partition
        self._pending: set[Batch] = set()

    def put(
        self,
        topic: str,
        value: bytes | None,
        headers: Headers,
        key: bytes | None = None,
        partition: int | None = None,
        together: int = 1,
    ) -> Batch | None:
        """The batch that a record is in now; None when it must wait: use `send`.

        Without a key and a partition, up to so many records `together` go where the last one went,
        while that batch is open; then it is the next partition's turn.
        """
        known = self._topics.get(topic)
        if known is None or known.at != self._cluster._last_successful_refresh_ms:  # noqa: SLF001
            known = self._look_up(topic)
        if known is None:
            return None
        batch = known.batch
        free = key is None and partition is None
        if not free or batch is None or known.left <= 0 or batch.taken():
            accumulator = self._accumulator
            place = known.place(key, partition)
            if place is None or accumulator._closed or accumulator._exception is not None:  # noqa: SLF001
                return None
            batch = self._open.get(place)
            if batch is None or batch.taken():
                batch = self._new_batch(place)
            if free:
                known.batch, known.left = batch, together
        if value is None and key is None:  # aiokafka wants a value or a key
            key = b""
        builder = batch.builder  # what its own `append` does, in half the time
        offset = builder._relative_offset  # noqa: SLF001
        if builder._closed or batch.append(offset, None, key, value, headers) is None:  # noqa: SLF001
            builder.close()
            known.left, known.full = 0, batch
            return None
        builder._relative_offset = offset + 1  # noqa: SLF001
        known.left -= 1
        return batch

    async def send(
        self,
        topic: str,
        value: bytes | None,
        headers: Headers,
        key: bytes | None = None,
        partition: int | None = None,
    ) -> Batch:
        """The same, waiting as long as it takes for metadata or room.

        Raises:
            KafkaError: it cannot be sent.
        """
        looked = False
        while True:
            batch = self.put(topic, value, headers, key, partition)
            if batch is not None:
                return batch
            if self._accumulator._closed:  # noqa: SLF001
                raise errors.ProducerClosed
            if self._accumulator._exception is not None:  # noqa: SLF001
                raise self._accumulator._exception  # noqa: SLF001
            there = await self.producer.partitions_for(topic)
            if partition is not None and partition not in there:
                if looked:
                    raise errors.UnknownTopicOrPartitionError
                looked = True  # it may be new
                await self.producer.client.force_metadata_update()
                continue
            known = self._topics.get(topic)
            if known is not None and known.full is not None:
                full, known.full = known.full, None
                await full.wait_drain()

    def fail_all(self, reason: str) -> None:
        """Nothing more will be heard of what is on its way."""
        self.deadlines.clear()
        pending, self._pending = self._pending, set()
        for batch in pending:
            batch.fail(lambda: ConnectionLost(reason))

    def _new_batch(self, place: Any) -> Batch:
        limit = self._limits.get(place.topic, BATCH_SIZE)
        self._accumulator._batch_size = min(BATCH_SIZE, limit)  # noqa: SLF001
        builder = self._accumulator.create_builder()
        made = self._accumulator._append_batch(builder, place)  # noqa: SLF001
        batch = self._open[place] = Batch(self, builder, made)
        self._pending.add(batch)

        def ended(written: asyncio.Future[Any]) -> None:
            error = None if written.cancelled() else written.exception()
            if isinstance(error, _REFUSED):
                take_back(self.producer, place, made.record_count)
                if isinstance(error, TOO_LARGE) and made.record_count > 1:
                    self._limits[place.topic] = made._builder.size() // 2  # noqa: SLF001
            elif isinstance(error, errors.OutOfOrderSequenceNumber):
                self._worn_out()
            self._ended(batch, error)

        made.future.add_done_callback(ended)
        return batch

    def _ended(self, batch: Batch, error: BaseException | None) -> None:
        self._pending.discard(batch)
        self.deadlines.discard(batch)
        if error is None:
            batch.stored()
            for token in batch.tokens:
                self._told(token, None)
            return
        batch.error = error
        batch.fail(lambda: ours(error, self._endpoint, sent=True))
        for token in batch.tokens:
            self._told(token, ours(error, self._endpoint, sent=True))

    def _look_up(self, topic: str) -> _Topic | None:
        known = self._topics.get(topic)
        partitions = self._cluster.partitions_for_topic(topic)
        if not partitions:
            return None
        alive = self._cluster.available_partitions_for_topic(topic) or partitions
        every = [TopicPartition(topic, number) for number in sorted(partitions)]
        led = [every[number] for number in sorted(alive)]
        at = self._cluster._last_successful_refresh_ms  # noqa: SLF001
        turn = count() if known is None else known.turn
        known = self._topics[topic] = _Topic(at, every, led, turn)
        return known


class _Topic:
    """The partitions of a topic, all and those with a leader, as they were `at` some time."""

    __slots__ = ("_every", "_led", "at", "batch", "full", "left", "turn")

    def __init__(self, at: Any, every: list[Any], led: list[Any], turn: count[int]) -> None:
        self.at = at
        self.batch: Batch | None = None  # of records without a key, `left` more of them
        self.left = 0
        self.full: Batch | None = None  # the last one that did not take a record
        self._every = every
        self._led = led
        self.turn = turn

    def place(self, key: bytes | None, partition: int | None) -> Any:
        """By the key as kafkajs and Java have it, else in turn where there is a leader."""
        every = self._every
        if partition is not None:
            return every[partition] if partition < len(every) else None
        if key:
            return every[(murmur2(key) & 0x7FFFFFFF) % len(every)]
        return self._led[next(self.turn) % len(self._led)]
