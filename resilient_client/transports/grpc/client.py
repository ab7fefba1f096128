"""The client's end of grpc:// and grpcs://."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    DeadlineExceeded,
    NoHandlerError,
    PayloadError,
    ResilientClientError,
)
from resilient_client.message import ACCEPTED, NO_VALUE, Receipt, Reply
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._link import LinkedTransport, spawn
from resilient_client.transports.grpc._channel import (
    Connection,
    client_options,
    common_options,
    compression_of,
    connected,
    pem,
    watch,
)
from resilient_client.transports.grpc._headers import (
    PREFER,
    RECEIVERS_HEADER,
    Pair,
    incoming,
    outgoing,
)
from resilient_client.transports.grpc._items import (
    Asked,
    Items,
    Requests,
    cancelled,
    keep_status,
    left_by_caller,
)
from resilient_client.transports.grpc._library import ERRORS, aio, grpc
from resilient_client.transports.grpc._methods import Method, SchemaMethod, several
from resilient_client.transports.grpc._patterns import PLAIN, PatternsMethod
from resilient_client.transports.grpc._reflection import discover
from resilient_client.transports.grpc._schema import Schema, is_method_route, schema_of
from resilient_client.transports.grpc._status import error_of, is_end
from resilient_client.transports.grpc._unary import Unary
from resilient_client.transports.grpc._waits import Wait, Waits

if TYPE_CHECKING:
    from resilient_client.message import Call
    from resilient_client.transports._base import Environment, Target

DEFAULT_PORT = 50051
_LATE = 0.02  # seconds after a deadline until which the library may say so itself
_EARLY = 0.005  # seconds by which the library's timer may be ahead of our clock
# The wire has three digits of a timeout, rounded up: without this 30 s would arrive as 30.1.
_ROUNDING = 0.002
_FAR = 1e9  # seconds: a little more, and the library's timer is over at once
_CLOSING = 1.0  # seconds the channels get to close


class ClientTransport(LinkedTransport[Connection]):
    """The client's end: one channel, many calls side by side on it.

    Args:
        proto: path of the `.proto`, generated modules (`..._pb2`), or several of either; without it
            the server's reflection is asked.
        includes: folders in which what a `.proto` imports is looked for.
        package: the only package whose services count.
        ca: PEM file (or its bytes) of the authorities trusted for grpcs://; by default Mozilla's.
        cert, key: PEM of this client's own certificate, where the server asks for one.
        server_name: the name the server's certificate must have, when it is not the URL's host.
        credentials: a `grpc.ChannelCredentials` instead of these four.
        max_size: bytes of one message, each way.
        compression: "gzip" or "deflate", of requests; answers are understood either way.
        keepalive: seconds without traffic during a call before the peer is asked whether it is
            there; 0 is never.
        keepalive_timeout, ping_timeout: seconds it gets to answer; a peer that does not is lost.
            The second is the first where it is not given.
        trust_env: obey http_proxy and its kin.
        channel_options: further arguments of the channel, as grpcio names them.
    """

    url_tls = True
    url_login = True

    def __init__(
        self,
        target: Target,
        env: Environment,
        *,
        proto: str | Any = None,
        includes: str | Any = None,
        package: str | None = None,
        ca: str | Any = None,
        cert: str | Any = None,
        key: str | Any = None,
        server_name: str | None = None,
        credentials: Any = None,
        max_size: int = DEFAULT_MAX_SIZE,
        compression: str | None = None,
        keepalive: float = 20.0,
        keepalive_timeout: float = 5.0,
        ping_timeout: float | None = None,
        trust_env: bool = False,
        channel_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(target, env, max_size)
        secure = target.scheme == "grpcs"
        if not secure and any(
            each is not None for each in (ca, cert, key, server_name, credentials)
        ):
            raise ConfigurationError("certificates mean nothing to grpc://", hint="write grpcs://")
        if (cert is None) != (key is None):  # grpcio would end the process
            raise ConfigurationError("a client's certificate needs both cert= and key=")
        self._credentials = credentials
        if secure and credentials is None:
            self._credentials = grpc.ssl_channel_credentials(
                pem(ca, "ca"), pem(key, "key"), pem(cert, "cert")
            )
        common = common_options(
            max_size, keepalive, keepalive_timeout, ping_timeout, channel_options
        )
        self._options = client_options(common, server_name, proxy=trust_env)
        self._compression = compression_of(compression)
        self._address = target.address(443 if secure else DEFAULT_PORT)
        self._authorization = target.authorization
        self._schema = schema_of(proto, includes, package)
        self._package = package
        self._found: Schema | None = None  # what reflection told
        self._stale = False  # of a connection that has ended: the server may be another one
        self._learning = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._left: set[Connection] = set()
        self._waits = Waits(env.clock)

    # ----------------------------------------------------------------------------- what is asked

    def encode(self, call: Call) -> None:
        """See `Transport.encode`; what only reflection can say is encoded when it has said it."""
        route = call.route
        method: Method | None = None
        if is_method_route(route):
            if self._schema is not None:
                method = self._schema.method(route)
            elif self._stale or self._found is None or not self._found.knows(route):
                return
            else:
                method = _told(self._found, route)
        call.body = self._asked(call, PLAIN[call.kind] if method is None else method)

    def _asked(self, call: Call, method: Method) -> Asked:
        data = call.data
        if method.requests:
            if not several(data):
                raise PayloadError(
                    f"{call.route} takes a stream of requests, not a {type(data).__name__}",
                    hint="give an async iterable, or a list, of mappings",
                )
            if hasattr(data, "__aiter__"):
                return Asked(method, b"", data)
            raws = [self._bounded(method.request(each, self._codec, call.route)) for each in data]
            return Asked(method, b"", raws)
        raw = self._bounded(method.request(data, self._codec, call.route))
        return Asked(method, raw)

    def _bounded(self, raw: bytes) -> bytes:
        if len(raw) > self._max_size:
            raise self._too_large(len(raw))
        return raw

    async def _learn(self, call: Call, connection: Connection) -> Asked:
        """Encode a call whose method only the server can describe."""
        try:
            async with self._before_sending(call), self._learning:
                found = await self._ask(call.route, connection)
        except aio.AioRpcError as error:
            raise self._refused(error, connection) from error
        method = _told(found, call.route)
        asked = call.body = self._asked(call, PLAIN[call.kind] if method is None else method)
        return asked

    async def _ask(self, route: str, connection: Connection) -> Schema:
        """What the server says of a route, unless it has said it on this connection."""
        before = self._found
        known = before is not None and before.knows(route)
        if before is not None and known and not self._stale:
            return before
        found = before
        if found is None or self._stale or found.service(route) is not None:
            found = Schema((), self._package)  # a method that is new may have new messages
        try:
            await discover(connection.channel, found, route)
        except ConfigurationError:
            if before is None or not known:
                raise
            found = before  # it says nothing any more
        self._found, self._stale = found, False
        return found

    def decode(self, body: Any, type: Any) -> Any:  # noqa: A002
        """See `Transport.decode`."""
        method, raw = body
        return method.response(raw, type, self._codec)

    # ---------------------------------------------------------------------------------- the calls

    async def request(self, call: Call) -> Reply:
        """See `Transport.request`."""
        connection = self._link.current or await self._link.get(call.connect_deadline, call)
        unary = None
        try:
            asked: Asked = call.body or await self._learn(call, connection)
            method = asked.method
            if call.kind == "stream" or method.responses:
                return await self._stream(call, asked, connection)
            if not method.requests and self._compression is None:
                unary = connection.unary(method.path)
            if unary is None:
                raw, _ = await self._unary(call, asked, connection, [])
            else:
                raw = await self._shortly(call, asked.raw, connection, unary)
        finally:
            del connection, unary  # an error's traceback holds this frame
        if isinstance(method, PatternsMethod):
            value = method.value(raw)
            return Reply(NO_VALUE if value is NO_VALUE else (method, value))
        return Reply((method, raw))

    async def _stream(self, call: Call, asked: Asked, connection: Connection) -> Reply:
        items = self._open(call, asked, connection, call.deadline)
        del connection
        await items.opened(call)
        if call.kind == "stream":
            return Reply(items=items)
        try:
            return Reply(await items.receive(call.attempt_deadline))
        except StopAsyncIteration:
            return Reply(NO_VALUE)
        finally:
            await items.aclose()

    async def publish(self, call: Call) -> Receipt:
        """See `Transport.publish`: a request whose answer says only that it was taken."""
        connection = self._link.current or await self._link.get(call.connect_deadline, call)
        try:
            asked: Asked = call.body or await self._learn(call, connection)
            method = asked.method
            if method.responses:  # the first answer, or the end, is proof enough
                items = self._open(call, asked, connection, call.attempt_deadline, [PREFER])
                await items.opened(call)
                await items.aclose()
                return ACCEPTED
            raw, rpc = await self._unary(call, asked, connection, [PREFER])
        except NoHandlerError:
            return Receipt("accepted", 0)
        finally:
            del connection
        if isinstance(method, PatternsMethod):
            return Receipt("accepted", method.receivers(raw))
        told = incoming(await rpc.trailing_metadata()).get(RECEIVERS_HEADER, "")
        known = told.isascii() and told.isdigit() and len(told) < 10
        return Receipt("accepted", int(told) if known else None)

    def _begin(
        self, call: Call, asked: Asked, connection: Connection, deadline: float, extra: list[Any]
    ) -> tuple[Any, Requests | None]:
        """Start an RPC; the deadline travels as gRPC's own."""
        timeout = self._timeout(call, deadline)
        metadata = self._metadata(call)
        metadata += extra
        method = asked.method
        requests: Requests | None = None
        argument: Any = asked.raw
        if method.requests:
            requests = Requests(
                asked,
                lambda each: self._bounded(method.request(each, self._codec, call.route)),
                self._closing,
            )
            argument = requests.each()
        rpc = connection.callable(method.path, method.requests, method.responses)(
            argument,
            timeout=timeout,
            metadata=aio.Metadata(*metadata),
            compression=self._compression,
        )
        if requests is not None:
            keep_status(rpc)
        call.sent = True
        connection.begun()
        return rpc, requests

    def _timeout(self, call: Call, deadline: float) -> float | None:
        left = deadline - self._clock.now()
        if left <= 0:
            raise call.expired(sent=False)
        return None if left >= _FAR else left - _ROUNDING if left > 1 else left

    def _metadata(self, call: Call) -> list[Pair]:
        metadata = outgoing(call.metadata)
        if self._authorization is not None and "authorization" not in call.metadata:
            metadata.append(("authorization", self._authorization))
        return metadata

    async def _shortly(self, call: Call, raw: bytes, connection: Connection, unary: Unary) -> bytes:
        """As `_unary`, where there is no more than one message each way."""
        before = call.sent
        timeout = self._timeout(call, call.attempt_deadline)
        metadata = tuple(self._metadata(call))
        call.sent = True
        wait = self._waits.begin(call.attempt_deadline + _LATE)
        try:
            return await unary(raw, timeout, metadata)
        except ERRORS as error:
            failure = self._failed(call, error, connection, before)
        except asyncio.CancelledError:
            given_up = self._given_up(call, wait, None)
            if given_up is None:
                raise
            failure = given_up
        finally:
            self._waits.end(wait)
            if connection.retired:
                connection.leave()
            del connection, unary, wait  # an error's traceback holds this frame
        try:
            raise failure
        finally:
            del failure

    async def _unary(
        self, call: Call, asked: Asked, connection: Connection, extra: list[Any]
    ) -> tuple[bytes, Any]:
        before = call.sent
        rpc, requests = self._begin(call, asked, connection, call.attempt_deadline, extra)
        wait = self._waits.begin(call.attempt_deadline + _LATE)
        try:
            return await rpc, rpc
        except ERRORS as error:
            failure = self._failed(call, error, connection, before)
        except asyncio.CancelledError:
            given_up = self._given_up(call, wait, requests)
            if given_up is None:
                raise
            failure = given_up
        finally:
            self._waits.end(wait)
            if requests is not None:
                requests.close()
            connection.ended()
            del rpc, connection, wait  # an error's traceback holds this frame
        try:
            raise failure
        finally:
            del failure

    def _given_up(
        self, call: Call, wait: Wait, requests: Requests | None
    ) -> ResilientClientError | None:
        """Why a wait was cancelled; None when its caller has left."""
        if self._waits.expired(wait):
            return call.expired(sent=True)
        return None if left_by_caller() else cancelled(requests)

    def _open(
        self,
        call: Call,
        asked: Asked,
        connection: Connection,
        deadline: float,
        extra: list[Any] | None = None,
    ) -> Items:
        before = call.sent
        rpc, requests = self._begin(call, asked, connection, deadline, extra or [])
        return Items(
            asked.method,
            rpc,
            connection,
            requests,
            lambda error, lost: self._failed(call, error, lost, before),
            self._waits,
        )

    def _failed(
        self,
        call: Call,
        error: BaseException,
        connection: Connection,
        before: bool,  # noqa: FBT001
    ) -> ResilientClientError:
        """Our error for grpcio's; what never left this side does not count as sent."""
        if isinstance(error, aio.AioRpcError):
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                now = self._clock.now() + _EARLY
                if now >= call.deadline:
                    return DeadlineExceeded("the call's time ran out", sent=True)
                if now >= call.attempt_deadline:
                    return call.expired(sent=True)
            call.status = error.code().name
        mapped = self._refused(error, connection)
        if isinstance(mapped, ConnectError):
            call.sent = before
        elif is_end(error):
            # The library tells its channel later than its calls, and later still where a write is
            # under way: until then it would take calls that get nowhere.
            self._lost(connection)
        return mapped

    def _refused(self, error: BaseException, connection: Connection) -> ResilientClientError:
        schema = self._schema or self._found
        return error_of(
            error,
            connected=self.status != "closed" and connection.connected,
            pool=None if schema is None else schema.pool,
        )

    # --------------------------------------------------------------------------------- its life

    async def _dial(self) -> Connection:
        channel = self._channel()
        try:
            await connected(channel)
            connection = Connection(channel, self._close)
        except BaseException as error:
            await channel.close()
            # whoever keeps the error would keep the channel, and so the library's thread
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            del channel
        watch(connection, self._lost)
        return connection

    def _channel(self) -> aio.Channel:
        if self._credentials is None:
            return aio.insecure_channel(self._address, options=self._options)
        return aio.secure_channel(self._address, self._credentials, options=self._options)

    def _lost(self, connection: Connection) -> None:
        if self._link.current is connection:
            self._left.add(connection)
            self._stale = True
        self._link.lost(connection, "the connection has ended, or its peer takes no more calls")
        connection.retire()

    def _close(self, connection: Connection) -> None:
        self._left.discard(connection)
        spawn(connection.aclose(), "close a gRPC channel", self._closing)

    def forget_loop(self) -> None:
        """See `Transport`."""
        super().forget_loop()
        self._closing = set()
        self._left = set()
        self._learning = asyncio.Lock()
        self._waits = Waits(self._clock)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        connection = await self._link.aclose()
        for each in (*self._left, *(() if connection is None else (connection,))):
            self._close(each)
        if self._closing:
            await asyncio.wait(self._closing, timeout=_CLOSING)
        self._waits.close()


def _told(found: Schema, route: str) -> SchemaMethod | None:
    """A method that reflection has told of; that its service has none is the peer's answer."""
    try:
        return found.method(route)
    except ConfigurationError as error:
        raise NoHandlerError(error.args[0], hint=error.hint) from None
