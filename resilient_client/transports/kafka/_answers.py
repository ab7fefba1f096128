"""Requests as they stand in records, and their replies on the way out."""

from __future__ import annotations

import asyncio
import logging
import time
from math import inf
from typing import TYPE_CHECKING, Any

from resilient_client.errors import ConnectError, RemoteError, ResilientClientError, wire_error
from resilient_client.message import NO_VALUE
from resilient_client.transports.kafka._driver import METADATA_AGE
from resilient_client.transports.kafka._errors import AIOKAFKA_ERRORS, ours
from resilient_client.transports.kafka._headers import (
    CORRELATION,
    ENDED,
    ERROR,
    REPLY_PARTITION,
    REPLY_TOPIC,
    Headers,
)

if TYPE_CHECKING:
    from resilient_client.message import Reply
    from resilient_client.transports._base import Job
    from resilient_client.transports.kafka._lane import Lane
    from resilient_client.transports.kafka._outbox import Batch, Outbox
    from resilient_client.transports.kafka._topics import Topics
    from resilient_client.transports.kafka._values import KafkaCodec

log = logging.getLogger("resilient_client.kafka")

_REPLY_TOPICS = 10_000  # unknown ones that are remembered as such


class Request:
    """One request being handled: whose, and where its replies go."""

    __slots__ = ("ended", "id", "job", "lane", "partition", "record", "topic")

    def __init__(
        self,
        lane: Lane,
        record: Any,
        id: bytes,  # noqa: A002
        topic: str,
        partition: int | None,
    ) -> None:
        self.lane = lane
        self.record = record
        self.id = id
        self.topic = topic
        self.partition = partition
        self.job: Job | None = None
        self.ended = False


def request_of(lane: Lane, record: Any) -> Request | None:
    """The request that a record is; None for an event."""
    id = topic = partition = None  # noqa: A001
    for name, value in record.headers:
        if name == CORRELATION:
            id = value  # noqa: A001
        elif name == REPLY_TOPIC:
            topic = value
        elif name == REPLY_PARTITION:
            partition = value
    if not id or not topic:
        return None
    number = int(partition) if partition and partition.isdigit() and len(partition) < 7 else None
    return Request(lane, record, id, topic.decode(errors="replace"), number)


class _Known:
    """What was found out about topics; after `METADATA_AGE` seconds it is to be asked again."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def __contains__(self, topic: str) -> bool:
        return self._until.get(topic, 0.0) > time.monotonic()

    def add(self, topic: str) -> None:
        """Strangers name them: no more than `_REPLY_TOPICS` are kept."""
        if len(self._until) >= _REPLY_TOPICS:
            self._until.clear()
        self._until[topic] = time.monotonic() + METADATA_AGE


class Answers:
    """Writes records for a server: its replies, and what it sets aside.

    Attributes:
        outbox, topics: of the producer there is; None while there is none.
    """

    def __init__(self, values: KafkaCodec, address: str, request_timeout: float) -> None:
        self.outbox: Outbox | None = None
        self.topics: Topics | None = None
        self._values = values
        self._address = address
        self._request_timeout = request_timeout
        self._foreign = _Known()  # reply topics that do not exist
        self._small = _Known()  # those without a partition that was named

    async def can_answer(self, answer: Request) -> bool:
        """Whether the reply topic is there: a stranger's word makes none."""
        if answer.topic in self._foreign or self.topics is None:
            return False
        try:
            there: bool = await self.topics.exists(answer.topic)
        except AIOKAFKA_ERRORS as error:
            raise ours(error, self._address, sent=False) from error
        if not there:
            self._foreign.add(answer.topic)
            log.warning("a request wants its reply in %.200r, which is missing", answer.topic)
        return there

    async def reply(self, request: Request, reply: Reply) -> None:
        """Write all of a reply; the outbox tells the end of its last record."""
        if reply.error is not None:
            await self._reply_error(request, reply.error)
            return
        if reply.items is None:
            body = None if reply.body is NO_VALUE else reply.body
            await self._write_reply(request, body, [(ENDED, b"\0")], request)
            return
        try:
            while True:
                body = await reply.items.receive(inf)
                batch = await self._write_reply(request, body, [])
                if batch.error is not None:
                    raise ours(batch.error, self._address, sent=True)
        except StopAsyncIteration:
            await self._write_reply(request, None, [(ENDED, b"\0")], request)
        except RemoteError as error:
            await self._reply_error(request, error)

    async def _reply_error(self, request: Request, error: RemoteError) -> None:
        body = self._values.encode(wire_error(error))
        headers = [(ERROR, body or b"null"), (ENDED, b"\0")]
        await self._write_reply(request, None, headers, request)

    async def _write_reply(
        self, answer: Request, body: bytes | None, headers: Headers, last: Request | None = None
    ) -> Batch:
        headers.append((CORRELATION, answer.id))
        if answer.partition is not None and not await self._has(answer.topic, answer.partition):
            answer.partition = None
        batch = await self._write(answer.topic, answer.partition, body, headers, None)
        if last is not None:
            batch.tokens.append(last)
        return batch

    async def _has(self, topic: str, partition: int) -> bool:
        """Whether a reply topic has that partition: it may have got it since it was looked."""
        topics = self.topics
        there = None if topics is None else topics.known(topic)
        if topics is None or there is None or partition < there:
            return True
        if topic in self._small:
            return False
        self._small.add(topic)
        topics.forget(topic)
        try:
            await topics.exists(topic)
        except AIOKAFKA_ERRORS as error:
            raise ours(error, self._address, sent=False) from error
        return partition < (topics.known(topic) or 0)

    async def _write(
        self,
        topic: str,
        partition: int | None,
        body: bytes | None,
        headers: Headers,
        key: bytes | None,
    ) -> Batch:
        """Hand a record to the producer, which sends it at once or with others."""
        outbox = self.outbox
        if outbox is None:
            raise ConnectError(f"{self._address} is being reconnected")
        batch = outbox.put(topic, body, headers, key, partition)
        if batch is None:
            try:
                async with asyncio.timeout(self._request_timeout):
                    batch = await outbox.send(topic, body, headers, key, partition)
            except AIOKAFKA_ERRORS as error:
                raise ours(error, self._address, sent=False) from error
        return batch

    async def store(
        self, topic: str, body: bytes | None, headers: Headers, key: bytes | None
    ) -> None:
        """Write a record to a topic that may have to be made; wait until the broker has it."""
        topics = self.topics
        if topics is None:
            raise ConnectError(f"{self._address} is not connected")
        await topics.ensure([topic], self._request_timeout)
        try:
            batch = await self._write(topic, None, body, headers, key)
            async with asyncio.timeout(self._request_timeout):
                await batch.wait()
        except (ResilientClientError, TimeoutError):
            topics.forget(topic)  # it may have been removed
            raise
