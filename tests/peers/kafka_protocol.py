"""The five requests of Kafka's protocol that the tests need before any client library is up.

Versions below those with tagged fields, so that the encoding stays plain (Kafka 4 still has them).
https://kafka.apache.org/protocol
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence

METADATA, FIND_COORDINATOR, CREATE_TOPICS, DELETE_TOPICS = 3, 10, 19, 20
NONE, UNKNOWN_TOPIC, TOPIC_EXISTS, INVALID_REPLICATION = 0, 3, 36, 38


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack(">h", len(encoded)) + encoded


def _array(items: Sequence[bytes]) -> bytes:
    return struct.pack(">i", len(items)) + b"".join(items)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from(">" + form, self.data, self.at)
        self.at += struct.calcsize(">" + form)
        return int(value)

    def text(self) -> str | None:
        size = self.take("h")
        if size < 0:
            return None
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def items(self) -> Iterator[int]:
        return iter(range(self.take("i")))


def _ask(host: str, port: int, key: int, version: int, body: bytes, timeout: float) -> _Reader:
    header = struct.pack(">hhi", key, version, 1) + _text("peers")
    with socket.create_connection((host, port), timeout) as connection:
        connection.settimeout(timeout)
        connection.sendall(struct.pack(">i", len(header) + len(body)) + header + body)
        stream = connection.makefile("rb")
        with stream:
            (size,) = struct.unpack(">i", stream.read(4))
            answer = stream.read(size)
    if len(answer) < size:
        raise EOFError("the broker closed the connection")
    return _Reader(answer[4:])  # past the correlation id


def coordinator_ready(host: str, port: int) -> bool:
    answer = _ask(host, port, FIND_COORDINATOR, 0, _text("ready"), 5.0)
    return answer.take("h") == NONE


def topics(host: str, port: int) -> dict[str, list[int]]:
    """The error code of each partition of each topic; 0 when it has a leader."""
    answer = _ask(host, port, METADATA, 1, struct.pack(">i", -1), 5.0)
    for _ in answer.items():  # brokers: id, host, port, rack
        answer.take("i")
        answer.text()
        answer.take("i")
        answer.text()
    answer.take("i")  # the controller
    found: dict[str, list[int]] = {}
    for _ in answer.items():
        answer.take("h")
        name = answer.text() or ""
        answer.take("b")  # internal
        found[name] = []
        for _ in answer.items():
            found[name].append(answer.take("h"))
            answer.take("i")
            answer.take("i")
            for _ in range(2):  # replicas, in-sync replicas
                for _ in answer.items():
                    answer.take("i")
    return found


def create_topics(host: str, port: int, names: Sequence[str], partitions: int) -> None:
    wanted = [
        _text(name) + struct.pack(">ih", partitions, 1) + _array([]) + _array([]) for name in names
    ]
    body = _array(wanted) + struct.pack(">i?", 10_000, False)
    deadline = time.monotonic() + 15
    while True:
        answer = _ask(host, port, CREATE_TOPICS, 2, body, 15.0)
        answer.take("i")  # throttle time
        said = [(answer.text(), answer.take("h"), answer.text()) for _ in answer.items()]
        failed = [line for line in said if line[1] not in (NONE, TOPIC_EXISTS)]
        if not failed:
            break
        # A busy machine's only broker counts as gone for a moment: too few for one replica.
        if {line[1] for line in failed} != {INVALID_REPLICATION} or time.monotonic() > deadline:
            raise ValueError(f"Kafka did not create topics (name, code, message): {failed}")
        time.sleep(0.5)
    _wait(host, port, lambda there: all(name in there and not any(there[name]) for name in names))


def delete_topics(host: str, port: int, names: Sequence[str]) -> None:
    body = _array([_text(name) for name in names]) + struct.pack(">i", 10_000)
    answer = _ask(host, port, DELETE_TOPICS, 1, body, 15.0)
    answer.take("i")
    for _ in answer.items():
        name, code = answer.text(), answer.take("h")
        if code not in (NONE, UNKNOWN_TOPIC):
            raise ValueError(f"Kafka did not delete topic {name!r}: {code}")
    _wait(host, port, lambda there: not any(name in there for name in names))


def _wait(host: str, port: int, settled: Callable[[dict[str, list[int]]], bool]) -> None:
    """What the controller has done reaches the broker a moment later."""
    deadline = time.monotonic() + 15
    while not settled(topics(host, port)):
        if time.monotonic() > deadline:
            raise TimeoutError("Kafka has not carried out a change of topics in 15 s")
        time.sleep(0.05)
