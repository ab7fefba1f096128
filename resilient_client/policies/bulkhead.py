"""A cap on what is in flight, without a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_client import defaults
from resilient_client._checks import integer
from resilient_client.errors import Overloaded

if TYPE_CHECKING:
    from resilient_client.clock import Clock
    from resilient_client.message import Call, Reply
    from resilient_client.pipeline import Handler


class Bulkhead:
    """At most so many calls inside at the same time; one more is `Overloaded`, at once.

    A queue would only add waiting to what is already slow, and memory to what is already full.
    Outside `Retry` a call keeps its slot while it waits for its next attempt. A stream keeps it
    until its last item has passed or its consumer has left.

    Args:
        pending: calls in flight; sends, emits and streams alike.

    Raises:
        ConfigurationError: `pending` is not a whole number from 1.
    """

    __slots__ = ("pending",)

    def __init__(self, pending: int = defaults.PENDING_CALLS) -> None:
        self.pending = integer("Bulkhead: pending", pending)

    def wrap(self, handler: Handler, clock: Clock, /) -> Handler:
        """See `Policy.wrap`."""
        limit = self.pending
        full = f"{limit} calls are already in flight"
        taken = 0

        def release(outcome: object, error: object) -> None:
            nonlocal taken
            taken -= 1

        async def bulkhead(call: Call) -> Reply:
            nonlocal taken
            if taken >= limit:
                raise Overloaded(full)
            taken += 1
            try:
                reply = await handler(call)
            except BaseException:
                taken -= 1
                raise
            if reply.items is None:
                taken -= 1
            else:
                reply.on_complete(release)
            return reply

        return bulkhead

    def describe(self) -> str:
        """The setting in words."""
        return f"{self.pending} calls in flight, no queue"

    def __repr__(self) -> str:
        return f"Bulkhead(pending={self.pending})"
