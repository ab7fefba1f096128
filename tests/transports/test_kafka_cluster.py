"""kafka:// with three brokers: one of them may die, be silent, or be restarted in order."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from resilient_client import ClientProxy, DeadlineExceeded, Receipt, Server
from tests.calls import outcome
from tests.peers.brokers import require_broker
from tests.peers.kafka import Kafka, KafkaCluster
from tests.peers.proxy import TcpProxy
from tests.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


@asynccontextmanager
async def three_brokers() -> AsyncIterator[list[Kafka]]:
    require_broker("kafka")
    cluster = KafkaCluster()
    try:
        await asyncio.to_thread(cluster.start)
        yield cluster.brokers
    finally:
        await asyncio.to_thread(cluster.stop)


class Load:
    """A service in the cluster, and calls and events at a steady pace."""

    def __init__(self, url: str, servers: list[str]) -> None:
        self.servers = servers
        self.heard: Counter[int] = Counter()
        self.stored: set[int] = set()
        self.failed: list[Any] = []
        self.states: list[str] = []
        self.server = Server(url, telemetry=False, group="shop", servers=servers)
        self.server.event_pattern("event")(self._hear)
        self.server.message_pattern("echo")(self._echo)
        self.client = ClientProxy(
            url,
            policies=(),
            telemetry=False,
            servers=servers,
            observers=[lambda event: self.states.append(getattr(event, "new", ""))],
        )
        self.calls: list[asyncio.Future[None]] = []

    async def _hear(self, n: int) -> None:
        self.heard[n] += 1

    async def _echo(self, n: int) -> int:
        return n

    async def _call(self, n: int) -> None:
        answers = await asyncio.gather(
            outcome(self.client.send("echo", n, timeout=20)),
            outcome(self.client.emit("event", n, timeout=20)),
        )
        self.failed += [each for each in answers if isinstance(each, Exception)]
        self.stored.add(n)
        if answers[0] != n:
            self.failed.append(answers[0])

    async def for_seconds(self, seconds: float, meanwhile: Awaitable[Any] | None = None) -> None:
        """So long, and as long as something else takes; until all has ended."""
        end = time.monotonic() + seconds
        other = None if meanwhile is None else asyncio.ensure_future(meanwhile)
        while time.monotonic() < end or (other is not None and not other.done()):
            self.calls.append(asyncio.ensure_future(self._call(len(self.calls))))
            await asyncio.sleep(0.03)  # what piles up meanwhile must not be too much for the server
        if other is not None:
            await other
        await asyncio.gather(*self.calls)

    async def check(self) -> None:
        """Nothing failed, nothing is lost, nothing was handled twice."""
        assert self.failed == []
        await eventually(lambda: self.stored == set(self.heard))
        assert set(self.heard.values()) == {1}
        assert self.states == ["connecting", "connected"]


async def details(broker: Kafka, ask: Callable[[Any], Awaitable[Any]]) -> Any:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    try:
        return await ask(admin)
    finally:
        await admin.close()


async def test_a_broker_of_three_that_is_killed_costs_no_call_and_no_event() -> None:
    """It is the one of the URL, leads partitions of every topic, and coordinates the group."""
    async with three_brokers() as brokers:
        number = await details(brokers[0], lambda admin: admin.find_coordinator("shop-server"))
        victim = brokers.pop(number - 1)
        load = Load(victim.url, [each.bootstrap for each in brokers])
        async with load.server, load.client:
            await load.for_seconds(1)
            topics = await details(
                brokers[0], lambda admin: admin.describe_topics(["echo", "echo.reply", "event"])
            )
            for topic in topics:
                assert {place["leader"] for place in topic["partitions"]} == {1, 2, 3}
                assert {len(place["replicas"]) for place in topic["partitions"]} == {3}
            victim.kill()
            async with ClientProxy(
                victim.url, policies=(), telemetry=False, servers=load.servers
            ) as later:  # begins while the topics' leaders are not known
                await load.for_seconds(2, later.emit("other", 1, timeout=20))
                assert await later.send("echo", -1, timeout=20) == -1
            await load.for_seconds(1)
            await load.check()


async def test_how_long_an_event_waits_for_its_partitions_leader_is_for_its_deadline_to_say(
    unique: str,
) -> None:
    """Longer than `request_timeout`, too; and the time of one says nothing about another's."""
    async with three_brokers() as brokers:
        client = ClientProxy(
            brokers[0].url,
            policies=(),
            telemetry=False,
            servers=[each.bootstrap for each in brokers],
            partitions=1,
            replication=1,
            request_timeout=1,
        )
        async with client:
            await client.emit(unique, 0)
            [topic] = await details(brokers[0], lambda admin: admin.describe_topics([unique]))
            leader = brokers[topic["partitions"][0]["leader"] - 1]
            leader.kill()
            hasty = asyncio.ensure_future(outcome(client.emit(unique, 1, timeout=2)))
            patient = asyncio.ensure_future(outcome(client.emit(unique, 2, timeout=60)))
            assert isinstance(await hasty, DeadlineExceeded)
            await asyncio.sleep(2)
            assert not patient.done()
            await leader.start_async()
            assert await patient == Receipt("stored")


@pytest.mark.slow
async def test_brokers_that_are_restarted_one_after_another_cost_no_call_and_no_event() -> None:
    async with three_brokers() as brokers:
        load = Load(brokers[0].url, [each.bootstrap for each in brokers[1:]])

        async def restart() -> None:
            for broker in brokers:
                await broker.terminate_async(30)
                await broker.start_async()
                await asyncio.sleep(1)

        async with load.server, load.client:
            await load.for_seconds(1)
            await load.for_seconds(0, restart())
            await load.check()


async def test_a_server_that_says_nothing_does_not_keep_from_the_others(
    kafka_broker: Kafka, unique: str
) -> None:
    options: dict[str, Any] = {"telemetry": False, "servers": kafka_broker.bootstrap}
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes connections
        url = f"kafka://127.0.0.1:{silent.getsockname()[1]}"
        for number in range(4):  # in whatever order they are asked
            server = Server(url, group=f"{unique}-{number}", **options)
            server.message_pattern(f"{unique}.echo")(lambda payload: payload)
            started = time.monotonic()
            async with server, ClientProxy(url, policies=(), **options) as client:
                assert await client.send(f"{unique}.echo", number) == number
            assert time.monotonic() - started < 5


async def test_who_was_connected_comes_back_by_the_brokers_it_knew(
    kafka_broker: Kafka, unique: str
) -> None:
    async with TcpProxy(kafka_broker.port) as proxy:  # the broker tells its own address
        url = f"kafka://127.0.0.1:{proxy.port}"
        server = Server(url, group=unique, telemetry=False)
        server.message_pattern(unique)(lambda payload: payload)
        client = ClientProxy(url, policies=(), telemetry=False)
        await server.start()
        assert await client.send(unique, 1) == 1
    try:  # the one of the URL is gone now
        ends: list[Any] = [client._transports[0], server._listeners[0]]
        before = [each._link.current for each in ends]
        before[0].lost("made up")
        ends[1]._give_out()
        await eventually(
            lambda: all(
                each._link.current not in (None, old)
                for each, old in zip(ends, before, strict=True)
            )
        )
        assert await client.send(unique, 2) == 2
    finally:
        await client.aclose()
        await server.aclose()
