"""What a call comes to, where a test expects an error."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from resilient_client import ResilientClientError


async def outcome(call: Awaitable[Any]) -> Any:
    """The value, or the error of ours."""
    try:
        return await call
    except ResilientClientError as error:
        return error


async def error_of(call: Awaitable[Any]) -> Any:
    """The error of ours that it ends with; any other end is a failed test."""
    value = await outcome(call)
    if isinstance(value, ResilientClientError):
        return value
    pytest.fail(f"it answered {value!r} instead of failing")


class Counted:
    """A decorator that is a class; elsewhere than what it decorates, as most decorators are."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self.calls = 0

    async def __call__(self, *args: Any, **named: Any) -> Any:
        self.calls += 1
        return await self._function(*args, **named)
