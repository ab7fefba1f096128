"""Hostile bytes at both ends of tcp://: the process lives, and others are served."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resilient_client import (
    ClientProxy,
    ConnectionLost,
    DeadlineExceeded,
    ProtocolError,
    RemoteError,
    ResilientClientError,
    Server,
    Throttled,
)
from tests.calls import outcome
from tests.peers.script import scripted_peer
from tests.waiting import eventually

GOOD = [
    b'47#{"pattern":{"cmd":"sum"},"data":[1,2],"id":"1"}',
    '39#{"pattern":"echo","data":"\U0001f600","id":"1"}'.encode(),
    b'34#{"pattern":"event","data":{"a":1}}',
    b'44#{"response":"x","isDisposed":true,"id":"1"}',
]
EVIL = [
    b"#",
    b"abc#",
    b"-5#{}",
    b"0#",
    b"2#[]",
    b"4#null",
    b"999999999999#{",
    b"16777216#" + b"[" * 4096,
    b"20000#" + b"[" * 10_000 + b"]" * 10_000,
    b'52#{"pattern":"echo","data":"\\ud800\\udfff\\ud800","id":1}',
    b'45#{"__proto__":{"x":1},"pattern":"echo","id":[]}',
    b'69#{"pattern":"echo","data":1,"id":{"constructor":{"prototype":{"a":1}}}}',
    b'52#{"pattern":"echo","data":1,"id":"1","metadata":[1,2]}',
    b'76#{"pattern":"echo","data":1,"id":"1","metadata":{"traceparent":1,"a":{"b":2}}}',
    b"\xff\xfe\xfd\xfc" * 32,
    b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Frames, some of them damaged, glued together."""
    parts = draw(st.lists(st.sampled_from(GOOD + EVIL), min_size=1, max_size=6))
    data = bytearray(b"".join(parts))
    for _ in range(draw(st.integers(0, 4))):
        if data:
            at = draw(st.integers(0, len(data) - 1))
            match draw(st.integers(0, 2)):
                case 0:
                    data[at] = draw(st.integers(0, 255))
                case 1:
                    del data[at : at + draw(st.integers(1, 8))]
                case _:
                    data[at:at] = draw(st.binary(max_size=8))
    return bytes(data)


@asynccontextmanager
async def server() -> AsyncIterator[Server]:
    made = Server("tcp://127.0.0.1:0", telemetry=False, grace=0.1, max_size=1 << 20)

    @made.message_pattern("echo")
    async def echo(payload: Any) -> Any:
        return payload

    @made.message_pattern({"cmd": "sum"})
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    async with made:
        yield made


async def throw(port: int, data: bytes, pieces: random.Random) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while data:
            size = pieces.randint(1, max(1, len(data)))
            writer.write(data[:size])
            data = data[size:]
            await asyncio.sleep(0)
        writer.write_eof()
        async with asyncio.timeout(5):
            await reader.read(1 << 16)
    except OSError:
        return  # the server has had enough: that is its right
    finally:
        writer.close()


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.lists(streams(), min_size=1, max_size=4), seed=st.integers(0, 10**6))
def test_a_server_survives_hostile_bytes_and_serves_others(data: list[bytes], seed: int) -> None:
    async def main() -> None:
        pieces = random.Random(seed)
        async with server() as made:
            url = made.addresses[0]
            port = int(url.rpartition(":")[2])
            async with ClientProxy(url, policies=(), telemetry=False) as client:
                assert await client.send("echo", 1, timeout=20) == 1
                await asyncio.gather(*(throw(port, each, pieces) for each in data))
                assert await client.send({"cmd": "sum"}, [1, 2], timeout=20) == 3

    asyncio.run(main())


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=streams(), seed=st.integers(0, 10**6))
def test_a_client_survives_hostile_bytes_and_says_what_happened(data: bytes, seed: int) -> None:
    async def main() -> None:
        pieces = random.Random(seed)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            rest = data
            await reader.read(1)
            while rest:
                size = pieces.randint(1, max(1, len(rest)))
                writer.write(rest[:size])
                rest = rest[size:]
                await writer.drain()

        expected = ProtocolError | ConnectionLost | RemoteError | DeadlineExceeded
        async with scripted_peer(answer) as port:
            client = ClientProxy(
                f"tcp://127.0.0.1:{port}", policies=(), telemetry=False, max_size=1 << 20
            )
            for call in (client.send("echo", 1, timeout=5), client.ping(5)):
                came = await outcome(call)
                assert not isinstance(came, ResilientClientError) or isinstance(came, expected)
            await client.aclose()

    asyncio.run(main())


