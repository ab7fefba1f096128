"""The client that is used when none is given: httpx's, with a pool of our own under it.

The one module that imports httpx, loaded with the first client that is not given another.
"""

from __future__ import annotations

import ssl
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import httpx

from resilient_client.errors import ConfigurationError, ResilientClientError
from resilient_client.transports.http._errors import map_error
from resilient_client.transports.http._pool import Pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from resilient_client.message import Call, Reply
    from resilient_client.transports.http._connection import Connection
    from resilient_client.transports.http._items import Answer
    from resilient_client.transports.http._requests import HttpRequest

_END_OF_BODY = 0.05
"""Seconds to wait for the end of a body that holds nothing more, to keep its connection."""


class _Body(httpx.AsyncByteStream):
    def __init__(self, pool: Pool, connection: Connection) -> None:
        self._pool = pool
        self._connection: Connection | None = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (connection := self._connection) is not None:
            chunk = await connection.chunk()
            if not chunk:
                return
            yield chunk

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.deadlines.discard(connection)
            self._pool.release(connection)


class PoolTransport(httpx.AsyncBaseTransport):
    """Carries the requests of httpx over our pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The answer's head; the call that asks is in the extensions, and bounds the waiting."""
        pool = self._pool
        call: Call = request.extensions["call"]
        content: bytes = request.extensions["content"]
        connection = await pool.acquire(call.connect_deadline, call)
        try:
            sent, call.sent = call.sent, True
            try:
                connection.write(
                    request.method.encode(), request.url.raw_path, request.headers.raw, content
                )
            except BaseException:
                call.sent = sent
                raise
            pool.deadlines.add(connection, call.attempt_deadline)
            head = await connection.head()
        except BaseException:
            pool.deadlines.discard(connection)
            pool.release(connection)
            raise
        return httpx.Response(
            head.status_code,
            headers=head.headers.raw_items(),
            stream=_Body(pool, connection),
            extensions={"reason_phrase": head.reason, "connection": connection},
        )


class OwnClient:
    """Asks over our own pool, in the caller's own task: no redirects, no cookies, no proxies.

    httpx's requests and responses, without its client in between: what that adds to a request takes
    as long as sending it, and none of it is wanted here.
    """

    connects = True

    def __init__(self, origin: str, pool: Pool) -> None:
        self._origin = origin
        self._pool = pool
        self._transport = PoolTransport(pool)
        self._url = lru_cache(maxsize=1024)(httpx.URL)

    async def ask(
        self,
        call: Call,
        request: HttpRequest,
        headers: list[tuple[bytes, bytes]],
        finish: Callable[[Call, HttpRequest, Answer], Awaitable[Reply]],
    ) -> Reply:
        """Send the request, and let `finish` make a reply of the answer."""
        content = request.content
        try:
            response = await self._transport.handle_async_request(
                httpx.Request(
                    request.method,
                    self._url(self._origin + request.target),
                    headers=headers,
                    content=content,
                    extensions={"call": call, "content": content or b""},
                )
            )
            return await finish(call, request, _OwnAnswer(response, self._pool))
        except ResilientClientError:
            raise
        except TimeoutError:
            raise call.expired(sent=True) from None
        except Exception as error:
            mapped = map_error(error)
            if mapped is None:
                raise
            raise mapped from error

    async def connect(self, deadline: float) -> None:
        """Have a connection for the first call."""
        await self._pool.warm(deadline)

    def forget_loop(self) -> None:
        """The loop of the connections has closed."""
        self._pool.forget()

    async def aclose(self) -> None:
        """Fail what is in progress, and close."""
        await self._pool.aclose()


class _OwnAnswer:
    """See `_items.Answer`."""

    __slots__ = ("_connection", "_pool", "_response", "headers", "reason", "status")

    def __init__(self, response: httpx.Response, pool: Pool) -> None:
        self.status = response.status_code
        self.reason = response.reason_phrase
        self.headers = response.headers
        self._response = response
        self._connection: Connection = response.extensions["connection"]
        self._pool = pool

    async def read(self, limit: int) -> bytes | None:
        chunks = []
        size = 0
        connection = self._connection
        try:
            while chunk := await connection.chunk():
                size += len(chunk)
                if size > limit:
                    return None
                chunks.append(chunk)
        finally:
            await self._response.aclose()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def chunk(self, deadline: float) -> bytes:
        self._pool.deadlines.discard(self._connection)  # that of the call as a whole
        return await self._connection.chunk(deadline)

    async def aclose(self, *, at_end: bool = False) -> None:
        if at_end and not self._connection.complete:
            await self._connection.finish(_END_OF_BODY)
        await self._response.aclose()


def environment_client(tls: ssl.SSLContext | None, limit: int) -> Any:
    """An `AsyncClient` that obeys the environment's proxies, over httpx's own pool.

    Raises:
        ConfigurationError: one of them cannot be used.
    """
    try:
        return httpx.AsyncClient(
            trust_env=True,
            verify=ssl.create_default_context() if tls is None else tls,
            limits=httpx.Limits(max_connections=limit, keepalive_expiry=4.0),
        )
    except ImportError as error:
        raise ConfigurationError(str(error)) from error
    except (ValueError, httpx.InvalidURL):  # whose text shows the proxy's password
        raise ConfigurationError(
            "the environment names a proxy that cannot be used",
            hint="look at HTTP_PROXY, HTTPS_PROXY and ALL_PROXY",
        ) from None
