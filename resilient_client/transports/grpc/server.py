"""The server's end of grpc:// and grpcs://."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from resilient_client.errors import ConfigurationError
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._link import spawn
from resilient_client.transports.grpc._accepting import new_server
from resilient_client.transports.grpc._calls import Calls
from resilient_client.transports.grpc._channel import (
    common_options,
    compression_of,
    pem,
    server_options,
)
from resilient_client.transports.grpc._library import (
    HealthServicer,
    add_health,
    aio,
    grpc,
    health_pb2,
)
from resilient_client.transports.grpc._methods import payload_type
from resilient_client.transports.grpc._patterns import EMIT, SEND, STREAM
from resilient_client.transports.grpc._reflection import reflection_handlers
from resilient_client.transports.grpc._schema import schema_of

if TYPE_CHECKING:
    from resilient_client.transports._base import App, Subscription, Target

_DEFAULT_PORT = 50051
_UNTIL_CLOSED = 24 * 3600.0  # seconds: as long as it takes, `aclose` ends it
_REFUSING = 0.3  # seconds in which calls that came last are refused instead of cut off
_SERVING = health_pb2.HealthCheckResponse.SERVING


class ServerListener:
    """The server's end: the methods of a `.proto` that have handlers, and every plain pattern.

    Health (`grpc.health.v1`) and reflection are answered too.

    Args:
        proto, includes, package: as for the client's end; without them there are plain patterns
            only.
        cert, key: PEM file (or its bytes) of this server's certificate and its key, for grpcs://.
        ca: PEM of the authorities that clients' certificates must come from: makes them required.
        credentials: a `grpc.ServerCredentials` instead of these three.
        max_size: bytes of one message, each way.
        compression: "gzip" or "deflate", of answers.
        keepalive, keepalive_timeout, ping_timeout: seconds, as for the client's end.
        max_connection_age: seconds after which a client is asked to connect anew, so that replicas
            share the load; calls under way get `max_connection_age_grace` more.
        max_connection_idle: seconds after which a connection without a call is closed.
        reflection: whether clients may ask what there is.
        channel_options: further arguments, as grpcio names them.
    """

    url_tls = True

    def __init__(
        self,
        target: Target,
        app: App,
        *,
        proto: str | Any = None,
        includes: str | Any = None,
        package: str | None = None,
        cert: str | Any = None,
        key: str | Any = None,
        ca: str | Any = None,
        credentials: Any = None,
        max_size: int = DEFAULT_MAX_SIZE,
        compression: str | None = None,
        keepalive: float = 20.0,
        keepalive_timeout: float = 5.0,
        ping_timeout: float | None = None,
        max_connection_age: float | None = None,
        max_connection_age_grace: float = 30.0,
        max_connection_idle: float | None = None,
        reflection: bool = True,
        channel_options: Mapping[str, Any] | None = None,
    ) -> None:
        secure = target.scheme == "grpcs"
        if secure and credentials is None:
            if cert is None or key is None:
                raise ConfigurationError(
                    "grpcs:// needs the server's certificate", hint="give cert= and key="
                )
            chain, private, authority = pem(cert, "cert"), pem(key, "key"), pem(ca, "ca")
            assert chain is not None and private is not None  # noqa: S101, PT018
            credentials = grpc.ssl_server_credentials(
                [(private, chain)], authority, require_client_auth=authority is not None
            )
        elif not secure and any(each is not None for each in (cert, key, credentials)):
            raise ConfigurationError("certificates mean nothing to grpc://", hint="write grpcs://")
        self.address = str(target)
        self._target = target
        self._app = app
        self._credentials = credentials if secure else None
        self._default_port = 443 if secure else _DEFAULT_PORT
        self._compression = compression_of(compression)
        common = common_options(
            max_size, keepalive, keepalive_timeout, ping_timeout, channel_options
        )
        self._options = server_options(
            common, max_connection_age, max_connection_age_grace, max_connection_idle
        )
        self._schema = schema_of(proto, includes, package)
        self._reflection = reflection
        self._health: Any = None
        self._calls: Calls | None = None
        self._server: aio.Server | None = None
        self._stopping: asyncio.Task[None] | None = None

    def check_pattern(self, handler: Subscription) -> None:
        """Refuse a method that its service does not have, when it is registered."""
        if self._schema is not None:
            self._schema.method(handler.route)

    payload_type = staticmethod(payload_type)

    async def start(self) -> None:
        """See `ServerListener.start`."""
        server = new_server(self._options, self._compression)
        server.add_generic_rpc_handlers((_Methods(self._handlers()),))
        health = self._health = HealthServicer()
        add_health(health, _LookedUp(server))
        await health.set("", _SERVING)
        if self._schema is not None:
            for service in self._schema.services:
                await health.set(service, _SERVING)
        if self._reflection:
            server.add_generic_rpc_handlers(tuple(reflection_handlers(self._schema)))
        where = self._target.address(self._default_port)
        try:
            if self._credentials is None:
                port = server.add_insecure_port(where)
            else:
                port = server.add_secure_port(where, self._credentials)
        except RuntimeError as error:
            refused = self._target.cannot_be_bound(error)
            if self._credentials is not None:
                refused.hint = "is the port free, and are cert= and key= PEM that go together?"
            raise refused from error
        await server.start()
        self._server, self._stopping = server, None
        self.address = self._target.bound(port)

    def _handlers(self) -> dict[str, Any]:
        """By path, how its calls are answered."""
        app = self._app
        pool = None if self._schema is None else self._schema.pool
        calls = self._calls = Calls(app, pool)
        found: dict[str, Any] = {
            SEND.path: grpc.unary_unary_rpc_method_handler(calls.plain(SEND)),
            STREAM.path: grpc.unary_stream_rpc_method_handler(calls.plain(STREAM)),
            EMIT.path: grpc.unary_unary_rpc_method_handler(calls.plain(EMIT)),
        }
        for handler in app.subscriptions():
            method = None if self._schema is None else self._schema.method(handler.route)
            if method is None or (method.path in found and not app.handles(handler.route)):
                continue
            make = {
                (False, False): grpc.unary_unary_rpc_method_handler,
                (False, True): grpc.unary_stream_rpc_method_handler,
                (True, False): grpc.stream_unary_rpc_method_handler,
                (True, True): grpc.stream_stream_rpc_method_handler,
            }[method.requests, method.responses]
            found[method.path] = make(calls.method(method, handler.route))
        return found

    async def stop(self) -> None:
        """See `ServerListener.stop`: clients are asked to go elsewhere, what runs is answered."""
        server = self._server
        if server is None or self._stopping is not None:
            return
        await self._health.enter_graceful_shutdown()
        self._stopping = spawn(server.stop(_UNTIL_CLOSED), "stop a gRPC server")
        await asyncio.sleep(0)

    async def aclose(self) -> None:
        """See `ServerListener.aclose`."""
        await self.stop()
        server, self._server = self._server, None
        if server is None:
            return
        if self._stopping is not None:
            await asyncio.wait({self._stopping}, timeout=_REFUSING)
        await server.stop(0)
        if self._calls is not None:
            self._calls.close()
        if self._stopping is not None:
            await asyncio.wait({self._stopping}, timeout=1.0)


class _LookedUp:
    """A server whose methods are looked up by their path.

    grpcio has a task wait for each method that is registered besides, and goes through all of them
    at every request, whichever it is for.
    """

    def __init__(self, server: aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Leave it at the generic handlers, which are the same methods."""


class _Methods(grpc.GenericRpcHandler):
    """Finds the handler of a path."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._find = found.get

    def service(self, handler_call_details: Any) -> Any:
        """See `grpc.GenericRpcHandler`."""
        return self._find(handler_call_details.method)
