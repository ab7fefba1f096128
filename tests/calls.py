"""What a call comes to, where a test expects an error."""

from __future__ import annotations

from collections.abc import Awaitable
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
