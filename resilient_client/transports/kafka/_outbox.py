"""Records on their way out: straight into the batches of an aiokafka producer where they fit."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

from resilient_client.transports.kafka._aiokafka import TopicPartition, murmur2

if TYPE_CHECKING:
    from resilient_client.transports.kafka._headers import Headers


class Outbox:
    """Appends to a producer's batches without the coroutine, the estimates and the debug log.

    `AIOKafkaProducer.send` costs three times as much; it is taken when a record must wait.
    """

    def __init__(self, producer: Any) -> None:
        self.producer = producer
        self._batches = producer._message_accumulator  # noqa: SLF001
        self._cluster = producer.client.cluster
        self._places: dict[str, tuple[int, list[Any], list[Any]]] = {}  # of each topic, as of when
        self._turn = count()

    def put(
        self,
        topic: str,
        value: bytes | None,
        headers: Headers,
        key: bytes | None = None,
        partition: int | None = None,
    ) -> asyncio.Future[Any] | None:
        """The future of a record that is on its way; None when it must wait: use `send`."""
        place = self._place(topic, key, partition)
        batches = self._batches
        if place is None or batches._closed or batches._exception is not None:  # noqa: SLF001
            return None
        queue = batches._batches.get(place)  # noqa: SLF001
        batch = queue[-1] if queue else self._new_batch(place)
        if value is None and key is None:  # aiokafka wants a value or a key
            key = b""
        future: asyncio.Future[Any] | None = batch.append(key, value, None, headers=headers)
        return future

    def _new_batch(self, place: Any) -> Any:
        return self._batches._append_batch(self._batches.create_builder(), place)  # noqa: SLF001

    async def send(
        self,
        topic: str,
        value: bytes | None,
        headers: Headers,
        key: bytes | None = None,
        partition: int | None = None,
    ) -> asyncio.Future[Any]:
        """The same, waiting as long as it takes for metadata or room.

        Raises:
            KafkaError: it cannot be sent.
        """
        if value is None and key is None:
            key = b""
        future: asyncio.Future[Any] = await self.producer.send(
            topic, value, key, partition, headers=headers
        )
        return future

    def _place(self, topic: str, key: bytes | None, partition: int | None) -> Any:
        """By the key as kafkajs and Java have it, else in turn where there is a leader."""
        known = self._places.get(topic)
        now = self._cluster._last_successful_refresh_ms  # noqa: SLF001
        if known is None or known[0] != now:
            partitions = self._cluster.partitions_for_topic(topic)
            if not partitions:
                return None
            alive = self._cluster.available_partitions_for_topic(topic) or partitions
            every = [TopicPartition(topic, number) for number in sorted(partitions)]
            led = [every[number] for number in sorted(alive)]
            known = self._places[topic] = (now, every, led)
        _, every, led = known
        if partition is not None:
            return every[partition] if partition < len(every) else None
        if key:
            return every[(murmur2(key) & 0x7FFFFFFF) % len(every)]
        return led[next(self._turn) % len(led)]
