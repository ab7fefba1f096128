"""What importing the package loads, and how long it takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LIBRARIES = {
    "aio_pika", "aiokafka", "aiomqtt", "aiormq", "backoff", "google", "grpc", "hiredis", "httpx",
    "msgspec", "nats", "nkeys", "opentelemetry", "paho", "pamqp", "pybreaker", "pydantic", "redis",
    "rich", "tornado", "uvicorn", "uvloop",
}  # fmt: skip
ERRORS = """
    ConfigurationError ConnectError ConnectionLost DeadlineExceeded InvalidPayloadError
    NoHandlerError Overloaded PayloadError ProtocolError RejectedError RemoteError ReplyTimeout
    ResilientClientError Throttled TransportError
""".split()


def _python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=50
    ).stdout


def _loaded(code: str) -> set[str]:
    """Which of the libraries a program has loaded at its end."""
    code += (
        "\nimport json, sys; print(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    )
    return LIBRARIES & set(json.loads(_python(code)))


def test_the_package_itself_loads_no_library() -> None:
    assert _loaded("import resilient_client") == set()


def test_the_errors_load_no_library() -> None:
    assert _loaded(f"from resilient_client import {', '.join(ERRORS)}") == set()


@pytest.mark.parametrize("name", ["ClientProxy", "Server", "SyncClientProxy", "Clients"])
def test_the_ends_load_neither_httpx_nor_pybreaker_nor_a_broker(name: str) -> None:
    assert _loaded(f"from resilient_client import {name}") <= {"msgspec", "opentelemetry"}


def test_a_bare_client_and_its_server_load_neither_httpx_nor_pybreaker_nor_a_broker() -> None:
    code = """
import asyncio
from resilient_client import ClientProxy, Server

async def main():
    server = Server("tcp://127.0.0.1:0")
    server.message_pattern("double")(lambda n: 2 * n)
    async with server, ClientProxy(server.addresses[0], policies=()) as client:
        assert await client.send("double", 2) == 4

asyncio.run(main())
"""
    assert _loaded(code) <= {"msgspec", "opentelemetry"}


def test_importing_the_package_takes_less_than_a_third_of_what_httpx_takes() -> None:
    code = (
        "import asyncio, time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    )
    ours, httpx = [], []
    for _ in range(5):  # the quickest of several, taken in turns: the machine does other things too
        ours.append(float(_python(code.format("resilient_client"))))
        httpx.append(float(_python(code.format("httpx"))))
    assert min(ours) <= 0.3 * min(httpx)
