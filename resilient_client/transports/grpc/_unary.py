"""One request, one response, without grpcio's object for such a call.

That object runs each call in a task of its own, keeps it in a set of weak references and copies its
metadata twice. Awaiting the call itself needs what grpcio keeps private: where a release does not
have it, `unary_of` says so, and the public way is taken.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from resilient_client.transports.grpc._headers import Pair
from resilient_client.transports.grpc._library import aio, rpc_error

Unary = Callable[[bytes, float | None, tuple[Pair, ...]], Awaitable[bytes]]
"""`await unary(request, seconds, metadata)` is the response, or raises as grpcio does."""

_NEEDED = (
    "cancel", "done", "initial_metadata", "is_locally_cancelled", "is_ok", "status", "unary_unary",
)  # fmt: skip


def unary_of(channel: aio.Channel, path: str, calls: set[Any]) -> Unary | None:
    """What makes calls of a method.

    Args:
        channel: what they go through.
        path: the method's.
        calls: those under way are kept in it, for whoever closes the channel to `cancel(why)`.
    """
    begin: Any = getattr(getattr(channel, "_channel", None), "call", None)
    method = path.encode()
    if begin is None or rpc_error is None or (rest := _arguments(begin, method)) is None:
        return None

    async def unary(raw: bytes, timeout: float | None, metadata: tuple[Pair, ...]) -> bytes:
        deadline = None if timeout is None else time.time() + timeout
        call = begin(method, deadline, *rest)
        calls.add(call)
        try:
            answer: bytes = await call.unary_unary(raw, metadata)
        except asyncio.CancelledError:
            if not call.done():
                call.cancel("the caller has left")
            raise
        finally:
            calls.discard(call)
        if call.is_ok():
            return answer
        if call.is_locally_cancelled():
            raise asyncio.CancelledError
        raise rpc_error(await call.initial_metadata(), await call.status())

    return unary


def _arguments(begin: Callable[..., Any], method: bytes) -> tuple[Any, ...] | None:
    """What follows the deadline when this release of grpcio makes a call; None if it cannot."""
    for rest in ((None, None, 0), (None, None)):  # the last is new
        try:
            call = begin(method, time.time() + 1.0, *rest)  # nothing of it is sent
        except TypeError:
            continue
        return rest if all(hasattr(call, name) for name in _NEEDED) else None
    return None
