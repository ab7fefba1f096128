"""What the default stack costs over `policies=()`, and a refusal, next to interlock-cb's breaker.

`python -m benchmarks.stack`. One process, a transport that answers at once; the contestants take
turns, the best round of each counts. interlock-cb takes part where it is installed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from resilient_client import CircuitOpenError, ClientProxy
from resilient_client.message import Call, Receipt, Reply
from resilient_client.transports import BaseTransport, Environment, Target

ROUNDS = 15
CALLS = 3000
Contestant = Callable[[int], Awaitable[None]]


class Instant(BaseTransport):
    """Answers at once."""

    def __init__(self, env: Environment) -> None:
        super().__init__(Target("instant://here"), env)
        self.status = "connected"

    async def connect(self, deadline: float) -> None: ...

    async def request(self, call: Call) -> Reply:
        call.sent = True
        return Reply(b"1")

    async def publish(self, call: Call) -> Receipt:
        return Receipt("written")

    async def aclose(self) -> None: ...


def _client(**settings: Any) -> ClientProxy:
    return ClientProxy(Instant, **settings)


def _sends(client: ClientProxy) -> Contestant:
    async def run(number: int) -> None:
        send = client.send
        for _ in range(number):
            await send("sum", 1)

    return run


def _refusals(client: ClientProxy) -> Contestant:
    client.circuit_breaker.force_open()

    async def run(number: int) -> None:
        send = client.send
        for _ in range(number):
            try:
                await send("sum", 1)
            except CircuitOpenError:
                continue
            raise AssertionError("it was let through")

    return run


def _refusals_by_the_stack(client: ClientProxy) -> Contestant:
    """Without what `send` does for every call: its payload, its headers, its deadline."""
    client.circuit_breaker.force_open()
    handler, deadline = client._handler, float("inf")

    async def run(number: int) -> None:
        call = Call("sum", "sum", "send", 1, {}, 0.0, deadline)
        for _ in range(number):
            try:
                await handler(call)
            except CircuitOpenError:
                continue
            raise AssertionError("it was let through")

    return run


def _bare_raise() -> Contestant:
    """The least there can be: an error made and raised through five awaits."""

    async def raises() -> None:
        raise ConnectionError

    async def one() -> None:
        await raises()

    async def two() -> None:
        await one()

    async def three() -> None:
        await two()

    async def four() -> None:
        await three()

    async def run(number: int) -> None:
        for _ in range(number):
            try:
                await four()
            except ConnectionError:
                continue

    return run


def _interlock() -> dict[str, Contestant]:
    try:
        from interlock import CircuitBreaker, CircuitOpenError
    except ImportError:
        return {}

    async def answer() -> int:
        return 1

    closed, opened = CircuitBreaker(name="closed"), CircuitBreaker(name="opened")
    opened.force_open()

    async def sends(number: int) -> None:
        for _ in range(number):
            await closed.call(answer)

    async def refusals(number: int) -> None:
        for _ in range(number):
            try:
                await opened.call(answer)
            except CircuitOpenError:
                continue

    async def bare(number: int) -> None:
        for _ in range(number):
            await answer()

    return {"interlock": sends, "interlock refusal": refusals, "a bare await": bare}


async def _race() -> dict[str, float]:
    contestants: dict[str, Contestant] = {
        "policies=(), telemetry=False": _sends(_client(policies=(), telemetry=False)),
        "defaults, telemetry=False": _sends(_client(telemetry=False)),
        "policies=(), no SDK": _sends(_client(policies=())),
        "defaults, no SDK": _sends(_client()),
        "refusal by the stack": _refusals_by_the_stack(_client(telemetry=False)),
        "refusal by a client": _refusals(_client(telemetry=False)),
        "raised through five awaits": _bare_raise(),
        **_interlock(),
    }
    best: dict[str, float] = dict.fromkeys(contestants, float("inf"))
    for _ in range(ROUNDS):
        for name, contestant in contestants.items():
            began = time.process_time()
            await contestant(CALLS)
            best[name] = min(best[name], (time.process_time() - began) / CALLS * 1e6)
    return best


def main() -> None:
    """Measure and print."""
    best = asyncio.run(_race())
    for name, cost in best.items():
        print(f"{name:32} {cost:8.2f} us of processor a call")
    stack = best["defaults, telemetry=False"] - best["policies=(), telemetry=False"]
    print(f"{'the default stack':32} {stack:8.2f} us over policies=()")
    traced = best["defaults, no SDK"] - best["policies=(), telemetry=False"]
    print(f"{'the same with the OTel API':32} {traced:8.2f} us over bare, no SDK installed")
    if "interlock" in best:
        breaker = best["interlock"] - best["a bare await"]
        print(f"the stack is {stack / breaker:.2f} of interlock-cb's breaker alone")
        for name in ("refusal by the stack", "refusal by a client", "raised through five awaits"):
            print(f"{name}: {best[name] / best['interlock refusal']:.2f} of interlock-cb's")


if __name__ == "__main__":
    main()
