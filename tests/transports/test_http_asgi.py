"""Our server as an ASGI application: routes, events, caps, streams, mounted and by itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.middleware.base import BaseHTTPMiddleware

from resilient_client import (
    ClientProxy,
    ConfigurationError,
    ConnectionLost,
    Context,
    DeadlineExceeded,
    InvalidPayloadError,
    RemoteError,
    Server,
    Throttled,
)
from tests.peers.certificates import certificates
from tests.waiting import eventually

SLACK = 10.0


@dataclass
class Query:
    id: int
    tags: list[str]
    deep: bool = False


@dataclass
class Page:
    number: int = 1


def server(*urls: str, **options: Any) -> Server:
    made = Server(*urls, telemetry=False, **options)

    @made.message_pattern("echo")
    async def echo(payload: Any) -> Any:
        return payload

    @made.message_pattern("GET /things/{id}")
    async def thing(query: Query) -> dict[str, Any]:
        return {"id": query.id, "tags": query.tags, "deep": query.deep}

    @made.message_pattern("PUT /things/{id}")
    async def put(payload: dict[str, Any], context: Context) -> dict[str, Any]:
        return {"payload": payload, "pattern": context.pattern}

    @made.message_pattern("POST /things")
    async def post(numbers: list[int]) -> int:
        return sum(numbers)

    @made.message_pattern("GET /missing")
    async def missing() -> None:
        raise RemoteError("no such thing", status=404)

    @made.event_pattern("POST /hooks/{name}")
    async def hook(payload: dict[str, Any]) -> None:
        made.seen.append(payload)  # type: ignore[attr-defined]

    @made.event_pattern("happened")
    async def happened(payload: Any) -> None:
        made.seen.append(payload)  # type: ignore[attr-defined]
        await made.go_on.wait()  # type: ignore[attr-defined]

    @made.message_pattern("wait")
    async def wait() -> str:
        made.waiting.set()  # type: ignore[attr-defined]
        try:
            await made.go_on.wait()  # type: ignore[attr-defined]
        except asyncio.CancelledError:
            made.cancelled.set()  # type: ignore[attr-defined]
            raise
        return "waited"

    @made.message_pattern("flood")
    async def flood() -> AsyncIterator[str]:
        for i in range(100_000):
            made.sent = i  # type: ignore[attr-defined]
            yield "x" * 10_000

    @made.message_pattern("slowly")
    async def slowly() -> AsyncIterator[int]:
        yield 1
        made.waiting.set()  # type: ignore[attr-defined]
        await made.go_on.wait()  # type: ignore[attr-defined]
        yield 2

    @made.message_pattern("state")
    async def state(context: Context) -> Any:
        return context.state

    made.seen = []  # type: ignore[attr-defined]
    made.sent = 0  # type: ignore[attr-defined]
    made.go_on = asyncio.Event()  # type: ignore[attr-defined]
    made.waiting = asyncio.Event()  # type: ignore[attr-defined]
    made.cancelled = asyncio.Event()  # type: ignore[attr-defined]
    return made


@contextlib.asynccontextmanager
async def inside(app: Any, root: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application in this very process."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=True, root_path=root)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


# ------------------------------------------------------------------------------------- routes


async def test_rest_patterns_take_path_query_and_body():
    made = server()
    async with inside(made.asgi) as http:
        answer = await http.get("/things/7?tags=a&deep=true")
        assert answer.json() == {"id": 7, "tags": ["a"], "deep": True}
        answer = await http.get("/things/7?tags=a&tags=b")
        assert answer.json() == {"id": 7, "tags": ["a", "b"], "deep": False}
        assert (await http.get("/things/x?tags=a")).status_code == 422
        answer = await http.put("/things/a%2Fb?x=1", json={"y": [2]})
        assert answer.json() == {
            "payload": {"y": [2], "x": "1", "id": "a/b"},
            "pattern": "PUT /things/{id}",
        }
        assert (await http.put("/things/1", json=[1])).status_code == 422
        assert (await http.post("/things", json=[1, 2])).json() == 3
        head = await http.head("/things/7?tags=a")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) > 0
        assert (await http.get("/missing")).status_code == 404
        wrong = await http.patch("/things/7")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD, PUT, OPTIONS")
        asked = await http.options("/things/7")
        assert (asked.status_code, asked.headers["allow"]) == (204, "GET, HEAD, PUT, OPTIONS")
        assert (await http.get("/")).status_code == 404


async def test_a_query_all_of_whose_fields_have_defaults_may_be_left_out():
    made = server()

    @made.message_pattern("GET /pages")
    async def pages(page: Page) -> int:
        return page.number

    @made.message_pattern("GET /anything")
    async def anything(payload: Any) -> Any:
        return payload

    async with inside(made.asgi) as http:
        assert (await http.get("/pages")).json() == 1
        assert (await http.get("/pages?number=2")).json() == 2
        assert (await http.get("/anything")).json() is None
        assert (await http.get("/anything?a=b")).json() == {"a": "b"}


async def test_our_client_calls_our_rest_patterns():
    made = server("http://127.0.0.1:0")
    async with made, ClientProxy(made.addresses[0], policies=(), telemetry=False) as client:
        thing = {"id": 7, "tags": ["a"], "deep": True}
        assert await client.send("GET /things/{id}", thing, returns=dict) == thing
        with pytest.raises(RemoteError) as caught:
            await client.send("GET /missing")
        assert (type(caught.value), caught.value.status) == (RemoteError, 404)
        with pytest.raises(InvalidPayloadError):
            await client.send("GET /things/{id}", {"id": "x", "tags": []})
        made.go_on.set()  # type: ignore[attr-defined]
        receipt = await client.emit("POST /hooks/{name}", {"name": "n", "a": 1})
        assert receipt.receivers == 1
        await eventually(lambda: made.seen)  # type: ignore[attr-defined]
        assert made.seen == [{"name": "n", "a": 1}]  # type: ignore[attr-defined]


def test_a_broken_rest_pattern_is_refused_when_it_is_registered():
    made = Server("http://127.0.0.1:0", telemetry=False)
    with pytest.raises(ConfigurationError):
        made.message_pattern("GET /a/{")(lambda: None)


# ------------------------------------------------------------------------------------- events


async def test_a_post_goes_to_whoever_there_is():
    made = server()
    made.go_on.set()  # type: ignore[attr-defined]
    async with inside(made.asgi) as http:
        for headers in ({}, {"prefer": "respond-async"}):
            answer = await http.post("/happened", json=1, headers=headers)
            assert (answer.status_code, answer.content) == (202, b"")
            assert answer.headers["x-receivers"] == "1"
        await eventually(lambda: made.seen == [1, 1])  # type: ignore[attr-defined]
        nobody = await http.post("/nobody", json=1, headers={"prefer": "respond-async"})
        assert (nobody.status_code, nobody.headers["x-receivers"]) == (202, "0")
        assert (await http.post("/nobody", json=1)).status_code == 404
        asked = await http.post("/echo", json=1, headers={"prefer": "wait=5, respond-async"})
        assert (asked.status_code, asked.headers["x-receivers"]) == (202, "1")


async def test_an_event_over_the_cap_is_accepted_when_there_is_room():
    made = server(max_calls=1)
    async with inside(made.asgi) as http:
        assert (await http.post("/happened", json=1)).status_code == 202
        second = asyncio.ensure_future(http.post("/happened", json=2))
        third = asyncio.ensure_future(http.post("/happened", json=3))
        await asyncio.sleep(0.1)
        assert not second.done()
        await eventually(lambda: made.seen == [1])  # type: ignore[attr-defined]
        third.cancel()  # this one leaves before it was accepted
        await asyncio.sleep(0.05)
        made.go_on.set()  # type: ignore[attr-defined]
        assert (await second).status_code == 202
        await eventually(lambda: not made._app.running)
        assert made.seen == [1, 2]  # type: ignore[attr-defined]


async def test_a_request_over_the_cap_is_told_to_come_back():
    made = server("http://127.0.0.1:0", max_calls=1)
    async with made, ClientProxy(made.addresses[0], policies=(), telemetry=False) as client:
        first = asyncio.ensure_future(client.send("wait"))
        await asyncio.wait_for(made.waiting.wait(), SLACK)  # type: ignore[attr-defined]
        async with httpx.AsyncClient(base_url=made.addresses[0], trust_env=False) as http:
            answer = await http.post("/echo", json=1)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        with pytest.raises(Throttled) as caught:
            await client.send("echo", 1)
        assert (caught.value.retry_after, caught.value.status) == (0.1, 429)
        made.go_on.set()  # type: ignore[attr-defined]
        assert await first == "waited"
        assert await client.send("echo", 1) == 1


# -------------------------------------------------------------------------- cancel and stop


async def test_a_caller_that_disconnects_cancels_its_handler():
    made = server("http://127.0.0.1:0")
    async with made:
        host, port = made.addresses[0].removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /wait HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        await asyncio.wait_for(made.waiting.wait(), SLACK)  # type: ignore[attr-defined]
        writer.close()
        await asyncio.wait_for(made.cancelled.wait(), SLACK)  # type: ignore[attr-defined]
        assert not made._app.running
        _, half = await asyncio.open_connection(host, int(port))
        half.write(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf")
        await half.drain()
        half.close()
        await eventually(lambda: not made._listeners[0]._state.connections)  # type: ignore[attr-defined]


async def test_a_request_for_the_head_of_a_stream_leaves_its_connection_free():
    made = server("http://127.0.0.1:0")

    @made.message_pattern("GET /ticks")
    async def ticks() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            made.cancelled.set()  # type: ignore[attr-defined]

    limits = httpx.Limits(max_connections=1)
    async with (
        made,
        httpx.AsyncClient(base_url=made.addresses[0], limits=limits, trust_env=False) as http,
    ):
        head = await http.head("/ticks")
        assert head.headers["content-type"].startswith("text/event-stream")
        assert (await http.post("/echo", json=1, timeout=20)).json() == 1
        await asyncio.wait_for(made.cancelled.wait(), SLACK)  # type: ignore[attr-defined]


async def test_nobody_keeps_a_connection_that_does_not_ask(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("resilient_client.transports.http.server.HEAD_TIMEOUT", 0.1)
    monkeypatch.setattr("resilient_client.transports.http._exchange.SILENCE", 0.1)
    made = server("http://127.0.0.1:0")
    async with made:
        host, port = made.addresses[0].removeprefix("http://").split(":")
        for said, answer in (
            (b"", b""),
            (b"POST /echo HT", b""),
            (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf", b"408"),
        ):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(said)
            told = await asyncio.wait_for(reader.read(), SLACK)
            assert told[9:12] == answer
            writer.close()
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /wait HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        await asyncio.wait_for(made.waiting.wait(), SLACK)  # type: ignore[attr-defined]
        for later in (1e6, 2e6):  # who has asked may wait
            made._listeners[0]._close_idle(asyncio.get_running_loop().time() + later)  # type: ignore[attr-defined]
        made.go_on.set()  # type: ignore[attr-defined]
        assert (await asyncio.wait_for(reader.read(), SLACK)).endswith(b'"waited"')
        writer.close()


async def test_headers_without_an_end_are_bounded():
    async with server("http://127.0.0.1:0") as made:
        # not httptools, which knows no bound, where that is installed
        assert made._listeners[0]._config.http == "h11"  # type: ignore[attr-defined]
        host, port = made.addresses[0].removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /echo HTTP/1.1\r\nhost: x\r\n")
        writer.writelines([b"x-%d: %b\r\n" % (i, b"a" * 1000) for i in range(1000)])
        with contextlib.suppress(ConnectionError):  # or it reads why
            assert (await asyncio.wait_for(reader.read(), SLACK)).startswith(b"HTTP/1.1 400")
        writer.close()


async def test_http_2_gets_no_headers_of_a_connection():
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "http_version": "2", "path": "/echo",
        "query_string": b"", "headers": [(b"content-length", b"9" * 20)],
    }  # fmt: skip
    await server().asgi(scope, None, send)
    assert sent[0]["status"] == 413
    assert b"connection" not in dict(sent[0]["headers"])


async def test_a_deadline_ends_a_stream_that_has_begun():
    made = server("http://127.0.0.1:0")
    async with made:
        async with httpx.AsyncClient(base_url=made.addresses[0], trust_env=False) as http:
            answer = await http.post("/slowly", headers={"x-deadline-ms": "300"}, timeout=20)
            first, error, rest = answer.text.split("\n\n")
            assert (first, rest) == ("data: 1", "")
            assert error.startswith("event: error\ndata: ")
            assert json.loads(error.split("data: ")[1])["code"] == "DEADLINE_EXCEEDED"
            late = await http.post("/wait", headers={"x-deadline-ms": "100"}, timeout=20)
            assert (late.status_code, late.json()["code"]) == (504, "DEADLINE_EXCEEDED")
        async with ClientProxy(made.addresses[0], policies=(), telemetry=False) as client:
            got = []
            with pytest.raises(DeadlineExceeded):
                async for each in client.stream("slowly", timeout=1.0):
                    got.append(each)  # noqa: PERF401
            assert got == [1]


async def test_a_caller_that_does_not_read_stops_the_stream_not_the_server():
    made = server("http://127.0.0.1:0")
    async with made, ClientProxy(made.addresses[0], policies=(), telemetry=False) as client:
        async with client.stream("flood", idle_timeout=60) as items:
            assert await anext(aiter(items)) == "x" * 10_000
            before = -1
            async with asyncio.timeout(SLACK * 2):
                while before != made.sent:  # type: ignore[attr-defined]
                    before = made.sent  # type: ignore[attr-defined]
                    await asyncio.sleep(0.2)
            assert before < 2000, "20 MB are in flight: nobody waits for the reader"
            assert await client.send("echo", 1) == 1
            for _ in range(5):
                await anext(items)


async def test_the_end_of_the_grace_is_told_to_whoever_waits():
    made = server("http://127.0.0.1:0", grace=0.1)
    async with made:
        client = ClientProxy(made.addresses[0], policies=(), telemetry=False)
        call = asyncio.ensure_future(client.send("wait", timeout=30))
        await asyncio.wait_for(made.waiting.wait(), SLACK)  # type: ignore[attr-defined]
        await made.aclose()
        with pytest.raises((RemoteError, ConnectionLost)) as caught:
            await asyncio.wait_for(call, SLACK)
        assert caught.value.sent
        await client.aclose()


async def test_what_runs_may_end_within_the_grace():
    made = server("http://127.0.0.1:0", grace=20)
    async with made:
        client = ClientProxy(made.addresses[0], policies=(), telemetry=False)
        call = asyncio.ensure_future(client.send("wait", timeout=30))
        await asyncio.wait_for(made.waiting.wait(), SLACK)  # type: ignore[attr-defined]
        closing = asyncio.ensure_future(made.aclose())
        await asyncio.sleep(0.1)
        made.go_on.set()  # type: ignore[attr-defined]
        assert await call == "waited"
        await closing
        await client.aclose()


# ----------------------------------------------------------------------------------- mounted


@pytest.mark.parametrize("middleware", [False, True])
async def test_it_works_mounted_and_never_started(middleware: bool):
    made = server()
    app = FastAPI()
    app.mount("/rpc", made.asgi)
    if middleware:

        async def pass_on(request: Any, call_next: Any) -> Any:
            return await call_next(request)

        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    async with inside(app) as http:
        assert (await http.post("/rpc/echo", json=[1])).json() == [1]
        assert (await http.get("/rpc/things/7?tags=a")).json()["id"] == 7
        assert (await http.post("/rpc/nobody", json=1)).status_code == 404
        assert (await http.post("/rpc/state")).json() is None
        made.go_on.set()  # type: ignore[attr-defined]
        assert (await http.post("/rpc/wait")).json() == "waited"
        assert (await http.post("/rpc/slowly")).text.endswith("event: end\ndata: \n\n")
        assert (await http.post("/rpc/happened", json=1)).status_code == 202
    async with inside(app, "/outside") as other:  # behind a proxy that takes this off
        assert (await other.post("/rpc/echo", json=2)).json() == 2
    client = ClientProxy(
        "http://test/rpc",
        policies=(),
        telemetry=False,
        client=httpx.AsyncClient(transport=httpx.ASGITransport(app)),
    )
    assert await client.send("echo", {"a": 1}) == {"a": 1}
    await client.aclose()


async def test_an_asgi_server_that_runs_it_starts_and_stops_the_server():
    ended = []

    @contextlib.asynccontextmanager
    async def lifespan(_: Server) -> AsyncIterator[dict[str, int]]:
        yield {"n": 1}
        ended.append(True)

    made = server(lifespan=lifespan)
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    life = asyncio.ensure_future(made.asgi({"type": "lifespan"}, inbox.get, outbox.put))
    inbox.put_nowait({"type": "lifespan.startup"})
    assert (await outbox.get())["type"] == "lifespan.startup.complete"
    async with inside(made.asgi) as http:
        assert (await http.post("/state")).json() == {"n": 1}
        inbox.put_nowait({"type": "lifespan.shutdown"})
        assert (await outbox.get())["type"] == "lifespan.shutdown.complete"
        await life
        assert ended == [True]
        assert (await http.post("/echo")).status_code == 503, "it has been stopped"


async def test_a_server_that_cannot_start_says_so_to_the_asgi_server():
    @contextlib.asynccontextmanager
    async def lifespan(_: Server) -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    made = server(lifespan=lifespan)
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    inbox.put_nowait({"type": "lifespan.startup"})
    await made.asgi({"type": "lifespan"}, inbox.get, outbox.put)
    assert await outbox.get() == {"type": "lifespan.startup.failed", "message": "no database"}


# --------------------------------------------------------------------------- by itself, TLS


async def test_https_with_certificates_on_both_sides():
    known = certificates()
    made = server("https://localhost:0", tls=known.server_context(client_required=True))
    async with made:
        assert made.addresses[0].startswith("https://localhost:")
        async with ClientProxy(
            made.addresses[0],
            policies=(),
            telemetry=False,
            tls=known.client_context(with_certificate=True),
        ) as client:
            assert await client.send("echo", "secret") == "secret"


def test_a_server_needs_its_certificate():
    for url, options in (
        ("https://localhost:0", {}),
        ("https://localhost:0", {"tls": True}),
        ("http://localhost:0", {"tls": certificates().server_context()}),
    ):
        with pytest.raises(ConfigurationError):
            Server(url, telemetry=False, **options)


async def test_an_address_in_use_is_a_setting_to_mend():
    async with server("http://127.0.0.1:0") as made:
        with pytest.raises(ConfigurationError, match="cannot be bound"):
            await server(made.addresses[0]).start()


async def test_nobody_keeps_an_answer_waiting_for_ever(monkeypatch: pytest.MonkeyPatch):
    made = Server("http://127.0.0.1:0", telemetry=False, grace=0.1)

    @made.message_pattern("endless")
    async def endless() -> AsyncIterator[str]:
        while True:
            yield "x" * 1_000_000

    async with made:
        host, port = made.addresses[0].removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"POST /endless HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n")
        listener: Any = made._listeners[0]
        await eventually(lambda: bool(listener._unread))
        assert made._app.running == 1
        [(size, since)] = listener._unread.values()
        listener._unread = dict.fromkeys(listener._unread, (size + 1, 0.0))
        listener._drop_unread(since + 1e6)  # it has read a little
        assert made._app.running == 1
        listener._drop_unread(since + 2e6)
        await eventually(lambda: made._app.running == 0)
        writer.transport.abort()
