"""Our client and services of another make: well-behaved, broken, frozen, through any client."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import uvloop

from resilient_client import (
    ClientProxy,
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    Overloaded,
    PayloadError,
    ProtocolError,
    Receipt,
    RemoteError,
    ReplyTimeout,
    Throttled,
)
from resilient_client.transports.http._connection import Connection
from tests.peers.certificates import certificates
from tests.peers.script import scripted_peer, silence
from tests.transports.http_peers import Service, answers, ok, read_request, rest_service, scripted
from tests.waiting import eventually

SLACK = 5.0
"""Seconds beyond what is promised, on a machine that is busy with something else."""
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def rest() -> Iterator[Service]:
    with rest_service() as service:
        yield service


def foreign(kind: str) -> Any:
    """A client of somebody's, None for our own."""
    if kind == "own":
        return None
    if kind == "httpx_aiohttp":
        pytest.importorskip("aiohttp")
        return pytest.importorskip("httpx_aiohttp").HttpxAiohttpClient(trust_env=False)
    module = importlib.import_module(kind) if kind == "httpx" else pytest.importorskip(kind)
    return module.AsyncClient(trust_env=False)


@contextlib.asynccontextmanager
async def calling(url: str, kind: str = "own", **options: Any) -> AsyncIterator[ClientProxy]:
    client = foreign(kind)
    try:
        async with ClientProxy(
            url, policies=(), telemetry=False, **options, **({"client": client} if client else {})
        ) as proxy:
            yield proxy
            proxy_pool = getattr(proxy._transports[0]._client, "_pool", None)  # type: ignore[attr-defined]
            if proxy_pool is not None:
                assert not proxy_pool._busy, "a connection was not given back"
                assert proxy_pool._open == len(proxy_pool._idle)
    finally:
        if client is not None:
            await client.aclose()
            await asyncio.sleep(0)


every = pytest.mark.parametrize("kind", ["own", "httpx", "httpx2", "httpx_aiohttp"])


# ------------------------------------------------------------------------------- well-behaved


@every
async def test_any_rest_service_can_be_called(rest: Service, kind: str):
    async with calling(rest.url, kind) as client:
        assert await client.send("GET /users/{user}", {"user": 7, "page": 2}) == {
            "user": 7,
            "page": 2,
        }
        assert await client.send("POST /users", {"name": "Zoë"}) == {"created": {"name": "Zoë"}}
        assert await client.send("DELETE /users/{user}", {"user": "a b"}) is None
        assert await client.send("GET /text") == "grüß dich"
        assert await client.send("GET /text", returns=bytes) == "grüß dich".encode()
        assert await client.send("GET /bytes") == b"\x00\xff"
        assert await client.send("HEAD /bytes") is None
        assert await client.send("GET /packed", returns=list[int]) == [1, 2]
        assert await client.send("sum", [1, 2, 3]) == 6, "a plain pattern is a POST"
        assert client.status == "connected"


@every
async def test_what_a_service_refuses_is_a_typed_error(rest: Service, kind: str):
    async with calling(rest.url, kind) as client:

        async def error(pattern: str, data: Any = None, **more: Any) -> Any:
            with pytest.raises((RemoteError, ProtocolError, PayloadError)) as caught:
                await client.send(pattern, data, **more)
            assert caught.value.sent
            return caught.value

        missing = await error("GET /nowhere")
        assert (type(missing), missing.status) == (RemoteError, 404)
        assert type(await error("nowhere")) is RemoteError
        refused = await error("GET /users/{user}", {"user": "x"})
        assert (type(refused), refused.status) == (RemoteError, 422)
        assert isinstance(refused.payload["detail"], list)
        moved = await error("GET /moved")
        assert (moved.status, "/text" in moved.hint) == (307, True)
        assert isinstance(await error("page", {}), ProtocolError)
        assert isinstance(await error("GET /text", returns=int), PayloadError)
        later = await error("GET /status/{status}", {"status": 503, "after": "7"})
        assert (type(later), later.retry_after) == (Throttled, 7.0)
        assert (await error("GET /status/{status}", {"status": 500})).retryable, "GET may be"
        down = await error("GET /status/{status}", {"status": 503}, idempotent=False)
        assert (type(down), down.retryable) == (RemoteError, False)


