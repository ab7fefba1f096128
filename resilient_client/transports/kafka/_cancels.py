"""Calls that are cancelled: their callers say so where all servers hear it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from resilient_client.errors import ConfigurationError
from resilient_client.transports._nest import CANCEL_ROUTE, Overtaken
from resilient_client.transports.kafka._aiokafka import AIOKafkaConsumer, TopicPartition
from resilient_client.transports.kafka._driver import read, start, why_unreachable
from resilient_client.transports.kafka._errors import AIOKAFKA_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_client.transports.kafka._answers import Request
    from resilient_client.transports.kafka._topics import Topics

log = logging.getLogger("resilient_client.kafka")


class Cancels:
    """Reads them with a consumer without a group, and ends the handlers that are meant.

    Args:
        requests: those being handled, by id.
        over: called with each request that is ended.

    Attributes:
        consumer: None while there is none.
        overtaken: the requests that are still to come, or to begin.
    """

    def __init__(
        self,
        requests: Mapping[bytes, Request],
        over: Callable[[Request], object],
        request_timeout: float,
    ) -> None:
        self.consumer: Any = None
        self.overtaken = Overtaken()
        self._requests = requests
        self._over = over
        self._request_timeout = request_timeout

    async def listen(self, made: dict[str, Any], topics: Topics) -> None:
        """From now on, on all partitions; without it cancelled calls just run on.

        Args:
            made: the settings of the consumer.
        """
        try:
            there = await topics.ensure([CANCEL_ROUTE], self._request_timeout)
        except ConfigurationError as error:
            log.info("calls that are cancelled will run on: %s", error.args[0])
            return
        consumer = self.consumer = AIOKafkaConsumer(**made, enable_auto_commit=False)
        places = [TopicPartition(CANCEL_ROUTE, number) for number in range(there[CANCEL_ROUTE])]
        try:
            async with asyncio.timeout(self._request_timeout):
                await start(consumer)
                consumer.assign(places)
                await consumer.seek_to_end(*places)
        except (*AIOKAFKA_ERRORS, OSError, TimeoutError) as error:
            raise await why_unreachable(made, topics.endpoint, error) from error

    async def hear(self) -> None:
        """Read for ever; callers of our make send the id of the request they have left."""
        while True:
            consumer = self.consumer
            if consumer is None:
                await asyncio.sleep(1.0)
                continue
            try:
                batches = await read(consumer, 1000, log.debug)
            except AIOKAFKA_ERRORS as error:
                log.debug("cancels are not heard: %s", error)
                await asyncio.sleep(1.0)
                continue
            for records in batches.values():
                for record in records:
                    request = self._requests.get(record.value)
                    if request is None:
                        self.overtaken.add(record.value or b"")
                    elif request.job is not None:
                        request.job.cancel()
                        self._over(request)
