"""A limit of time; what it limits depends on where it stands."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from resilient_client._checks import seconds as checked_seconds

if TYPE_CHECKING:
    from resilient_client.clock import Clock
    from resilient_client.message import Call, Reply
    from resilient_client.pipeline import Handler


class Timeout:
    """So many seconds, and no more.

    Outside `Retry` and the choice of the endpoint it is the whole call's time: the client takes the
    number for the deadline of every call that does not bring its own. Inside either it is one
    attempt's: it bounds connecting, and the wait for the reply (a stream's first item) where
    another attempt may follow. A call that may not be repeated has one attempt, and all the time
    there is; without a `Retry` outside, the attempt is always cut.

    It is a number on the call, handed inward; the transport enforces it, there is no timer here.

    Args:
        seconds: above 0; `math.inf` is no limit.

    Raises:
        ConfigurationError: not such a number.
    """

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = checked_seconds("Timeout: seconds", seconds)

    def wrap(self, handler: Handler, clock: Clock, /) -> Handler:
        """See `Policy.wrap`: the attempt's part. The client itself plays the whole call's."""
        limit, now = self.seconds, clock.now

        async def timeout(call: Call) -> Reply:
            connect, attempt = before = call.limits
            end = now() + limit
            call.limits = (
                min(connect, end),
                attempt if call.may_repeat is False else min(attempt, end),
            )
            try:
                return await handler(call)
            finally:
                call.limits = before

        return handler if limit == inf else timeout

    def describe(self) -> str:
        """The setting in words."""
        return "no limit" if self.seconds == inf else f"{self.seconds:.4g} s"

    def __repr__(self) -> str:
        return f"Timeout({self.seconds!r})"
