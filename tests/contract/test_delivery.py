"""What becomes of an event when something dies: the table of docs/reference/delivery.md.

Here is what all transports have in common: the server is killed, nobody is there, a connection is
cut or the broker killed before anybody has read the event. What only one of them has is tested in
its own file; the table's comments say which test backs which cell.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from resilient_client import ClientProxy, Receipt, ResilientClientError, Server
from tests.peers.proxy import TcpProxy

from .rigs import Rig, Service, broker_of, brokered, direct, stop_broker

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

_numbers = itertools.count()


ALL = frozenset({"in work", "absent", "unread"})
ACCEPTED, STORED, WRITTEN = Receipt("accepted"), Receipt("stored"), Receipt("written")
ONE, NONE = Receipt("accepted", 1), Receipt("accepted", 0)


@dataclass(frozen=True)
class Row:
    """One row of the table, as an arrangement and what is promised.

    Attributes:
        query: of both ends' URLs; {n} is a number of its own for each test.
        service: options of the server alone.
        receipt: of an event that somebody may get.
        absent: of one that nobody is subscribed to.
        keeps: what is handled after all: an event "in work" when its server is killed, one that
            came while nobody was "absent", one "unread" when a subscriber's connection is cut.
    """

    scheme: str
    receipt: Receipt
    broker: str = ""
    query: str = ""
    service: dict[str, Any] = field(default_factory=dict)
    absent: Receipt = WRITTEN
    keeps: frozenset[str] = frozenset()

    def settings(self) -> tuple[str, dict[str, Any]]:
        """The URLs' query and the server's options of one test."""
        number = f"{os.getpid()}-{next(_numbers)}"
        fill = lambda text: text.replace("{n}", number) if isinstance(text, str) else text  # noqa: E731
        return fill(self.query), {name: fill(value) for name, value in self.service.items()}

    @asynccontextmanager
    async def rig(self) -> AsyncIterator[Rig]:
        """A service process, and a client behind a proxy."""
        if not self.broker:
            async with direct(self.scheme, "asyncio") as rig:
                yield rig
            return
        query, options = self.settings()
        if self.broker == "nats" and query:  # no two streams may have a subject in common
            stop_broker("nats")
        try:
            async with brokered(
                self.scheme, "asyncio", self.broker, query=query, service_options=options
            ) as rig:
                yield rig
        finally:
            if "session_expiry" in options:  # a session that is subscribed after its server's end
                stop_broker(self.broker)


DIRECT = {
    "tcp": Row("tcp", WRITTEN),
    "http": Row("http", ONE),
    "grpc": Row("grpc", ONE),
}
BROKERED = {
    "redis": Row("redis", ONE, "redis", absent=NONE),
    "redis_stream": Row(
        "redis", STORED, "redis", "?stream=d{n}", {"ack_wait": 1.0}, absent=STORED, keeps=ALL
    ),
    "nats": Row("nats", WRITTEN, "nats"),
    "nats_stream": Row(
        "nats", STORED, "nats", "?stream=delivery", {"ack_wait": 1.0}, absent=STORED, keeps=ALL
    ),
    "amqp": Row("amqp", STORED, "rabbitmq", "?queue=d{n}", absent=STORED, keeps=ALL),
    "amqp_transient": Row(
        "amqp", ACCEPTED, "rabbitmq", "?queue=d{n}&durable=false", absent=ACCEPTED, keeps=ALL
    ),
    "amqp_unacknowledged": Row(
        "amqp",
        STORED,
        "rabbitmq",
        "?queue=d{n}",
        {"ack": False},
        absent=STORED,
        keeps=frozenset({"absent"}),
    ),
    "mqtt": Row("mqtt", ACCEPTED, "mosquitto", absent=NONE),
    "mqtt_3": Row("mqtt", ACCEPTED, "mosquitto", "?version=3.1.1", absent=ACCEPTED),
    "mqtt_qos0": Row("mqtt", WRITTEN, "mosquitto", "?qos=0"),
    "mqtt_session": Row(
        "mqtt",
        ACCEPTED,
        "mosquitto",
        service={"client_id": "d{n}", "session_expiry": 60},
        absent=ACCEPTED,
        keeps=ALL,
    ),
}


def rows(*names: str) -> Any:
    known = {**DIRECT, **BROKERED}
    return pytest.mark.parametrize("row", [pytest.param(known[name], id=name) for name in names])


async def until_connected(client: ClientProxy) -> None:
    for _ in range(100):
        try:
            assert await client.send("fault.echo", 1, timeout=1) == 1
        except ResilientClientError:
            await asyncio.sleep(0.05)
        else:
            return
    pytest.fail("the service did not come back")


@rows(*DIRECT, *BROKERED)
async def test_a_server_dies_with_an_event_in_work_and_another_finds_nobody(
    row: Row,
) -> None:
    async with row.rig() as rig, rig.client() as client:
        assert await client.emit("fault.slow_event", "in work") == row.receipt
        assert await rig.journal("slow_event_started", 1) == ["in work"]
        rig.service.kill()
        assert rig.service.journal("slow_event") == []
        await asyncio.sleep(0.2)  # until the broker has noticed
        if row.broker:
            assert await client.emit("fault.slow_event", "absent") == row.absent
        await rig.service.restart_async()
        await until_connected(client)
        await client.emit("fault.slow_event", "after")
        expected = sorted({"after", *row.keeps & {"in work", "absent"}})
        assert sorted(await rig.journal("slow_event", len(expected), 10.0)) == expected
        begun = sorted(rig.service.journal("slow_event_started"))
        assert begun == sorted(["in work", *expected]), "begun again only what is kept"


@pytest.mark.parametrize(
    ("row", "how"),
    [
        pytest.param(row, how, id=f"{name}-{how}")
        for name, row in BROKERED.items()
        for how in ("cut", "kill")
        # what outlives the broker is tested in the transport's own file, as each has its conditions
        if how == "cut" or "unread" not in row.keeps
    ],
)
async def test_a_connection_or_the_broker_dies_before_it_is_read(row: Row, how: str) -> None:
    broker = await broker_of(row.broker)
    query, options = row.settings()
    heard: list[Any] = []
    async with TcpProxy(broker.port) as proxy:
        url = f"{row.scheme}://127.0.0.1:{{}}{query}"
        server = Server(url.format(proxy.port), telemetry=False, grace=0.5, **options)
        server.event_pattern("unread")(heard.append)
        client = ClientProxy(url.format(broker.port), policies=(), telemetry=False)
        async with server, client:
            proxy.stall("down")
            assert await client.emit("unread", "unread") == row.receipt
            await asyncio.sleep(0.1)
            if how == "kill":
                broker.kill()
                await broker.restart_async()
            proxy.cut()
            proxy.heal()
            for _ in range(200):
                try:
                    await client.emit("unread", "after", timeout=1)
                except ResilientClientError:
                    continue
                finally:
                    await asyncio.sleep(0.05)
                if "after" in heard and ("unread" in heard) >= ("unread" in row.keeps):
                    break
            assert "after" in heard
            assert ("unread" in heard) == ("unread" in row.keeps)


@rows("tcp", "nats", "mqtt_qos0")
async def test_a_connection_dies_with_what_was_only_written(
    row: Row,
) -> None:
    async with row.rig() as rig, rig.client() as client:
        await until_connected(client)
        rig.proxy.stall("up")
        assert await client.emit("fault.event", "unread") == WRITTEN
        await asyncio.sleep(0.1)
        rig.proxy.cut()
        rig.proxy.heal()
        await until_connected(client)
        await client.emit("fault.event", "after")
        assert await rig.journal("event", 1) == ["after"]


PROCESS = """
import asyncio, sys
from resilient_client import ClientProxy
from tests.contract.service import make

