"""What is checked of single settings; each names the setting in a `ConfigurationError`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from math import inf, isnan
from typing import TypeVar

from resilient_client.errors import ConfigurationError

T = TypeVar("T")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not isnan(value)


def integer(name: str, value: object, least: int = 1, most: float = inf) -> int:
    """A whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        end = "" if most == inf else f" to {most}"
        raise ConfigurationError(f"{name}={value!r} must be a whole number from {least}{end}")
    return value


def seconds(name: str, value: object, *, zero: bool = False, finite: bool = False) -> float:
    """A number of seconds above 0 (or 0 too); `math.inf` is allowed unless it must be `finite`."""
    if not _is_number(value) or value < 0 or (value == 0 and not zero):  # type: ignore[operator]
        allowed = "0 or more" if zero else "above 0"
        raise ConfigurationError(
            f"{name}={value!r} must be a number of seconds, {allowed}",
            hint=None if finite else "math.inf is none",
        )
    if finite and value == inf:
        raise ConfigurationError(f"{name} must be finite")
    return float(value)  # type: ignore[arg-type]


def amount(name: str, value: object) -> float:
    """A finite number from 0."""
    if not _is_number(value) or not 0 <= value < inf:  # type: ignore[operator]
        raise ConfigurationError(f"{name}={value!r} must be a number, 0 or more")
    return float(value)  # type: ignore[arg-type]


def share(name: str, value: object) -> float:
    """A number above 0 and up to 1."""
    if not _is_number(value) or not 0 < value <= 1:  # type: ignore[operator]
        raise ConfigurationError(f"{name}={value!r} must be above 0 and at most 1")
    return float(value)  # type: ignore[arg-type]


def several(name: str, given: Iterable[T]) -> list[T]:
    """The list of these."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{name}={given!r} must be a list", hint=f"write {name}=[...]")
    return list(given)


def text(name: str, value: object) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ConfigurationError(f"{name}= must be a text, not a {type(value).__name__}")
    return value


def having(name: str, value: object, *methods: str) -> None:
    """Refuse what lacks one of these methods, and the class of what has them."""
    if isinstance(value, type):
        raise ConfigurationError(
            f"{name}= is the class {value.__name__}", hint=f"give an object: {value.__name__}()"
        )
    for method in methods:
        if not callable(getattr(value, method, None)):
            raise ConfigurationError(f"{name}= is a {type(value).__name__}, which has no {method}")


def plain(name: str, function: object, hint: str = "write it as a plain def") -> None:
    """Refuse what is no function, or one that would have to be awaited: nobody would."""
    if not callable(function):
        raise ConfigurationError(f"{name}={function!r} is not a function")
    if inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"{name}={function!r} is a coroutine function", hint=hint)
