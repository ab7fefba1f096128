"""The commands that call: call, emit, stream, ping, bench."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from resilient_client import defaults
from resilient_client.cli._output import UNREACHABLE, exit_code
from resilient_client.cli._words import options
from resilient_client.client import ClientProxy
from resilient_client.errors import ResilientClientError
from resilient_client.policies import Bulkhead, standard

if TYPE_CHECKING:
    from argparse import Namespace

    from resilient_client.cli._output import Output


def _client(given: Namespace, **settings: Any) -> ClientProxy:
    return ClientProxy(given.url, **settings, **options(given.url, given.option))


async def call(given: Namespace, output: Output) -> int:
    """Send, print the answer."""
    client = _client(given)
    try:
        answer = await client.send(
            given.pattern,
            given.data,
            timeout=given.timeout,
            headers=dict(given.header),
            idempotent=given.idempotent or None,
        )
    finally:
        await client.aclose()
    output.value(answer)
    return 0


async def emit(given: Namespace, output: Output) -> int:
    """Emit, print the receipt."""
    client = _client(given)
    try:
        receipt = await client.emit(
            given.pattern,
            given.data,
            timeout=given.timeout,
            headers=dict(given.header),
            idempotent=given.idempotent or None,
        )
    finally:
        await client.aclose()
    to = "" if receipt.receivers is None else f", {receipt.receivers} receivers"
    output.facts(f"{receipt.delivery}{to}", delivery=receipt.delivery, receivers=receipt.receivers)
    return 0


async def stream(given: Namespace, output: Output) -> int:
    """Print every value as it comes."""
    client = _client(given)
    try:
        items = client.stream(
            given.pattern,
            given.data,
            timeout=given.timeout,
            idle_timeout=given.idle_timeout,
            headers=dict(given.header),
            idempotent=given.idempotent or None,
        )
        async with items:
            async for item in items:
                output.value(item)
    finally:
        await client.aclose()
    return 0


async def ping(given: Namespace, output: Output) -> int:
    """Say whether the service can be reached."""
    client = _client(given, policies=())
    try:
        health = await client.ping(given.timeout or 5.0)
    finally:
        await client.aclose()
    if health.error is not None:
        output.error(health.error)
        code = exit_code(health.error)
        return code if code > 1 else UNREACHABLE
    latency = health.latency or 0.0
    output.facts(
        f"{given.url.partition('?')[0]} answers in {latency * 1000:.1f} ms",
        reachable=True,
        latency=latency,
    )
    return 0


async def bench(given: Namespace, output: Output) -> int:
    """Keep so many calls in flight for a while; print rate, latencies and errors."""
    times: list[float] = []
    errors: Counter[str] = Counter()
    last: ResilientClientError | None = None
    room = Bulkhead(max(defaults.PENDING_CALLS, given.concurrency))
    client = _client(given, policies=standard(bulkhead=room))
    headers = dict(given.header)
    try:
        await client.connect()
        end = time.perf_counter() + given.duration

        async def caller() -> None:
            nonlocal last
            while (began := time.perf_counter()) < end:
                try:
                    await client.send(
                        given.pattern,
                        given.data,
                        timeout=given.timeout,
                        headers=headers,
                        idempotent=given.idempotent or None,
                    )
                except ResilientClientError as error:
                    errors[type(error).__name__] += 1
                    last = error
                    await asyncio.sleep(0)
                else:
                    times.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(max(1, given.concurrency))))
        took = time.perf_counter() - began
    finally:
        await client.aclose()
    times.sort()
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    marks = {
        name: times[min(len(times) - 1, int(len(times) * share))] if times else None
        for name, share in shares.items()
    }
    told = "  ".join(f"{name} {value * 1000:.2f} ms" for name, value in marks.items() if value)
    told = told or "no call was answered"
    output.facts(
        f"{len(times) / took:.0f} calls/s over {took:.1f} s with {given.concurrency} in flight\n"
        f"{told}\nerrors: {dict(errors) or 'none'}",
        rate=len(times) / took,
        calls=len(times),
        errors=dict(errors),
        **marks,
    )
    if not times and last is not None:
        raise last
    return 0
