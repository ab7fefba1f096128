"""The client's end of http:// and https://."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from resilient_client._checks import integer, seconds
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    PayloadError,
    ProtocolError,
    client_closed,
)
from resilient_client.message import NO_VALUE, Receipt, Reply
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._socket import client_tls
from resilient_client.transports._transport import BaseTransport
from resilient_client.transports.http._answers import (
    Text,
    announced,
    error_of,
    is_ours,
    unpacked,
    value_of,
)
from resilient_client.transports.http._foreign import ForeignClient, is_async_client
from resilient_client.transports.http._items import HttpItems, stream_reader
from resilient_client.transports.http._requests import IDEMPOTENT, header, prepare, rest_template

if TYPE_CHECKING:
    from resilient_client.message import Call
    from resilient_client.transports._base import Environment, Target
    from resilient_client.transports.http._httpx import OwnClient
    from resilient_client.transports.http._items import Answer
    from resilient_client.transports.http._requests import HttpRequest

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


_MAX_TARGET = 32 * 1024
"""Characters of a path and query: most servers take 8 to 16 thousand, httpx twice these."""
_SCALARS = (int, float, bool)


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

    url_path = True
    url_tls = True
    url_login = True

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
        integer("max_connections", max_connections)
        seconds("pool_timeout", pool_timeout)
        self._authorization: tuple[bytes, bytes] | None = None
        if target.authorization is not None:
            self._authorization = (b"authorization", target.authorization.encode())
        self._base = target.url.path.rstrip("/")
        origin = self._origin = f"{target.scheme}://{target.hostport}{self._base}"
        context = client_tls(tls, secure=secure) if client is None else None
        self._client: OwnClient | ForeignClient
        if client is None and not trust_env:
            self._client = _own_client(
                origin,
                self.endpoint,
                target.host,
                target.port(443 if secure else 80),
                context,
                clock=env.clock,
                limit=max_connections,
                patience=pool_timeout,
            )
            return
        if client is None:
            client = _environment_client(context, max_connections)
            owned = True
        elif tls or trust_env:
            raise ConfigurationError(
                "tls= and trust_env= mean nothing beside client=", hint="set them on that client"
            )
        elif not is_async_client(client):
            raise ConfigurationError(
                f"client= is {type(client).__name__}, without httpx's AsyncClient API",
                hint="give an object such as httpx.AsyncClient()",
            )
        else:
            owned = False
        self._client = ForeignClient(
            client, origin, clock=env.clock, patience=pool_timeout, owned=owned
        )

    # ------------------------------------------------------------------------------ what is asked

    def encode(self, call: Call) -> None:
        """See `Transport.encode`."""
        request = call.body = prepare(call.route, call.data, self._codec)
        if len(request.target) > _MAX_TARGET:
            raise PayloadError(
                f"the URL has {len(request.target)} characters, more than {_MAX_TARGET}",
                sent=False,
                hint="a POST takes its data in the body",
            )
        if request.content is not None and len(request.content) > self._max_size:
            raise self._too_large(len(request.content))

    def decode(self, body: Any, type: Any) -> Any:  # noqa: A002
        """See `Transport.decode`."""
        if isinstance(body, Text) and type not in _SCALARS:
            return body.decode(type)
        if isinstance(body, Text):  # Express, and so Nest, sends a bare number as text
            body = body.content
        return self._codec.decode(body, type)

    def idempotent(self, call: Call) -> bool:
        """See `Transport.idempotent`: by the method's definition."""
        template = rest_template(call.route)
        return template is not None and template.method in IDEMPOTENT

    def http_request(self, call: Call) -> tuple[str, str, str]:
        """Method, template of the path, and URL of the call's request, for telemetry."""
        request: HttpRequest = call.body
        path = f"/{call.route}" if request.plain else call.route.partition(" ")[2].partition("?")[0]
        return request.method, self._base + path, self._origin + request.target

    def _headers(self, call: Call, request: HttpRequest) -> list[tuple[bytes, bytes]]:
        metadata = call.metadata
        headers = [header(name, value) for name, value in metadata.items()]
        if "accept-encoding" not in metadata:
            headers.append(_IDENTITY)
        if "user-agent" not in metadata:
            headers.append(_AGENT)
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
            raise client_closed()
        request: HttpRequest = call.body
        try:
            return await self._client.ask(call, request, self._headers(call, request), self._reply)
        except (ConnectError, ConnectionLost) as error:
            if self.status == "connected":
                self._change("reconnecting", str(error))
            raise

    async def publish(self, call: Call) -> Receipt:
        """See `Transport.publish`."""
        headers = (await self.request(call)).headers
        told = headers.get("x-receivers", "") if headers is not None else ""
        known = told.isascii() and told.isdigit() and len(told) < 10
        return Receipt("accepted", int(told) if known else None)

    async def _reply(self, call: Call, request: HttpRequest, answer: Answer) -> Reply:
        """The value, the items or the error of a response whose head is here."""
        if self.status != "connected":
            self._change("connected")
        status = call.status = answer.status
        headers = answer.headers
        good = 200 <= status < 300
        packed = headers.get("content-encoding", "").strip().lower() or "identity"
        if good and call.kind == "stream":
            reader = stream_reader(headers.get("content-type", ""), self._max_size)
            if reader is not None:
                if packed != "identity":
                    await answer.aclose()
                    raise ProtocolError(f"the stream is packed ({packed}), which nobody asked for")
                items = HttpItems(answer, reader, self._codec, ours=is_ours(headers))
                return await items.opened(call)
        content = None
        if announced(headers) > self._max_size and request.method != "HEAD":
            await answer.aclose()  # it may take for ever to come
        else:
            content = await answer.read(self._max_size)
        if content is not None and packed != "identity":
            content = unpacked(content, packed, self._max_size)
        if not good:  # an error's body that is too large is left out, the error is not
            plain = request.plain
            raise error_of(status, answer.reason, headers, content or b"", self._codec, plain=plain)
        if content is None:
            raise PayloadError(
                f"the answer has more than max_size={self._max_size} bytes",
                sent=True,
                hint="ask for less, or raise max_size= on this client",
            )
        if call.kind == "emit":
            return Reply(headers=headers)
        body = value_of(status, headers, content, plain=request.plain)
        if call.kind == "stream":
            return Reply(items=_OneItem(body), headers=headers)
        return Reply(body, headers=headers)

    # ---------------------------------------------------------------------------------- its life

    async def connect(self, deadline: float) -> None:
        """See `Transport.connect`: a connection for the first call.

        With a client of somebody's nothing is known before the first call.
        """
        if not self._client.connects:
            return
        if self.status == "idle":
            self._change("connecting")
        try:
            await self._client.connect(deadline)
        except BaseException as error:
            if self.status == "connecting":
                self._change("idle", str(error))
            raise
        self._change("connected")

    def forget_loop(self) -> None:
        """The loop of the connections has closed."""
        self._client.forget_loop()
        self._change("idle", "its event loop has ended")

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._change("closed")
        await self._client.aclose()


def _own_client(origin: str, *where: Any, **settings: Any) -> OwnClient:
    """The client on httpx, which is loaded here: whoever gives another need not wait for it."""
    from resilient_client.transports.http._httpx import OwnClient
    from resilient_client.transports.http._pool import Pool

    return OwnClient(origin, Pool(*where, **settings))


def _environment_client(tls: ssl.SSLContext | None, limit: int) -> Any:
    from resilient_client.transports.http._httpx import environment_client

    return environment_client(tls, limit)


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
