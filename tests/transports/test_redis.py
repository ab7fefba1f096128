"""What is peculiar to redis://, against a real Redis."""

from __future__ import annotations

from resilient_client.testing import check_transport
from tests.peers.brokers import Redis


async def test_redis_passes_the_conformance_suite(redis_broker: Redis) -> None:
    assert len(await check_transport(redis_broker.url)) >= 15
