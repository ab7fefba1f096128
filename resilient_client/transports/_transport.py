"""What the clients' ends have in common."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from math import inf
from typing import TYPE_CHECKING, Any
from weakref import ref

from resilient_client.errors import ConnectError, ConnectionLost, PayloadError, ResilientClientError
from resilient_client.events import ConnectionChanged
from resilient_client.transports._base import DEFAULT_MAX_SIZE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sized

    from resilient_client.events import Status
    from resilient_client.message import Call
    from resilient_client.transports._base import Environment, Target


class Tally:
    """Plain numbers about one transport, for telemetry to read from any thread.

    Attributes:
        orphans: replies that nobody waited for (any more).
    """

    __slots__ = ("_tables", "orphans")

    def __init__(self) -> None:
        self.orphans = 0
        self._tables: tuple[ref[Sized], ...] = ()

    def watch(self, table: Sized) -> None:
        """Count what waits in this table, as long as it lives."""
        self._tables = (*(each for each in self._tables if each() is not None), ref(table))

    @property
    def pending(self) -> int:
        """Replies that are waited for."""
        return sum(len(table) for each in self._tables if (table := each()) is not None)


class BaseTransport:
    """What the transports whose payloads are the codec's bytes have in common.

    Attributes:
        rpc_system, messaging_system: OpenTelemetry's `rpc.system.name` and `messaging.system`; None
            is what the scheme says.
    """

    status: Status = "idle"
    rpc_system: str | None = None
    messaging_system: str | None = None

    def __init__(self, target: Target, env: Environment, max_size: int = DEFAULT_MAX_SIZE) -> None:
        self.endpoint = str(target)
        self._target = target
        self._clock = env.clock
        self._codec = env.codec
        self._notify = env.notify
        self._max_size = max_size
        self._tally = Tally()

    @property
    def max_size(self) -> int:
        """Bytes of one payload, each way."""
        return self._max_size

    def numbers(self) -> dict[str, int]:
        """What telemetry reads, from any thread, by the name of the metric."""
        return {"reply.pending": self._tally.pending, "reply.orphans": self._tally.orphans}

    def encode(self, call: Call) -> None:
        """See `Transport.encode`."""
        body = call.body = self._codec.encode(call.data)
        if len(body) > self._max_size:
            raise self._too_large(len(body))

    def _too_large(
        self, size: int, hint: str = "send less, or raise max_size= on both ends"
    ) -> PayloadError:
        return PayloadError(
            f"the payload has {size} bytes, more than max_size={self._max_size}", hint=hint
        )

    def decode(self, body: Any, type: Any) -> Any:  # noqa: A002
        """See `Transport.decode`."""
        return self._codec.decode(body, type)

    def idempotent(self, call: Call) -> bool:
        """See `Transport.idempotent`."""
        return False

    @asynccontextmanager
    async def _before_sending(self, call: Call) -> AsyncGenerator[None]:
        """Wait for what a call needs before it can be written, within its `attempt_deadline`.

        Raises:
            ConnectError: the connection ended meanwhile.
            DeadlineExceeded, ReplyTimeout: the call's time ran out.
        """
        left = call.attempt_deadline - self._clock.now()
        try:
            async with asyncio.timeout(left if left < inf else None):
                yield
        except ConnectionLost as error:
            raise ConnectError(error.args[0]) from None
        except TimeoutError as error:
            if isinstance(error, ResilientClientError):
                raise
            raise call.expired(sent=False) from None

    def _change(self, status: Status, reason: str = "") -> None:
        """Change the status, and tell of it: for transports without a `Link`, which does it."""
        if self.status not in (status, "closed"):
            old, self.status = self.status, status
            self._notify(ConnectionChanged(self.endpoint, old, status, reason))
