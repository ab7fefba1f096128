"""The brokers, and what to do where one is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

from .kafka import Kafka, kafka_missing
from .mosquitto import Mosquitto, mosquitto_program
from .nats import Nats, nats_server
from .process import Peer, PeerError, free_port
from .rabbitmq import RabbitMQ, rabbitmq_program
from .redis import Redis

__all__ = [
    "BROKERS",
    "Kafka",
    "Mosquitto",
    "Nats",
    "Peer",
    "PeerError",
    "RabbitMQ",
    "Redis",
    "free_port",
    "missing",
    "require_broker",
]

BROKERS: dict[str, type[Peer]] = {
    "redis": Redis,
    "nats": Nats,
    "rabbitmq": RabbitMQ,
    "mosquitto": Mosquitto,
    "kafka": Kafka,
}

_CHECKS: dict[str, Callable[[], str | None]] = {
    "redis": lambda: None if shutil.which("redis-server") else "redis-server is not installed",
    "nats": lambda: None if nats_server() else "nats-server is not installed",
    "rabbitmq": lambda: (
        None if rabbitmq_program("rabbitmq-server") else "rabbitmq-server is not installed"
    ),
    "mosquitto": lambda: None if mosquitto_program("mosquitto") else "mosquitto is not installed",
    "kafka": kafka_missing,
}


def missing(name: str) -> str | None:
    """Why the broker cannot be started here, or None."""
    return _CHECKS[name]()


def require_peer(why_not: str | None) -> None:
    """Where a peer is missing: a failure in CI, which must run everything; elsewhere a skip."""
    if why_not is None:
        return
    reason = f"{why_not}: run scripts/install_peers.sh"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def require_broker(name: str) -> None:
    require_peer(missing(name))
