"""NestJS's ClientProxy for Python: one send, emit and stream over many transports.

Names load when they are first used (PEP 562), so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilient_client.client import ClientProxy, Health
    from resilient_client.clients import Clients
    from resilient_client.context import Context, correlation_id, current_context
    from resilient_client.errors import (
        ConfigurationError,
        ConnectError,
        ConnectionLost,
        DeadlineExceeded,
        InvalidPayloadError,
        NoHandlerError,
        Overloaded,
        PayloadError,
        ProtocolError,
        RejectedError,
        RemoteError,
        ReplyTimeout,
        ResilientClientError,
        Throttled,
        TransportError,
    )
    from resilient_client.logs import CorrelationFilter
    from resilient_client.message import Call, Message, Receipt, Reply
    from resilient_client.pipeline import Handler, Policy
    from resilient_client.policies import standard
    from resilient_client.policies.bulkhead import Bulkhead
    from resilient_client.policies.circuit_breaker import CircuitBreaker, CircuitOpenError
    from resilient_client.policies.fallback import Fallback
    from resilient_client.policies.retry import Retry
    from resilient_client.policies.retry_budget import RetryBudget
    from resilient_client.policies.timeout import Timeout
    from resilient_client.server import Router, Server
    from resilient_client.sync import SyncClientProxy
    from resilient_client.telemetry import Telemetry
    from resilient_client.transports._base import Transport

__version__ = "0.1.0"

_HOMES = {
    "client": ("ClientProxy", "Health"),
    "sync": ("SyncClientProxy",),
    "clients": ("Clients",),
    "server": ("Server", "Router"),
    "context": ("Context", "current_context", "correlation_id"),
    "message": ("Call", "Reply", "Message", "Receipt"),
    "pipeline": ("Handler", "Policy"),
    "telemetry": ("Telemetry",),
    "logs": ("CorrelationFilter",),
    "transports._base": ("Transport",),
    "policies": ("standard",),
    "policies.timeout": ("Timeout",),
    "policies.retry": ("Retry",),
    "policies.retry_budget": ("RetryBudget",),
    "policies.circuit_breaker": ("CircuitBreaker", "CircuitOpenError"),
    "policies.bulkhead": ("Bulkhead",),
    "policies.fallback": ("Fallback",),
    "errors": (
        "ResilientClientError",
        "TransportError",
        "ConnectError",
        "ConnectionLost",
        "ReplyTimeout",
        "ProtocolError",
        "RejectedError",
        "Overloaded",
        "DeadlineExceeded",
        "RemoteError",
        "NoHandlerError",
        "InvalidPayloadError",
        "Throttled",
        "PayloadError",
        "ConfigurationError",
    ),
}
_home_of = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Bulkhead",
    "Call",
    "CircuitBreaker",
    "CircuitOpenError",
    "ClientProxy",
    "Clients",
    "ConfigurationError",
    "ConnectError",
    "ConnectionLost",
    "Context",
    "CorrelationFilter",
    "DeadlineExceeded",
    "Fallback",
    "Handler",
    "Health",
    "InvalidPayloadError",
    "Message",
    "NoHandlerError",
    "Overloaded",
    "PayloadError",
    "Policy",
    "ProtocolError",
    "Receipt",
    "RejectedError",
    "RemoteError",
    "Reply",
    "ReplyTimeout",
    "ResilientClientError",
    "Retry",
    "RetryBudget",
    "Router",
    "Server",
    "SyncClientProxy",
    "Telemetry",
    "Throttled",
    "Timeout",
    "Transport",
    "TransportError",
    "__version__",
    "correlation_id",
    "current_context",
    "standard",
]


def __getattr__(name: str) -> object:
    try:
        module = _home_of[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value: object = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