@every
async def test_streams_of_others_are_read(rest: Service, kind: str):
    async with calling(rest.url, kind) as client:
        assert [i async for i in client.stream("GET /lines")] == [{"n": 1}, {"n": 2}, 3]
        got = []
        with pytest.raises(RemoteError, match="broken"):
            async for each in client.stream("GET /events"):
                got.append(each)  # noqa: PERF401
        assert got == ["hello", {"n": 2}]
        assert [i async for i in client.stream("GET /users/{user}", {"user": 1})] == [
            {"user": 1, "page": 1}
        ]


@every
async def test_leaving_a_stream_stops_the_service(rest: Service, kind: str):
    rest.cancelled.clear()
    async with calling(rest.url, kind) as client:
        async with client.stream("GET /events", {"endless": True}) as items:
            async for each in items:
                if each == 3:
                    break
        assert await asyncio.to_thread(rest.cancelled.wait, SLACK)


@every
async def test_leaving_a_call_tells_the_service(rest: Service, kind: str):
    async with calling(rest.url, kind) as client:
        for way in ("cancel", "deadline"):
            rest.cancelled.clear()
            rest.waiting.clear()
            call = asyncio.ensure_future(
                client.send("GET /wait", timeout=30 if way == "cancel" else 1.5)
            )
            assert await asyncio.to_thread(rest.waiting.wait, 20)
            if way == "cancel":
                call.cancel()
            with pytest.raises((asyncio.CancelledError, DeadlineExceeded)):
                await call
            assert await asyncio.to_thread(rest.cancelled.wait, SLACK + 5), way


async def test_the_callers_headers_and_credentials_go_along(rest: Service):
    url = rest.url.replace("://", "://user:p%40ss@")
    async with calling(url, headers={"accept": "text/x-mine"}) as client:
        told = await client.send("GET /headers", headers={"x-name": "Zoë"}, timeout=5)
        assert told["authorization"] == "Basic dXNlcjpwQHNz"
        assert told["accept"] == "text/x-mine"
        assert told["accept-encoding"] == "identity"
        assert "cookie" not in told
        assert told["x-correlation-id"]
        assert 0 < int(told["x-deadline-ms"]) <= 5000
        assert "p%40ss" not in repr(client)
        other = await client.send("GET /headers", headers={"authorization": "Bearer x"})
        assert other["authorization"] == "Bearer x"
        own = {"user-agent": "mine", "accept-encoding": "gzip"}
        told = await client.send("GET /headers", headers=own)
        assert {name: told[name] for name in own} == own


async def test_data_that_makes_no_url_is_the_datas_fault(rest: Service):
    async with calling(rest.url) as client:
        with pytest.raises(PayloadError, match="the URL has") as caught:
            await client.send("GET /headers", {"filter": "x" * 100_000})
        assert not caught.value.sent


# -------------------------------------------------------------------------------------- broken


async def fails(client: ClientProxy, pattern: str = "x", **options: Any) -> Any:
    with pytest.raises(Exception) as caught:
        await client.send(pattern, **options)
    return caught.value


@every
async def test_an_event_is_accepted_by_a_services_2xx_and_by_nothing_less(rest: Service, kind: str):
    async with calling(rest.url, kind) as client:
        assert await client.emit("POST /users", {"name": "Zoë"}) == Receipt("accepted")
        assert await client.emit("sum", [1, 2, 3]) == Receipt("accepted")
        with pytest.raises(RemoteError):
            await client.emit("GET /status/{status}", {"status": 418})
    async with scripted(answers(b"")) as peer, calling(peer.url, kind) as client:
        with pytest.raises(ConnectionLost) as lost:  # it is cut after it has read
            await client.emit("POST /users", {"name": "Zoë"})
        assert lost.value.sent


@every
async def test_a_connection_that_is_cut_is_lost_not_refused(kind: str):
    for cut in (
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-ty",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n[1,",
        CHUNKED + b"3\r\n[1,\r\n",
    ):
        async with scripted(answers(cut)) as peer, calling(peer.url, kind) as client:
            error = await fails(client)
            assert isinstance(error, ConnectionLost), cut
            assert error.sent
            assert not error.retryable
            assert isinstance(await fails(client, idempotent=True), ConnectionLost)


@every
async def test_what_is_no_http_is_named_so(kind: str):
    async with (
        scripted(answers(b"SSH-2.0-OpenSSH_9\r\n\r\n", then=silence)) as peer,
        calling(peer.url, kind) as client,
    ):
        error = await fails(client, timeout=5)
        # others do not tell it from a connection that was cut
        assert isinstance(error, ProtocolError if kind == "own" else ConnectionLost), error
        assert error.sent