async def test_an_announced_giant_is_refused_before_it_is_buffered() -> None:
    async with server() as made:
        port = int(made.addresses[0].rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"99999999#")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_an_answer_in_another_protocol_is_a_protocol_error_at_once() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/html\r\n\r\n" + b"x" * 200)
        await reader.read()

    async with (
        scripted_peer(answer) as port,
        ClientProxy(f"tcp://127.0.0.1:{port}", policies=(), telemetry=False) as client,
    ):
        with pytest.raises(ProtocolError) as caught:
            await client.send("x", 1, timeout=20)
        assert "scheme" in caught.value.hint


async def test_a_server_closes_on_silence_in_the_middle_of_a_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resilient_client.transports.tcp.INCOMPLETE_TIMEOUT", 0.2)
    async with server() as made:
        port = int(made.addresses[0].rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b'47#{"pattern"')
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_a_caller_that_does_not_read_stops_being_served_and_others_are_not_harmed() -> None:
    async with server() as made:
        port = int(made.addresses[0].rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        payload = b'"' + b"x" * 60_000 + b'"'
        text = b'{"pattern":"echo","data":%b,"id":"1"}' % payload
        for _ in range(400):
            writer.write(b"%d#%b" % (len(text), text))
        await asyncio.sleep(0.5)
        async with ClientProxy(made.addresses[0], policies=(), telemetry=False) as client:
            assert await client.send("echo", 1, timeout=20) == 1
        del reader
        writer.transport.abort()


async def test_callers_that_read_no_answer_do_not_keep_a_servers_slots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resilient_client.transports.tcp.UNREAD_TIMEOUT", 0.5)
    made = Server("tcp://127.0.0.1:0", telemetry=False, grace=0.1, max_calls=3)
    made.message_pattern("big")(_big)
    async with made, ClientProxy(made.addresses[0], policies=(), telemetry=False) as client:
        port = int(made.addresses[0].rpartition(":")[2])
        writers = []
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            text = b'{"pattern":"big","data":10000000,"id":"1"}'
            writer.write(b"%d#%b" % (len(text), text) * 4)
            writers.append(writer)
        await eventually(lambda: made._app.running == 2)  # the first of each is written
        assert isinstance(
            await outcome(asyncio.gather(client.send("big", 1), client.send("big", 1))), Throttled
        )
        await eventually(lambda: made._app.running == 0)
        assert await asyncio.gather(*(client.send("big", 1) for _ in range(3))) == ["x"] * 3
        for writer in writers:
            writer.transport.abort()


async def _big(size: int) -> str:
    await asyncio.sleep(0)
    return "x" * size


FLOODED = """
import asyncio, resource, sys
from resilient_client import Server

async def main():
    told, first = [], asyncio.Event()
    def note(loop, context):
        told.append(context["message"])
        first.set()
    asyncio.get_running_loop().set_exception_handler(note)
    async with Server(sys.argv[1], telemetry=False) as server:
        resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
        print(server.addresses[0], flush=True)
        await first.wait()
        await asyncio.sleep(0)
        print(len(told), flush=True)
        sys.stdin.read()  # until everybody has tried

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
@pytest.mark.parametrize("url", ["tcp://127.0.0.1:0", "http://127.0.0.1:0"])
def test_more_connections_than_there_can_be_do_not_flood_the_log(url: str) -> None:
    command = [sys.executable, "-c", FLOODED, url]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        told = int(process.stdout.readline())
        for each in connections:
            each.close()
        process.stdin.close()
    assert process.returncode == 0
    assert 0 < told <= 16


NO_DESCRIPTORS = """
import asyncio, os, resource, sys
from resilient_client import ConfigurationError, Server

url, health = sys.argv[1:]
server = Server(url, health=health or None, telemetry=False)

async def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    try:
        await server.start()
    except ConfigurationError as error:
        said = str(error)
    for each in taken:
        os.close(each)
    print(said)
    async with server:
        print("started")

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
@pytest.mark.parametrize(
    ("url", "health"),
    [
        ("tcp://127.0.0.1:0", ""),
        ("http://127.0.0.1:0", ""),
        ("memory://no-descriptors", "http://127.0.0.1:0"),
    ],
)
def test_a_server_that_starts_without_descriptors_says_so(url: str, health: str) -> None:
    command = [sys.executable, "-c", NO_DESCRIPTORS, url, health]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    said, started = ran.stdout.splitlines()
    assert "cannot be bound: Too many open files" in said
    assert started == "started"
