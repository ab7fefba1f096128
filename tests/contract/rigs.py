"""What the fault suite breaks: a service, and what stands between it and its client.

A transport joins the suite by one line in `RIGS`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resilient_client import ClientProxy
from tests.peers.brokers import BROKERS, Kafka, RabbitMQ, free_port, require_broker
from tests.peers.process import Peer
from tests.peers.proxy import TcpProxy

ROOT = Path(__file__).resolve().parents[2]


class Service(Peer):
    """The service process. On a transport without a broker it is also what is killed."""

    name = "service"

    def __init__(self, url: str, options: dict[str, Any], loop: str) -> None:
        super().__init__()
        self._url = url
        self._options = options
        self._loop = loop
        self.journal_path = self.folder / "journal"
        self._seen = 0

    @property
    def url(self) -> str:
        return self._url.replace("{port}", str(self.port))

    def command(self) -> Sequence[str]:
        return [
            sys.executable,
            "-m",
            "tests.contract.service",
            self.url,
            str(self.journal_path),
            json.dumps(self._options),
            self._loop,
        ]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}

    def start(self) -> Service:
        self._seen = self._ready_lines()
        super().start()
        return self

    def _ready_lines(self) -> int:
        path = self.folder / "output.log"
        return path.read_text(errors="replace").count("READY ") if path.exists() else 0

    def answers(self) -> bool:
        return self._ready_lines() > self._seen

    def journal(self, kind: str) -> list[Any]:
        """What handlers of this kind noted, over all restarts."""
        if not self.journal_path.exists():
            return []
        entries = [json.loads(line) for line in self.journal_path.read_text().splitlines()]
        return [value for each, value in entries if each == kind]


@dataclass
class Rig:
    """One transport's arrangement.

    Attributes:
        client_url: through the proxy.
        service: the server process.
        middle: what is killed, frozen and restarted: the broker, or else the service itself.
        proxy: between the client and the middle.
        tells_loss: whether an emit that does not arrive is always told: False where writing is all
            that is proved.
        forgets: seconds before its kill whose acknowledgements the broker may have forgotten: what
            it was told then is delivered again.
        tells_absence: whether an emit that nobody is subscribed to is told. False where the broker
            drops it in silence, as between its own return and the service's.
        detects_freeze: seconds within which a frozen middle is noticed by itself; None: only calls'
            own deadlines notice it.
    """

    scheme: str
    client_url: str
    service: Service
    middle: Peer
    proxy: TcpProxy
    options: dict[str, Any] = field(default_factory=dict)
    tells_loss: bool = False
    forgets: float = 0.0
    tells_absence: bool = True
    detects_freeze: float | None = None

    def client(self, **settings: Any) -> ClientProxy:
        settings.setdefault("policies", ())
        settings.setdefault("telemetry", False)
        return ClientProxy(self.client_url, **self.options, **settings)

    async def settle(self) -> None:
        """Have on the middle's disk what the service has declared."""
        if isinstance(self.middle, RabbitMQ):
            await asyncio.to_thread(self.middle.settle)

    async def kill(self) -> None:
        """SIGKILL; new connections are refused, as they are where nobody listens."""
        self.middle.kill()
        self.proxy.refuse()
        self.proxy.cut()

    async def restart(self) -> None:
        await self.middle.restart_async()
        self.proxy.accept()

    async def journal(self, kind: str, count: int, timeout: float = 5.0) -> list[Any]:
        """What was noted, waiting until there are that many."""
        for _ in range(int(timeout / 0.02)):
            if len(entries := self.service.journal(kind)) >= count:
                return entries
            await asyncio.sleep(0.02)
        return self.service.journal(kind)


@asynccontextmanager
async def direct(scheme: str, loop: str, **about: Any) -> AsyncIterator[Rig]:
    """The service itself listens: it is what is killed."""
    service = Service(f"{scheme}://127.0.0.1:{{port}}", {}, loop)
    try:
        await service.start_async()
        async with TcpProxy(service.port) as proxy:
            url = f"{scheme}://127.0.0.1:{proxy.port}"
            yield Rig(scheme, url, service, service, proxy, **about)
    finally:
        service.stop()


@asynccontextmanager
async def tcp(loop: str) -> AsyncIterator[Rig]:
    async with direct("tcp", loop) as rig:
        yield rig


@asynccontextmanager
async def http(loop: str) -> AsyncIterator[Rig]:
    async with direct("http", loop, tells_loss=True) as rig:
        yield rig


@asynccontextmanager
async def grpc(loop: str) -> AsyncIterator[Rig]:
    async with direct("grpc", loop, tells_loss=True, detects_freeze=25.0) as rig:
        yield rig


_brokers: dict[str, Peer] = {}


