"""Topics: which names are possible, which exist, and how missing ones are made."""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from resilient_client._checks import integer
from resilient_client.errors import ConfigurationError, ConnectError
from resilient_client.transports.kafka._aiokafka import (
    CreateTopicsRequest,
    DescribeConfigsRequest,
    FetchRequest,
    MetadataRequest,
    OffsetRequest,
    errors,
)
from resilient_client.transports.kafka._driver import REQUEST_TIMEOUT, RETRY_WAIT
from resilient_client.transports.kafka._errors import AIOKAFKA_ERRORS, AWAY, ours

if TYPE_CHECKING:
    from collections.abc import Iterable

REPLY_SUFFIX = ".reply"
DEFAULT_PARTITIONS = 3
MAX_REPLICATION = 3
_LONGEST = 249  # characters, Kafka's own limit
_possible = re.compile(r"[a-zA-Z0-9._-]+").fullmatch

_UNCOMMITTED, _END = 0, -1  # isolation level; timestamp
_NOWHERE = 2**62  # an offset where nothing can be
_TOPIC, _LIMIT = 2, "max.message.bytes"  # what has a setting, and which
_NONE, _UNKNOWN, _INVALID = 0, 3, 17  # error codes
_DENIED = (29, 31)  # topic, cluster
_EXISTS, _TOO_FEW_BROKERS, _NOT_CONTROLLER, _POLICY, _TIMED_OUT = 36, 38, 41, 44, 7


def check_topic(name: str, *, reply: bool = True) -> None:
    """Refuse what cannot be the name of a topic, or of its reply topic.

    Raises:
        ConfigurationError: says why.
    """
    longest = _LONGEST - len(REPLY_SUFFIX) if reply else _LONGEST
    if _possible(name) is None or name in {".", ".."} or len(name) > longest:
        raise ConfigurationError(
            f"{name[:100]!r} cannot be a Kafka topic",
            hint=f"use up to {longest} letters, digits, dots, underscores and hyphens",
        )


def declared(*, declare: bool, partitions: int | None, replication: int | None) -> dict[str, Any]:
    """The arguments of `Topics` that are options of both ends.

    Raises:
        ConfigurationError: a number that makes no sense.
    """
    for name, number in (("partitions", partitions), ("replication", replication)):
        if number is not None:
            integer(name, number)
    return {"declare": declare, "partitions": partitions, "replication": replication}