@every
async def test_nobody_there_is_never_sent(kind: str):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        client = foreign(kind)
        proxy = ClientProxy(
            url, policies=(), telemetry=False, **({"client": client} if client else {})
        )
        error = await fails(proxy)
        assert isinstance(error, ConnectError)
        assert (error.sent, error.retryable) == (False, True)
        if kind == "own":
            with pytest.raises(ConnectError):
                await proxy.connect()
        await proxy.aclose()
        if client is not None:
            await client.aclose()


@every
async def test_a_frozen_server_costs_no_more_than_the_deadline(kind: str):
    loop = asyncio.get_running_loop()
    for serve in (answers(b"", then=silence), answers(CHUNKED + b"2\r\n[1\r\n", then=silence)):
        async with scripted(serve) as peer, calling(peer.url, kind) as client:
            started = loop.time()
            error = await fails(client, timeout=0.5)
            took = loop.time() - started
            assert isinstance(error, DeadlineExceeded), error
            assert error.sent
            assert 0.45 < took < 0.55 + SLACK
            async with asyncio.timeout(SLACK):
                while peer.open:  # the connection is closed: the server knows
                    await asyncio.sleep(0.01)


async def test_a_server_that_never_accepts_is_never_sent():
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        fill = [socket.socket() for _ in range(4)]
        for each in fill:
            each.setblocking(False)
            each.connect_ex(deaf.getsockname())
        proxy = ClientProxy(
            f"http://127.0.0.1:{deaf.getsockname()[1]}", policies=(), telemetry=False
        )
        error = await fails(proxy, timeout=0.5)
        assert isinstance(error, ConnectError), error
        assert not error.sent
        await proxy.aclose()
        for each in fill:
            each.close()


@every
async def test_an_answer_over_the_limit_is_not_read(kind: str):
    long = b"[" + b"1," * 2000 + b"1]"
    for response in (ok(long), CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(long), long)):
        async with (
            scripted(answers(response, then=silence)) as peer,
            calling(peer.url, kind, max_size=1000) as client,
        ):
            error = await fails(client)
            assert isinstance(error, PayloadError)
            assert error.sent
            not_sent = await fails(client, data="x" * 1001)
            assert not not_sent.sent
    oops = b"HTTP/1.1 500 Oops\r\ncontent-length: 2000\r\n\r\n" + b"x" * 2000
    async with scripted(answers(oops)) as peer, calling(peer.url, kind, max_size=1000) as client:
        error = await fails(client)
        assert (type(error), error.status) == (RemoteError, 500), "the error is not lost with it"


@every
async def test_an_answer_that_announces_more_than_the_limit_is_not_waited_for(kind: str):
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n"
    for status, expected in ((b"200 OK", PayloadError), (b"500 Oops", RemoteError)):
        async with (
            scripted(answers(head % status, then=silence)) as peer,
            calling(peer.url, kind) as client,
        ):
            assert type(await fails(client, timeout=20)) is expected
    async with scripted(answers(head % b"200 OK", then=silence)) as peer:
        async with calling(peer.url, kind) as client:
            assert await client.send("HEAD /file", timeout=20) is None


async def test_an_answer_in_pieces_of_one_byte_leaves_everything_else_its_turn(
    monkeypatch: pytest.MonkeyPatch,
):
    body = b"[" + b"1," * 20_000 + b"1]"
    pieces = b"".join(b"1\r\n%c\r\n" % each for each in body)
    most = 0
    advance = Connection._advance

    def watched(self: Connection, *turn: int) -> None:
        nonlocal most
        before = len(self._chunks)
        advance(self, *turn)
        most = max(most, len(self._chunks) - before)

    monkeypatch.setattr(Connection, "_advance", watched)
    unended = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
    for response in (CHUNKED + pieces + b"0\r\n\r\n", unended + body):
        async with scripted(answers(response)) as peer, calling(peer.url) as client:
            assert await client.send("x", timeout=20) == [1] * 20_001
    assert 0 < most <= 256


@every
async def test_a_stream_item_over_the_limit_ends_the_stream(kind: str):
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    async with (
        scripted(answers(head + b"data: 1\n\ndata: " + b"2" * 5000, then=silence)) as peer,
        calling(peer.url, kind, max_size=1000) as client,
    ):
        got = []
        with pytest.raises(PayloadError):
            async for each in client.stream("x"):
                got.append(each)  # noqa: PERF401
        assert got in ([1], [])


