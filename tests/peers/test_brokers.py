"""The brokers themselves: each starts, answers, is killed, comes back, leaves nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.peers.brokers import BROKERS, Kafka, Mosquitto, Nats, Peer, RabbitMQ, Redis
from tests.peers.process import exchange

# The suites of the transports would fail first: these say whose fault it is.
pytestmark = [pytest.mark.broker, pytest.mark.slow]

NewBroker = Callable[..., Any]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("kind", BROKERS.values(), ids=BROKERS)
@pytest.mark.timeout(300)
def test_a_broker_is_killed_and_comes_back_on_its_port_and_leaves_nothing(
    kind: type[Peer], new_broker: NewBroker
) -> None:
    broker = new_broker(kind)
    first, port = broker.pid, broker.port
    broker.kill()
    assert not broker.running
    assert not alive(first)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((broker.host, port), 1.0)

    broker.restart()
    assert broker.answers()
    assert (broker.port, broker.pid != first) == (port, True)

    last = broker.pid
    broker.stop()
    assert not alive(last)
    assert not broker.folder.exists()


def test_a_frozen_broker_keeps_connections_but_does_not_answer(new_broker: NewBroker) -> None:
    broker = new_broker(Redis)
    with socket.create_connection((broker.host, broker.port), 1.0) as connection:
        broker.freeze()
        connection.settimeout(0.2)
        connection.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(10)
        broker.thaw()
        connection.settimeout(2.0)
        assert connection.recv(10) == b"+PONG\r\n"


def test_redis_keeps_its_data_over_a_kill(new_broker: NewBroker) -> None:
    broker = new_broker(Redis)
    assert exchange(broker.host, broker.port, b"SET k v\r\n", 5) == b"+OK\r\n"
    broker.restart()
    assert exchange(broker.host, broker.port, b"GET k\r\n", 7) == b"$1\r\nv\r\n"


def test_redis_asks_for_the_password(new_broker: NewBroker) -> None:
    broker = new_broker(Redis, user="alice", password="secret")
    assert exchange(broker.host, broker.port, b"GET k\r\n", 7).startswith(b"-NOAUTH")
    with_login = b"AUTH alice secret\r\nGET k\r\n"
    assert exchange(broker.host, broker.port, with_login, 10) == b"+OK\r\n$-1\r\n"


@pytest.mark.parametrize(
    "options", [{"token": "t"}, {"user": "u", "password": "p"}, {"nkey": True}]
)
def test_nats_asks_who_is_there(options: dict[str, Any], new_broker: NewBroker) -> None:
    broker = new_broker(Nats, **options)
    assert b'"auth_required":true' in exchange(broker.host, broker.port, b"", 200)
    answer = exchange(broker.host, broker.port, b"CONNECT {}\r\nPING\r\n", 10_000)
    assert b"-ERR 'Authorization Violation'" in answer


@pytest.mark.parametrize(("kind", "options"), [(Redis, {}), (Nats, {}), (Mosquitto, {})])
def test_a_broker_speaks_tls_and_demands_a_certificate(
    kind: type[Peer], options: dict[str, Any], new_broker: NewBroker
) -> None:
    broker = new_broker(kind, tls=True, client_certificates=True, **options)
    assert broker.answers()  # with the client's certificate, except NATS, which greets in the clear
    assert broker.url.startswith(("rediss:", "tls:", "mqtts:"))


def test_mosquitto_asks_for_the_password(new_broker: NewBroker) -> None:
    broker = new_broker(Mosquitto, users={"alice": "secret"})
    connect = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x0a\x00\x05ready"
    assert exchange(broker.host, broker.port, connect, 4) == b"\x20\x02\x00\x05"  # not authorised


@pytest.mark.timeout(300)
def test_rabbitmq_has_its_users(rabbitmq_broker: RabbitMQ) -> None:
    assert set(rabbitmq_broker.ctl("list_users", "--silent").split()) >= {"guest", "alice"}


@pytest.mark.timeout(300)
def test_kafka_makes_and_deletes_topics(kafka_broker: Kafka, unique: str) -> None:
    kafka_broker.create_topics(unique, partitions=2)
    assert unique in kafka_broker.topics()
    kafka_broker.create_topics(unique)  # there already
    kafka_broker.delete_topics(unique)
    assert unique not in kafka_broker.topics()


def test_a_child_dies_with_the_process_that_made_it(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("needs Linux")
    script = """
import os
from tests.peers.process import spawn
print(spawn(["sleep", "60"]).pid, flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True
    )
    deadline = time.monotonic() + 5
    while alive(int(done.stdout)) and _running(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _running(pid: int) -> bool:
    """Not a zombie that waits for init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
