"""httpx: the client that requests go through, with a pool of our own under it.

The one module that imports httpx, loaded with the first client that is not given another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from resilient_client.transports.http._http1 import Pool

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from resilient_client.message import Call
    from resilient_client.transports.http._http1 import Connection


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
        connection = await pool.acquire(call.connect_deadline)
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
        body = _Body(pool, connection)
        return httpx.Response(
            head.status_code,
            headers=head.headers.raw_items(),
            stream=body,
            extensions={"reason_phrase": head.reason, "connection": connection},
        )


class _NoCookies(httpx.Cookies):
    """A service's cookies are not for the next caller; and looking for them takes time."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Leave them in the response."""


class _PooledClient(httpx.AsyncClient):
    _none = _NoCookies()

    @property
    def cookies(self) -> httpx.Cookies:
        return self._none

    @cookies.setter
    def cookies(self, cookies: object) -> None:
        raise NotImplementedError


parse_url = httpx.URL


def pooled_client(pool: Pool) -> httpx.AsyncClient:
    """An `AsyncClient` over our pool: no redirects, no environment, no cookies kept."""
    return _PooledClient(transport=PoolTransport(pool), trust_env=False)


def environment_client(tls: ssl.SSLContext | None, limit: int) -> httpx.AsyncClient:
    """An `AsyncClient` that obeys the environment's proxies, over httpx's own pool."""
    limits = httpx.Limits(max_connections=limit, keepalive_expiry=4.0)
    return httpx.AsyncClient(trust_env=True, verify=True if tls is None else tls, limits=limits)


def request(
    method: str,
    url: Any,
    headers: list[tuple[bytes, bytes]],
    content: bytes | None,
    call: Call,
) -> httpx.Request:
    """A request with nothing added but what HTTP demands."""
    return httpx.Request(
        method,
        url,
        headers=headers,
        content=content,
        extensions={"call": call, "content": content or b""},
    )
