"""A Redis from outside: single commands, as an operator types them."""

from __future__ import annotations

import socket
from typing import Any

import hiredis

from tests.peers.brokers import Redis


def command(broker: Redis, *words: str | bytes | int) -> Any:
    """One command's answer, on a connection of its own."""
    with socket.create_connection((broker.host, broker.port), 5.0) as connection:
        connection.settimeout(5.0)
        login = () if broker.password is None else ((broker.login or "default", broker.password),)
        reader = hiredis.Reader(notEnoughData=...)
        answer: Any = None
        for each in [*(("AUTH", *words) for words in login), words]:
            connection.sendall(hiredis.pack_command(each))
            while (answer := reader.gets()) is ...:
                data = connection.recv(65536)
                if not data:
                    raise ConnectionError("Redis closed the connection")
                reader.feed(data)
        return answer
