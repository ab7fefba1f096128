"""A real Apache Kafka: one KRaft node that is broker and controller."""

from __future__ import annotations

import base64
import os
import shutil
import struct
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from . import kafka_protocol as protocol
from .certificates import certificates
from .process import Peer, PeerError, free_port

VERSION = "4.4.0"
STORE_PASSWORD = "test-only"

SETTINGS = """
process.roles=broker,controller
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=1
num.partitions=3
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
log.cleaner.enable=false
log.initial.task.delay.ms=500
log.retention.check.interval.ms=500
"""

ALONE = """
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
"""

LOGGING = """<?xml version="1.0"?>
<Configuration status="error">
<Appenders><Console name="out"><PatternLayout pattern="%d %p %m%n"/></Console></Appenders>
<Loggers><Root level="warn"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""


def kafka_libraries() -> Path:
    """Where the jars are kept from run to run."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "resilient-client" / f"kafka-{VERSION}" / "libs"


def kafka_missing() -> str | None:
    if shutil.which("java") is None:
        return "Java 17 or newer is not installed"
    if not (kafka_libraries() / f"kafka_2.13-{VERSION}.jar").exists():
        return f"Kafka's jars are not in {kafka_libraries()}"
    return None


def new_cluster() -> str:
    """An id for brokers that belong together."""
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    return cluster.replace("-", "x", 1) if cluster.startswith("-") else cluster