class Topics:
    """Makes sure that topics are there before anything is read from or written to them.

    Args:
        client: an `AIOKafkaClient`.
        declare: make what is missing.
        partitions, replication: of what is made; replication None is three, or all brokers there
            are.
    """

    def __init__(
        self,
        client: Any,
        endpoint: str,
        *,
        declare: bool,
        partitions: int | None,
        replication: int | None,
    ) -> None:
        self._client = client
        self.endpoint = endpoint
        self._declare = declare
        self._partitions = partitions or DEFAULT_PARTITIONS
        self._replication = replication
        self._refusal = ""  # why a topic could not be made so far
        self.limits: dict[str, int] = {}  # bytes that it takes together, where the broker says so
        self._known: dict[str, int] = {}
        self._leaders: dict[tuple[str, int], int] = {}

    def known(self, name: str) -> int | None:
        """How many partitions it has, if that has been asked before."""
        return self._known.get(name)

    def forget(self, name: str) -> None:
        """It may have been removed: ask again."""
        self._known.pop(name, None)

    async def ensure(self, names: Iterable[str], within: float) -> dict[str, int]:
        """How many partitions each of them has; those that are missing are made.

        Raises:
            ConfigurationError: one is missing and may not be made here; says how to make it.
            ConnectError: the broker does not say, or they are not ready after `within` seconds.
        """
        wanted = list(dict.fromkeys(names))
        missing = [name for name in wanted if name not in self._known]
        if missing:
            try:
                async with asyncio.timeout(within):
                    await self._look_or_make(missing)
            except TimeoutError as error:
                text = f"{self.endpoint}: topics {', '.join(missing)} are not ready in {within} s"
                if self._refusal:
                    raise ConnectError(
                        f"{text}: {self._refusal}", hint="lower replication=, or start more brokers"
                    ) from None
                raise ConnectError(text) from error
            except AIOKAFKA_ERRORS as error:
                raise ours(error, self.endpoint, sent=False) from error
        return {name: self._known[name] for name in wanted}

    async def exists(self, name: str, within: float = REQUEST_TIMEOUT) -> bool:
        """Whether it is there; nothing is made."""
        if name not in self._known and _possible(name) is not None:
            async with asyncio.timeout(within):
                await self._look([name])
        return name in self._known

    async def _look_or_make(self, names: list[str]) -> None:
        made: list[str] = []
        while True:
            absent = await self._look(names)
            if not absent and all(name in self._known for name in names):
                break
            if absent and not made:
                if not self._declare:
                    raise self._missing(absent[0], "is missing (declare=False)")
                made = absent if await self._make(absent) else []
            await asyncio.sleep(RETRY_WAIT)
        places = [(name, number) for name in made for number in range(self._known[name])]
        await asyncio.gather(*(self._led(*place) for place in places))
        await self._learn_limits(names)

    async def _learn_limits(self, names: list[str]) -> None:
        """Many small records may be more together than a topic takes."""
        request = DescribeConfigsRequest([(_TOPIC, name, [_LIMIT]) for name in names])
        with suppress(*AIOKAFKA_ERRORS):  # it is only needed where it is unusual
            for _, _, _, name, settings in (await self._ask(request)).resources:
                for _, limit, *_ in settings:
                    if limit:
                        self.limits[name] = int(limit)

    async def _led(self, name: str, partition: int) -> None:
        """Wait until its leader knows that it is, a moment after it was named.

        Until then it refuses everybody, and aiokafka's consumers complain in the log.
        """
        with suppress(*AWAY):  # one that is down is not waited for
            await self.end_of(name, partition)

    async def _look(self, names: list[str]) -> list[str]:
        """Note those that have their leaders; the names of those that do not exist."""
        request = MetadataRequest(names, allow_auto_topic_creation=False)
        answer = await self._ask(request)
        absent = []
        for code, name, *_, partitions in answer.topics:
            if code == _UNKNOWN:
                absent.append(name)
            elif code in _DENIED:
                raise self._missing(name, "is not for this user, or missing")
            elif code == _INVALID:
                check_topic(name)
            elif code == _NONE and partitions and all(each[0] == _NONE for each in partitions):
                self._known[name] = len(partitions)
                for each in partitions:
                    self._leaders[name, each[1]] = each[2]
        return absent

    async def end_of(self, name: str, partition: int) -> int:
        """The offset that the next record of this partition will have; tries until it is told.

        Raises:
            KafkaError: the broker does not say.
        """
        request = OffsetRequest(-1, _UNCOMMITTED, [(name, [(partition, _END)])])
        while True:
            answer = await self._client.send(self._leaders[name, partition], request)
            [(_, [(_, code, *_, offset)])] = answer.topics
            if code == _NONE:
                end: int = offset
                return end
            error = errors.for_code(code)
            if not error.retriable:
                raise error(name)
            await asyncio.sleep(RETRY_WAIT)  # a topic that was just made
            await self._look([name])

    async def check_readable(self, names: Iterable[str], partition: int = 0) -> None:
        """Ask whether this user may read them: a consumer is told only while it reads.

        Raises:
            ConfigurationError: one of them it may not.
            KafkaError: a broker does not say.
        """
        leaders: dict[int, list[Any]] = {}
        for name in names:
            place = (partition, _NOWHERE, 1)
            leaders.setdefault(self._leaders[name, partition], []).append((name, [place]))
        for leader, places in leaders.items():
            request = FetchRequest(0, 0, 1, _UNCOMMITTED, places)
            for name, partitions in (await self._client.send(leader, request)).topics:
                if any(code in _DENIED for _, code, *_ in partitions):
                    error = errors.TopicAuthorizationFailedError(name)
                    raise ours(error, self.endpoint, sent=False)

    async def _ask(self, request: Any, first: Any = None) -> Any:
        """The answer of one broker or another: some may be down."""
        nodes = [each.nodeId for each in self._client.cluster.brokers()] or ["bootstrap"]
        random.shuffle(nodes)
        nodes.sort(key=lambda node: node != first)
        while True:
            node = nodes.pop(0)
            try:
                return await self._client.send(node, request)
            except AWAY:
                if not nodes:
                    raise

    async def _make(self, names: list[str]) -> bool:
        cluster = self._client.cluster
        replication = self._replication or min(MAX_REPLICATION, max(1, len(cluster.brokers())))
        wanted: list[Any] = [(name, self._partitions, replication, [], []) for name in names]
        request = CreateTopicsRequest(wanted, int(REQUEST_TIMEOUT * 1000), validate_only=False)
        controller = None if cluster.controller is None else cluster.controller.nodeId
        answer = await self._ask(request, controller)
        done = True
        self._refusal = ""
        for name, code, *said in answer.topic_errors:
            if code in _DENIED or code == _POLICY:
                raise self._missing(name, "is missing and may not be made by this user")
            if code == _NOT_CONTROLLER:
                await self._client.force_metadata_update()
            if code in {_TOO_FEW_BROKERS, _NOT_CONTROLLER, _TIMED_OUT}:
                done = False  # a broker that has just started counts for nothing at first
                if code == _TOO_FEW_BROKERS:
                    self._refusal = said[0] if said and said[0] else "there are too few brokers"
            elif code not in {_NONE, _EXISTS}:
                raise self._missing(name, f"cannot be made: {said[0] if said else code}")
        return done

    def _missing(self, name: str, what: str) -> ConfigurationError:
        server = self.endpoint.partition("://")[2].partition("/")[0]
        return ConfigurationError(
            f"{self.endpoint}: topic {name} {what}",
            hint=f"make it with: kafka-topics.sh --bootstrap-server {server} --create"
            f" --topic {name} --partitions {self._partitions}",
        )
