"""What retries and the circuit breaker do while a service fails and comes back."""

import asyncio

from resilient_client import (
    CircuitBreaker,
    CircuitOpenError,
    ClientProxy,
    RemoteError,
    Retry,
    Server,
    standard,
)
from resilient_client.events import CircuitChanged, RetryScheduled, RetrySuppressed

server = Server("memory://stock")
asked = 0
broken = 2  # so many calls fail, then it works


@server.message_pattern("level")
async def level(article: str) -> int:
    global asked, broken  # noqa: PLW0603
    asked += 1
    if broken:
        broken -= 1
        raise RemoteError("database is down", status=503)  # 5xx: a failure, not an answer
    return len(article)


def show(event: object) -> None:
    match event:
        case RetryScheduled(attempt=attempt, delay=delay, error=error):
            print(f"    attempt {attempt} failed ({error.args[0]}), the next in {delay:.3f} s")
        case RetrySuppressed(reason=reason):
            print(f"    not repeated: {reason}")
        case CircuitChanged(old=old, new=new, reason=reason):
            print(f"    circuit {old} -> {new} ({reason})")


async def main() -> None:
    global broken  # noqa: PLW0603
    policies = standard(
        retry=Retry(attempts=3, factor=0.01),  # waits from 10 ms on
        circuit_breaker=CircuitBreaker(window=10, minimum_calls=5, open_for=0.2),
    )
    async with server, ClientProxy("memory://stock", policies=policies) as stock:
        stock.listen(show)

        print("two failures, and the third attempt answers:")
        answer = await stock.send("level", "tea", idempotent=True)
        print(f"level: {answer}, asked {asked} times")

        print("not declared idempotent, so it is not repeated:")
        broken = 1
        try:
            await stock.send("level", "tea")
        except RemoteError as error:
            print("failed:", error)

        print("it stays broken, and the breaker opens:")
        broken = 1000
        refused = 0
        for _ in range(20):
            try:
                await stock.send("level", "tea")
            except CircuitOpenError:
                refused += 1
            except RemoteError:
                continue
        print(f"{refused} calls were refused at once, without asking")

        print("it is well again, and probes close the breaker:")
        broken = 0
        await asyncio.sleep(0.35)
        for _ in range(3):
            await stock.send("level", "tea")
        print("breaker:", stock.circuit_breaker.current_state)


if __name__ == "__main__":
    asyncio.run(main())
