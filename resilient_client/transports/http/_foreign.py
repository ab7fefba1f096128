"""Clients that are not ours: any object with httpx's `AsyncClient` API."""

from __future__ import annotations

import asyncio
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from resilient_client.clock import call_later
from resilient_client.errors import ConnectError, ConnectionLost, ResilientClientError
from resilient_client.transports._link import spawn
from resilient_client.transports.http._errors import map_error, refused_by_hook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from resilient_client.clock import Clock
    from resilient_client.message import Call, Reply
    from resilient_client.transports.http._items import Answer
    from resilient_client.transports.http._requests import HttpRequest

_LEFT_ALONE = 30.0
"""Seconds that a request nobody waits for any more may go on in the background."""


def is_async_client(client: Any) -> bool:
    """Whether it has httpx's `AsyncClient` API: its `Client` has nearly the same."""
    return (
        not isinstance(client, type)
        and callable(getattr(client, "build_request", None))
        and (hasattr(client, "aclose") or not hasattr(client, "close"))
    )


def cancels_safely(client: Any) -> bool:
    """Whether a request of this client may be cancelled at any moment.

    httpx's own pool (httpcore 1.0.9) loses a place for ever when that happens before the request is
    on its way.
    """
    root = next((c.__module__.partition(".")[0] for c in type(client).__mro__[-2:-1]), "")
    if root != "httpx":
        return True
    transports = [getattr(client, "_transport", None), *getattr(client, "_mounts", {}).values()]
    return not any(
        any(cls.__module__.startswith("httpx._transports.default") for cls in type(each).__mro__)
        for each in transports
    )


class _Progress:
    """How far a request has come, as httpcore tells it (the extension `trace`).

    Attributes:
        told: whether this client tells at all.
        sent: whether anything was written.
    """

    __slots__ = ("_abandoned", "_answering", "sent", "told")

    def __init__(self) -> None:
        self.told = self.sent = False
        self._answering = self._abandoned = False

    async def __call__(self, event: str, info: Any) -> None:
        self.told = True
        if event.endswith("send_request_headers.started"):
            if self._abandoned:
                raise ConnectError("nobody waits for this request any more")
            self.sent = True
        elif event.endswith("receive_response_headers.started"):
            self._answering = True

    def leave(self, task: asyncio.Task[Any], *, cancels: bool) -> None:
        """Nobody waits: stop it where that does the pool no harm, or before it is written."""
        self._abandoned = True
        if cancels or self._answering:
            task.cancel()
        else:  # it ends by itself; the last resort costs the pool a place
            timer = asyncio.get_running_loop().call_later(_LEFT_ALONE, task.cancel)
            task.add_done_callback(lambda _: timer.cancel())


