"""The example that runs on every transport does: over each broker, and where none is needed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

PROGRAM = Path(__file__).parents[2] / "examples" / "any_transport.py"
DIRECT = {
    "memory": ("memory://shop", "accepted"),
    "tcp": ("tcp://127.0.0.1:0", "written"),
    "http": ("http://127.0.0.1:0", "accepted"),
    "grpc": ("grpc://127.0.0.1:0", "accepted"),
}
BROKERS = {
    "redis": ("redis_broker", "accepted"),
    "nats": ("nats_broker", "written"),
    "amqp": ("rabbitmq_broker", "accepted"),
    "mqtt": ("mqtt_broker", "accepted"),
    "kafka": ("kafka_broker", "stored"),
}


@pytest.mark.parametrize("scheme", [*DIRECT, *BROKERS])
async def test_the_example_runs_on(scheme: str, request: pytest.FixtureRequest) -> None:
    if scheme in DIRECT:
        url, delivery = DIRECT[scheme]
    else:
        fixture, delivery = BROKERS[scheme]
        url = request.getfixturevalue(fixture).url
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        str(PROGRAM),
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert out.decode().splitlines() == [
        "total: 6",
        "countdown: [3, 2, 1]",
        "sold: tea",
        f"the event was {delivery}",
    ]
