"""What is peculiar to tcp://: TLS, connections, congestion, cancelling."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest

from resilient_client import (
    Bulkhead,
    ClientProxy,
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    PayloadError,
    RemoteError,
    ResilientClientError,
    Server,
)
from resilient_client.codecs import JsonCodec
from resilient_client.testing import check_transport
from resilient_client.transports._frames import frame
from tests.peers.certificates import certificates
from tests.peers.script import scripted_peer
from tests.waiting import eventually


def echo_server(**options: Any) -> Server:
    server = Server("tcp://127.0.0.1:0", telemetry=False, grace=0.1, **options)
    server.message_pattern("echo")(lambda payload: payload)
    return server


def client_of(server: Server, **options: Any) -> ClientProxy:
    return ClientProxy(server.addresses[0], policies=(), telemetry=False, **options)


async def test_tcp_passes_the_conformance_suite() -> None:
    assert len(await check_transport("tcp://127.0.0.1:0")) >= 15


async def test_memory_passes_the_conformance_suite() -> None:
    assert len(await check_transport("memory://conformance")) >= 15


async def test_tls_is_spoken_and_a_stranger_is_refused_for_good() -> None:
    files = certificates()
    async with echo_server(tls=files.server_context()) as server:
        async with client_of(server, tls=files.client_context()) as client:
            assert await client.send("echo", "x" * 100_000) == "x" * 100_000
        stranger = ssl.create_default_context(cafile=str(files.other_authority))
        client = client_of(server, tls=stranger)
        with pytest.raises(ConfigurationError, match="not trusted"):
            await client.send("echo", 1)
        await client.aclose()
        plain = client_of(server)
        with pytest.raises(ResilientClientError):
            await plain.send("echo", 1, timeout=2)
        await plain.aclose()


async def test_mutual_tls_wants_the_clients_certificate() -> None:
    files = certificates()
    async with echo_server(tls=files.server_context(client_required=True)) as server:
        known = files.client_context(with_certificate=True)
        async with client_of(server, tls=known) as client:
            assert await client.send("echo", 1) == 1
        unknown = client_of(server, tls=files.client_context())
        with pytest.raises(ResilientClientError):
            await unknown.send("echo", 1, timeout=2)
        await unknown.aclose()


async def test_closing_that_is_cancelled_still_ends_the_connection_and_the_calls() -> None:
    async def deaf(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with scripted_peer(deaf) as port:
        client = ClientProxy(f"tcp://127.0.0.1:{port}", policies=(), telemetry=False)
        calls = [
            asyncio.ensure_future(client.send("x", "y" * 4_000_000, timeout=600)) for _ in range(4)
        ]
        await eventually(lambda: getattr(client._transports[0]._link.current, "congested", False))  # type: ignore[attr-defined]
        closing = asyncio.ensure_future(client.aclose())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        closing.cancel()
        async with asyncio.timeout(30):
            results = await asyncio.gather(*calls, closing, return_exceptions=True)
        assert isinstance(results.pop(), asyncio.CancelledError)
        assert all(isinstance(each, ConnectError | ConnectionLost) for each in results)


@pytest.mark.parametrize("how", ["send", "stream"])
async def test_a_call_given_up_before_the_peer_has_shown_itself_is_cancelled_there_all_the_same(
    how: str,
) -> None:
    server = echo_server()
    running: list[int] = []

    @server.message_pattern("ticker")
    async def ticker() -> Any:
        running.append(1)
        try:
            while True:
                await asyncio.sleep(0.001)
                yield 1
        finally:
            running.pop()

    @server.message_pattern("slow")
    async def slow() -> None:
        running.append(1)
        try:
            await asyncio.Event().wait()
        finally:
            running.pop()

    async with server, client_of(server) as client:
        stream = client._transports[0]._link.current  # type: ignore[attr-defined]
        call = anext(client.stream("ticker")) if how == "stream" else client.send("slow")
        task = asyncio.ensure_future(call)
        await asyncio.sleep(0)
        assert len(stream.replies) == 1
        assert not stream.ours
        task.cancel()
        await asyncio.wait([task])
        await eventually(lambda: stream.ours and not running and not server._app.running)
        assert await client.send("echo", 1) == 1


async def test_handshakes_that_fail_leave_nothing_behind() -> None:
    files = certificates()
    async with echo_server(tls=files.server_context()) as server:
        host, port = server.addresses[0].removeprefix("tcp://").split(":")
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01") * 3:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(said)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
        assert not server._app._slots
        async with client_of(server, tls=files.client_context()) as client:
            assert await client.send("echo", 1) == 1
            assert len(server._app._slots) == 1
        await eventually(lambda: not server._app._slots)  # that connection's are forgotten


async def test_a_server_needs_a_certificate_of_its_own_for_tls() -> None:
    with pytest.raises(ConfigurationError, match="certificate"):
        Server("tcp://127.0.0.1:0?tls=true", telemetry=False)
    async with echo_server() as server:
        port = server.addresses[0].rpartition(":")[2]
        with pytest.raises(ConfigurationError, match="cannot be bound"):
            await Server(f"tcp://127.0.0.1:{port}", telemetry=False).start()


@pytest.mark.parametrize("scheme", ["tcp", "https"])
@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ConfigurationError, "do not agree on TLS"),
        (b"", ConnectError, "hung up when it was spoken to in TLS"),
    ],
)
async def test_a_port_that_speaks_no_tls_is_told_from_one_that_is_not_there(
    scheme: str, said: bytes, kind: type[ResilientClientError], text: str
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as peer:
        url = f"{scheme}://127.0.0.1:{peer.sockets[0].getsockname()[1]}"
        context = certificates().client_context()
        async with contextlib.aclosing(
            ClientProxy(url, policies=(), telemetry=False, tls=context)
        ) as client:
            with pytest.raises(kind, match=text) as caught:
                await client.send("echo", 1)
        assert caught.value.sent is False


async def test_calls_that_wait_for_a_connection_share_one_dial() -> None:
    async with echo_server() as server:
        client = client_of(server)
        answers = await asyncio.gather(*(client.send("echo", n) for n in range(50)))
        assert answers == list(range(50))
        listener: Any = server._listeners[0]
        assert len(listener.streams) == 1
        await client.aclose()


async def test_a_name_is_resolved_again_for_every_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with echo_server() as server:
        port = server.addresses[0].rpartition(":")[2]
        loop = asyncio.get_running_loop()
        asked: list[Any] = []
        real = loop.getaddrinfo

        async def resolve(host: Any, *rest: Any, **more: Any) -> Any:
            asked.append(host)
            return await real("127.0.0.1" if host == "service.test" else host, *rest, **more)

        monkeypatch.setattr(loop, "getaddrinfo", resolve)
        client = ClientProxy(f"tcp://service.test:{port}", policies=(), telemetry=False)
        assert await client.send("echo", 1) == 1
        transport: Any = client._transports[0]
        transport._link.current.transport.abort()
        await asyncio.sleep(0.05)
        assert await client.send("echo", 2) == 2
        assert asked.count("service.test") >= 2
        await client.aclose()


async def test_an_event_and_a_request_go_out_in_the_order_they_were_made() -> None:
    server = echo_server()
    heard: list[int] = []

    @server.event_pattern("n")
    async def note(n: int) -> None:
        heard.append(n)

    async with server, client_of(server) as client:
        await asyncio.gather(*(client.emit("n", n) for n in range(100)))
        await client.send("echo", 1)
        await asyncio.sleep(0.05)
    assert heard == list(range(100))


async def test_a_client_that_never_connected_says_so() -> None:
    client = ClientProxy("tcp://127.0.0.1:1", policies=(), telemetry=False)
    with pytest.raises(ConnectError, match="refused"):
        await client.send("x", timeout=2)
    assert client.status == "idle"
    await client.aclose()
    await client.aclose()


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:0", "http://127.0.0.1:0"])
async def test_a_reply_that_is_too_large_is_its_callers_error_and_nobody_elses(url: str) -> None:
    server = Server(url, telemetry=False, grace=0.1, max_size=1000)

    @server.message_pattern("large")
    async def large() -> str:
        return "x" * 100_000

    @server.message_pattern("stream")
    async def stream() -> AsyncIterator[str]:
        yield "small"
        yield "x" * 100_000

    @server.message_pattern("slow")
    async def slow() -> str:
        await asyncio.sleep(0.2)
        return "done"

    async with server, client_of(server, max_size=1000) as client:
        other = asyncio.ensure_future(client.send("slow"))
        with pytest.raises(RemoteError, match="more than max_size=") as caught:
            await client.send("large")
        assert caught.value.status == 500
        got = []
        with pytest.raises(RemoteError, match="more than max_size="):
            async for item in client.stream("stream"):
                got.append(item)  # noqa: PERF401
        assert got == ["small"]
        assert await other == "done"


async def test_an_error_that_a_codec_cannot_read_is_its_callers_and_nobody_elses() -> None:
    class Wrapped(JsonCodec):
        def decode(self, body: bytes, type: Any = Any) -> Any:  # noqa: A002
            value = super().decode(body)
            return value["wrapped"] if isinstance(value, dict) else value

    server = echo_server()

    @server.message_pattern("refuse")
    async def refuse() -> None:
        raise RemoteError("not here")

    @server.message_pattern("slow")
    async def slow() -> str:
        await asyncio.sleep(0.1)
        return "done"

    async with server, client_of(server, codec=Wrapped()) as client:
        other = asyncio.ensure_future(client.send("slow"))
        with pytest.raises(PayloadError, match="the peer's error: 'wrapped'") as caught:
            await client.send("refuse")
        assert isinstance(caught.value.__cause__, KeyError)
        assert await other == "done"


@pytest.mark.parametrize("first", ["peer", "handlers"])
async def test_a_server_that_has_heard_enough_reads_on_when_its_peer_and_its_handlers_have(
    first: str,
) -> None:
    server = echo_server(max_calls_per_connection=1)
    go, heard = asyncio.Event(), []

    @server.message_pattern("big")
    async def big(payload: int) -> str:
        await asyncio.sleep(0)
        return "x" * payload

    @server.event_pattern("news")
    async def news(payload: int) -> None:
        await go.wait()
        heard.append(payload)

    async with server:
        port = int(server.addresses[0].rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(frame(b'{"pattern":"big","data":10000000,"id":"1"}'))
        for n in range(3):
            writer.write(frame(b'{"pattern":"news","data":%d}' % n))
        listener: Any = server._listeners[0]
        await eventually(lambda: any(stream.congested for stream in listener.streams))
        (stream,) = listener.streams
        assert stream.paused
        for who in ("peer", "handlers") if first == "peer" else ("handlers", "peer"):
            assert not stream.transport.is_reading()
            if who == "peer":
                reader._transport.resume_reading()  # type: ignore[attr-defined]
                assert len(await reader.readexactly(10_000_000)) == 10_000_000
                await eventually(lambda: not stream.congested)
            else:
                go.set()
                await eventually(lambda: heard == [0, 1, 2])
        await eventually(stream.transport.is_reading)
        writer.transport.abort()
        await eventually(lambda: not server._app._slots)  # that connection's are forgotten


async def test_a_server_reads_no_more_of_a_peer_that_does_not_read() -> None:
    server = echo_server()
    async with server:
        port = int(server.addresses[0].rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        text = b'"%b"' % (b"x" * 10_000_000)
        writer.write(frame(b'{"pattern":"echo","data":%b,"id":"1"}' % text))
        listener: Any = server._listeners[0]
        await eventually(lambda: any(stream.congested for stream in listener.streams))
        (stream,) = listener.streams
        assert not stream.transport.is_reading()
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        expected = frame(b'{"response":%b,"isDisposed":true,"id":"1"}' % text)
        assert await reader.readexactly(len(expected)) == expected
        await eventually(stream.transport.is_reading)
        writer.transport.abort()


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("style", ["async", "plain"])
async def test_a_peer_of_another_make_gets_one_packet_and_null_for_none(
    style: str, guarded: bool
) -> None:
    server = echo_server(policies=[Bulkhead(5)] if guarded else None)

    @server.message_pattern("async")
    async def nothing() -> None: ...

    server.message_pattern("plain")(lambda: None)
    async with server:
        port = int(server.addresses[0].rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for metadata in ("{}", '{"x-resilient-client":"other"}'):
            writer.write(frame(f'{{"pattern":"{style}","metadata":{metadata},"id":"1"}}'.encode()))
            expected = frame(b'{"response":null,"isDisposed":true,"id":"1"}')
            assert await reader.readexactly(len(expected)) == expected
        writer.close()


async def test_calls_wait_to_be_written_while_the_peer_does_not_read() -> None:
    reads = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reads.wait()
        while text := await reader.read(1 << 20):
            if text.endswith(b'"id":"2"}'):
                writer.write(frame(b'{"response":4,"isDisposed":true,"id":"2"}'))

    async with scripted_peer(slow) as port:
        client = ClientProxy(f"tcp://127.0.0.1:{port}", policies=(), telemetry=False)
        first = asyncio.ensure_future(client.send("x", "y" * 10_000_000, timeout=600))
        link: Any = client._transports[0]._link  # type: ignore[attr-defined]
        await eventually(lambda: getattr(link.current, "congested", False))
        unread = link.current.transport.get_write_buffer_size()
        for call in (client.send("x", timeout=0.05), client.emit("x", timeout=0.05)):
            with pytest.raises(DeadlineExceeded) as caught:
                await call
            assert not caught.value.sent
        values = client.stream("x", timeout=0.05)
        with pytest.raises(DeadlineExceeded) as caught:
            await anext(values)
        assert not caught.value.sent
        assert link.current.transport.get_write_buffer_size() <= unread
        waits = asyncio.ensure_future(client.send("x", timeout=600))
        await asyncio.sleep(0)
        reads.set()
        async with asyncio.timeout(30):
            assert await waits == 4
        first.cancel()
        await client.aclose()
        await asyncio.wait([first])
