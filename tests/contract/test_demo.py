"""The demo plays its scene over every transport: two servers are killed, and come back."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

BROKERS = {
    "redis": "redis_broker",
    "nats": "nats_broker",
    "amqp": "rabbitmq_broker",
    "mqtt": "mqtt_broker",
    "kafka": "kafka_broker",
}
DIRECT = {"http": "http://127.0.0.1:0", "grpc": "grpc://127.0.0.1:0"}  # tcp: see test_cli


@pytest.mark.parametrize("scheme", [*BROKERS, *DIRECT])
async def test_the_demo_plays_and_its_numbers_add_up(
    scheme: str, request: pytest.FixtureRequest
) -> None:
    url = DIRECT.get(scheme) or request.getfixturevalue(BROKERS[scheme]).url
    play = ("demo", "--json", "--seconds", "10", "--rate", "60", "--url", url)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "resilient_client",
        *play,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    lines: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
    news = [line["news"] for line in lines if "news" in line]
    for moment in ("SIGKILL to alpha", "closed -> open", "started again", "half-open -> closed"):
        assert any(moment in each for each in news), (moment, news)
    summary = lines[-1]
    kinds = ("succeeded", "retried", "failed", "rejected")
    assert summary["started"] == summary["counted"] == sum(summary.get(k, 0) for k in kinds)
    assert summary["succeeded"] > 0
    assert summary.get("rejected", 0) > 0
    (trace,) = (line["tree"] for line in lines if "tree" in line)
    assert any("[alpha]" in line or "[beta]" in line for line in trace)
