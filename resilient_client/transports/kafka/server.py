"""The server's end of kafka://."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from resilient_client.context import ATTEMPT_HEADER
from resilient_client.errors import (
    INTERNAL_SERVER_ERROR,
    ConfigurationError,
    ConnectError,
    InvalidPayloadError,
    PayloadError,
    RemoteError,
    ResilientClientError,
)
from resilient_client.events import ConnectionChanged, Degraded
from resilient_client.message import Message, Reply
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._link import FIRST_WAIT, LONGEST_WAIT, spawn
from resilient_client.transports._nest import CANCEL_ROUTE
from resilient_client.transports.kafka._aiokafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    ConsumerRebalanceListener,
    TopicPartition,
    errors,
)
from resilient_client.transports.kafka._answers import Answers, Request, request_of
from resilient_client.transports.kafka._driver import (
    REQUEST_TIMEOUT,
    discard,
    flush,
    leave,
    on_ended,
    rejoin,
    settings,
    why_unreachable,
)
from resilient_client.transports.kafka._errors import AIOKAFKA_ERRORS, ours
from resilient_client.transports.kafka._headers import metadata_of
from resilient_client.transports.kafka._lane import Lane
from resilient_client.transports.kafka._outbox import Outbox
from resilient_client.transports.kafka._topics import REPLY_SUFFIX, Topics, check_topic
from resilient_client.transports.kafka._values import BatchCodec, KafkaCodec
from resilient_client.transports.kafka.client import BATCH_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from resilient_client.events import Status
    from resilient_client.transports._base import App, Subscription, Target

log = logging.getLogger("resilient_client.kafka")

DEFAULT_GROUP = "resilient_client"
CLOCK_SKEW = 1.0
"""Seconds by which the callers' clocks may differ from ours before requests expire too early."""
SESSION_TIMEOUT = 10.0
"""Seconds without a sign of life until the group gives a member's partitions to others."""
COMMIT_INTERVAL = 0.05
"""Seconds between two commits: a member that is killed repeats what it finished meanwhile."""
TICK = 0.5
"""Seconds between two looks at the clock, which tell that the process stood still."""
START_TIMEOUT = 30.0
"""Seconds in which the group must have taken this member in, beside the session timeout."""
MAX_WAITING = 500
"""Records read but not begun, a partition, before no more are fetched from it."""
MAX_DELIVER = 5
RETRY_WAIT = 0.5
"""Seconds before an event that failed is tried again: doubling from there, up to 30."""
DEAD_LETTER = "{topic}.dead"
_NEVER = 2**31 - 1  # ms: a handler may run for hours


