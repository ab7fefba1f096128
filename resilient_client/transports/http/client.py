"""The client's end of http:// and https://."""

from __future__ import annotations

import asyncio
import base64
import ssl
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Any

from resilient_client.clock import call_later
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    PayloadError,
    ResilientClientError,
    redact,
)
from resilient_client.events import ConnectionChanged
from resilient_client.message import NO_VALUE, Receipt, Reply
from resilient_client.transports._base import DEFAULT_MAX_SIZE, BaseTransport
from resilient_client.transports.http._answers import Text, error_of, is_ours, value_of
from resilient_client.transports.http._foreign import ForeignAnswer, cancels_safely, map_error
from resilient_client.transports.http._items import HttpItems, stream_reader
from resilient_client.transports.http._requests import IDEMPOTENT, header, prepare, rest_template

if TYPE_CHECKING:
    from resilient_client.events import Status
    from resilient_client.message import Call
    from resilient_client.transports._base import Environment, Target
    from resilient_client.transports.http._http1 import Connection, Pool
    from resilient_client.transports.http._items import Answer
    from resilient_client.transports.http._requests import HttpRequest

_LEFT_ALONE = 30.0
"""Seconds that a request nobody waits for any more may go on in the background."""
_STREAM_ACCEPT = (
    b"accept",
    b"text/event-stream, application/x-ndjson;q=0.9, application/json;q=0.8",
)
_PREFER = (b"prefer", b"respond-async")  # RFC 7240 section 4.1
_JSON_TYPE = (b"content-type", b"application/json")
_IDENTITY = (b"accept-encoding", b"identity")  # a small answer may unpack into a huge one
_AGENT = (b"user-agent", b"resilient_client")
_accept = {
    (True, False): (b"accept", b"application/json"),
    (False, False): (b"accept", b"application/json, */*;q=0.5"),
    (True, True): _STREAM_ACCEPT,
    (False, True): (_STREAM_ACCEPT[0], _STREAM_ACCEPT[1] + b", */*;q=0.1"),
}