async def main():
    async with make("memory://both", sys.argv[1], {}), ClientProxy("memory://both") as client:
        print(await client.emit("fault.slow_event", int(sys.argv[2])), flush=True)
        print("READY ", flush=True)
        await asyncio.sleep(float(sys.argv[3]))

asyncio.run(main())
"""


class Both(Service):
    """Client and server in one process."""

    def command(self) -> Sequence[str]:
        number, seconds = self._options["number"], self._options["seconds"]
        return [sys.executable, "-c", PROCESS, str(self.journal_path), str(number), str(seconds)]


async def test_a_process_dies_with_what_it_has_in_memory() -> None:
    both = Both("memory://both", {"number": 1, "seconds": 60}, "asyncio")
    try:
        await both.start_async()
        assert "Receipt(delivery='accepted', receivers=1)" in both.log
        both.kill()
        both._options.update(number=2, seconds=1)
        await both.start_async()
        for _ in range(250):
            if both.journal("slow_event"):
                break
            await asyncio.sleep(0.02)
        assert both.journal("slow_event_started") == [1, 2]
        assert both.journal("slow_event") == [2]
    finally:
        both.stop()


async def test_a_server_that_is_stopped_says_what_it_has_not_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended: list[int] = []
    begun = asyncio.Event()
    server = Server("tcp://127.0.0.1:0", telemetry=False, grace=0.2, max_calls_per_connection=1)

    @server.event_pattern("slow")
    async def slow(n: int) -> None:
        begun.set()
        await asyncio.sleep(60)
        ended.append(n)

    async with server, ClientProxy(server.addresses[0], policies=(), telemetry=False) as client:
        for n in range(3):
            await client.emit("slow", n)
        await begun.wait()
    assert ended == []
    assert "1 handlers were cancelled at the end of the grace time" in caplog.text
    assert "2 events had not begun at the end of the grace time" in caplog.text
