"""Every default of the package, once, with its reason.

A circuit breaker's own rules stand beside it, in `policies/_circuit/rules.py`.
"""

from __future__ import annotations

from typing import Final

TIMEOUT: Final = 10.0
"""Seconds a whole call may take. A person has given up by then; a job says `timeout=` itself."""

ATTEMPT_TIMEOUT: Final = 3.0
"""Seconds one attempt may take where another may follow: three of them fit into `TIMEOUT`."""

IDLE_TIMEOUT: Final = 10.0
"""Seconds a stream may be silent, before its first item and between any two."""

ATTEMPTS: Final = 3
"""Attempts of one call. More of them help little and multiply load (SRE book, chapter 21)."""

RETRY_FACTOR: Final = 0.1
"""Seconds of the first wait. It doubles from there; full jitter makes the mean half of it."""

RETRY_MAX_WAIT: Final = 2.0
"""Seconds that doubling stops at: a caller waits, so a longer pause is better spent failing."""

PUSHBACK_SPREAD: Final = 0.1
"""A peer's own waiting time is stretched by up to this share, so that not all return at once."""

BUDGET_RATIO: Final = 0.2
"""Repeats per call: at worst a failing peer gets 1.2 times its load (Finagle's default)."""

BUDGET_RESERVE_PER_SECOND: Final = 10.0
"""Repeats per second besides, so that a client with few calls can repeat at all (Finagle)."""

BUDGET_WINDOW: Final = 10.0
"""Seconds that both are counted over (Finagle)."""

PENDING_CALLS: Final = 1000
"""Calls in flight in one client. It bounds memory while callers wait for a peer that is down."""
