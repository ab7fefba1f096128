from __future__ import annotations

import pytest

from tests.telemetry.kit import Recorded


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()