class ServerListener:
    """The server's end: a member of a consumer group, and a producer of replies.

    Args:
        group: the consumer group, shared by the replicas of one service and by nobody else. As in
            Nest its name at the broker ends with "-server".
        client_id: what this member is called in the broker's logs and quotas.
        servers, tls, sasl, declare, partitions, replication, request_timeout: as for the client.
        max_size: bytes of one reply; the broker has a limit of its own, 1 MiB by default.
        concurrency: records handled at once, a partition; without it only the server's own caps
            bound them. Records of one key are handled one after another in any case; 1 handles all
            of a partition in order, as Nest does.
        from_beginning: a group that is new reads what is in the topics already, as in kafkajs.
        session_timeout: seconds until the group gives up a member that says nothing.
        max_deliver: how often an event is handed to its handlers before it is set aside.
        retry_wait: seconds before the second attempt, doubling from there.
        dead_letter: the topic for events that failed every time; "" drops them, and tells the log
            and the observers.
    """

    def __init__(
        self,
        target: Target,
        app: App,
        *,
        group: str = DEFAULT_GROUP,
        servers: str | Sequence[str] = (),
        client_id: str | None = None,
        tls: bool | ssl.SSLContext = False,
        sasl: str = "PLAIN",
        declare: bool = True,
        partitions: int | None = None,
        replication: int | None = None,
        max_size: int = DEFAULT_MAX_SIZE,
        request_timeout: float = REQUEST_TIMEOUT,
        concurrency: int | None = None,
        from_beginning: bool = False,
        session_timeout: float = SESSION_TIMEOUT,
        max_deliver: int = MAX_DELIVER,
        retry_wait: float = RETRY_WAIT,
        dead_letter: str = DEAD_LETTER,
    ) -> None:
        for name, value in (("concurrency", concurrency), ("max_deliver", max_deliver)):
            if value is not None and value < 1:
                raise ConfigurationError(f"{name}={value} must be at least 1")
        if dead_letter:
            check_topic(dead_letter.replace("{topic}", "topic"), reply=False)
        self.address = str(target)
        self._app = app
        self._group = f"{group}-server"
        self._made = settings(
            target,
            servers=servers,
            client_id=client_id,
            tls=tls,
            sasl=sasl,
            request_timeout=request_timeout,
        )
        self._declare = {
            "declare": declare,
            "partitions": partitions,
            "replication": replication,
        }
        self._max_size = max_size
        self._request_timeout = request_timeout
        self._concurrency = concurrency
        self._from_beginning = from_beginning
        self._session = session_timeout
        self._max_deliver = max_deliver
        self._retry_wait = retry_wait
        self._dead_letter = dead_letter
        self._values = KafkaCodec(app.codec)
        self._batch_values = BatchCodec(app.codec)
        self._batches: dict[str, int] = {}  # by route
        self._slots = app.slots(self._pause, self._resume)
        self._flow = asyncio.Event()
        self._flow.set()
        self._producer: Any = None
        self._answers = Answers(self._values, self.address, request_timeout)
        self._consumer: Any = None
        self._topics: Any = None
        self._canceller: Any = None  # a consumer without a group
        self._requests: dict[bytes, Request] = {}
        self._lanes: dict[Any, Lane] = {}
        self._owned: set[Any] = set()
        self._held: set[Any] = set()  # those of them that are not read for the moment
        self._first: dict[str, int] = {}  # partitions of each topic when the group was joined
        self._joined = asyncio.Event()
        self._dirty = asyncio.Event()
        self._progress = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._committer: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._hearer: asyncio.Task[None] | None = None
        self._stopping = False
        self._looked = inf
        self._worn_out = False  # its producer will not send any more
        self._status: Status = "idle"

    # -------------------------------------------------------------------------------- its life

    def check_pattern(self, handler: Subscription) -> None:
        """Refuse a pattern that cannot be a topic, and a batch that shares its events.

        Raises:
            ConfigurationError: says why.
        """
        check_topic(handler.route)
        size = handler.extras.get("batch")
        others = [
            each
            for each in self._app.subscriptions()
            if each.route == handler.route and each.is_event
        ]
        if size is None:
            if handler.is_event and handler.route in self._batches:
                raise ConfigurationError(f"{handler.route} has a handler of batches already")
            return
        if not handler.is_event or type(size) is not int or size < 1:
            raise ConfigurationError(
                f"batch={size!r} on {handler.route}", hint="it is a number, for event handlers only"
            )
        if others:
            raise ConfigurationError(
                f"a handler of batches of {handler.route} cannot share it with another handler"
            )
        self._batches[handler.route] = size

    async def start(self) -> None:
        """See `ServerListener.start`."""
        self._stopping = False
        self._change("connecting")
        try:
            await self._build()
        except BaseException:
            await self._discard()
            self._change("idle")
            raise
        self._change("connected")
        self._reader = spawn(self._serve(), f"read {self.address}")
        self._ticker = spawn(self._tick(), f"watch {self.address}")
        self._hearer = spawn(self._hear_cancels(), f"cancels {self.address}")
        self._committer = spawn(self._commit_always(), f"commit {self.address}")

    async def _build(self) -> None:
        """Producer, topics, membership."""
        producer = AIOKafkaProducer(
            **self._made,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=BATCH_SIZE,
            max_request_size=self._max_size + 64 * 1024,
        )
        self._producer = producer
        self._worn_out = False
        try:
            async with asyncio.timeout(self._request_timeout):
                await producer.start()
        except TimeoutError as error:
            raise ConnectError(f"{self.address}: no answer in {self._request_timeout} s") from error
        except (*AIOKAFKA_ERRORS, OSError) as error:
            raise await why_unreachable(self._made, self.address, error) from error
        on_ended(producer, self._give_out)
        self._answers.outbox = Outbox(producer, self.address, self._app.clock, self._answered)
        self._topics = Topics(producer.client, self.address, **self._declare)  # type: ignore[arg-type]
        self._answers.topics = self._topics
        routes = {each.route for each in self._app.subscriptions()}
        replies = {
            each.route + REPLY_SUFFIX for each in self._app.subscriptions() if not each.is_event
        }
        there = await self._topics.ensure(sorted(routes | replies), START_TIMEOUT)
        for topic, partitions in there.items():
            self._first.setdefault(topic, partitions)
        await self._listen_for_cancels()
        consumer = AIOKafkaConsumer(
            **self._made,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest" if self._from_beginning else "latest",
            session_timeout_ms=int(self._session * 1000),
            heartbeat_interval_ms=int(self._session * 100),
            rebalance_timeout_ms=int(self._session * 1000),
            max_poll_interval_ms=_NEVER,
        )
        self._consumer = consumer
        self._joined.clear()
        consumer.subscribe(sorted(routes), listener=self)
        try:
            async with asyncio.timeout(START_TIMEOUT + self._session):
                await consumer.start()
                await self._joined.wait()
                await self._commit()
        except TimeoutError as error:
            raise ConnectError(f"{self.address}: group {self._group} lets nobody in") from error
        except (*AIOKAFKA_ERRORS, OSError) as error:
            raise ours(error, self.address, sent=False) from error

    async def _listen_for_cancels(self) -> None:
        """From now on, on all partitions; without it cancelled calls just run on."""
        try:
            there = await self._topics.ensure([CANCEL_ROUTE], self._request_timeout)
        except ConfigurationError as error:
            log.info("calls that are cancelled will run on: %s", error.args[0])
            return
        consumer = self._canceller = AIOKafkaConsumer(**self._made, enable_auto_commit=False)
        places = [TopicPartition(CANCEL_ROUTE, number) for number in range(there[CANCEL_ROUTE])]
        try:
            async with asyncio.timeout(self._request_timeout):
                await consumer.start()
                consumer.assign(places)
                await consumer.seek_to_end(*places)
        except (*AIOKAFKA_ERRORS, OSError, TimeoutError) as error:
            raise await why_unreachable(self._made, self.address, error) from error

    async def stop(self) -> None:
        """See `ServerListener.stop`."""
        self._stopping = True
        self._slots.drop()
        await _ended(self._reader)
        for lane in self._lanes.values():
            lane.drop_waiting()
        for task in tuple(self._tasks):
            task.cancel()

    async def aclose(self) -> None:
        """See `ServerListener.aclose`."""
        await self.stop()
        self._slots.close()
        if self._producer is not None:
            await flush(self._producer)  # the last replies
        await _ended(self._committer)
        await _ended(self._ticker)
        await _ended(self._hearer)
        consumer = self._consumer
        if consumer is not None:
            if self._status == "connected":
                await self._commit()
            await leave(consumer)
        await self._discard()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        self._change("closed")

    async def _discard(self) -> None:
        parts = (self._consumer, self._canceller, self._producer)
        self._consumer = self._canceller = self._producer = self._answers.outbox = None
        await discard(*(each for each in parts if each is not None))

    def _change(self, status: Status, reason: str = "") -> None:
        if status != self._status:
            old, self._status = self._status, status
            self._app.notify(ConnectionChanged(self.address, old, status, reason))

    def _pause(self) -> None:
        self._flow.clear()

    def _resume(self) -> None:
        self._flow.set()

    # ----------------------------------------------------------------------------- records in

    async def _serve(self) -> None:
        """Read for ever; a consumer that cannot go on is replaced."""
        wait = 0.0
        while True:
            try:
                await self._read()
            except AIOKAFKA_ERRORS as error:
                log.warning("%s: %s", self.address, ours(error, self.address, sent=False).args[0])
                self._change("reconnecting", str(error))
            self._give_up()
            if self._consumer is not None:
                await leave(self._consumer)  # else the group waits for its session
            await self._discard()
            await asyncio.sleep(wait)
            wait = min(LONGEST_WAIT, wait * 2 or FIRST_WAIT)
            try:
                await self._build()
            except ResilientClientError as error:
                log.warning("%s: %s", self.address, error.args[0])
                continue
            self._change("connected")
            wait = 0.0

    async def _read(self) -> None:
        while True:
            await self._flow.wait()
            batches = await self._consumer.getmany(timeout_ms=1000)
            if self._worn_out:
                raise errors.KafkaError("the producer has given up")
            self._look_at_clock()
            for place, records in batches.items():
                lane = self._lanes.get(place)
                if lane is None or place not in self._owned:
                    continue  # it was taken away in this very moment
                lane.add(records)
                if lane.waiting > MAX_WAITING:
                    self._consumer.pause(place)
                    self._held.add(place)

    async def _tick(self) -> None:
        self._looked = inf
        while True:
            self._look_at_clock()
            await asyncio.sleep(TICK)

    def _look_at_clock(self) -> None:
        """After a stop of the whole process others may have our partitions: begin nothing more.

        What is not begun is read again once the group has said whose it is.
        """
        now = time.monotonic()
        stood = now - self._looked
        self._looked = now
        if stood < self._session * 0.8 or self._consumer is None:
            return
        log.warning("%s: this process stood still for %.1f s", self.address, stood)
        self._give_up()
        rejoin(self._consumer)

    def _give_out(self) -> None:
        self._worn_out = True

    def _give_up(self) -> None:
        """Begin nothing more of any partition until the group gives it to us again."""
        self._owned.clear()
        self._held.clear()
        for lane in self._lanes.values():
            lane.drop_waiting()

    def _lane(self, topic: str) -> Lane:
        return Lane(self._begin, concurrency=self._concurrency, batch=self._batches.get(topic, 0))

    def _begin(self, lane: Lane, records: list[Any]) -> None:
        """Hand records to the app: one, or a batch."""
        record = records[0]
        if record.topic in self._batches:
            self._event(lane, records, 1)
            return
        request = request_of(lane, record)
        if request is None:
            self._event(lane, records, 1)
            return
        self._requests[request.id] = request
        message = self._message(record, request.id)
        respond = partial(self._respond, request)
        request.job = self._app.accept(message, respond, self._slots, "kafka")

    def _over(self, request: Request) -> None:
        """Nothing more will be done about it."""
        if request.ended:
            return
        request.ended = True
        if self._requests.get(request.id) is request:
            del self._requests[request.id]
        self._done(request.lane, [request.record])

    async def _hear_cancels(self) -> None:
        """Callers of our make that have left say so where all servers hear it."""
        while True:
            consumer = self._canceller
            if consumer is None:
                await asyncio.sleep(1.0)
                continue
            try:
                batches = await consumer.getmany(timeout_ms=1000)
            except AIOKAFKA_ERRORS as error:
                log.debug("%s: cancels are not heard: %s", self.address, error)
                await asyncio.sleep(1.0)
                continue
            for records in batches.values():
                for record in records:
                    request = self._requests.get(record.value)
                    if request is not None and request.job is not None:
                        request.job.cancel()
                        self._over(request)

    def _message(self, record: Any, id: bytes | None) -> Message:  # noqa: A002
        received = self._app.clock.now()
        if id is not None:
            age = time.time() - record.timestamp / 1000 - CLOCK_SKEW
            if age > 0:
                received -= age
        return Message(
            record.topic,
            record.value,
            metadata_of(record.headers, record.key),
            id,
            received=received,
            raw=record,
            codec=self._values,  # type: ignore[arg-type]
        )

    def _done(self, lane: Lane, records: Sequence[Any]) -> None:
        self._look_at_clock()
        lane.finished(records)
        self._dirty.set()
        self._progress.set()
        if self._held and lane.waiting <= MAX_WAITING // 2:
            self._let_go(records[0])

    def _let_go(self, record: Any) -> None:
        """Read on from this record's partition, if it is still ours."""
        for place in tuple(self._held):
            if place == (record.topic, record.partition):
                self._held.discard(place)
                if place in self._owned:
                    self._consumer.resume(place)

    # --------------------------------------------------------------------------------- events

    def _event(self, lane: Lane, records: list[Any], attempt: int) -> None:
        if self._stopping:
            return
        message = self._event_of(records, attempt)
        heard = partial(self._heard, lane, records, attempt)
        self._app.accept(message, heard, self._slots, "kafka")

    def _event_of(self, records: list[Any], attempt: int) -> Message:
        """The event in a record, or the batch in several."""
        record = records[0]
        message = self._message(record, None)
        if attempt > 1:
            message.headers = {**message.headers, ATTEMPT_HEADER: str(attempt)}
        if record.topic in self._batches:
            message.body = [each.value for each in records]
            message.codec = self._batch_values  # type: ignore[assignment]
            message.raw = records
        return message

    async def _heard(self, lane: Lane, records: list[Any], attempt: int, reply: Reply) -> None:
        """The handlers of an event have ended."""
        error = reply.error
        if error is None:
            self._done(lane, records)
        elif not self._stopping:
            self._spawn(self._failed(lane, records, attempt, error))

    async def _failed(
        self, lane: Lane, records: list[Any], attempt: int, error: RemoteError
    ) -> None:
        """Try again, and at last set it aside."""
        if attempt < self._max_deliver and not isinstance(error, InvalidPayloadError):
            await asyncio.sleep(min(30.0, self._retry_wait * 2 ** (attempt - 1)))
            self._event(lane, records, attempt + 1)
            return
        if len(records) == 1:
            await self._lay_aside(records[0], attempt, error)
        else:  # which of them was it?
            for record in records:
                reply = await self._alone(record, attempt + 1)
                if reply.error is not None:
                    await self._lay_aside(record, attempt + 1, reply.error)
        self._done(lane, records)

    async def _alone(self, record: Any, attempt: int) -> Reply:
        """One record of a batch that failed, as a batch of one."""
        ended: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        async def heard(reply: Reply) -> None:
            ended.set_result(reply)

        self._app.accept(self._event_of([record], attempt), heard, self._slots, "kafka")
        return await ended

    async def _lay_aside(self, record: Any, attempt: int, error: RemoteError) -> None:
        """Into the dead-letter topic, however long that takes; or drop it."""
        wait = FIRST_WAIT
        while self._dead_letter:
            try:
                await self._set_aside(record, attempt, error)
                return
            except (ResilientClientError, TimeoutError) as failure:
                self._tell(f"an event could not be set aside: {failure}")
                await asyncio.sleep(wait)
                wait = min(30.0, wait * 2)
        self._tell(f"event {_name(record)} failed {attempt} times and is dropped")

    async def _set_aside(self, record: Any, attempt: int, error: RemoteError) -> None:
        topic = self._dead_letter.replace("{topic}", record.topic)
        await self._topics.ensure([topic], self._request_timeout)
        about = {
            "topic": record.topic,
            "partition": str(record.partition),
            "offset": str(record.offset),
            "attempts": str(attempt),
            "error": (str(error.__cause__ or error.message))[:1000],
        }
        headers = [*record.headers]
        headers += [(f"x-dead-letter-{name}", text.encode()) for name, text in about.items()]
        await self._answers.store(topic, record.value, headers, record.key)
        self._tell(f"event {_name(record)} failed {attempt} times and was set aside in {topic}")

    def _tell(self, reason: str) -> None:
        log.error("%s: %s", self.address, reason)
        self._app.notify(Degraded(self.address, reason))

    def _spawn(self, coroutine: Any) -> None:
        task = spawn(coroutine, "an event")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -------------------------------------------------------------------------------- replies

    async def _respond(self, request: Request, reply: Reply) -> None:
        """Hand over the reply; the request is over when the broker has it."""
        try:
            there = self._topics.known(request.topic)
            if there is None and not await self._answers.can_answer(request):
                self._over(request)
                return
            await self._answers.reply(request, reply)
        except (ResilientClientError, TimeoutError) as error:
            log.warning("a reply to %s could not be sent: %s", request.topic, error)
            self._over(request)
        except BaseException:
            self._over(request)
            raise

    def _answered(self, request: Request, error: ResilientClientError | None) -> None:
        """The broker has the last record of a reply, or will not have it."""
        if error is None:
            self._over(request)
            return
        log.error("the reply of %s: %s", request.record.topic, error.args[0])
        if isinstance(error, PayloadError) and not self._stopping:
            self._spawn(self._respond(request, Reply(error=RemoteError(INTERNAL_SERVER_ERROR))))
        else:
            self._over(request)

    # ------------------------------------------------------------------- partitions and commits

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        """Let what runs end, within reason, and commit it before others go on from there."""
        places = set(revoked)
        self._owned -= places
        self._held -= places
        lanes = [self._lanes[place] for place in places if place in self._lanes]
        for lane in lanes:
            lane.drop_waiting()
        deadline = time.monotonic() + self._session / 2
        while any(lane.running for lane in lanes) and not self._stopping:
            left = deadline - time.monotonic()
            if left <= 0:
                log.info("%s: %d handlers are not awaited", self._group,
                         sum(lane.running for lane in lanes))  # fmt: skip
                break
            self._progress.clear()
            try:
                async with asyncio.timeout(left):
                    await self._progress.wait()
            except TimeoutError:
                continue
        await self._commit(places)

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        """Go on from what is committed; without that from the end, or the beginning."""
        places = list(assigned)
        try:
            async with asyncio.timeout(self._request_timeout):
                await self._begin_reading(places)
        except (*AIOKAFKA_ERRORS, TimeoutError) as error:
            # aiokafka would go on as if nothing had happened
            log.warning("%s: where to read from is not known: %r", self._group, error)
            asyncio.get_running_loop().call_later(LONGEST_WAIT, rejoin, self._consumer)
            return
        self._dirty.set()
        self._joined.set()

    async def _begin_reading(self, places: list[Any]) -> None:
        consumer = self._consumer
        committed = await asyncio.gather(*(consumer.committed(place) for place in places))
        begins = await asyncio.gather(
            *(
                self._begin_of(place)
                for place, offset in zip(places, committed, strict=True)
                if offset is None
            )
        )
        # no record may be read between the first of these and the last
        unread = iter(begins)
        for place, offset in zip(places, committed, strict=True):
            lane = self._lanes.get(place)
            if lane is None or offset is None:  # also a topic that was made anew
                lane = self._lanes[place] = self._lane(place.topic)
            lane.committed = offset
            consumer.seek(place, lane.begin(next(unread) if offset is None else offset))
        self._owned.update(places)

    async def _begin_of(self, place: Any) -> int:
        """Where a group begins that has committed nothing here.

        A partition that was added while the group was there is read from its beginning.
        """
        added = place.partition >= self._first.get(place.topic, 0)
        consumer = self._consumer
        find = consumer.end_offsets
        if added or self._from_beginning:
            find = consumer.beginning_offsets
        offset: int = (await find([place]))[place]
        return offset

    async def _commit_always(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._commit()
            await asyncio.sleep(COMMIT_INTERVAL)

    async def _commit(self, places: Iterable[Any] | None = None) -> None:
        """Commit what is finished, without a gap, in these partitions or all of ours."""
        offsets = {}
        for place in tuple(self._owned if places is None else places):
            lane = self._lanes.get(place)
            if lane is not None and lane.prefix is not None and lane.prefix != lane.committed:
                offsets[place] = lane.prefix
        consumer = self._consumer
        if not offsets or consumer is None:
            return
        try:
            async with asyncio.timeout(self._request_timeout):
                await consumer.commit(offsets)
        except (*AIOKAFKA_ERRORS, TimeoutError) as error:
            # the next one says the same, or the partition is another member's by now
            log.debug("%s: offsets were not committed: %r", self._group, error)
            if places is None:
                self._dirty.set()
            return
        for place, offset in offsets.items():
            self._lanes[place].committed = offset


ConsumerRebalanceListener.register(ServerListener)


def _name(record: Any) -> str:
    return f"{record.topic}/{record.partition}/{record.offset}"


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task})
