"""The choice among the endpoints of one service, one per attempt."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from resilient_client.errors import Outcome, RejectedError, ResilientClientError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_client.clock import Clock
    from resilient_client.message import Call, Reply
    from resilient_client.pipeline import Handler


def choose(endpoints: Sequence[tuple[str, Handler]], clock: Clock) -> Handler:
    """A handler that goes round the endpoints, over those that admit.

    One that refuses (an open breaker) is passed over. One that could not be reached is followed by
    another at once, within the same attempt and each endpoint once: nothing was sent. Whoever takes
    over takes the next turn, so that those that work share the calls evenly. A call that is
    repeated goes to where it has not failed yet, while there is such an endpoint. When all refuse,
    the refusal that ends first is raised.

    Args:
        endpoints: URL and handler of each; the handler includes what guards that endpoint.
    """
    if len(endpoints) == 1:
        return endpoints[0][1]
    turn = count()
    number = len(endpoints)

    async def chosen(call: Call) -> Reply:
        tried: set[int] = set()
        refusal: RejectedError | None = None
        refused_at: str | None = None
        unreached = False
        fresh: set[int] = set()
        if call.failures:
            failed_at = {failure[1] for failure in call.failures}
            fresh.update(i for i, (url, _) in enumerate(endpoints) if url not in failed_at)
        while len(tried) < number:
            index = next(turn) % number
            if index in tried or (fresh and index not in fresh):
                continue
            tried.add(index)
            fresh.discard(index)
            call.endpoint, handler = endpoints[index]
            try:
                return await handler(call)
            except RejectedError as error:
                if refusal is None or _wait(error) < _wait(refusal):
                    refusal, refused_at = error, call.endpoint
            except ResilientClientError as error:
                now = clock.now()
                if error.outcome is not Outcome.NEVER_SENT or now >= call.opened_by:
                    raise
                unreached = True
                call.failed(error, now)
                call.attempt_started = now
        if unreached:  # the last of them is the one to report: whoever catches it notes it again
            _, call.endpoint, call.attempt_started, _, last = call.failures.pop()  # type: ignore[union-attr]
            raise last
        assert refusal is not None  # noqa: S101
        call.endpoint = refused_at
        try:
            raise refusal
        finally:
            del refusal  # its traceback holds this frame: no cycle

    return chosen


def _wait(error: RejectedError) -> float:
    after = getattr(error, "retry_after", None)
    return float("inf") if after is None else float(after)
