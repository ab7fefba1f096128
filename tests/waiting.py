"""Waiting for what becomes true by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

STEP = 0.02


async def eventually(condition: Callable[[], object], limit: float = 30.0) -> None:
    """Until it is true; fail after `limit` seconds, of which a busy machine may make more."""
    for _ in range(int(limit / STEP)):
        if condition():
            return
        await asyncio.sleep(STEP)
    pytest.fail("it never came true")
