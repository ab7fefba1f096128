"""What is peculiar to kafka://: topics, keys, groups, commits, credentials."""

from __future__ import annotations

import pytest

from resilient_client.testing import check_transport
from tests.peers.kafka import Kafka

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

IMPOSSIBLE = ("object_patterns", "no_handler", "cancel", "leave_stream")
"""What Kafka cannot: patterns that are no text, telling that nobody is there, a cancel."""


async def test_kafka_passes_the_conformance_suite(kafka_broker: Kafka, unique: str) -> None:
    options = {"group": unique}
    assert len(await check_transport(kafka_broker.url, skip=IMPOSSIBLE, options=options)) == 12
