"""What a client is told about its calls: the headers of all of them, and settings per pattern."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from resilient_client._checks import integer
from resilient_client.errors import ConfigurationError, PayloadError
from resilient_client.message import Pattern
from resilient_client.patterns import lookup_route
from resilient_client.patterns import route as route_of

Headers: TypeAlias = Mapping[str, str]
HeadersSource: TypeAlias = Headers | Callable[[], Headers | Awaitable[Headers]]
"""What `headers=` takes."""
Patterns: TypeAlias = Mapping[Any, Mapping[str, Any]] | Sequence[tuple[Pattern, Mapping[str, Any]]]
"""What `patterns=` takes: pairs where a pattern is a mapping, which no mapping has for a key."""


@dataclass(frozen=True, slots=True)
class PatternSettings:
    """What one pattern says otherwise; None is what the client says."""

    timeout: float | None = None
    idempotent: bool | None = None
    attempts: int | None = None


NO_SETTINGS = PatternSettings()


def headers_source(
    headers: HeadersSource | None,
) -> tuple[dict[str, str], Callable[[], Headers | Awaitable[Headers]] | None]:
    """The headers that are known, and whom to ask for those of each call."""
    if headers is None:
        return {}, None
    if isinstance(headers, Mapping):
        try:
            return checked_headers(headers), None
        except PayloadError as error:
            raise ConfigurationError(error.args[0]) from None
    if callable(headers):
        return {}, headers
    raise ConfigurationError("headers= is a mapping, or a callable that returns one")


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with lower-case names. The value of a bad one is not shown: it may be secret."""
    if not hasattr(headers, "items"):
        raise PayloadError(f"headers are a mapping, not {type(headers).__name__}")
    checked = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise PayloadError(f"header {name!r} is not a string")
        if not (_printable(value) and name.isascii() and name.isprintable() and name.strip()):
            raise PayloadError(f"header {name!r} holds a character that no header can")
        checked[name.lower()] = value
    return checked


def _printable(value: str) -> bool:
    """Whether a header may hold it: what is not printable, a server of ours leaves out."""
    return value.isprintable() or value.replace("\t", "").isprintable()


def check_key(key: str) -> None:
    """Refuse an idempotency key that no header can hold."""
    if not isinstance(key, str) or not key.isprintable() or not key.strip():
        raise PayloadError("idempotency_key= is no text that a header can hold")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def pattern_settings(patterns: Patterns | None) -> dict[str, PatternSettings]:
    """The settings of each pattern, by its route."""
    if patterns is None:
        return {}
    pairs = patterns.items() if isinstance(patterns, Mapping) else patterns
    known = {"timeout", "idempotent", "attempts"}
    settings = {}
    try:
        pairs = [(pattern, dict(given)) for pattern, given in pairs]
    except (TypeError, ValueError):
        raise ConfigurationError(
            "patterns= maps patterns to their settings",
            hint='write patterns={"sum": {"timeout": 2.0, "idempotent": True}}',
        ) from None
    for pattern, given in pairs:
        unknown = set(given) - known
        if unknown:
            raise ConfigurationError(
                f"pattern {pattern!r} has no setting {min(unknown)!r}",
                hint=f"there are {', '.join(sorted(known))}",
            )
        own = PatternSettings(**given)
        if own.timeout is not None and not (_is_number(own.timeout) and own.timeout > 0):
            raise ConfigurationError(f"pattern {pattern!r}: timeout must be seconds, above 0")
        if own.attempts is not None:
            integer(f"pattern {pattern!r}: attempts", own.attempts)
        if own.idempotent not in (None, True, False):
            raise ConfigurationError(f"pattern {pattern!r}: idempotent must be true or false")
        route = route_of(pattern)
        settings[route] = own
        if route.startswith("{"):  # JSON may have blanks, and its keys in any order
            settings[lookup_route(route) or route] = own
    return settings