class Kafka(Peer):
    """Kafka with a plain listener (``url``) and, with ``secure=True``, three more.

    ``ssl_port`` (``client_certificates`` demands one there), ``sasl_port`` (SASL without TLS) and
    ``sasl_ssl_port``; SASL is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512 for ``users``.
    ``authorizer=True`` gives the users no rights on anything until the test grants them.
    ``proxy_port`` is where a proxy of ``proxied_port`` will listen: clients that come through it
    are told to stay there.
    ``node`` is its number among those of one ``cluster``, whose ``controllers`` have these ports.
    The first start takes 4-8 s, a restart about 5.
    """

    name = "kafka"
    ready_within = 150.0

    def __init__(
        self,
        *,
        secure: bool = False,
        users: Mapping[str, str] | None = None,
        client_certificates: bool = False,
        authorizer: bool = False,
        proxy_port: int = 0,
        options: Sequence[str] = (),
        node: int = 1,
        controllers: Sequence[int] = (),
        cluster: str = "",
    ) -> None:
        super().__init__()
        self.secure = secure
        self.users = dict(users or {"alice": "alice-secret"})
        self.client_certificates = client_certificates
        self.authorizer = authorizer
        self.proxy_port = proxy_port
        self.proxied_port = 0
        self.options = options
        self.node = node
        self.controllers = controllers or (free_port(),)
        self.cluster = cluster or new_cluster()
        self.ssl_port = self.sasl_port = self.sasl_ssl_port = 0

    @property
    def url(self) -> str:
        return f"kafka://{self.host}:{self.port}"

    @property
    def bootstrap(self) -> str:
        return f"{self.host}:{self.port}"

    def prepare(self) -> None:
        voters = ",".join(
            f"{node}@{self.host}:{port}" for node, port in enumerate(self.controllers, 1)
        )
        controller = self.controllers[self.node - 1]
        listeners = {"PLAINTEXT": self.port}
        if self.secure:
            self.ssl_port, self.sasl_port, self.sasl_ssl_port = (
                free_port(),
                free_port(),
                free_port(),
            )
            listeners["SSL"] = self.ssl_port
            listeners["SASL_PLAINTEXT"] = self.sasl_port
            listeners["SASL_SSL"] = self.sasl_ssl_port
        bound = ",".join(f"{name}://{self.host}:{port}" for name, port in listeners.items())
        advertised = bound
        if self.proxy_port:
            self.proxied_port = free_port()
            bound += f",PROXIED://{self.host}:{self.proxied_port}"
            advertised += f",PROXIED://{self.host}:{self.proxy_port}"
        lines = [
            SETTINGS,
            ALONE if len(self.controllers) == 1 else "",
            f"node.id={self.node}",
            f"controller.quorum.voters={voters}",
            f"listeners={bound},CONTROLLER://{self.host}:{controller}",
            f"advertised.listeners={advertised}",
            "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT,"
            + ",".join(f"{name}:{name}" for name in listeners),
            f"log.dirs={self.folder / 'data'}",
        ]
        if self.secure:
            lines += self._security()
        if self.authorizer:
            lines += [
                "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users=User:ANONYMOUS",
            ]
        (self.folder / "server.properties").write_text("\n".join([*lines, *self.options]) + "\n")
        (self.folder / "log4j2.xml").write_text(LOGGING)
        self._format()

    def _security(self) -> list[str]:
        files = certificates()
        store = self.folder / "keystore.pem"
        store.write_bytes(files.server_key.read_bytes() + files.server.read_bytes())
        plain = " ".join(f'user_{name}="{word}"' for name, word in self.users.items())
        module = "org.apache.kafka.common.security"
        lines = [
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={store}",
            "ssl.truststore.type=PEM",
            f"ssl.truststore.location={files.authority}",
            f"ssl.client.auth={'required' if self.client_certificates else 'none'}",
            "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        ]
        for listener in ("sasl_plaintext", "sasl_ssl"):
            prefix = f"listener.name.{listener}"
            scram = f"{module}.scram.ScramLoginModule required;"
            accept = f"{module}.plain.PlainLoginModule required {plain};"
            lines += [
                f"{prefix}.plain.sasl.jaas.config={accept}",
                f"{prefix}.scram-sha-256.sasl.jaas.config={scram}",
                f"{prefix}.scram-sha-512.sasl.jaas.config={scram}",
            ]
        return lines

    def _format(self) -> None:
        command = [*self._java(), "kafka.tools.StorageTool", "format", "-t", self.cluster]
        command += ["-c", "server.properties"]
        if self.secure:
            for name, word in self.users.items():
                for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                    command += ["--add-scram", f"{mechanism}=[name={name},password={word}]"]
        done = subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=self.ready_within,
            check=False,
        )
        if done.returncode != 0:
            raise PeerError(f"Kafka's storage could not be formatted:\n{done.stdout}{done.stderr}")

    def _java(self) -> list[str]:
        missing = kafka_missing()
        if missing is not None:
            raise PeerError(missing)
        return [
            "java",
            "-Xms256m",
            "-Xmx256m",
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.xml'}",
            "-cp",
            f"{kafka_libraries()}/*",
        ]

    def command(self) -> Sequence[str]:
        return [*self._java(), "kafka.Kafka", "server.properties"]

    def answers(self) -> bool:
        """The port opens before the group coordinator works, so ask for that."""
        try:
            return protocol.coordinator_ready(self.host, self.port)
        except (EOFError, struct.error):
            return False

    def create_topics(self, *names: str, partitions: int = 1) -> None:
        """Create what is not there yet and wait until each has its leaders."""
        protocol.create_topics(self.host, self.port, names, partitions)

    def delete_topics(self, *names: str) -> None:
        """Delete those that exist."""
        protocol.delete_topics(self.host, self.port, names)

    def topics(self) -> list[str]:
        return sorted(protocol.topics(self.host, self.port))


class KafkaCluster:
    """Three brokers that keep each record on two of them at least before they acknowledge it."""

    def __init__(self) -> None:
        controllers = [free_port() for _ in range(3)]
        cluster = new_cluster()
        options = [
            "min.insync.replicas=2",
            "offsets.topic.replication.factor=3",
            # until a broker that says nothing counts as gone, and nobody waits for its copies
            "broker.session.timeout.ms=2500",
        ]
        self.brokers = [
            Kafka(node=node, controllers=controllers, cluster=cluster, options=options)
            for node in (1, 2, 3)
        ]

    def start(self) -> Self:
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(Kafka.start, self.brokers))
        return self

    def stop(self) -> None:
        for each in self.brokers:
            each.stop()
