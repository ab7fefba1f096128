"""What stands around a handler: one module per policy, each of which also works alone.

`standard()` is the default stack, spelt out. Names load when they are first used (PEP 562):
pybreaker comes with the first circuit breaker, backoff with the first retry.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from resilient_client.policies._stack import (
    Arrangement,
    arrange,
    explain,
    standard,
    validate_server,
)
from resilient_client.policies.timeout import Timeout

if TYPE_CHECKING:
    from resilient_client.policies.bulkhead import Bulkhead
    from resilient_client.policies.circuit_breaker import CircuitBreaker, CircuitOpenError
    from resilient_client.policies.fallback import Fallback
    from resilient_client.policies.retry import Retry
    from resilient_client.policies.retry_budget import RetryBudget

__all__ = [
    "Arrangement",
    "Bulkhead",
    "CircuitBreaker",
    "CircuitOpenError",
    "Fallback",
    "Retry",
    "RetryBudget",
    "Timeout",
    "arrange",
    "explain",
    "standard",
    "validate_server",
]

_HOMES = {
    "Bulkhead": "bulkhead",
    "CircuitBreaker": "circuit_breaker",
    "CircuitOpenError": "circuit_breaker",
    "Fallback": "fallback",
    "Retry": "retry",
    "RetryBudget": "retry_budget",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
