"""nats:// on a cluster: members found, used and lost; streams with replicas, and without."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nats
import nats.errors
import nats.js.errors
import pytest

from resilient_client import (
    ClientProxy,
    ConnectError,
    ConnectionLost,
    Receipt,
    ResilientClientError,
    Retry,
    Server,
    Timeout,
)
from resilient_client.transports.nats import _jetstream
from tests.peers.brokers import require_broker
from tests.peers.nats import Nats
from tests.peers.process import HOST, exchange, free_port
from tests.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


def cluster(size: int, *lines: str, jetstream: bool = False) -> list[Nats]:
    """Nodes that know each other; none is started."""
    ports = [free_port() for _ in range(size)]
    routes = ", ".join(f"nats://{HOST}:{port}" for port in ports)
    return [
        Nats(
            jetstream=jetstream,
            options=[
                f"server_name: n{number}",
                f'cluster {{ name: test, listen: "{HOST}:{port}", routes: [{routes}] }}',
                *lines,
            ],
        )
        for number, port in enumerate(ports)
    ]


async def all_known(node: Nats, size: int) -> None:
    """Wait until a node tells its clients of so many members."""

    def known() -> bool:
        line = exchange(node.host, node.port, b"", 100).removeprefix(b"INFO ").partition(b"\r\n")[0]
        return len(json.loads(line).get("connect_urls", ())) == size

    await eventually(known)


async def answers(client: ClientProxy, limit: float = 20.0) -> Any:
    """What the service says, as soon as it does."""
    async with asyncio.timeout(limit):
        while True:
            try:
                return await client.send("where", timeout=2)
            except ResilientClientError:
                await asyncio.sleep(0.05)


@pytest.fixture
def three() -> Iterator[list[Nats]]:
    require_broker("nats")
    nodes = cluster(3)
    try:
        yield nodes
    finally:
        for node in nodes:
            node.stop()


async def test_members_that_join_later_are_used_when_all_known_before_are_gone(
    three: list[Nats],
) -> None:
    seed, second, third = three
    seed.start()
    server = Server(seed.url, telemetry=False)
    server.message_pattern("where")(lambda: "here")
    async with server, ClientProxy(seed.url, telemetry=False) as client:
        assert await client.send("where") == "here"
        second.start()
        third.start()
        await all_known(seed, 3)
        seed.kill()
        with pytest.raises(ConnectionLost):
            await client.send("where", timeout=2)
        assert await answers(client) == "here"
        for back, lost in ((seed, second), (second, third)):  # whichever the two are connected to
            await back.start_async()
            await all_known(back, 3)
            lost.kill()
            assert await answers(client) == "here"


async def test_another_member_is_tried_before_the_one_that_has_fallen_silent(
    three: list[Nats],
) -> None:
    first, second, _ = three
    first.start()
    second.start()
    times: dict[str, float] = {}
    loop = asyncio.get_running_loop()

    def told(event: Any) -> None:
        times[event.new] = loop.time()

    options: dict[str, Any] = {"heartbeat": 0.3, "telemetry": False, "observers": [told]}
    async with ClientProxy(first.url, servers=f"{HOST}:{second.port}", **options):
        first.freeze()
        await eventually(lambda: times["connected"] > times.get("reconnecting", loop.time()))
        assert times["connected"] - times["reconnecting"] < 1.0  # a dial of the frozen one is two


async def test_a_member_found_by_its_address_has_to_show_the_certificate_of_the_clusters_name(
    tmp_path: Path,
) -> None:
    import trustme

    require_broker("nats")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    file = tmp_path / "server.pem"
    nodes = cluster(2, f'tls {{ cert_file: "{file}", key_file: "{file}" }}')
    context = ssl.create_default_context()
    authority.configure_trust(context)
    try:
        for node in nodes:
            node.start()
        seed, other = nodes
        await all_known(seed, 2)
        url = f"nats://localhost:{seed.port}"
        server = Server(url, tls=context, telemetry=False)
        server.message_pattern("where")(lambda: "here")
        async with server, ClientProxy(url, tls=context, telemetry=False) as client:
            assert await client.send("where") == "here"
            seed.kill()
            assert await answers(client) == "here"
            await seed.start_async()
            await all_known(seed, 2)
            other.kill()
            assert await answers(client) == "here"
    finally:
        for node in nodes:
            node.stop()


# ---- streams ----


@pytest.fixture(scope="module")
def stored() -> Iterator[list[Nats]]:
    """Three nodes with JetStream, which take some seconds to agree; all run before each test."""
    require_broker("nats")
    nodes = cluster(3, jetstream=True)
    try:
        for node in nodes:
            node.start()
        yield nodes
    finally:
        for node in nodes:
            node.stop()


async def make_stream(nodes: Sequence[Nats], name: str, *, replicas: int) -> int:
    """Make a stream; which of the nodes leads it."""
    for node in nodes:
        await node.start_async()
    raw = await nats.connect(nodes[0].url)
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    info = await raw.jetstream().add_stream(
                        name=name, subjects=[f"{name}.*"], num_replicas=replicas
                    )
                    break
                except (nats.errors.Error, nats.js.errors.Error):  # they do not agree yet
                    await asyncio.sleep(0.2)
            while info.cluster is None or not info.cluster.leader:
                await asyncio.sleep(0.1)
                info = await raw.jetstream().stream_info(name)
        return int(info.cluster.leader.removeprefix("n"))
    finally:
        await raw.close()


async def test_a_stream_with_replicas_loses_no_event_with_its_leader(stored: list[Nats]) -> None:
    leader = await make_stream(stored, "kept", replicas=3)
    others = [node.url for number, node in enumerate(stored) if number != leader]
    heard: Counter[int] = Counter()
    # one end is connected to the node that dies, the other to another
    options: dict[str, Any] = {"stream": "kept", "servers": others, "telemetry": False}
    server = Server(stored[leader].url, queue="workers", ack_wait=5.0, **options)
    server.event_pattern("kept.event")(lambda n: heard.update([n]))
    policies = [Timeout(30), Retry(attempts=100, factor=0.1)]
    acknowledged: set[int] = set()

    async with server, ClientProxy(others[0], policies=policies, **options) as client:

        async def emit(n: int) -> None:
            if await client.emit("kept.event", n, timeout=30) == Receipt("stored"):
                acknowledged.add(n)

        async with asyncio.TaskGroup() as group:
            for n in range(100):
                group.create_task(emit(n))
                await asyncio.sleep(0.01)
                if n == 50:
                    stored[leader].kill()
        assert acknowledged == set(range(100))
        await eventually(lambda: acknowledged <= set(heard))


def test_a_cluster_that_lacks_nodes_now_is_not_refused_for_good() -> None:
    error = {"code": 400, "err_code": 10005, "description": "no suitable peers for placement"}
    assert isinstance(_jetstream.refused(error, "stream shop"), ConnectError)


async def test_a_consumer_goes_on_when_the_node_that_had_its_question_comes_back(
    stored: list[Nats], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_jetstream, "_HEARTBEAT", 0.5)
    monkeypatch.setattr(_jetstream, "_SILENCE", 1.5)
    home = await make_stream(stored, "single", replicas=1)
    url = stored[home - 1].url
    heard: list[int] = []
    server = Server(url, stream="single", queue="workers", telemetry=False)
    server.event_pattern("single.event")(heard.append)
    server.message_pattern("where")(lambda: "here")
    policies = [Timeout(30), Retry(attempts=100, factor=0.1)]
    client = ClientProxy(url, stream="single", policies=policies, telemetry=False)
    async with server, client:
        await client.emit("single.event", 1)
        await eventually(lambda: heard == [1])
        stored[home].kill()
        assert await client.send("where") == "here"
        await stored[home].start_async()
        await client.emit("single.event", 2, timeout=30)
        await eventually(lambda: heard == [1, 2], limit=8)


async def test_requests_are_served_while_a_streams_node_is_away(
    stored: list[Nats], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_jetstream, "_HEARTBEAT", 0.2)
    monkeypatch.setattr(_jetstream, "_SILENCE", 0.5)
    monkeypatch.setattr(_jetstream, "_LATER", 0.1)
    home = await make_stream(stored, "away", replicas=1)
    url, other = stored[home - 1].url, stored[home - 2].url
    heard: list[int] = []
    told: list[Any] = []
    options: dict[str, Any] = {"stream": "away", "servers": other, "telemetry": False}
    server = Server(url, queue="workers", observers=[told.append], **options)
    server.event_pattern("away.event")(heard.append)
    server.message_pattern("where")(lambda: "here")
    policies = [Timeout(40), Retry(attempts=100, factor=0.1)]
    async with server, ClientProxy(other, policies=policies, **options) as client:
        await client.emit("away.event", 1)
        await eventually(lambda: heard == [1])
        stored[home].kill()
        await eventually(lambda: any("does not answer" in getattr(e, "reason", "") for e in told))
        assert await client.send("where") == "here"
        for number, node in enumerate(stored):
            if number != home and node.url == url:
                await node.restart_async()  # it comes back where there is no such stream
        assert await answers(client, 15) == "here"
        assert heard == [1]
        await stored[home].start_async()
        await client.emit("away.event", 2, timeout=40)
        await eventually(lambda: heard == [1, 2])
