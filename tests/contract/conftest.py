"""The brokers that the fault suite kills are its own, started once, stopped at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .rigs import stop_brokers


@pytest.fixture(scope="session", autouse=True)
def _brokers() -> Iterator[None]:
    yield
    stop_brokers()
