"""The settings of a circuit breaker, checked when it is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resilient_client._checks import integer, seconds, share
from resilient_client.errors import UNSET, ConfigurationError

FAILURE_RATE = 0.5
WINDOW = 100
MINIMUM_CALLS = 20
SLOW_CALL_RATE = 1.0
OPEN_FOR = 5.0
OPEN_FOR_MAX = 60.0
OPEN_FOR_JITTER = 0.5
"""An open time is drawn up to so much longer, so that clients do not come back together."""
PROBES = 3
PROBE_LEASE = 3.0
RAMP = 64
"""The ramp ends when this many times `probes` calls may be in flight: 2, 4, 8 ... 64."""


@dataclass(slots=True)
class Rules:
    """When a breaker opens, for how long, and what closes it. See `CircuitBreaker`."""

    failure_rate: float | None
    window: int
    minimum_calls: int
    fail_max: int | None
    slow_call: float | None
    slow_call_rate: float
    open_for: float
    open_for_max: float
    probes: int
    success_threshold: int
    probe_lease: float

    def describe(self) -> str:
        """The rules in words."""
        opens = []
        if self.fail_max is not None:
            opens.append(f"{self.fail_max} failures in a row")
        if self.failure_rate is not None:
            opens.append(f"{self.failure_rate:.4g} of the last {self.window} calls failed")
        if self.slow_call is not None:
            opens.append(
                f"{self.slow_call_rate:.4g} of the last {self.window} calls took over"
                f" {self.slow_call:.4g} s"
            )
        if len(opens) > (self.fail_max is not None):
            opens[-1] += f" (at least {self.minimum_calls} calls)"
        probes = "1 probe" if self.probes == 1 else f"{self.probes} probes"
        return (
            f"opens when {' or '.join(opens)}; open {self.open_for:.4g} s doubling to"
            f" {self.open_for_max:.4g} s, up to {OPEN_FOR_JITTER:.0%} longer by jitter; then"
            f" {probes} leased for {self.probe_lease:.4g} s, closed by {self.success_threshold}"
            f" that succeed{'s' if self.success_threshold == 1 else ''}, and a ramp"
        )


def check(
    *,
    failure_rate: Any,
    window: Any,
    minimum_calls: Any,
    fail_max: Any,
    slow_call: Any,
    slow_call_rate: Any,
    open_for: Any,
    open_for_max: Any,
    reset_timeout: Any,
    probes: Any,
    success_threshold: Any,
    probe_lease: Any,
) -> Rules:
    """The rules, or a `ConfigurationError` that names the setting."""
    if failure_rate is UNSET:  # pybreaker's users count in a row and nothing else
        failure_rate = FAILURE_RATE if fail_max is None else None
    elif isinstance(failure_rate, int) and failure_rate > 1:
        raise ConfigurationError(
            f"failure_rate={failure_rate!r} is not a share of calls:"
            f" pybreaker's consecutive failures are fail_max={failure_rate!r}"
        )
    else:
        failure_rate = share("failure_rate", failure_rate)
    window = integer("window", window)
    minimum_calls = integer("minimum_calls", minimum_calls)
    if minimum_calls > window:
        if minimum_calls != MINIMUM_CALLS:
            raise ConfigurationError(
                f"minimum_calls={minimum_calls} can never be reached: window={window}"
                " remembers fewer calls"
            )
        minimum_calls = window
    if reset_timeout is not None:
        if open_for != OPEN_FOR:
            raise ConfigurationError(
                "reset_timeout is pybreaker's name for open_for: give only one"
            )
        open_for = seconds("reset_timeout", reset_timeout, finite=True)
    else:
        open_for = seconds("open_for", open_for, finite=True)
    open_for_max = seconds("open_for_max", open_for_max, finite=True)
    if open_for_max < open_for:
        if open_for_max != OPEN_FOR_MAX:
            raise ConfigurationError(f"open_for_max={open_for_max} is below open_for={open_for}")
        open_for_max = open_for
    probes = integer("probes", probes)
    return Rules(
        failure_rate=failure_rate,
        window=window,
        minimum_calls=minimum_calls,
        fail_max=None if fail_max is None else integer("fail_max", fail_max),
        slow_call=None if slow_call is None else seconds("slow_call", slow_call, finite=True),
        slow_call_rate=share("slow_call_rate", slow_call_rate),
        open_for=open_for,
        open_for_max=open_for_max,
        probes=probes,
        success_threshold=(
            probes if success_threshold is None else integer("success_threshold", success_threshold)
        ),
        probe_lease=seconds("probe_lease", probe_lease, finite=True),
    )
