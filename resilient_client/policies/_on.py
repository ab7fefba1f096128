"""Which errors a policy is about: how its `on=` is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from resilient_client._checks import plain
from resilient_client.errors import ConfigurationError

On: TypeAlias = (
    "type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], bool]"
)
"""Which errors: a class, several, or a function that says so."""


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
        plain(f"{owner}: on", on)
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
