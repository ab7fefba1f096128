"""What flows with a call through the code it runs: correlation id and the handler's context."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from resilient_client._json import Record
from resilient_client.clock import Clock

CORRELATION_HEADER = "x-correlation-id"
DEADLINE_HEADER = "x-deadline-ms"
ATTEMPT_HEADER = "x-attempt"
IDEMPOTENCY_HEADER = "idempotency-key"
PEER_HEADER = "x-resilient-client"
"""In a request's metadata: its id, when it comes straight from this package. Whoever stands between
may pass the metadata on, but not the id. The reply to such a request may carry metadata."""

PING_PATTERN = "resilient_client.ping"
"""Every server of this package answers it; any answer at all means that the peer is reachable."""

correlation_id: ContextVar[str | None] = ContextVar("correlation_id", default=None)
"""The correlation id of the work in progress; calls made in its context carry it on."""

valid_correlation_id: Callable[[str], object] = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}").fullmatch
"""Whether a peer's id is safe to log and to pass on, as a truth value."""


_ids: itertools.count[int]
_prefix: str


def _renew() -> None:
    global _ids, _prefix  # noqa: PLW0603
    _prefix = os.urandom(8).hex()
    # decimal digits are hex digits as well, and quicker to write; always 16 of them
    _ids = itertools.count(10**15 + int.from_bytes(os.urandom(4), "big"))


_renew()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def fresh_id() -> str:
    """A globally unique id of 32 hex digits: a random prefix for the process, then a counter."""
    return _prefix + str(next(_ids))


class Context(Record):
    """What a handler can know about the message it handles.

    Attributes:
        pattern: the route of the handler's pattern, or the concrete subject under a wildcard.
        correlation_id: `x-correlation-id` as received, or a fresh one.
        state: what the server's lifespan yielded.
        transport: the scheme it came by, such as "tcp".
        raw: the transport's own object for the message, for what nothing here covers.
    """

    pattern: str
    _headers: Mapping[str, str]
    correlation_id: str
    deadline: float
    _clock: Clock
    state: Any
    transport: str
    raw: Any

    @property
    def headers(self) -> Mapping[str, str]:
        """A read-only mapping of lower-case names to strings, as received."""
        return MappingProxyType(self._headers)

    @property
    def attempt(self) -> int:
        """Which attempt of the caller this is, from 1."""
        told = self._headers.get(ATTEMPT_HEADER)
        if told is not None and told.isascii() and told.isdigit() and len(told) < 6:
            return int(told)
        return 1

    @property
    def idempotency_key(self) -> str | None:
        """The same for every attempt of one call, when the caller gave one."""
        return self._headers.get(IDEMPOTENCY_HEADER)

    @property
    def remaining(self) -> float | None:
        """Seconds until the caller stops waiting, None when it did not say."""
        if self.deadline == float("inf"):
            return None
        return max(0.0, self.deadline - self._clock.now())


_current: ContextVar[Context | None] = ContextVar("current_context", default=None)


class _CurrentContext:
    """The `Context` of the handler that runs here, None outside one: `current_context()`."""

    __slots__ = ()

    get = staticmethod(_current.get)
    set = staticmethod(_current.set)
    reset = staticmethod(_current.reset)

    def __call__(self) -> Context | None:
        return _current.get()


current_context = _CurrentContext()
