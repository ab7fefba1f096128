"""The client's end of kafka://."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from copy import copy
from functools import partial
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any

from resilient_client.context import fresh_id
from resilient_client.errors import ConnectError, ConnectionLost, ResilientClientError
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._link import LinkedTransport, spawn
from resilient_client.transports._metadata import NO_METADATA
from resilient_client.transports._nest import CANCEL_ROUTE, error_in
from resilient_client.transports._replies import PendingReplies
from resilient_client.transports.kafka._aiokafka import AIOKafkaConsumer, TopicPartition
from resilient_client.transports.kafka._driver import (
    COMMITTED,
    REQUEST_TIMEOUT,
    discard,
    first_answering,
    forget,
    interrupt,
    learn,
    on_ended,
    on_lost,
    on_metadata,
    read,
    settings,
    start,
    why_unreachable,
)
from resilient_client.transports.kafka._errors import AIOKAFKA_ERRORS, AWAY, ours
from resilient_client.transports.kafka._headers import (
    CORRELATION,
    ENDED,
    ERROR,
    REPLY_PARTITION,
    REPLY_TOPIC,
    Headers,
    headers_of,
    metadata_of,
)
from resilient_client.transports.kafka._outbox import Batch, Outbox, new_producer
from resilient_client.transports.kafka._topics import REPLY_SUFFIX, Topics, check_topic, declared
from resilient_client.transports.kafka._values import KafkaCodec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from resilient_client.clock import Clock
    from resilient_client.message import Call, Receipt, Reply
    from resilient_client.transports._base import Environment, Target

log = logging.getLogger("resilient_client.kafka")

PREPARE_TIMEOUT = 5.0
"""Seconds after which finding, or making, the topics of a new pattern is begun anew, or given up
where nobody waits any more: a cluster that chooses a leader may take longer."""
TOGETHER = 16
"""Events in a row for one partition; requests take turns, that all replicas have some."""
MAX_FAREWELLS = 1000
"""Cancelled calls at once whose servers are told."""
FAREWELL = 1.0
"""Seconds that a closing client takes to tell servers whose calls it leaves."""
CANCEL_PAUSE = 10.0
"""Seconds until it is tried again after nobody could be told."""
_WAKE = 16
"""Replies in a turn of the loop: the callers' next requests then leave while the other replies are
still being handed over. All in one turn would make client, broker and server wait for each other in
turns: a third to two fifths less at 64 and 256 in flight."""


def _written(call: Call, tokens: list[bytes], id: bytes) -> None:  # noqa: A002
    """The producer has a request: tell how that ends."""
    call.sent = True
    tokens.append(id)


class _Connection:
    """A producer, and a consumer of one partition of each reply topic that was asked for."""

    def __init__(
        self,
        producer: Any,
        consumer: Any,
        topics: Topics,
        replies: PendingReplies,
        endpoint: str,
        clock: Clock,
        received: Callable[[_Connection, Any], None],
        lost: Callable[[_Connection, str], None],
    ) -> None:
        self.producer = producer
        self.outbox = Outbox(producer, endpoint, clock, topics.limits, self._sent, self._worn_out)
        self.consumer = consumer
        self.topics = topics
        self.replies = replies
        self.prefix = fresh_id().encode()  # of the ids of this connection's requests
        self.ids = count()
        self.closed = False
        self.places: dict[str, Headers] = {}  # by route: where its replies go
        self._positions: dict[Any, int] = {}
        self._preparing: dict[str, asyncio.Task[None]] = {}
        self._clock = clock
        self._received = received
        self._lost = lost
        self._farewells: set[asyncio.Task[None]] = set()
        self._no_cancels_until = 0.0
        self._ending: asyncio.Task[None] | None = None
        for client in (producer.client, consumer._client):  # noqa: SLF001
            on_lost(client, self.lost)
        on_ended(producer, self._worn_out)
        on_metadata(consumer, self._look_for_places)
        self._reader = spawn(self._read(), "replies")

    async def _read(self) -> None:
        """Hand over replies; an error of the consumer ends the connection."""
        try:
            while True:
                batches = await read(self.consumer, 60_000, log.warning)
                for place, records in batches.items():
                    self._positions[place] = records[-1].offset + 1
                for records in batches.values():
                    for number, record in enumerate(records, 1):
                        self._received(self, record)
                        if number % _WAKE == 0:
                            await asyncio.sleep(0)
        except AIOKAFKA_ERRORS as error:
            self.lost(str(error))

    async def prepare(self, call: Call, *, reply: bool) -> None:
        """Wait until the topics of the call's pattern are there, and its replies are read.

        Raises:
            ConfigurationError: they cannot be.
            ConnectError, DeadlineExceeded: they are not, in the time that the call has for it.
        """
        name = call.route + REPLY_SUFFIX if reply else call.route
        until = min(call.connect_deadline, call.attempt_deadline)
        while True:
            task = self._preparing.get(name)
            if task is None:
                check_topic(call.route)
                work = self._open(call.route) if reply else self._ensure(call.route)
                task = self._preparing[name] = spawn(work, f"topics of {call.route}")
                task.add_done_callback(partial(self._prepared, name))
            left = until - self._clock.now()
            done, _ = await asyncio.wait({task}, timeout=left if left < inf else None)
            if not done:
                raise call.unready(f"topic {call.route} was not ready in time")
            if task.cancelled():
                raise ConnectError("the connection to the broker ended")
            error = task.exception()
            if error is None:
                return
            if isinstance(error, ResilientClientError):
                if isinstance(error.__cause__, TimeoutError) and not self.closed:
                    continue  # there is nothing against it but that it takes so long
                raise copy(error)
            raise error

    def _prepared(self, name: str, task: asyncio.Task[None]) -> None:
        self._preparing.pop(name, None)
        if not task.cancelled():
            task.exception()

    async def _ensure(self, route: str) -> None:
        await self.topics.ensure([route], PREPARE_TIMEOUT)

    async def _open(self, route: str) -> None:
        topic = route + REPLY_SUFFIX
        there = await self.topics.ensure([route, topic], PREPARE_TIMEOUT)
        try:
            async with asyncio.timeout(PREPARE_TIMEOUT):
                place, end = await self._place_for_replies(topic, there[topic])
                await learn(self.consumer, topic)
        except TimeoutError as error:
            raise ConnectError(f"the end of {topic} is not known in {PREPARE_TIMEOUT} s") from error
        except AIOKAFKA_ERRORS as error:
            raise ours(error, topic, sent=False) from error
        self._positions[place] = end
        self.consumer.assign(list(self._positions))
        for each, offset in self._positions.items():
            self.consumer.seek(each, offset)
        interrupt(self.consumer)
        self.places[route] = [
            (REPLY_TOPIC, topic.encode()),
            (REPLY_PARTITION, str(place.partition).encode()),
        ]

    async def _place_for_replies(self, topic: str, partitions: int) -> tuple[Any, int]:
        """One of its partitions, and where that ends; any, that clients share them."""
        left = random.sample(range(partitions), partitions)
        while True:
            number = left.pop()
            try:
                end = await self.topics.end_of(topic, number)
                await self.topics.check_readable([topic], number)
            except AWAY:  # its leader is down
                if not left:
                    raise
            else:
                return TopicPartition(topic, number), end

    def _look_for_places(self, cluster: Any) -> None:
        """A reply topic that was made anew may have no such partition any more."""
        for place in tuple(self._positions):
            there = cluster.partitions_for_topic(place.topic)
            if there and place.partition not in there:
                del self._positions[place]
                self.forget(place.topic.removesuffix(REPLY_SUFFIX))

    def forget(self, route: str) -> None:
        """Its topics may have been removed: look for them, and make them, at the next call."""
        self.topics.forget(route)
        self.topics.forget(route + REPLY_SUFFIX)
        self.places.pop(route, None)

    def address(self, call: Call) -> tuple[bytes, Headers, bytes | None]:
        """A fresh id for a request, its record's headers and key."""
        id = b"%b%x" % (self.prefix, next(self.ids))  # noqa: A001
        headers, key = headers_of(call.metadata)
        headers.append((CORRELATION, id))
        headers += self.places[call.route]
        return id, headers, key

    def exchange(self, id: bytes, call: Call, batch: Batch) -> Awaitable[Reply]:  # noqa: A002
        """Wait for the reply to a request that was just handed over with that batch."""
        written = partial(_written, call, batch.tokens, id)
        return self.replies.exchange(id, call, written, partial(self.cancel, id))

    def cancel(self, key: bytes) -> None:
        """Tell servers of our make that nobody waits any more; as far as that goes."""
        if not self.closed and len(self._farewells) < MAX_FAREWELLS:
            task = spawn(self._cancel(key), "cancel")
            self._farewells.add(task)
            task.add_done_callback(self._farewells.discard)

    async def _cancel(self, key: bytes) -> None:
        if time.monotonic() < self._no_cancels_until:
            return
        try:
            async with asyncio.timeout(PREPARE_TIMEOUT):
                if not await self.topics.exists(CANCEL_ROUTE):  # no server of ours was here
                    self._no_cancels_until = time.monotonic() + CANCEL_PAUSE
                    return
                written = await self.producer.send(CANCEL_ROUTE, key)
                await written
        except (*AIOKAFKA_ERRORS, TimeoutError):
            self._no_cancels_until = time.monotonic() + CANCEL_PAUSE

    def _sent(self, key: bytes, error: ResilientClientError | None) -> None:
        """The broker has stored a request, or will not."""
        if error is not None and key in self.replies:
            self.replies.fail(key, error)

    def _worn_out(self) -> None:
        self.lost("the producer has given up")

    def _fail_all(self, reason: str) -> None:
        self.replies.fail_all(lambda: ConnectionLost(reason))
        self.outbox.fail_all(reason)

    def lost(self, reason: str) -> None:
        """The broker has gone: nothing that waits will be answered here."""
        if self.closed:
            return
        self.closed = True
        self._fail_all(reason)
        self._ending = spawn(self._end(), "end of a connection")
        self._lost(self, reason)

    async def aclose(self) -> None:
        """End it, and wait until nothing is left."""
        try:
            if not self.closed:
                self.replies.close()
                if self._farewells:  # while there is a broker to tell
                    await asyncio.wait(self._farewells, timeout=FAREWELL)
        finally:
            self.closed = True
            self._fail_all("the client was closed")
            if self._ending is None:
                self._ending = spawn(self._end(), "end of a connection")
        await asyncio.wait({self._ending})

    async def _end(self) -> None:
        tasks = {self._reader, *self._preparing.values(), *self._farewells}
        for task in tasks:
            task.cancel()
        await discard(self.producer, self.consumer)
        await asyncio.wait(tasks)


