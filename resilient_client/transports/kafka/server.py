"""The server's end of kafka://."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from resilient_client._checks import integer, seconds
from resilient_client.context import PING_PATTERN
from resilient_client.errors import (
    INTERNAL_SERVER_ERROR,
    ConfigurationError,
    ConnectError,
    PayloadError,
    RemoteError,
    ResilientClientError,
)
from resilient_client.events import Degraded
from resilient_client.message import Reply
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._link import ServerLink, spawn
from resilient_client.transports.kafka._aiokafka import AIOKafkaConsumer, errors
from resilient_client.transports.kafka._answers import Answers, Request, request_of
from resilient_client.transports.kafka._cancels import Cancels
from resilient_client.transports.kafka._driver import (
    COMMITTED,
    REQUEST_TIMEOUT,
    discard,
    first_answering,
    flush,
    leave,
    look_at_commits,
    on_ended,
    read,
    rejoin,
    settings,
    start,
    why_unreachable,
)
from resilient_client.transports.kafka._errors import AIOKAFKA_ERRORS, AWAY, ours
from resilient_client.transports.kafka._events import Events
from resilient_client.transports.kafka._lane import Lane
from resilient_client.transports.kafka._outbox import Outbox, new_producer
from resilient_client.transports.kafka._partitions import Partitions
from resilient_client.transports.kafka._topics import REPLY_SUFFIX, Topics, check_topic, declared
from resilient_client.transports.kafka._values import KafkaCodec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_client.transports._base import App, Subscription, Target

log = logging.getLogger("resilient_client.kafka")

DEFAULT_GROUP = "resilient_client"
SESSION_TIMEOUT = 10.0
"""Seconds without a sign of life until the group gives a member's partitions to others."""
TICK = 0.5
"""Seconds between two looks at the clock, which tell that the process stood still."""
START_TIMEOUT = 30.0
"""Seconds in which the group must have taken this member in, beside the session timeout."""
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

    url_tls = True
    url_login = True

    handler_options = frozenset({"batch"})

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
        if concurrency is not None:
            integer("concurrency", concurrency)
        integer("max_deliver", max_deliver)
        seconds("retry_wait", retry_wait, zero=True)
        seconds("session_timeout", session_timeout, finite=True)
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
        self._declare = declared(declare=declare, partitions=partitions, replication=replication)
        self._max_size = max_size
        self._request_timeout = request_timeout
        self._concurrency = concurrency
        self._session = session_timeout
        self._values = KafkaCodec(app.codec)
        self._batches: dict[str, int] = {}  # by route
        self._slots = app.slots(self._pause, self._resume)
        self._flow = asyncio.Event()
        self._flow.set()
        self._producer: Any = None
        self._cluster: Any = None  # as the last producer knew it
        self._answers = Answers(self._values, self.address, request_timeout)
        self._partitions = Partitions(
            self._lane,
            self._group,
            session=session_timeout,
            request_timeout=request_timeout,
            from_beginning=from_beginning,
        )
        self._events = Events(
            app,
            self._slots,
            self._answers,
            self._values,
            self._batches,
            self._partitions,
            self._done,
            address=self.address,
            max_deliver=max_deliver,
            retry_wait=retry_wait,
            dead_letter=dead_letter,
        )
        self._consumer: Any = None
        self._topics: Topics  # of the producer there is
        self._requests: dict[bytes, Request] = {}
        self._cancels = Cancels(self._requests, self._over, request_timeout)
        self._reader: asyncio.Task[None] | None = None
        self._committer: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._hearer: asyncio.Task[None] | None = None
        self._stopping = False
        self._looked = inf
        self._worn_out = False  # its producer will not send any more
        self._link = ServerLink[Any](self.address, self._dial, app, None)

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
        self._stopping = self._partitions.stopping = self._events.stopping = False
        self._flow.set()
        await self._link.start()
        self._ticker = spawn(self._tick(), f"watch {self.address}")
        self._hearer = spawn(self._cancels.hear(), f"cancels {self.address}")
        self._committer = spawn(self._partitions.commit_always(), f"commit {self.address}")

    async def _dial(self) -> Any:
        """A consumer that the group has taken in, and what it takes to answer its records."""
        if self._stopping:
            raise ConnectError(f"{self.address} is being stopped")
        await self._leave()
        try:
            consumer = await self._join()
        except BaseException:
            await self._leave()
            raise
        if not self._stopping:
            self._reader = spawn(self._read(consumer), f"read {self.address}")
        return consumer

    async def _join(self) -> Any:
        """Producer, topics, membership."""
        self._worn_out = False
        try:
            async with asyncio.timeout(self._request_timeout):
                made = await first_answering(self._made, self._cluster)
                producer = self._producer = new_producer(made, self._max_size)
                await start(producer)
        except TimeoutError as error:
            raise ConnectError(f"{self.address}: no answer in {self._request_timeout} s") from error
        except (*AIOKAFKA_ERRORS, OSError) as error:
            raise await why_unreachable(self._made, self.address, error) from error
        self._cluster = producer.client.cluster
        on_ended(producer, self._give_out)
        self._topics = self._answers.topics = Topics(producer.client, self.address, **self._declare)
        self._answers.outbox = Outbox(
            producer,
            self.address,
            self._app.clock,
            self._topics.limits,
            self._answered,
            self._give_out,
        )
        routes = {each.route for each in self._app.subscriptions()}
        replies = {
            each.route + REPLY_SUFFIX for each in self._app.subscriptions() if not each.is_event
        }
        pings = {PING_PATTERN, PING_PATTERN + REPLY_SUFFIX}
        there = await self._topics.ensure(sorted((routes | replies) - pings), START_TIMEOUT)
        await self._check_readable(routes - pings)
        try:
            there |= await self._topics.ensure(sorted(pings), START_TIMEOUT)
            await self._check_readable(routes & pings)
        except ConfigurationError as error:
            log.info("pings will not be answered: %s", error.args[0])
            routes.discard(PING_PATTERN)
        self._partitions.expect(there)
        await self._cancels.listen(made, self._topics)
        consumer = AIOKafkaConsumer(
            **made,
            group_id=self._group,
            enable_auto_commit=False,
            isolation_level=COMMITTED,
            # where a new group begins is said by _partitions; this is for a place that retention
            # has passed: go on with what is left
            auto_offset_reset="earliest",
            session_timeout_ms=int(self._session * 1000),
            heartbeat_interval_ms=int(self._session * 100),
            rebalance_timeout_ms=int(self._session * 1000),
            max_poll_interval_ms=_NEVER,
        )
        self._consumer = self._partitions.consumer = consumer
        self._partitions.joined.clear()
        consumer.subscribe(sorted(routes), listener=self._partitions)
        try:
            async with asyncio.timeout(START_TIMEOUT + self._session):
                await start(consumer)
                look_at_commits(consumer)
                await self._partitions.joined.wait()
                await self._partitions.commit()
        except TimeoutError as error:
            raise ConnectError(f"{self.address}: group {self._group} lets nobody in") from error
        except (*AIOKAFKA_ERRORS, OSError) as error:
            raise ours(error, self.address, sent=False) from error
        return consumer

    async def _check_readable(self, names: set[str]) -> None:
        with suppress(*AWAY, TimeoutError):  # a broker that is down is not waited for
            async with asyncio.timeout(self._request_timeout):
                await self._topics.check_readable(names)

    async def stop(self) -> None:
        """See `ServerListener.stop`."""
        self._stopping = self._events.stopping = True
        self._slots.drop()
        await _ended(self._reader)
        self._partitions.drop_waiting()
        self._events.stop()

    async def aclose(self) -> None:
        """See `ServerListener.aclose`."""
        await self.stop()
        self._partitions.stop()
        if self._producer is not None:
            await flush(self._producer)  # the last replies
        await _ended(self._committer)
        await _ended(self._ticker)
        await _ended(self._hearer)
        if await self._link.aclose() is not None:
            await self._partitions.commit()
        await self._leave()
        await self._events.ended()
        self._partitions.forget_committed()

    async def _leave(self) -> None:
        """Leave the group, with everything that was made to be in it."""
        if self._consumer is not None:
            await leave(self._consumer)  # else the group waits for its session
        parts = (self._consumer, self._cancels.consumer, self._producer)
        self._consumer = self._partitions.consumer = self._cancels.consumer = None
        self._producer = self._answers.outbox = None
        await discard(*(each for each in parts if each is not None))

    def _pause(self) -> None:
        self._flow.clear()

    def _resume(self) -> None:
        self._flow.set()

    # ----------------------------------------------------------------------------- records in

    async def _read(self, consumer: Any) -> None:
        """Read for ever; a consumer that cannot go on is replaced."""
        try:
            while True:
                await self._flow.wait()
                batches = await read(consumer, 1000, self._tell)
                if self._worn_out:
                    raise errors.KafkaError("the producer has given up")
                self._look_at_clock()
                for place, records in batches.items():
                    self._partitions.read(place, records)
        except AIOKAFKA_ERRORS as error:
            self._partitions.give_up()
            self._link.lost(consumer, ours(error, self.address, sent=False).args[0])

    async def _tick(self) -> None:
        self._looked = inf
        while True:
            self._look_at_clock()
            self._partitions.pass_over()
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
        self._partitions.give_up()
        rejoin(self._consumer)

    def _tell(self, reason: str) -> None:
        self._app.notify(Degraded(self.address, reason))

    def _give_out(self) -> None:
        self._worn_out = True

    def _lane(self, topic: str) -> Lane:
        return Lane(self._begin, concurrency=self._concurrency, batch=self._batches.get(topic, 0))

    def _begin(self, lane: Lane, records: list[Any]) -> None:
        """Hand records to the app: one, or a batch."""
        record = records[0]
        if record.topic in self._batches:
            self._events.begin(lane, records)
            return
        request = request_of(lane, record)
        if request is None:
            self._events.begin(lane, records)
            return
        if self._cancels.overtaken.take(request.id):
            asyncio.get_running_loop().call_soon(self._done, lane, records)
            return
        self._requests[request.id] = request
        message = self._events.message(record, request.id)
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

    def _done(self, lane: Lane, records: Sequence[Any]) -> None:
        self._look_at_clock()
        self._partitions.finished(lane, records)

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
            reply = Reply(error=RemoteError(INTERNAL_SERVER_ERROR))
            self._events.spawn(self._respond(request, reply))
        else:
            self._over(request)


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task})
