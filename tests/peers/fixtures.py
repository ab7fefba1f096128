"""Fixtures: brokers shared by the whole run, and private ones that a test may kill.

The shared ones are started at first use and must be left as they were found: use names of your own
for channels, queues and topics (``unique``), never kill or freeze one.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from .brokers import BROKERS, Kafka, Mosquitto, Nats, Peer, RabbitMQ, Redis, require_broker

P = TypeVar("P", bound=Peer)

_counter = itertools.count()


@pytest.fixture
def unique() -> str:
    """A name nobody else has, fit for a channel, subject, queue or topic."""
    return f"t{os.getpid()}-{next(_counter)}-{secrets.token_hex(3)}"


def _shared(name: str, **options: Any) -> Iterator[Any]:
    require_broker(name)
    broker = BROKERS[name](**options)
    try:
        yield broker.start()
    finally:
        broker.stop()


@pytest.fixture(scope="session")
def redis_broker() -> Iterator[Redis]:
    yield from _shared("redis")


@pytest.fixture(scope="session")
def nats_broker() -> Iterator[Nats]:
    yield from _shared("nats")


@pytest.fixture(scope="session")
def rabbitmq_broker() -> Iterator[RabbitMQ]:
    yield from _shared(
        "rabbitmq",
        tls=True,
        users={"alice": "alice-secret", "limited": "limited-secret"},
        limited=["limited"],
    )


@pytest.fixture(scope="session")
def mqtt_broker() -> Iterator[Mosquitto]:
    yield from _shared("mosquitto")


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[Kafka]:
    yield from _shared("kafka", secure=True)


@pytest.fixture
def new_broker() -> Iterator[Callable[..., Any]]:
    """``new_broker(Redis, password="...")``: a private broker, started, stopped after the test."""
    made: list[Peer] = []

    def new(kind: type[P], **options: Any) -> P:
        (name,) = (name for name, known in BROKERS.items() if known is kind)
        require_broker(name)
        broker = kind(**options)
        made.append(broker)
        broker.start()
        return broker

    try:
        yield new
    finally:
        for broker in made:
            broker.stop()
