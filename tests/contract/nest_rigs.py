"""How each transport meets a real NestJS: where its broker is, and what both sides must agree on.

A transport joins `test_nest.py` by one line in `NEST_RIGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.peers.process import free_port


@dataclass
class Meeting:
    """One test's place: a broker's URL, or a free port of its own.

    Attributes:
        transport: Nest's name for it.
        url: for our side.
        broker: for Nest's side; None where Nest listens, or is called, itself.
        prefix: before every pattern, so that tests on one broker do not meet.
        client_options, server_options: our transport's own.
        nest: settings for Nest's side.
        object_patterns: whether patterns may be objects (topics of Kafka may not).
        texts: whether a Nest client gets numbers as text, and null where an answer ends.
    """

    transport: str
    url: str
    broker: str | None
    prefix: str
    port: int = 0
    client_options: Mapping[str, Any] = field(default_factory=dict)
    server_options: Mapping[str, Any] = field(default_factory=dict)
    nest: Mapping[str, Any] = field(default_factory=dict)
    object_patterns: bool = True
    metadata_versions: frozenset[int] = frozenset({12})
    texts: bool = False

    def payload(self, data: dict[str, Any]) -> dict[str, Any]:
        """What a Nest client is given to send this: on Kafka a "value" in it would be the whole."""
        return {"value": data} if self.texts else data

    def values(self, values: list[Any]) -> list[Any]:
        """What a Nest client saw, where it sees numbers as text and the end as null."""
        if not self.texts:
            return values
        values = values[:-1] if values and values[-1] is None else values
        return [int(v) if isinstance(v, str) and v.isdigit() else v for v in values]

    def nest_server_place(self) -> dict[str, Any]:
        return {"broker": self.broker} if self.broker else {}

    def nest_client_place(self, address: str) -> dict[str, Any]:
        if self.broker:
            return {"url": self.broker}
        return {"port": int(address.rpartition(":")[2])}


def tcp(request: pytest.FixtureRequest, unique: str) -> Meeting:
    port = free_port()
    return Meeting("tcp", "tcp://127.0.0.1:{port}", None, f"{unique}.", port)


def amqp(request: pytest.FixtureRequest, unique: str) -> Meeting:
    url = request.getfixturevalue("rabbitmq_broker").url
    options = {"queue": unique, "durable": False}
    return Meeting(
        "rmq",
        url,
        url,
        f"{unique}.",
        client_options=options,
        server_options=options,
        nest={"queue": unique},
    )


def redis(request: pytest.FixtureRequest, unique: str) -> Meeting:
    url = request.getfixturevalue("redis_broker").url
    return Meeting("redis", url, url, f"{unique}.")


def mqtt(request: pytest.FixtureRequest, unique: str) -> Meeting:
    url = request.getfixturevalue("mqtt_broker").url
    return Meeting("mqtt", url, url, f"{unique}.")


def nats(request: pytest.FixtureRequest, unique: str) -> Meeting:
    url = request.getfixturevalue("nats_broker").url
    return Meeting("nats", url, url, f"{unique}.")


_KAFKA_HANDLERS = (
    "sum echo null_value no_value array unicode big observable_last observable_late"
    " observable_promise observable_empty observable_error count rpc_string rpc_object rpc_array"
    " plain_error http_exception throw_string bigint delay user_created events metadata forward"
).split()
_KAFKA_CALLED = (
    "sum echo null thread count late torn rpc_string rpc_object bug delay headers"
).split()


def kafka(request: pytest.FixtureRequest, unique: str) -> Meeting:
    broker = request.getfixturevalue("kafka_broker")
    prefix = f"{unique}."
    return Meeting(
        "kafka",
        broker.url,
        broker.url,
        prefix,
        server_options={"group": unique},
        nest={
            "handlers": _KAFKA_HANDLERS,
            "patterns": [prefix + name for name in _KAFKA_CALLED],
        },
        object_patterns=False,
        texts=True,
    )


NEST_RIGS: dict[str, Callable[[pytest.FixtureRequest, str], Meeting]] = {
    "nats": nats,
    "tcp": tcp,
    "amqp": amqp,
    "mqtt": mqtt,
    "redis": redis,
    "kafka": kafka,
}
