"""Kafka: order per key, batches, and dead letters: `python examples/kafka_orders.py URL`.

It needs a broker, such as `kafka://127.0.0.1:9092`, and the extra:
`pip install "resilient-client[kafka]"`.
"""

import asyncio
import sys
import uuid

from resilient_client import ClientProxy, Context, RemoteError, Server

SHOP = f"shop-{uuid.uuid4().hex[:8]}"  # topics of this run alone


class Heard(dict[str, list]):
    """What the handlers heard, by what it is about."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.all = asyncio.Event()
        self._left = total

    def note(self, about: str, values: list) -> None:
        self.setdefault(about, []).extend(values)
        self._left -= len(values)
        if self._left <= 0:
            self.all.set()


def make(url: str, heard: Heard) -> Server:
    server = Server(url, group=SHOP, max_deliver=2, retry_wait=0.1)

    @server.event_pattern(f"{SHOP}.order")
    async def on_order(order: dict, context: Context) -> None:
        """One after another for each customer, side by side for several."""
        heard.note(context.headers["kafka-key"], [order["id"]])

    @server.event_pattern(f"{SHOP}.click", batch=100)
    async def on_clicks(clicks: list[dict]) -> None:
        """As many at once as are there."""
        heard.note("clicks", [click["page"] for click in clicks])

    @server.event_pattern(f"{SHOP}.broken")
    async def on_broken(event: dict) -> None:
        raise RemoteError("it never works")

    @server.event_pattern(f"{SHOP}.broken.dead")
    async def on_dead(event: dict) -> None:
        """What failed twice was set aside; anybody may look at it, or put it back."""
        heard.note("set aside", [event["id"]])

    return server


async def main(url: str) -> None:
    heard = Heard(total=6 + 20 + 1)
    async with make(url, heard), ClientProxy(url) as client:
        for number in range(6):
            customer = "ada" if number % 2 else "grace"
            await client.emit(f"{SHOP}.order", {"id": number}, headers={"kafka-key": customer})
        await asyncio.gather(*(client.emit(f"{SHOP}.click", {"page": n}) for n in range(20)))
        receipt = await client.emit(f"{SHOP}.broken", {"id": 7})
        print("it is", receipt.delivery)
        await asyncio.wait_for(heard.all.wait(), timeout=30)
    print("ada:", heard["ada"], "grace:", heard["grace"])
    print("clicks:", sorted(heard["clicks"]) == list(range(20)))
    print("set aside:", heard["set aside"])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))
