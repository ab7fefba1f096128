"""What policies check of their settings, and how `on=` is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf, isnan
from typing import Any, TypeAlias, TypeVar

from resilient_client.errors import ConfigurationError

T = TypeVar("T")
On: TypeAlias = (
    "type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], bool]"
)
"""Which errors: a class, several, or a function that says so."""


def seconds(name: str, value: object, *, zero: bool = False) -> float:
    """A number of seconds above 0 (or 0 too); `math.inf` is allowed."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or isnan(value)
        or value < 0
        or (value == 0 and not zero)
    ):
        allowed = "0 or more" if zero else "above 0"
        raise ConfigurationError(f"{name}={value!r} must be a number of seconds, {allowed}")
    return float(value)


def count(name: str, value: object) -> int:
    """A whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name}={value!r} must be a whole number from 1")
    return value


def several(name: str, given: Iterable[T]) -> list[T]:
    """The list of these."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{name}={given!r} must be a list", hint=f"write {name}=[...]")
    return list(given)


def share(name: str, value: object) -> float:
    """A finite number from 0."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or isnan(value)
        or not 0 <= value < inf
    ):
        raise ConfigurationError(f"{name}={value!r} must be a number, 0 or more")
    return float(value)


def matcher(owner: str, on: object) -> Callable[[Exception], bool]:
    """A function that tells whether an error is meant by `on`.

    Raises:
        ConfigurationError: `on` is neither exception classes nor a function.
    """
    if isinstance(on, list | set | frozenset):
        on = tuple(on)
    classes: tuple[Any, ...] = on if isinstance(on, tuple) else (on,)
    if all(isinstance(each, type) and issubclass(each, BaseException) for each in classes):
        return lambda error: isinstance(error, classes)
    if callable(on) and not isinstance(on, type):
        return on
    raise ConfigurationError(
        f"{owner}(on={on!r}) is neither an exception class, a tuple of them, nor a function",
        hint="write on=ConnectionLost, on=(ConnectionLost, Throttled) or on=lambda error: ...",
    )


def named(on: object) -> str:
    """`on` in a few words, for people."""
    if isinstance(on, tuple | list | set | frozenset):
        return ", ".join(named(each) for each in on)
    return getattr(on, "__name__", type(on).__name__)
