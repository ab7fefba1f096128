"""Permits to call that are given out for a limited time."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilient_client.policies._circuit.states import State


class Admission:
    """One call let through by a state: the right to report, once, what became of it."""

    __slots__ = ("started", "state")

    def __init__(self, state: State, started: float) -> None:
        self.state = state
        self.started = started


class Leases:
    """Permits that come back by themselves when their holder does not bring them.

    An expired permit is free for the next taker; bringing it back later gives nothing, because a
    permit belongs to its holder and is not just counted.
    """

    __slots__ = ("_held", "_seconds", "limit")

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self._seconds = seconds
        self._held: dict[Admission, float] = {}  # to its expiry; the oldest first

    def held(self, now: float) -> int:
        """How many are out and not expired."""
        held = len(self._held)
        for expiry in self._held.values():
            if expiry > now:
                break
            held -= 1
        return held

    def free(self, now: float) -> bool:
        """Whether `take` would succeed."""
        return len(self._held) < self.limit or self.held(now) < self.limit

    def take(self, holder: Admission, now: float) -> bool:
        """Take a permit for a limited time, if there is one."""
        held = self._held
        while held and next(iter(held.values())) <= now:
            del held[next(iter(held))]
        if len(held) >= self.limit:
            return False
        held[holder] = now + self._seconds
        return True

    def give_back(self, holder: Admission) -> None:
        """The holder needs it no longer; nothing if its time was up."""
        self._held.pop(holder, None)

    def next_free(self) -> float:
        """When the oldest permit comes back at the latest."""
        return next(iter(self._held.values()), -inf)
