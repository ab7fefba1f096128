"""Events on their way to the handlers: again when those fail, and set aside in the end."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from resilient_client.context import ATTEMPT_HEADER
from resilient_client.errors import (
    InvalidPayloadError,
    PayloadError,
    RemoteError,
    ResilientClientError,
)
from resilient_client.events import Degraded
from resilient_client.message import Message, Reply
from resilient_client.transports._link import FIRST_WAIT, spawn
from resilient_client.transports.kafka._headers import metadata_of
from resilient_client.transports.kafka._values import BatchCodec, KafkaCodec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from resilient_client.transports._base import App, Slots
    from resilient_client.transports.kafka._answers import Answers
    from resilient_client.transports.kafka._lane import Lane
    from resilient_client.transports.kafka._partitions import Partitions

CLOCK_SKEW = 1.0
"""Seconds by which the callers' clocks may differ from ours before requests expire too early."""


class Events:
    """Hands records to the app, and events again until one attempt succeeds or the last has failed.

    Args:
        answers: writes what is set aside.
        batches: how many records the handler of a route takes at once, where it takes several.
        partitions: those that are ours, which an event is tried again in only.
        done: called with the lane and the records that are finished.
        max_deliver, retry_wait, dead_letter: see `ServerListener`.
    """

    def __init__(
        self,
        app: App,
        slots: Slots,
        answers: Answers,
        values: KafkaCodec,
        batches: Mapping[str, int],
        partitions: Partitions,
        done: Callable[[Lane, Sequence[Any]], object],
        *,
        address: str,
        max_deliver: int,
        retry_wait: float,
        dead_letter: str,
    ) -> None:
        self.address = address
        self.stopping = False
        self._app = app
        self._slots = slots
        self._answers = answers
        self._values = values
        self._batch_values = BatchCodec(app.codec)
        self._batches = batches
        self._partitions = partitions
        self._done = done
        self._max_deliver = max_deliver
        self._retry_wait = retry_wait
        self._dead_letter = dead_letter
        self._tasks: set[asyncio.Task[Any]] = set()

    def stop(self) -> None:
        """Begin nothing more, and end what waits for another attempt."""
        self.stopping = True
        for task in tuple(self._tasks):
            task.cancel()

    async def ended(self) -> None:
        """Wait, for a moment, until nothing is left."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)

    def message(self, record: Any, id: bytes | None) -> Message:  # noqa: A002
        """What the app is handed: a request with its id, an event without."""
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

    def begin(self, lane: Lane, records: list[Any], attempt: int = 1) -> None:
        """Hand an event, or a batch of them, to its handlers."""
        if self.stopping:
            return
        message = self._event_of(records, attempt)
        heard = partial(self._heard, lane, records, attempt)
        self._app.accept(message, heard, self._slots, "kafka")

    def _event_of(self, records: list[Any], attempt: int) -> Message:
        """The event in a record, or the batch in several."""
        record = records[0]
        message = self.message(record, None)
        if attempt > 1:
            message.headers = {**message.headers, ATTEMPT_HEADER: str(attempt)}
        if record.topic in self._batches:
            message.body = [each.value for each in records]
            message.codec = self._batch_values  # type: ignore[assignment]
            message.raw = records
            message.batch = lambda: [metadata_of(each.headers, each.key) for each in records]
        return message

    async def _heard(self, lane: Lane, records: list[Any], attempt: int, reply: Reply) -> None:
        """The handlers of an event have ended."""
        error = reply.error
        if error is None:
            self._done(lane, records)
        elif not self.stopping:
            self.spawn(self._failed(lane, records, attempt, error))

    async def _failed(
        self, lane: Lane, records: list[Any], attempt: int, error: RemoteError
    ) -> None:
        """Try again, and at last set it aside."""
        if attempt < self._max_deliver and not isinstance(error, InvalidPayloadError):
            wait = min(30.0, self._retry_wait * 2 ** (attempt - 1))
            left = await self._partitions.rest(lane, records, wait)
            if left:
                self.begin(lane, left, attempt + 1)
            return
        records = self._partitions.kept(lane, records)
        if not records:
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
        bare = False
        while self._dead_letter:
            try:
                await self._set_aside(record, attempt, error, bare=bare)
                return
            except PayloadError as failure:
                self._tell(f"event {_name(record)} could not be set aside: {failure.args[0]}")
                if bare:
                    break
                bare = True  # it may be what is said about it that makes it too large
            except (ResilientClientError, TimeoutError) as failure:
                self._tell(f"an event could not be set aside: {failure}")
                await asyncio.sleep(wait)
                wait = min(30.0, wait * 2)
        self._tell(f"event {_name(record)} failed {attempt} times and is dropped")

    async def _set_aside(
        self, record: Any, attempt: int, error: RemoteError, *, bare: bool
    ) -> None:
        topic = self._dead_letter.replace("{topic}", record.topic)
        about = {
            "topic": record.topic,
            "partition": str(record.partition),
            "offset": str(record.offset),
            "attempts": str(attempt),
            "error": (str(error.__cause__ or error.message))[:1000],
        }
        headers = [*record.headers]
        if not bare:
            headers += [
                (f"x-dead-letter-{name}", text.encode(errors="backslashreplace"))
                for name, text in about.items()
            ]
        await self._answers.store(topic, record.value, headers, record.key)
        self._tell(f"event {_name(record)} failed {attempt} times and was set aside in {topic}")

    def _tell(self, reason: str) -> None:
        self._app.notify(Degraded(self.address, reason))

    def spawn(self, coroutine: Any) -> None:
        """A task that ends with the server at the latest."""
        spawn(coroutine, "an event", self._tasks)


def _name(record: Any) -> str:
    return f"{record.topic}/{record.partition}/{record.offset}"