def stop_broker(name: str) -> None:
    """Have the next test begin with an empty one: this one keeps what would disturb it."""
    if (old := _brokers.pop(name, None)) is not None:
        old.stop()


def stop_brokers() -> None:
    """At the end of the run."""
    while _brokers:
        _brokers.popitem()[1].stop()


async def broker_of(name: str) -> Peer:
    """A broker of this suite's own, running, started once; `name` is its name in `BROKERS`."""
    require_broker(name)
    broker = _brokers.get(name)
    if broker is None:
        broker = _brokers[name] = BROKERS[name]()
    if not broker.running:  # a test may have left it killed
        await broker.start_async()
    return broker


@asynccontextmanager
async def brokered(
    scheme: str,
    loop: str,
    name: str,
    *,
    query: str = "",
    service_options: dict[str, Any] | None = None,
    **about: Any,
) -> AsyncIterator[Rig]:
    """A broker of `broker_of`: it is what is killed.

    The proxy stands between the client and the broker; the service talks to the broker directly.

    Args:
        name: of the broker in `BROKERS`.
        query: of both ends' URLs, such as "?queue=faults".
        service_options: of the server alone.
    """
    broker = await broker_of(name)
    service = Service(f"{scheme}://127.0.0.1:{broker.port}{query}", service_options or {}, loop)
    try:
        await service.start_async()
        async with TcpProxy(broker.port) as proxy:
            url = f"{scheme}://127.0.0.1:{proxy.port}{query}"
            yield Rig(scheme, url, service, broker, proxy, **about)
    finally:
        service.stop()


_numbers = itertools.count()


@asynccontextmanager
async def amqp(loop: str) -> AsyncIterator[Rig]:
    query = f"?queue=faults-{next(_numbers)}"
    about: dict[str, Any] = {"tells_loss": True, "forgets": 0.5, "detects_freeze": 15.0}
    async with brokered("amqp", loop, "rabbitmq", query=query, **about) as rig:
        yield rig


@asynccontextmanager
async def redis(loop: str) -> AsyncIterator[Rig]:
    async with brokered("redis", loop, "redis", detects_freeze=4.0) as rig:
        yield rig


@asynccontextmanager
async def redis_stream(loop: str) -> AsyncIterator[Rig]:
    """Durable events; a stream for each test, so that none sees what another left."""
    query = f"?stream=faults-{next(_numbers)}"
    async with brokered(
        "redis", loop, "redis", query=query, tells_loss=True, detects_freeze=4.0
    ) as rig:
        yield rig


@asynccontextmanager
async def mqtt(loop: str) -> AsyncIterator[Rig]:
    async with brokered("mqtt", loop, "mosquitto", detects_freeze=10.0) as rig:
        yield rig


@asynccontextmanager
async def nats(loop: str) -> AsyncIterator[Rig]:
    async with brokered("nats", loop, "nats", tells_absence=False, detects_freeze=10.0) as rig:
        yield rig


@asynccontextmanager
async def kafka(loop: str) -> AsyncIterator[Rig]:
    """A broker tells its clients where to connect: those behind the proxy, to the proxy."""
    require_broker("kafka")
    broker = _brokers.get("kafka")
    if broker is None:
        broker = _brokers["kafka"] = Kafka(proxy_port=free_port())
    await broker.start_async()  # again, where the test before has failed without its broker
    assert isinstance(broker, Kafka)
    # each service in a group of its own: one that was killed is a member until its session expires
    query = f"?group={os.urandom(4).hex()}"
    service = Service(broker.url + query, {}, loop)
    proxy = TcpProxy(broker.proxied_port)
    proxy.port = broker.proxy_port
    try:
        await service.start_async()
        async with proxy:
            url = f"kafka://127.0.0.1:{proxy.port}{query}"
            about: dict[str, Any] = {"tells_loss": True, "detects_freeze": 11.0}
            yield Rig("kafka", url, service, broker, proxy, **about)
    finally:
        service.stop()


@asynccontextmanager
async def nats_stream(loop: str) -> AsyncIterator[Rig]:
    """Durable events; a broker for each test, as no two streams may have a subject in common."""
    stop_broker("nats")
    async with brokered(
        "nats",
        loop,
        "nats",
        query="?stream=faults",
        service_options={"ack_wait": 2.0},
        tells_loss=True,
        forgets=0.5,
        detects_freeze=10.0,
    ) as rig:
        yield rig


RIGS: dict[str, Callable[[str], Any]] = {
    "nats": nats,
    "nats_stream": nats_stream,
    "tcp": tcp,
    "http": http,
    "amqp": amqp,
    "mqtt": mqtt,
    "redis": redis,
    "redis_stream": redis_stream,
    "kafka": kafka,
    "grpc": grpc,
}

DIRECT = frozenset({"tcp", "http", "grpc"})
"""The service itself listens; no broker stands between."""
