"""Traces and metrics by OpenTelemetry's conventions, through its API alone.

The SDK is the application's choice. Without one nothing is recorded, and a trace context that comes
in still goes out with the calls made for it. This module holds the settings; the parts that load
OpenTelemetry are loaded by the first client or server that wants them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

from resilient_client.errors import ConfigurationError

TrustContext = Literal["parent", "link", "ignore"]
AttemptSpans = Literal["auto", "always", "never"]


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """What `telemetry=` of a client or a server can be besides True and False.

    Args:
        tracer_provider, meter_provider: instead of the global ones.
        propagator: what writes and reads trace headers, instead of the global one
            (`OTEL_PROPAGATORS`). `CompositePropagator([])` sends and reads nothing.
        baggage_keys: the members of W3C baggage that are passed on and taken in; others are not,
            because whatever was received would otherwise go to every service called.
        trust_context: what a server does with a caller's trace: continue it ("parent"), start its
            own and link to it ("link", for the edge to strangers), or neither ("ignore").
        attempt_spans: a span of its own for each attempt: where another may follow ("auto"),
            "always" or "never".

    Raises:
        ConfigurationError: a value that is none of these.
    """

    tracer_provider: Any = None
    meter_provider: Any = None
    propagator: Any = None
    baggage_keys: Collection[str] = ()
    trust_context: TrustContext = "parent"
    attempt_spans: AttemptSpans = "auto"

    def __post_init__(self) -> None:
        for setting, value, known in (
            ("trust_context", self.trust_context, get_args(TrustContext)),
            ("attempt_spans", self.attempt_spans, get_args(AttemptSpans)),
        ):
            if value not in known:
                raise ConfigurationError(
                    f"{setting}={value!r} is not known", hint=f"there are {', '.join(known)}"
                )
        for setting, value, method in (
            ("tracer_provider", self.tracer_provider, "get_tracer"),
            ("meter_provider", self.meter_provider, "get_meter"),
            ("propagator", self.propagator, "inject"),
        ):
            if value is not None and not callable(getattr(value, method, None)):
                raise ConfigurationError(
                    f"{setting}= is a {type(value).__name__}, which has no {method}()"
                )
        keys = self.baggage_keys
        if (
            isinstance(keys, str)
            or not isinstance(keys, Collection)
            or not all(isinstance(key, str) and key for key in keys)
        ):
            raise ConfigurationError(
                f"baggage_keys={keys!r} is not a collection of names",
                hint='write baggage_keys=("tenant",)',
            )


def settings_of(telemetry: bool | Telemetry) -> Telemetry | None:  # noqa: FBT001
    """The settings that `telemetry=` stands for; None when it is off.

    Raises:
        ConfigurationError: it is neither a bool nor a `Telemetry`.
    """
    if telemetry is True:
        return Telemetry()
    if telemetry is False:
        return None
    if not isinstance(telemetry, Telemetry):
        raise ConfigurationError(
            f"telemetry={telemetry!r} is neither True, False nor a Telemetry",
            hint="write telemetry=Telemetry(tracer_provider=...)",
        )
    return telemetry
