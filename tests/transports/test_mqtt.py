"""What is peculiar to mqtt://, on a real Mosquitto."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from resilient_client.testing import check_transport
from tests.peers.brokers import Mosquitto

pytestmark = pytest.mark.broker
NewBroker = Callable[..., Any]


@pytest.mark.parametrize(
    ("version", "qos"), [("5", 1), ("5", 0), ("3.1.1", 1), ("3.1.1", 0)], ids=str
)
@pytest.mark.timeout(120)
async def test_mqtt_passes_the_conformance_suite(
    mqtt_broker: Mosquitto, version: str, qos: int
) -> None:
    url = f"mqtt://127.0.0.1:{mqtt_broker.port}?version={version}&qos={qos}"
    # only a broker of version 5 says, of a message at QoS 1, that nobody is subscribed
    skip = [] if (version, qos) == ("5", 1) else ["no_handler"]
    assert len(await check_transport(url, url, skip=skip)) >= 14
