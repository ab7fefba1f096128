"""What type checkers must conclude about the public names; read by mypy and pyright, never run."""

from typing import Any, assert_type

from resilient_client import (
    Call,
    CircuitBreaker,
    ClientProxy,
    Clients,
    Context,
    Handler,
    Health,
    Policy,
    Receipt,
    RemoteError,
    Reply,
    Retry,
    Server,
    SyncClientProxy,
    Timeout,
    Transport,
    standard,
)
from resilient_client.clock import Clock
from resilient_client.transports import Environment, LinkedTransport


async def a_client(client: ClientProxy) -> None:
    assert_type(await client.send("sum", [1, 2], returns=int), int)
    assert_type(await client.send({"cmd": "sum"}, [1, 2], returns=list[int]), list[int])
    level: int | None = await client.send("level", returns=int | None)  # no `type[T]` says it
    assert level
    assert_type(await client.send("level", returns=None), Any)
    assert_type(await client.send(7), Any)
    assert_type(await client.emit("created", {"id": 1}), Receipt)
    assert_type(await client.ping(), Health)
    async for number in client.stream("count", 3, returns=int):
        assert_type(number, int)
    async for anything in client.stream("count", 3):
        assert_type(anything, Any)
    async for either in client.stream("count", 3, returns=int | None):
        number_or_none: int | None = either
        assert number_or_none
    async with client.stream("count", 3, returns=str) as items:
        async for text in items:
            assert_type(text, str)
    async with client as same:
        assert_type(same, ClientProxy)


def settings_of_patterns() -> None:
    ClientProxy("tcp://h", patterns={"a": {"timeout": 1.0}, 7: {"attempts": 2, "idempotent": True}})
    ClientProxy("tcp://h", patterns=[("a", {"timeout": 1.0}), ({"cmd": "b"}, {"attempts": 2})])


def a_sync_client(client: SyncClientProxy) -> None:
    assert_type(client.send("sum", [1, 2], returns=int), int)
    assert_type(client.send("sum"), Any)
    total: int | str = client.send("sum", returns=int | str)
    assert total
    assert_type(client.emit("created"), Receipt)
    for number in client.stream("count", 3, returns=int):
        assert_type(number, int)
    for either in client.stream("count", 3, returns=int | None):
        number_or_none: int | None = either
        assert number_or_none
    with client as same:
        assert_type(same, SyncClientProxy)


def several(clients: Clients) -> None:
    assert_type(clients["MATH_SERVICE"], ClientProxy)


server = Server("tcp://127.0.0.1:3001")


@server.message_pattern("sum")
async def add(numbers: list[int], context: Context) -> int:
    assert_type(context.remaining, float | None)
    return sum(numbers)


@server.event_pattern("created")
def created(event: dict[str, Any]) -> None: ...


assert_type(created({}), None)


class Mine:
    """A policy needs no base class."""

    def wrap(self, handler: Handler, clock: Clock, /) -> Handler:
        async def wrapped(call: Call) -> Reply:
            return await handler(call)

        return wrapped


breaker = CircuitBreaker()


@breaker
def query(text: str) -> int:
    return len(text)


@breaker()
async def ask(text: str) -> int:
    return len(text)


assert_type(query("select"), int)
assert_type(breaker.call(query, "select"), int)


async def guarded() -> None:
    assert_type(await ask("select"), int)
    with breaker.calling():
        pass


def what_a_peer_said(error: RemoteError) -> None:
    assert_type(error.code, str | int | None)
    assert_type(error.status, int | None)


class MyTransport(LinkedTransport[Any]):
    """A transport needs no base class either; these blocks are of use."""

    async def request(self, call: Call) -> Reply:
        raise NotImplementedError

    async def publish(self, call: Call) -> Receipt:
        raise NotImplementedError

    async def aclose(self) -> None: ...


def over_it(mine: MyTransport) -> Transport:
    return mine


stack: list[Policy] = [*standard(), Mine(), Timeout(1.0), Retry(2), CircuitBreaker()]
proxy = ClientProxy("tcp://127.0.0.1:3001", policies=[Mine()])


def make(env: Environment) -> Transport:
    raise NotImplementedError


of_a_function = ClientProxy(make), SyncClientProxy(make)
