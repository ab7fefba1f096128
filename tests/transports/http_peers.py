"""Peers for the tests of http://: a FastAPI service in a thread, and servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse, StreamingResponse

from tests.peers.script import Script, scripted_peer

BOUND = 20.0


class Service:
    """A REST service that knows nothing of us."""

    def __init__(self) -> None:
        self.url = ""
        self.cancelled = threading.Event()
        self.waiting = threading.Event()


def application(service: Service) -> FastAPI:
    app = FastAPI()

    @app.get("/users/{user}")
    async def user(user: int, page: int = 1) -> dict[str, int]:
        return {"user": user, "page": page}

    @app.post("/users", status_code=201)
    async def create(body: dict[str, Any]) -> dict[str, Any]:
        return {"created": body}

    @app.delete("/users/{user}", status_code=204)
    async def delete(user: str) -> None:
        return None

    @app.get("/text")
    async def plain() -> PlainTextResponse:
        return PlainTextResponse("grüß dich")

    @app.api_route("/bytes", methods=["GET", "HEAD"])
    async def raw() -> Response:
        return Response(b"\x00\xff", media_type="application/octet-stream")

    @app.get("/moved")
    async def moved() -> RedirectResponse:
        return RedirectResponse("/text")

    @app.get("/status/{status}")
    async def status(status: int, after: str | None = None) -> Response:
        headers = {} if after is None else {"retry-after": after}
        return Response('{"message":"m"}', status, headers, "application/json")

    @app.post("/sum")
    async def add(request: Request) -> int:
        return sum(await request.json())

    @app.post("/page")
    async def page() -> PlainTextResponse:
        return PlainTextResponse("a page")

    @app.get("/packed")
    async def packed() -> Response:
        headers = {"content-encoding": "gzip"}
        return Response(gzip.compress(b"[1,2]"), 200, headers, "application/json")

    @app.get("/headers")
    async def headers(request: Request) -> dict[str, str]:
        return dict(request.headers)

    @app.get("/lines")
    async def lines() -> StreamingResponse:
        async def values() -> AsyncIterator[bytes]:
            yield b'{"n":1}\n{"n"'
            yield b":2}\n"
            yield b"3"

        return StreamingResponse(values(), media_type="application/x-ndjson")

    @app.get("/events")
    async def events(endless: bool = False) -> StreamingResponse:
        async def values() -> AsyncIterator[bytes]:
            yield b": hello\n\nevent: greeting\ndata: hello\n\n"
            yield b'data: {"n":2}\n\n'
            try:
                while endless:
                    yield b"data: 3\n\n"
                    await asyncio.sleep(0.01)
            finally:
                service.cancelled.set()
            yield b"event: error\ndata: broken\n\n"

        return StreamingResponse(values(), media_type="text/event-stream")

    @app.get("/wait")
    async def wait(request: Request) -> int:
        service.waiting.set()
        for _ in range(1000):
            if await request.is_disconnected():
                service.cancelled.set()
                return 0
            await asyncio.sleep(0.02)
        return 1

    @app.get("/sleep/{seconds}")
    async def sleep(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    return app


@contextlib.contextmanager
def rest_service() -> Iterator[Service]:
    service = Service()
    config = uvicorn.Config(
        application(service), port=0, log_config=None, lifespan="off", access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="rest service", daemon=True)
    thread.start()
    until = time.monotonic() + BOUND
    while not server.started:
        assert time.monotonic() < until
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    service.url = f"http://127.0.0.1:{port}"
    try:
        yield service
    finally:
        server.should_exit = server.force_exit = True
        thread.join(BOUND)
        assert not thread.is_alive()


class Scripted:
    def __init__(self, url: str) -> None:
        self.url = url
        self.connections = 0
        self.open = 0
        self.requests: list[bytes] = []


@contextlib.asynccontextmanager
async def scripted(serve: Script) -> AsyncIterator[Scripted]:
    """A server that does what it is told with each connection, then closes it."""
    peer = Scripted("")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer.connections += 1
        peer.open += 1
        try:
            await serve(reader, writer)
        finally:
            peer.open -= 1

    async with scripted_peer(connected) as port:
        peer.url = f"http://127.0.0.1:{port}"
        yield peer


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """One request, whole."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return head + await reader.readexactly(int(line[15:]))
    return head


def answers(*responses: bytes, then: Script | None = None) -> Script:
    """Each request on a connection gets the next of these; after the last it is closed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for response in responses:
            await read_request(reader)
            writer.write(response)
            await writer.drain()
        if then is not None:
            await then(reader, writer)

    return serve


def ok(body: bytes, *more: bytes) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"content-type: application/json"]
    lines += [b"content-length: %d" % len(body), *more, b"", body]
    return b"\r\n".join(lines)