class ClientTransport(BaseTransport):
    """The client's end: requests through httpx, each on a connection of its own pool.

    Args:
        client: an object with httpx's `AsyncClient` API to use instead: httpx2, httpx-aiohttp, one
            with proxies or HTTP/2. It stays yours to close.
        tls: an `ssl.SSLContext` for https://; by default the system's authorities are trusted.
        max_size: bytes of one payload, each way.
        max_connections: connections at once.
        pool_timeout: seconds a call waits for one of them to become free.
        trust_env: obey HTTP_PROXY and its kin.
    """

    def __init__(
        self,
        target: Target,
        env: Environment,
        *,
        client: Any = None,
        tls: bool | ssl.SSLContext = False,
        max_size: int = DEFAULT_MAX_SIZE,
        max_connections: int = 100,
        pool_timeout: float = 2.0,
        trust_env: bool = False,
    ) -> None:
        super().__init__(target, env, max_size)
        secure = target.scheme == "https"
        if tls and not secure:
            raise ConfigurationError("tls= means nothing to http://", hint="write https://")
        if max_connections < 1 or pool_timeout <= 0:
            raise ConfigurationError("max_connections= and pool_timeout= must be above 0")
        self._base = target.url.path.rstrip("/")
        self._origin = f"{target.scheme}://{target.hostport}{self._base}"
        self._static = [_IDENTITY, _AGENT]
        self._authorization: tuple[bytes, bytes] | None = None
        if target.username is not None:
            pair = f"{target.username}:{target.password or ''}".encode()
            self._authorization = (b"authorization", b"Basic " + base64.b64encode(pair))
        self._pool_timeout = pool_timeout
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: set[asyncio.Future[bool]] = set()
        self._pool: Pool | None = None
        self._own = client is None
        context = tls if isinstance(tls, ssl.SSLContext) else None
        if client is None:
            from resilient_client.transports.http import _httpx

            if trust_env:
                client = _httpx.environment_client(context, max_connections)
            else:
                from resilient_client.transports.http._http1 import Pool

                if secure and context is None:
                    context = ssl.create_default_context()
                self._pool = Pool(
                    self.endpoint,
                    target.host,
                    target.port(443 if secure else 80),
                    context,
                    clock=env.clock,
                    limit=max_connections,
                    patience=pool_timeout,
                )
                client = _httpx.pooled_client(self._pool)
                self._url = lru_cache(maxsize=1024)(_httpx.parse_url)
                self._request = _httpx.request
        elif tls or trust_env:
            raise ConfigurationError(
                "tls= and trust_env= mean nothing beside client=", hint="set them on that client"
            )
        elif not callable(getattr(client, "build_request", None)):
            raise ConfigurationError(
                f"client= is {type(client).__name__}, without httpx's AsyncClient API"
            )
        self._client = client
        self._cancels = self._pool is not None or cancels_safely(client)

    # ------------------------------------------------------------------------------ what is asked

    def encode(self, call: Call) -> None:
        """See `Transport.encode`."""
        request = call.body = prepare(call.route, call.data, self._codec)
        if request.content is not None and len(request.content) > self._max_size:
            raise PayloadError(
                f"the payload has {len(request.content)} bytes, more than"
                f" max_size={self._max_size}",
                hint="send less, or raise max_size= on both ends",
            )

    def decode(self, body: Any, type: Any) -> Any:  # noqa: A002
        """See `Transport.decode`."""
        if isinstance(body, Text):
            return body.decode(type)
        return self._codec.decode(body, type)

    def idempotent(self, call: Call) -> bool:
        """See `Transport.idempotent`: by the method's definition."""
        template = rest_template(call.route)
        return template is not None and template.method in IDEMPOTENT

    def _headers(self, call: Call, request: HttpRequest) -> list[tuple[bytes, bytes]]:
        metadata = call.metadata
        headers = [*self._static, *(header(name, value) for name, value in metadata.items())]
        if "accept" not in metadata:
            headers.append(_accept[request.plain, call.kind == "stream"])
        if request.content is not None and "content-type" not in metadata:
            headers.append(_JSON_TYPE)
        if call.kind == "emit":
            headers.append(_PREFER)
        if self._authorization is not None and "authorization" not in metadata:
            headers.append(self._authorization)
        return headers

    async def request(self, call: Call) -> Reply:
        """See `Transport.request`."""
        if self.status == "closed":
            raise ConnectError("the client is closed", hint="make a new client")
        request: HttpRequest = call.body
        try:
            if self._pool is not None:
                reply = await self._ask(call, request)
            else:
                reply = await self._apart(call, request)
        except (ConnectError, ConnectionLost) as error:
            if self.status == "connected":
                self._change("reconnecting", str(error))
            raise
        if self.status != "connected":
            self._change("connected")
        return reply

    async def publish(self, call: Call) -> Receipt:
        """See `Transport.publish`."""
        headers = (await self.request(call)).headers
        told = headers.get("x-receivers", "") if headers is not None else ""
        known = told.isascii() and told.isdigit() and len(told) < 10
        return Receipt("accepted", int(told) if known else None)

    # ------------------------------------------------------------------------------- our own pool

    async def _ask(self, call: Call, request: HttpRequest) -> Reply:
        url = self._url(self._origin + request.target)
        try:
            response = await self._client.send(
                self._request(
                    request.method, url, self._headers(call, request), request.content, call
                ),
                stream=True,
            )
            assert self._pool is not None  # noqa: S101
            answer = _OwnAnswer(response, self._pool)
            return await self._reply(call, request, answer)
        except TimeoutError as error:
            if isinstance(error, ResilientClientError):
                raise
            raise call.expired(sent=True) from None

    async def _reply(self, call: Call, request: HttpRequest, answer: Answer) -> Reply:
        """The value, the items or the error of a response whose head is here."""
        status, headers = answer.status, answer.headers
        good = 200 <= status < 300
        if good and call.kind == "stream":
            reader = stream_reader(headers.get("content-type", ""), self._max_size)
            if reader is not None:
                items = HttpItems(answer, reader, self._codec, ours=is_ours(headers))
                return await items.opened(call)
        told = headers.get("content-length", "")
        if told.isdigit() and int(told) > self._max_size and request.method != "HEAD":
            await answer.aclose()
            raise self._too_large()
        content = await answer.read(self._max_size, self._too_large)
        if not good:
            raise error_of(
                status, answer.reason, headers, content, self._codec, plain=request.plain
            )
        if call.kind == "emit":
            return Reply(headers=headers)
        body = value_of(status, headers, content, plain=request.plain)
        if call.kind == "stream":
            return Reply(items=_OneItem(body), headers=headers)
        return Reply(body, headers=headers)

    def _too_large(self) -> PayloadError:
        return PayloadError(
            f"the answer has more than max_size={self._max_size} bytes",
            sent=True,
            hint="ask for less, or raise max_size= on this client",
        )

    # ------------------------------------------------------------------------- somebody's client

    async def _apart(self, call: Call, request: HttpRequest) -> Reply:
        """Ask in a task of its own, so that whoever leaves does not disturb the client's pool."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._ask_foreign(call, request))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        waiter: asyncio.Future[bool] = loop.create_future()

        def over(finished: bool) -> None:  # noqa: FBT001
            if not waiter.done():
                waiter.set_result(finished)

        task.add_done_callback(lambda _: over(True))
        self._waiting.add(waiter)
        timer = None
        if call.attempt_deadline < inf:
            left = call.attempt_deadline - self._clock.now()
            timer = call_later(self._clock, left, lambda: over(False))
        try:
            if not await waiter:
                raise call.expired(sent=call.sent)
        except BaseException:
            self._leave(task)
            raise
        finally:
            self._waiting.discard(waiter)
            if timer is not None:
                timer.cancel()
        return task.result()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, also when nobody waits any more

    def _leave(self, task: asyncio.Task[Any]) -> None:
        """Nobody waits for this request."""
        if self._cancels:
            task.cancel()
        else:  # it ends with its own timeouts; the last resort costs the pool a place
            timer = asyncio.get_running_loop().call_later(_LEFT_ALONE, task.cancel)
            task.add_done_callback(lambda _: timer.cancel())

    async def _ask_foreign(self, call: Call, request: HttpRequest) -> Reply:
        now = self._clock.now()
        connect = min(self._pool_timeout, call.connect_deadline - now)
        # just before our own deadline, which does not know whether there is a connection
        connect = max(0.001, connect - 0.02)
        read = None
        if call.attempt_deadline < inf and call.kind != "stream":
            read = max(0.001, call.attempt_deadline - now) + 0.05
        sent = call.sent
        try:
            outgoing = self._client.build_request(
                request.method,
                self._origin + request.target,
                content=request.content,
                headers=self._headers(call, request),
                timeout=(connect, read, read, connect),
            )
            call.sent = True
            response = await self._client.send(outgoing, stream=True, follow_redirects=False)
            return await self._reply(call, request, ForeignAnswer(response, self._clock))
        except ResilientClientError:
            raise
        except Exception as error:
            mapped = map_error(error)
            if mapped is None:
                raise
            if not mapped.sent:
                call.sent = sent
            raise mapped from error

    # ---------------------------------------------------------------------------------- its life

    async def connect(self, deadline: float) -> None:
        """See `Transport.connect`: a connection for the first call.

        With a client of somebody's nothing is known before the first call.
        """
        if self._pool is not None:
            if self.status == "idle":
                self._change("connecting")
            try:
                await self._pool.warm(deadline)
            except BaseException as error:
                if self.status == "connecting":
                    self._change("idle", str(error))
                raise
            self._change("connected")

    def forget_loop(self) -> None:
        """The loop of the connections has closed."""
        if self._pool is not None:
            self._pool.forget()
        self.status = "idle"

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._change("closed")
        for waiter in tuple(self._waiting):
            if not waiter.done():
                waiter.set_exception(ConnectionLost("the client was closed"))
        if self._pool is not None:
            await self._pool.aclose()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        if self._own:
            await self._client.aclose()

    def _change(self, status: Status, reason: str = "") -> None:
        if self.status not in (status, "closed"):
            old, self.status = self.status, status
            self._notify(ConnectionChanged(self.endpoint, old, status, redact(reason)))


class _OwnAnswer:
    """A response of our own pool."""

    __slots__ = ("_connection", "_pool", "_response", "headers", "reason", "status")

    def __init__(self, response: Any, pool: Pool) -> None:
        self.status: int = response.status_code
        self.reason: str = response.reason_phrase
        self.headers = response.headers
        self._response = response
        self._connection: Connection = response.extensions["connection"]
        self._pool = pool

    async def read(self, limit: int, too_large: Any) -> bytes:
        chunks = []
        size = 0
        connection = self._connection
        try:
            while chunk := await connection.chunk():
                size += len(chunk)
                if size > limit:
                    raise too_large()
                chunks.append(chunk)
        finally:
            await self._response.aclose()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def chunk(self, deadline: float) -> bytes:
        self._pool.deadlines.discard(self._connection)
        return await self._connection.chunk(deadline)

    async def aclose(self) -> None:
        await self._response.aclose()


class _OneItem:
    """A single answer where a stream was asked for."""

    __slots__ = ("_body",)

    def __init__(self, body: Any) -> None:
        self._body: list[Any] = [] if body is NO_VALUE else [body]

    async def receive(self, deadline: float) -> Any:
        """See `message.Items.receive`."""
        if not self._body:
            raise StopAsyncIteration
        return self._body.pop()

    async def aclose(self) -> None:
        """See `message.Items.aclose`."""
        self._body.clear()
