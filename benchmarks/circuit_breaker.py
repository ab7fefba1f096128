"""The breaker alone, against a bare handler and other breakers.

Run it with `python -m benchmarks.circuit_breaker`; interlock-cb takes part where it is installed.
Microseconds a call in one process, the best of several rounds, the contenders taking turns.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pybreaker

from resilient_client.clock import MonotonicClock
from resilient_client.message import Call, Reply
from resilient_client.policies.circuit_breaker import CircuitBreaker

try:
    import interlock
except ImportError:  # a contender, not a dependency
    interlock = None  # type: ignore[assignment]

CALLS, ROUNDS = 5_000, 15
CALL, REPLY = Call("x", "x", "send"), Reply("x")


async def bare(call: Call) -> Reply:
    return REPLY


ERROR = OSError("refused")


async def raising(call: Call) -> Reply:
    raise ERROR.with_traceback(None)


async def through(handler: Callable[[Any], Awaitable[Any]]) -> None:
    for _ in range(CALLS):
        await handler(CALL)


async def refused(handler: Callable[[Any], Awaitable[Any]]) -> None:
    for _ in range(CALLS):
        try:
            await handler(CALL)
        except Exception:
            continue


def guarded(state: str = "closed", **settings: Any) -> Callable[[Any], Awaitable[Any]]:
    breaker = CircuitBreaker(open_for=600, **settings)
    handler = breaker.wrap(bare, MonotonicClock())
    breaker.state = state
    return handler


async def full() -> Callable[[Any], Awaitable[Any]]:
    """At half-open, with all the probes out."""

    async def silent(call: Call) -> Reply:
        await asyncio.Event().wait()
        return REPLY

    breaker = CircuitBreaker(probe_lease=600)
    handler = breaker.wrap(silent, MonotonicClock())
    breaker.half_open()
    PROBES.extend(asyncio.create_task(handler(CALL)) for _ in range(3))
    await asyncio.sleep(0)
    return handler


PROBES: list[asyncio.Task[Any]] = []


async def main() -> dict[str, float]:
    logging.disable()
    passing: dict[str, Callable[[Any], Awaitable[Any]]] = {
        "bare": bare,
        "ours": guarded(),
        "ours, slow_call=5": guarded(slow_call=5.0),
    }
    plain = pybreaker.CircuitBreaker()

    async def through_pybreaker(call: Call) -> Reply:
        with plain.calling():
            return await bare(call)

    passing["pybreaker, calling()"] = through_pybreaker
    failing: dict[str, Callable[[Any], Awaitable[Any]]] = {
        "a bare raise": raising,
        "ours, open": guarded("open"),
        "ours, half-open": await full(),
    }
    if interlock is not None:
        closed, opened = interlock.CircuitBreaker(name="a"), interlock.CircuitBreaker(name="b")
        passing["interlock-cb"] = lambda call: closed.call(bare, call)
        await refused(lambda call: opened.call(raising, call))
        failing["interlock-cb, open"] = lambda call: opened.call(bare, call)
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for work, contenders in ((through, passing), (refused, failing)):
            for name, handler in contenders.items():
                started = time.perf_counter()
                await work(handler)
                took = (time.perf_counter() - started) / CALLS * 1e6
                best[name] = min(best.get(name, took), took)
    return best


if __name__ == "__main__":
    for name, microseconds in asyncio.run(main()).items():
        print(f"{name:26} {microseconds:7.3f} us")
