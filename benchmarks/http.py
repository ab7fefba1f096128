"""POST and answer over HTTP/1.1, next to plain httpx, bare aiohttp, and pools of both under ours.

`python -m benchmarks.http [--seconds S] [--rounds N]`. Clients take turns against one bare service
on uvicorn in another process, on uvloop all; each is judged by its best round: read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx
import httpx_aiohttp
import uvloop

from benchmarks._contest import Rates, rate, show
from resilient_client import ClientProxy

IN_FLIGHT = ("64", "1")
NUMBERS = [1, 2, 3]
Send = Callable[[], Awaitable[Any]]


@asynccontextmanager
async def bare_httpx(url: str) -> AsyncIterator[Send]:
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
    async with httpx.AsyncClient(limits=limits) as client:

        async def send() -> None:
            assert (await client.post(f"{url}/sum", json=NUMBERS)).json() == 6

        yield send


@asynccontextmanager
async def bare_aiohttp(url: str) -> AsyncIterator[Send]:
    async with aiohttp.ClientSession() as session:

        async def send() -> None:
            async with session.post(f"{url}/sum", json=NUMBERS) as response:
                assert await response.json() == 6

        yield send


@asynccontextmanager
async def _ours(url: str, **options: Any) -> AsyncIterator[Send]:
    async with ClientProxy(url, **options) as client:

        async def send() -> None:
            assert await client.send("sum", NUMBERS) == 6

        yield send


@asynccontextmanager
async def ours(url: str) -> AsyncIterator[Send]:
    async with _ours(url) as send:
        yield send


@asynccontextmanager
async def ours_over_httpx(url: str) -> AsyncIterator[Send]:
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
    async with httpx.AsyncClient(limits=limits) as client, _ours(url, client=client) as send:
        yield send


@asynccontextmanager
async def ours_over_aiohttp(url: str) -> AsyncIterator[Send]:
    async with (
        httpx_aiohttp.HttpxAiohttpClient() as client,
        _ours(url, client=client) as send,
    ):
        yield send


CONTESTANTS = {
    "plain httpx": bare_httpx,
    "bare aiohttp": bare_aiohttp,
    "ours, all defaults": ours,
    "ours, client=httpx's": ours_over_httpx,
    "ours, client=httpx-aiohttp's": ours_over_aiohttp,
}


async def contest(url: str, seconds: float, rounds: int) -> dict[str, Rates]:
    best: dict[str, Rates] = {name: {} for name in CONTESTANTS}
    for _ in range(rounds):
        for name, make in CONTESTANTS.items():
            async with make(url) as send:
                await rate(send, 64, 0.3)
                for number in IN_FLIGHT:
                    reached = await rate(send, int(number), seconds)
                    best[name][number] = max(reached, best[name].get(number, 0.0))
    return best


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    serving = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers.http_service"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert serving.stdout is not None
        url = serving.stdout.readline().split()[1]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            best = runner.run(contest(url, given.seconds, given.rounds))
    finally:
        serving.kill()
        serving.wait()
    show("HTTP, calls a second (ratio to httpx)", best, IN_FLIGHT, "plain httpx")
    for name in ("ours, all defaults", "ours, client=httpx-aiohttp's"):
        print(f"{name}: {best[name]['64'] / best['bare aiohttp']['64']:.2f} of bare aiohttp at 64")


if __name__ == "__main__":
    main()
