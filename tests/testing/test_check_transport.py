"""`check_transport` tells the author of a transport what is wrong with it, in words, and ends."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from copy import copy
from math import inf
from typing import Any

import pytest

from resilient_client import Call, ConnectError, Receipt, Reply, Transport
from resilient_client.testing import _promises, check_transport
from resilient_client.transports import App, Environment, ServerListener, Target
from resilient_client.transports.memory import ClientTransport as Good
from resilient_client.transports.memory import ServerListener as GoodListener

names = (f"kit-{number}" for number in itertools.count())


class NeverSent(Good):
    async def request(self, call: Call) -> Reply:
        return await super().request(copy(call))


class NeverSentEvent(Good):
    async def publish(self, call: Call) -> Receipt:
        return await super().publish(copy(call))


class NoAttempts(Good):
    async def request(self, call: Call) -> Reply:
        call.attempt_deadline = inf
        return await super().request(call)


class NeverIdle(Good):
    async def request(self, call: Call) -> Reply:
        reply = await super().request(call)
        if (items := reply.items) is not None:
            receive = items.receive

            class Patient:
                aclose = items.aclose

                async def receive(self, deadline: float) -> Any:
                    return await receive(inf)

            reply.items = Patient()  # type: ignore[assignment]
        return reply


class Raw(Good):
    async def request(self, call: Call) -> Reply:
        try:
            return await super().request(call)
        except ConnectError as error:
            raise OSError("refused") from error


class Silent(Good):
    def __init__(self, target: Target, env: Environment) -> None:
        super().__init__(target, Environment(env.clock, env.codec, lambda event: None))


class Serial(Good):
    _lock: asyncio.Lock | None = None

    async def request(self, call: Call) -> Reply:
        self._lock = self._lock or asyncio.Lock()
        async with self._lock:
            return await super().request(call)


class OfALoop(Good):
    def __init__(self, target: Target, env: Environment) -> None:
        super().__init__(target, env)
        self.loop = asyncio.get_running_loop()


class Cancels(Good):
    async def aclose(self) -> None:
        table = self._replies
        table.fail_all(asyncio.CancelledError)
        await super().aclose()


class Boasts(Good):
    async def publish(self, call: Call) -> Receipt:
        await super().publish(call)
        return Receipt("accepted", 17)


class NoHeadersOfEvents(Good):
    async def publish(self, call: Call) -> Receipt:
        bare = copy(call)
        bare.metadata = {}
        receipt = await super().publish(bare)
        call.sent = bare.sent
        return receipt


class Stubborn(Good):
    async def aclose(self) -> None:
        await asyncio.get_running_loop().create_future()


class HastyListener(GoodListener):
    async def stop(self) -> None:
        await super().stop()
        for parcel in tuple(self.parcels):
            parcel.lost()


def only(check: str) -> list[str]:
    return [name for name in _promises.checks if name != check]


async def refused(
    check: str,
    client: Callable[[Target, Environment], Transport] = Good,
    listener: Callable[[Target, App], ServerListener] = GoodListener,
) -> AssertionError:
    target = Target(f"memory://{next(names)}")
    before = asyncio.all_tasks()
    with pytest.raises(AssertionError) as caught:
        await check_transport(
            lambda app: listener(target, app),
            lambda env: client(target, env),
            skip=only(check),
        )
    assert asyncio.all_tasks() == before
    assert [note.split(":")[1].strip() for note in caught.value.__notes__] == [check]
    return caught.value


@pytest.mark.parametrize(
    ("check", "client", "said"),
    [
        ("sent", NeverSent, "call.sent is not True"),
        ("sent", NeverSentEvent, "an event is handed over, and call.sent is not True"),
        ("idle", NeverIdle, "a call that has 0.5 s has not ended"),
        ("restart", Raw, "OSError('refused') reached the caller: make it an error of ours"),
        ("ping", Silent, "env.notify was told of no connection"),
        ("parallel", Serial, "one call waits for the other"),
        ("ping", OfALoop, "RuntimeError: no running event loop"),
        ("close", Cancels, "CancelledError, and nobody had cancelled it"),
        ("events", Boasts, "one server heard it"),
        ("headers", NoHeadersOfEvents, "emit: "),
    ],
)
async def test_a_careless_client_is_told_what_is_wrong(
    check: str, client: Callable[[Target, Environment], Transport], said: str
) -> None:
    assert said in str(await refused(check, client))


async def test_an_attempt_that_ends_only_with_its_call_is_found() -> None:
    assert "a call that has 1.0 s has not ended" in str(await refused("attempt", NoAttempts))


async def test_a_server_that_does_not_answer_what_it_works_on_is_found() -> None:
    assert "ConnectionLost" in str(await refused("drain", listener=HastyListener))


async def test_what_hangs_is_named_and_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_promises, "PATIENCE", 0.2)
    error = str(await refused("ping", Stubborn))
    assert "the client has not closed" in error
    assert f"aclose ({__file__}:" in error