@every
async def test_a_stream_that_falls_silent_ends_by_its_idle_limit(kind: str):
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    for before in (b"", b"data: 1\n\n"):
        async with (
            scripted(answers(head + before, then=silence)) as peer,
            calling(peer.url, kind) as client,
        ):
            got = []
            with pytest.raises(ReplyTimeout):
                async for each in client.stream("x", idle_timeout=1.5 if before else 0.3):
                    got.append(each)  # noqa: PERF401
            assert got == ([1] if before else [])
            with pytest.raises(DeadlineExceeded):
                async for _ in client.stream("x", timeout=0.3):
                    pass


@every
async def test_our_own_stream_without_its_end_was_cut(kind: str):
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-resilient-client: 1\r\n\r\n"
    async with scripted(answers(head + b"data: 1\n\n")) as peer, calling(peer.url, kind) as client:
        got = []
        with pytest.raises(ConnectionLost):
            async for each in client.stream("x"):
                got.append(each)  # noqa: PERF401
        assert got == [1]


async def test_what_a_hook_or_a_mock_of_the_callers_client_has_read_is_the_answer(rest: Service):
    import gzip

    import httpx

    def mocked(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/packed":
            return httpx.Response(
                200,
                headers={"content-encoding": "gzip", "content-type": "application/json"},
                content=gzip.compress(b'"packed"'),
            )
        if request.url.path == "/none":
            return httpx.Response(204)
        return httpx.Response(200, json=[1, 2])

    async with httpx.AsyncClient(transport=httpx.MockTransport(mocked)) as mock:
        async with ClientProxy("http://rest.example", client=mock, policies=()) as client:
            assert await client.send("GET /numbers") == [1, 2]
            assert await client.send("GET /packed") == "packed"
            assert await client.send("GET /none") is None
            assert [item async for item in client.stream("GET /numbers")] == [[1, 2]]

    async def read(response: httpx.Response) -> None:
        await response.aread()

    async with httpx.AsyncClient(event_hooks={"response": [read]}) as hooked:
        async with ClientProxy(rest.url, client=hooked, policies=()) as client:
            assert await client.send("GET /users/{id}", {"id": 7})


@pytest.mark.parametrize("reads", [True, False])
async def test_what_a_hook_of_the_callers_client_refuses_is_the_answer_still(reads: bool):
    def mocked(request: httpx.Request) -> httpx.Response:
        status = int(request.url.path[1:])
        content = b'{"message":"why"}' if reads else Body(b'{"message":"why"}')
        headers = {"retry-after": "7", "content-type": "application/json"}
        kind = {"content": content} if reads else {"stream": content}
        return httpx.Response(status, headers=headers, **kind)  # type: ignore[arg-type]

    class Body(httpx.AsyncByteStream):
        def __init__(self, content: bytes) -> None:
            self.content = content

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield self.content

    async def check(response: httpx.Response) -> None:
        response.raise_for_status()

    hooks = {"response": [check]}
    transport = httpx.MockTransport(mocked)
    async with httpx.AsyncClient(transport=transport, event_hooks=hooks) as own:  # type: ignore[arg-type]
        async with ClientProxy("http://rest.example", client=own, policies=()) as client:
            for status, kind in ((429, Throttled), (503, Throttled), (404, RemoteError)):
                error = await fails(client, f"POST /{status}", timeout=5)
                assert (type(error), error.status) == (kind, status)
                assert error.payload == ({"message": "why"} if reads else None)
                assert getattr(error, "retry_after", 7) == 7


@every
async def test_informational_answers_are_passed_over(kind: str):
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    async with scripted(answers(early + ok(b"1"))) as peer, calling(peer.url, kind) as client:
        assert await client.send("x") == 1


@pytest.mark.parametrize(
    "says", [b"220 mail ESMTP\r\n", b"\0\0\x12\4\0\0\0\0\0", b"H", b"SSH-2.0-a"]
)
async def test_what_is_no_http_is_told_by_its_first_bytes(says: bytes):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(says)
        if says == b"H":
            await reader.read(1)
        await silence(reader, writer)

    async with scripted(serve) as peer, calling(peer.url) as client:
        error = await fails(client, timeout=0.2 if says == b"H" else 20.0)
    assert isinstance(error, DeadlineExceeded if says == b"H" else ProtocolError)


async def test_the_query_of_the_callers_client_is_added_to_the_calls(rest: Service):
    async with httpx.AsyncClient(params={"page": 2}, trust_env=False) as own:
        async with ClientProxy(rest.url, client=own, telemetry=False) as client:
            assert await client.send("GET /users/{id}", {"id": 7, "x": 1}) == {"user": 7, "page": 2}
            assert await client.send("GET /users/{id}", {"id": 7, "page": 3}) == {
                "user": 7,
                "page": 3,
            }


async def test_a_flood_of_informational_answers_is_not():
    early = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    async with scripted(answers(early * 100 + ok(b"1"))) as peer, calling(peer.url) as client:
        assert isinstance(await fails(client), ProtocolError)


@every
async def test_a_body_without_a_length_ends_with_the_connection(kind: str):
    head = b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n[1,2]"
    async with scripted(answers(head)) as peer, calling(peer.url, kind) as client:
        assert await client.send("x") == [1, 2]
        assert await client.send("x") == [1, 2]


# --------------------------------------------------------------------------------- the pool


async def test_a_connection_is_used_again_until_the_server_closes_it():
    async with scripted(answers(ok(b"1"), ok(b"2"), ok(b"3"))) as peer:
        async with calling(peer.url) as client:
            got = [await client.send("x") for _ in range(3)]
            assert (got, peer.connections) == ([1, 2, 3], 1)
            async with asyncio.timeout(SLACK):
                while peer.open:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert await client.send("x") == 1
            assert peer.connections == 2


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_that_was_closed_while_the_loop_was_busy_is_not_used(loop: Any):
    closed = threading.Semaphore(0)

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                while b"\r\n\r\n" not in connection.recv(65536):
                    continue
                connection.sendall(ok(b"1"))
            closed.release()

    async def main() -> None:
        async with calling(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            assert await client.send("GET /x") == 1
            assert closed.acquire(timeout=20)  # the loop is busy meanwhile
            assert await client.send("GET /x") == 1

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(main())
        thread.join(20)


async def test_what_a_peer_says_unasked_is_not_taken_for_an_answer():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(ok(b'"asked"') + ok(b'"unasked"'))
        await silence(reader, writer)

    async with scripted(serve) as peer, calling(peer.url) as client:
        for _ in range(3):
            assert await client.send("x") == "asked"


async def test_idle_connections_are_not_kept_for_longer_than_the_peer_does():
    async with scripted(answers(ok(b"1", b"keep-alive: timeout=1"), then=silence)) as peer:
        async with calling(peer.url) as client:
            await client.send("x")
            async with asyncio.timeout(SLACK):
                while peer.open:
                    await asyncio.sleep(0.01)


async def test_calls_wait_for_a_connection_for_a_bounded_time():
    busy, go_on = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            if b"POST /slow" in await read_request(reader):
                busy.set()
                await go_on.wait()
            writer.write(ok(b"1"))

    async with (
        scripted(serve) as peer,
        calling(peer.url, max_connections=1, pool_timeout=0.3) as client,
    ):
        slow = asyncio.ensure_future(client.send("slow"))
        await asyncio.wait_for(busy.wait(), 20)
        error = await fails(client, "fast")
        assert isinstance(error, Overloaded)
        assert not error.sent
        late = await fails(client, "fast", timeout=0.05)
        assert isinstance(late, DeadlineExceeded)
        assert not late.sent
        left = asyncio.ensure_future(client.send("fast"))
        await asyncio.sleep(0.05)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        go_on.set()
        assert await slow == 1
        fast = [asyncio.ensure_future(client.send("fast")) for _ in range(5)]
        await asyncio.sleep(0)
        fast[2].cancel()  # whoever is handed the connection and is not there gives it back
        results = await asyncio.gather(*fast, return_exceptions=True)
        assert [each for each in results if each != 1] in ([results[2]], [])
        assert peer.connections <= 2, "one, and one more if the cancelled call was on its way"


@every
async def test_a_storm_of_cancellations_costs_the_pool_nothing(rest: Service, kind: str):
    options = {"max_connections": 10} if kind == "own" else {}
    async with calling(rest.url, kind, **options) as client:
        for turn in range(8):
            calls = [
                asyncio.ensure_future(client.send("GET /sleep/{seconds}", {"seconds": 0.05}))
                for _ in range(20)
            ]
            await asyncio.sleep(0.004 * turn)
            for call in calls[:: 1 if turn % 2 else 2]:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        after = [client.send("GET /sleep/{seconds}", {"seconds": 0.0}) for _ in range(10)]
        assert await asyncio.gather(*after) == [0.0] * 10


async def test_a_client_that_is_closed_fails_what_is_pending():
    async with scripted(answers(b"", then=silence)) as peer:
        for kind in ("own", "httpx"):
            client = foreign(kind)
            proxy = ClientProxy(
                peer.url, policies=(), telemetry=False, **({"client": client} if client else {})
            )
            call = asyncio.ensure_future(proxy.send("x"))
            await asyncio.sleep(0.2)
            await proxy.aclose()
            with pytest.raises(ConnectionLost):
                await asyncio.wait_for(call, SLACK)
            error = await fails(proxy)
            assert isinstance(error, ConnectError)
            assert not error.sent
            if client is not None:
                assert not client.is_closed, "it is not ours to close"
                await client.aclose()


# --------------------------------------------------------------------------------------- TLS


@contextlib.asynccontextmanager
async def secure(context: Any) -> AsyncIterator[str]:
    async with scripted_peer(answers(ok(b'"secret"')), context) as port:
        yield f"https://localhost:{port}"


async def test_https_checks_the_certificate():
    known = certificates()
    async with secure(known.server_context()) as url:
        async with calling(url, tls=known.client_context()) as client:
            assert await client.send("x") == "secret"
        stranger = ClientProxy(url, policies=(), telemetry=False)
        error = await fails(stranger)
        assert isinstance(error, ConfigurationError)
        assert not error.sent
        await stranger.aclose()


async def test_https_shows_the_clients_own_certificate():
    known = certificates()
    async with secure(known.server_context(client_required=True)) as url:
        async with calling(url, tls=known.client_context(with_certificate=True)) as client:
            assert await client.send("x") == "secret"
        bare = ClientProxy(url, policies=(), telemetry=False, tls=known.client_context())
        assert isinstance(await fails(bare), (ConnectError, ConnectionLost))
        await bare.aclose()


async def test_https_to_a_peer_without_tls_is_no_connection():
    async with scripted(answers(ok(b"1"))) as peer:
        proxy = ClientProxy(peer.url.replace("http:", "https:"), policies=(), telemetry=False)
        error = await fails(proxy, timeout=3)
        assert isinstance(error, ConnectError), error
        await proxy.aclose()


# ---------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("client", [httpx.Client(), httpx.AsyncClient, httpx, 5])
def test_what_is_no_asynchronous_client_is_refused(client: Any):
    with pytest.raises(ConfigurationError, match="AsyncClient"):
        ClientProxy("http://127.0.0.1:1", client=client)


def test_settings_that_mean_nothing_are_refused():
    import httpx

    for options in (
        {"tls": True},
        {"max_connections": 0},
        {"pool_timeout": 0},
        {"client": object()},
        {"client": httpx.AsyncClient(), "trust_env": True},
        {"max_connection": 5},
    ):
        with pytest.raises(ConfigurationError):
            ClientProxy("http://127.0.0.1:1", telemetry=False, **options)


async def test_the_environments_proxy_is_obeyed_only_when_asked(
    rest: Service, monkeypatch: pytest.MonkeyPatch
):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        async with calling(rest.url) as client:
            assert await client.send("sum", [1]) == 1
        async with ClientProxy(rest.url, policies=(), telemetry=False, trust_env=True) as client:
            assert isinstance(await fails(client), ConnectError)


@pytest.mark.parametrize("proxy", ["ftp://me:word@127.0.0.1:1", "http://me:word@127.0.0.1:x"])
def test_a_proxy_that_cannot_be_used_is_a_setting_to_mend(
    proxy: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(ConfigurationError, match="proxy") as raised:
        ClientProxy("http://rest.example", trust_env=True)
    assert "word" not in str(raised.value)


async def test_a_stream_over_a_client_of_the_users_that_is_left_at_any_moment_is_closed():
    opened: list[object] = []
    closed: list[object] = []

    class Body(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            opened.append(self)
            yield b'{"n":1}\n'
            await asyncio.Event().wait()

        async def aclose(self) -> None:
            closed.append(self)

    class Peer(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            media = {"content-type": "application/x-ndjson"}
            return httpx.Response(200, headers=media, stream=Body())

    client = ClientProxy(
        "http://peer.invalid",
        client=httpx.AsyncClient(transport=Peer()),
        policies=(),
        telemetry=False,
    )

    async def read() -> None:
        async with client.stream("GET /numbers") as numbers:
            async for _ in numbers:
                continue

    for turns in range(12):
        reading = asyncio.ensure_future(read())
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait({reading})
        await eventually(lambda: len(closed) == len(opened))
    assert opened, "it was never open"
    await client.aclose()