class ForeignClient:
    """Asks through somebody's client, each request in a task of its own.

    So whoever leaves does not disturb that client's pool, and the deadline is ours.

    Args:
        patience: seconds to wait for a free connection of its pool.
        owned: whether it is closed with the transport.
    """

    connects = False

    def __init__(
        self, client: Any, origin: str, *, clock: Clock, patience: float, owned: bool
    ) -> None:
        self._client = client
        self._origin = origin
        self._clock = clock
        self._patience = patience
        self._owned = owned
        self._cancels = cancels_safely(client)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._leaving: set[asyncio.Task[Any]] = set()
        self._waiting: set[asyncio.Future[bool]] = set()

    async def ask(
        self,
        call: Call,
        request: HttpRequest,
        headers: list[tuple[bytes, bytes]],
        finish: Callable[[Call, HttpRequest, Answer], Awaitable[Reply]],
    ) -> Reply:
        """Send the request, and let `finish` make a reply of the answer."""
        loop = asyncio.get_running_loop()
        progress = _Progress()
        task = loop.create_task(self._send(call, request, headers, finish, progress))
        self._tasks.add(task)
        waiter: asyncio.Future[bool] = loop.create_future()

        def over(finished: bool) -> None:  # noqa: FBT001
            if not waiter.done():
                waiter.set_result(finished)

        def ended(_: object) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                task.exception()  # looked at, also when nobody waits any more
            over(True)

        task.add_done_callback(ended)
        self._waiting.add(waiter)
        timer = None
        if call.attempt_deadline < inf:
            left = call.attempt_deadline - self._clock.now()
            timer = call_later(self._clock, left, lambda: over(False))
        try:
            if not await waiter:
                if progress.told and not progress.sent:
                    raise call.unready(f"no connection to {self._origin} in time")
                call.sent = True
                raise call.expired(sent=True)
        except BaseException:
            progress.leave(task, cancels=self._cancels)
            task.add_done_callback(self._unheard)
            raise
        finally:
            self._waiting.discard(waiter)
            if timer is not None:
                timer.cancel()
        if task.cancelled():
            raise ConnectionLost("the client was closed")
        return task.result()

    def _unheard(self, task: asyncio.Task[Reply]) -> None:
        """A stream that was opened for somebody who had just left."""
        if not task.cancelled() and task.exception() is None:
            items = task.result().items
            if items is not None:
                spawn(items.aclose(), "leave a stream", self._leaving)

    async def _send(
        self,
        call: Call,
        request: HttpRequest,
        headers: list[tuple[bytes, bytes]],
        finish: Callable[[Call, HttpRequest, Answer], Awaitable[Reply]],
        progress: _Progress,
    ) -> Reply:
        now = self._clock.now()
        # a little before our own deadline, so that it is this library that says what happened
        left = call.connect_deadline - now - 0.02
        connect = max(0.001, min(self._patience, left))
        read = None
        if call.attempt_deadline < inf and call.kind != "stream":
            read = max(0.001, call.attempt_deadline - now) + 0.05
        try:
            outgoing = self._client.build_request(
                request.method,
                self._origin + request.target,
                params=self._params(request),
                content=request.content,
                headers=headers,
                timeout=(connect, read, read, connect),
                extensions={"trace": progress},
            )
            response = await self._client.send(outgoing, stream=True, follow_redirects=False)
            call.sent = True
            return await finish(call, request, ForeignAnswer(response, self._clock))
        except ResilientClientError:
            raise
        except Exception as error:
            refused = refused_by_hook(error)
            if refused is not None:
                call.sent = True
                return await finish(call, request, ForeignAnswer(refused, self._clock))
            mapped = map_error(error)
            if mapped is None:
                call.sent = True
                raise
            if mapped.sent:
                call.sent = True
            elif type(mapped) is ConnectError and self._clock.now() >= now + left:
                mapped = call.unready(str(mapped))
            raise mapped from error

    def _params(self, request: HttpRequest) -> Any:
        """The call's query where the client has one of its own, which would replace it."""
        if not getattr(self._client, "params", None):
            return None
        return parse_qsl(request.target.partition("?")[2], keep_blank_values=True)

    async def connect(self, deadline: float) -> None:
        """Nothing is known of such a client before the first call."""

    def forget_loop(self) -> None:
        """The loop of the tasks has closed."""
        self._tasks.clear()
        self._leaving.clear()
        self._waiting.clear()

    async def aclose(self) -> None:
        """Fail what is in progress; the client itself is closed only when it is ours."""
        for waiter in tuple(self._waiting):
            if not waiter.done():
                waiter.set_exception(ConnectionLost("the client was closed"))
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if ending := {*tasks, *self._leaving}:
            await asyncio.wait(ending, timeout=1.0)
        if self._owned:
            await self._client.aclose()


class ForeignAnswer:
    """See `_items.Answer`; a stream is read ahead by a task of its own.

    Waiting for a part of it can so be given up without cancelling the client in the middle. What a
    hook or a mock of that client has read already is taken as it was read, unpacked.
    """

    __slots__ = (
        "_changed", "_chunks", "_clock", "_content", "_ended", "_error", "_response", "_room",
        "_task", "headers", "reason", "status",
    )  # fmt: skip
    _AHEAD = 16  # chunks

    def __init__(self, response: Any, clock: Clock) -> None:
        self.status: int = response.status_code
        self.reason: str = response.reason_phrase
        self.headers = response.headers
        self._content: bytes | None = None
        if getattr(response, "is_stream_consumed", False):
            self._content = response.content
        elif getattr(response, "is_closed", False):  # as it was when a hook refused it
            self._content = b""
        if self._content is not None:
            self.headers = {k: v for k, v in self.headers.items() if k != "content-encoding"}
        self._clock = clock
        self._response = response
        self._chunks: deque[bytes] = deque()
        self._ended = False
        self._error: ResilientClientError | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def read(self, limit: int) -> bytes | None:
        chunks = []
        size = 0
        try:
            async for chunk in self._raw():
                size += len(chunk)
                if size > limit:
                    return None
                chunks.append(chunk)
        finally:
            await self._response.aclose()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _raw(self) -> AsyncIterator[bytes]:
        if self._content is None:
            async for chunk in self._response.aiter_raw():
                yield chunk
        elif self._content:
            yield self._content

    async def chunk(self, deadline: float) -> bytes:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._pump())
        left = None if deadline == inf else deadline - self._clock.now()
        async with asyncio.timeout(left):
            while not self._chunks:
                if self._error is not None:
                    raise self._error
                if self._ended:
                    return b""
                self._changed.clear()
                await self._changed.wait()
        self._room.set()
        return self._chunks.popleft()

    async def _pump(self) -> None:
        try:
            async for chunk in self._raw():
                if chunk:
                    self._chunks.append(chunk)
                    self._changed.set()
                while len(self._chunks) >= self._AHEAD:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:  # noqa: BLE001  (told to whoever reads)
            self._error = map_error(error)
            if self._error is None:
                self._error = ConnectionLost(f"{type(error).__name__}: {error}")
            self._error.__cause__ = error
        finally:
            self._ended = True
            self._changed.set()

    async def aclose(self, *, at_end: bool = False) -> None:
        if self._task is not None:
            if at_end:
                await asyncio.wait({self._task}, timeout=0.05)
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._response.aclose()
