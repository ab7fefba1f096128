"""Calls as a gRPC server gets them: read, handed to the app, answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from math import inf
from typing import TYPE_CHECKING, Any

from resilient_client._json import Record
from resilient_client.context import DEADLINE_HEADER
from resilient_client.errors import INTERNAL_SERVER_ERROR, RemoteError
from resilient_client.message import NO_VALUE, Message, Reply
from resilient_client.transports.grpc._headers import RECEIVERS_HEADER, incoming, is_ours
from resilient_client.transports.grpc._library import DecodeError, aio, grpc
from resilient_client.transports.grpc._methods import SchemaMethod
from resilient_client.transports.grpc._patterns import EMIT, PatternsMethod
from resilient_client.transports.grpc._status import refuse, status_name, status_of

if TYPE_CHECKING:
    from resilient_client.codecs import Codec
    from resilient_client.transports._base import App, Slots

_KEPT = 100  # peers whose caps are kept when they have no calls, for the next


class Calls:
    """Makes what grpcio calls for each request.

    Args:
        pool: where the types of an error's `details` may be, besides Google's own.
    """

    def __init__(self, app: App, pool: Any) -> None:
        self.app = app
        self.pool = pool
        self._peers: dict[str, Slots] = {}

    def method(self, method: SchemaMethod, route: str) -> Callable[[Any, Any], Any]:
        """For a method of the schema."""
        codec = method.server_codec(self.app.codec)

        def accepted(count: int, context: Any) -> bytes | None:
            context.set_trailing_metadata(((RECEIVERS_HEADER, str(count)),))
            return None if method.responses else b""

        answer = self._answering(
            lambda body: (route, body),
            accepted,
            codec,
            None,
            responses=method.responses,
            events=not self.app.handles(route),
        )
        if not method.requests:
            return answer

        async def answer_all(raws: Any, context: Any) -> bytes | None:
            return await answer(_whole(raws, context), context)

        return answer_all

    def plain(self, method: PatternsMethod) -> Callable[[Any, Any], Any]:
        """For a pattern of our own kind."""
        return self._answering(
            method.unpack,
            lambda count, _: method.accepted(count),
            None,
            method.pack,
            responses=method.responses,
            events=method is EMIT,
        )

    def _answering(
        self,
        read: Callable[[Any], tuple[str, Any]],
        accepted: Callable[[int, Any], bytes | None],
        codec: Codec | None,
        pack: Callable[[Any], bytes] | None,
        *,
        responses: bool,
        events: bool,
    ) -> Callable[[Any, Any], Awaitable[bytes | None]]:
        """All in one coroutine: each further one costs as much as decoding a small message.

        Args:
            read: the route and the payload in a request.
            accepted: the response to an event that so many handlers have got.
            codec: of payloads, where it is not the app's.
            pack: puts a payload into its envelope, where it has one.
            responses: whether there may be several.
            events: whether it is only for events.
        """
        app, peers = self.app, self._peers
        now, serve = app.clock.now, app.serve

        async def answer(raw: Any, context: Any) -> bytes | None:
            headers = _headers(context)
            try:
                route, body = read(raw)
            except DecodeError:
                await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "this is no Request")
            if events or (pack is None and "respond-async" in headers.get("prefer", "")):
                count = await self._hand_over(route, body, headers, context, codec)
                return accepted(count, context)
            message = Message(
                route, body, headers, True, received=now(), raw=context, codec=codec,
                status_of=status_name,
            )  # fmt: skip
            result = Answer(context, pack, responses)
            peer = context.peer()
            job = await serve(message, result, peers.get(peer) or self._met(peer), "grpc")
            error = result.error
            if not result.given and job is not None:
                if not job.cancelled:  # its caller has gone
                    raise asyncio.CancelledError
                if not job.expired:
                    await refuse(context, grpc.StatusCode.UNAVAILABLE, "The server was stopped")
                error = job.unanswered()
            if error is not None:
                await refuse(context, *status_of(error, self.pool, ours=is_ours(headers)))
            return result.raw

        return answer

    def _met(self, peer: str) -> Slots:
        """The caps of a new peer. Nothing tells when one goes: at times those without calls do."""
        peers = self._peers
        if len(peers) >= _KEPT:
            for idle in [known for known, slots in peers.items() if not slots.jobs]:
                peers.pop(idle).close()
        slots = peers[peer] = self.app.slots(_nothing, _nothing)
        return slots

    def close(self) -> None:
        """Every peer has gone."""
        while self._peers:
            self._peers.popitem()[1].close()

    async def _hand_over(
        self, route: str, body: Any, headers: dict[str, str], context: Any, codec: Codec | None
    ) -> int:
        """Accept an event; where nothing more may run, its sender waits until it does."""
        waiting = Waiting()
        slots = self.app.slots(waiting.pause, waiting.resume)
        headers.pop(DEADLINE_HEADER, None)
        message = Message(
            route, body, headers, received=self.app.clock.now(), raw=context, codec=codec
        )
        self.app.accept(message, None, slots, "grpc")
        try:
            if waiting.resumed is not None:
                await waiting.resumed
        except asyncio.CancelledError:
            slots.drop()
            raise
        finally:
            slots.close()
        return self.app.receivers(route)


class Waiting:
    """Whether an event may not run yet, and when it does."""

    __slots__ = ("resumed",)

    def __init__(self) -> None:
        self.resumed: asyncio.Future[None] | None = None

    def pause(self) -> None:
        """It has to wait."""
        self.resumed = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        """It runs."""
        if self.resumed is not None and not self.resumed.done():
            self.resumed.set_result(None)


class Answer(Record):
    """Takes a handler's reply to the caller.

    Attributes:
        context: gRPC's, of the call.
        pack: puts a value into its envelope; None where it has none.
        responses: whether there may be several.
        given: whether there was one.
        raw: the bytes of the one response.
        error: what the call ends with.
    """

    context: Any
    pack: Callable[[Any], bytes] | None
    responses: bool
    raw: bytes | None = None
    error: RemoteError | None = None
    given: bool = False

    def __call__(self, reply: Reply, /) -> Awaitable[None] | None:
        """See `transports._base.Respond`."""
        self.error = reply.error
        if reply.error is None:
            if self.responses or reply.items is not None:
                return self._send(reply)
            try:
                self.raw = self._bytes(reply.body)
            except Exception:
                self._fail(RemoteError(INTERNAL_SERVER_ERROR))
                raise
        self.given = True
        return None

    async def _send(self, reply: Reply) -> None:
        try:
            if reply.items is not None:
                await self._stream(reply.items)
            elif reply.body is not NO_VALUE:
                await self.context.write(self._bytes(reply.body))
        except RemoteError as torn:
            self._fail(torn)
        except aio.BaseError as gone:
            raise ConnectionResetError(str(gone)) from gone
        except Exception:
            self._fail(RemoteError(INTERNAL_SERVER_ERROR))
            raise
        self.given = True

    def _fail(self, error: RemoteError) -> None:
        self.given, self.error = True, error

    async def _stream(self, items: Any) -> None:
        """Every value; of a method with one response the first."""
        try:
            while True:
                raw = self._bytes(await items.receive(inf))
                if not self.responses:
                    self.raw = raw
                    return
                await self.context.write(raw)
        except StopAsyncIteration:
            if not self.responses:
                self.raw = self._bytes(NO_VALUE)

    def _bytes(self, body: Any) -> bytes:
        if self.pack is not None:
            return self.pack(body)
        return b"" if body is NO_VALUE else body


async def _whole(raws: AsyncIterable[bytes], context: Any) -> AsyncIterator[bytes]:
    """Requests up to the end that their sender has made, and no other.

    grpcio ends them in the same way when the sender has gone, and only then cancels the handler,
    which would take a part for all there is. What is asked of the call after the end is answered
    behind that.
    """
    async for raw in raws:
        yield raw
    await context.read()
    if context.cancelled():
        raise asyncio.CancelledError


def _headers(context: Any) -> dict[str, str]:
    """What came beside the request; gRPC's own timeout as the header everything else reads."""
    headers = incoming(context.invocation_metadata())
    left = context.time_remaining()
    if left is None:
        headers.pop(DEADLINE_HEADER, None)
    else:
        headers[DEADLINE_HEADER] = str(int(left * 1000))
    return headers


def _nothing() -> None:
    """A request over the cap is answered, not waited for."""
