"""Testing code that uses a client: a scripted peer and a clock that does not wait."""

import asyncio

from resilient_client import ClientProxy, ConnectError, DeadlineExceeded, Server, standard
from resilient_client.testing import NEVER, FakeClock, ScriptedTransport


class Shop:
    """The code to be tested."""

    def __init__(self, stock: ClientProxy) -> None:
        self._stock = stock

    async def can_sell(self, article: str) -> bool:
        try:
            level = await self._stock.send("stock.level", article, returns=int, idempotent=True)
        except DeadlineExceeded:
            return False
        return level > 0


async def test_a_refused_connection_is_tried_again() -> None:
    clock = FakeClock(autojump=True)
    peer = ScriptedTransport([ConnectError("refused"), ConnectError("refused"), 3])
    assert await Shop(ClientProxy(peer, clock=clock)).can_sell("tea")
    assert [request.attempt for request in peer.requests] == [1, 2, 3]
    assert len(clock.sleeps) == 2
    assert clock.sleeps[0] <= 0.1
    assert clock.sleeps[1] <= 0.2


async def test_a_silent_service_counts_as_sold_out() -> None:
    clock = FakeClock(autojump=True)
    peer = ScriptedTransport([NEVER], forever=True)
    client = ClientProxy(peer, clock=clock, policies=standard(timeout=5, attempt_timeout=2))
    started = clock.now()
    assert not await Shop(client).can_sell("tea")
    assert clock.now() - started == 5  # no second of it was waited for


async def test_against_a_server_of_your_own() -> None:
    server = Server("memory://stock")  # the real wire, in this process

    @server.message_pattern("stock.level")
    async def level(article: str) -> int:
        return 0

    async with server, ClientProxy("memory://stock") as client:
        assert not await Shop(client).can_sell("tea")


for test in (
    test_a_refused_connection_is_tried_again,
    test_a_silent_service_counts_as_sold_out,
    test_against_a_server_of_your_own,
):
    asyncio.run(test())
    print("passed:", test.__name__)
