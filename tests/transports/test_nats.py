"""What is peculiar to nats://: subjects, queue groups, wildcards, admission, limits."""

from __future__ import annotations

import pytest

from resilient_client.testing import check_transport
from tests.peers.nats import Nats

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


async def test_nats_passes_the_conformance_suite(nats_broker: Nats) -> None:
    assert len(await check_transport(nats_broker.url)) >= 15