class ClientTransport(LinkedTransport[_Connection]):
    """The client's end: one producer, and one consumer of replies without a group.

    Args:
        servers: further brokers to begin with, for when the URL's is down: "host:port,host:port" or
            a list.
        client_id: what this client is called in the broker's logs and quotas.
        tls: an `ssl.SSLContext`, or true for one that trusts the system's authorities.
        sasl: the mechanism by which the URL's user and password are checked: PLAIN, SCRAM-SHA-256
            or SCRAM-SHA-512.
        declare: make topics that are missing: the pattern's and its reply topic.
        partitions, replication: of topics made here (3; as many replicas as there are brokers, up
            to 3).
        max_size: bytes of one payload; the broker has a limit of its own, 1 MiB by default.
        request_timeout: seconds until a broker that does not answer counts as gone.
    """

    url_tls = True
    url_login = True

    def __init__(
        self,
        target: Target,
        env: Environment,
        *,
        servers: str | Sequence[str] = (),
        client_id: str | None = None,
        tls: bool | ssl.SSLContext = False,
        sasl: str = "PLAIN",
        declare: bool = True,
        partitions: int | None = None,
        replication: int | None = None,
        max_size: int = DEFAULT_MAX_SIZE,
        request_timeout: float = REQUEST_TIMEOUT,
    ) -> None:
        super().__init__(target, env, max_size)
        self._values = KafkaCodec(env.codec)
        self._made = settings(
            target,
            servers=servers,
            client_id=client_id,
            tls=tls,
            sasl=sasl,
            request_timeout=request_timeout,
        )
        self._topics = declared(declare=declare, partitions=partitions, replication=replication)
        self._ending: set[_Connection] = set()
        self._cluster: Any = None  # as the last connection knew it

    def encode(self, call: Call) -> None:
        """See `Transport.encode`."""
        body = call.body = self._values.encode(call.data)
        if body is not None and len(body) > self._max_size:
            raise self._too_large(
                len(body), "send less, or raise max_size= and the topic's max.message.bytes"
            )

    def decode(self, body: Any, type: Any) -> Any:  # noqa: A002
        """See `Transport.decode`."""
        return self._values.decode(body, type)

    async def _dial(self) -> _Connection:
        made = await first_answering(self._made, self._cluster)
        producer = new_producer(made, self._max_size)
        consumer = AIOKafkaConsumer(**made, enable_auto_commit=False, isolation_level=COMMITTED)
        try:
            await start(producer)
            await start(consumer)
        except BaseException as error:
            await discard(producer, consumer)
            if isinstance(error, (*AIOKAFKA_ERRORS, OSError)):
                raise await why_unreachable(self._made, self.endpoint, error) from error
            raise
        self._cluster = producer.client.cluster
        return _Connection(
            producer,
            consumer,
            Topics(producer.client, self.endpoint, **self._topics),
            PendingReplies(self._clock, self._tally),
            self.endpoint,
            self._clock,
            self._received,
            self._lost,
        )

    def _lost(self, connection: _Connection, reason: str) -> None:
        self._ending.add(connection)
        assert connection._ending is not None  # noqa: S101, SLF001
        connection._ending.add_done_callback(  # noqa: SLF001
            lambda _: self._ending.discard(connection)
        )
        self._link.lost(connection, reason)

    def _received(self, connection: _Connection, record: Any) -> None:
        key = error = None
        ended = False
        for name, value in record.headers:
            if name == CORRELATION:
                key = value
            elif name == ENDED:
                ended = True
            elif name == ERROR:
                error = value
        if key is None or not key.startswith(connection.prefix):
            return  # of another client on this partition
        replies = connection.replies
        if error:
            replies.fail(key, error_in(error, self._values.decode))
        elif ended and record.value is None:
            replies.end(key)
        else:
            more = len(record.headers) > 1 + ended
            headers = metadata_of(record.headers, None) if more else NO_METADATA
            replies.value(key, record.value, ended, headers)

    def request(self, call: Call) -> Awaitable[Reply]:
        """See `Transport.request`."""
        connection = self._link.current
        if connection is not None and call.route in connection.places:
            id, headers, key = connection.address(call)  # noqa: A001
            batch = connection.outbox.put(call.route, call.body, headers, key)
            if batch is not None:
                return connection.exchange(id, call, batch)
        return self._request(call)

    async def _request(self, call: Call) -> Reply:
        """The same where something must be waited for: a connection, the topics, or room."""
        connection = self._link.current or await self._link.get(call.connect_deadline, call)
        if call.route not in connection.places:
            await connection.prepare(call, reply=True)
        id, headers, key = connection.address(call)  # noqa: A001
        batch = await self._hand_over(connection, call, headers, key)
        return await connection.exchange(id, call, batch)

    def publish(self, call: Call) -> Awaitable[Receipt]:
        """See `Transport.publish`."""
        connection = self._link.current
        if connection is not None:
            headers, key = headers_of(call.metadata)
            batch = connection.outbox.put(call.route, call.body, headers, key, None, TOGETHER)
            if batch is not None:
                return batch.wait(call)
        return self._publish(call)

    async def _publish(self, call: Call) -> Receipt:
        """The same where something must be waited for: a connection, the topic, or room."""
        connection = self._link.current or await self._link.get(call.connect_deadline, call)
        if connection.topics.known(call.route) is None:
            await connection.prepare(call, reply=False)
        headers, key = headers_of(call.metadata)
        batch = await self._hand_over(connection, call, headers, key)
        return await batch.wait(call)

    async def _hand_over(
        self, connection: _Connection, call: Call, headers: Headers, key: bytes | None
    ) -> Batch:
        """Wait until there is room for the record, within the call's time."""
        if connection.closed:
            raise ConnectError("the connection to the broker has just ended")
        try:
            async with self._before_sending(call):
                return await connection.outbox.send(call.route, call.body, headers, key)
        except TimeoutError:  # it may be waiting for a topic that was removed
            connection.forget(call.route)
            raise
        except AIOKAFKA_ERRORS as error:
            connection.forget(call.route)
            raise ours(error, self.endpoint, sent=False) from error

    def forget_loop(self) -> None:
        """See `Transport`."""
        connection = self._link.current
        if connection is not None:
            forget(connection.producer, connection.consumer)
        self._ending.clear()
        super().forget_loop()

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        connection = await self._link.aclose()
        ending = list(self._ending)
        if connection is not None:
            ending.append(connection)
        for each in ending:
            await each.aclose()
