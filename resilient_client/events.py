"""What a client's observers are told: frozen records, one class per kind of news."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from resilient_client.errors import shown

if TYPE_CHECKING:
    from collections.abc import Callable

Status: TypeAlias = Literal["idle", "connecting", "connected", "reconnecting", "closed"]
Suppressed: TypeAlias = Literal["attempts", "budget", "deadline", "not_idempotent"]


@dataclass(frozen=True, slots=True)
class ConnectionChanged:
    """The connection to an endpoint changed its state."""

    endpoint: str
    old: Status
    new: Status
    reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", shown(self.reason))


@dataclass(frozen=True, slots=True)
class Degraded:
    """A connection works, but not as it should: blocked, slow consumer, messages dropped."""

    endpoint: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", shown(self.reason))


@dataclass(frozen=True, slots=True)
class CircuitChanged:
    """A breaker changed its state, for this reason (see `CircuitBreaker.observe`)."""

    name: str
    old: str
    new: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RetryScheduled:
    """An attempt failed and another follows after `delay` seconds."""

    pattern: str
    attempt: int
    delay: float
    error: BaseException


@dataclass(frozen=True, slots=True)
class RetrySuppressed:
    """An attempt failed in a way that is repeated, but is not, for this reason."""

    pattern: str
    attempt: int
    reason: Suppressed
    error: BaseException


@dataclass(frozen=True, slots=True)
class CallRejected:
    """A call was refused on this side."""

    pattern: str
    error: BaseException


Event: TypeAlias = (
    ConnectionChanged | Degraded | CircuitChanged | RetryScheduled | RetrySuppressed | CallRejected
)
Observer: TypeAlias = "Callable[[Event], None]"
