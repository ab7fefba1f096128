"""What the tests of policies share: a stack over a script, on a clock that takes no time."""

from __future__ import annotations

from math import inf
from typing import Any

from resilient_client.message import Call, Reply
from resilient_client.pipeline import Handler, compose
from resilient_client.testing import FakeClock, ScriptedTransport


class Scene:
    """Policies around a scripted peer, without a client in between.

    `slept` are the waits between attempts; `events` what the call's observer was told.
    """

    def __init__(
        self, policies: Any, answers: Any, *, forever: bool = False, autojump: bool = True
    ) -> None:
        self.clock = FakeClock(autojump=autojump)
        self.peer = ScriptedTransport(answers, forever=forever, clock=self.clock)
        self.events: list[Any] = []
        self.last: Call | None = None
        self.handler: Handler = compose(policies, self._transmit, self.clock)

    async def _transmit(self, call: Call) -> Reply:
        call.connect_deadline, call.attempt_deadline = (
            min(at, call.deadline) for at in call.limits
        )
        if call.kind == "emit":
            return Reply(receipt=await self.peer.publish(call))
        return await self.peer.request(call)

    def call(self, kind: Any = "send", *, timeout: float = inf, **given: Any) -> Call:
        attempts = given.pop("max_attempts", None)
        now = self.clock.now()
        call = Call(
            "p",
            "p",
            kind,
            started=now,
            attempt_started=now,
            deadline=now + timeout,
            observer=self.events.append,
            **given,
        )
        call.max_attempts = attempts
        self.last = call
        return call

    async def ask(self, kind: Any = "send", **given: Any) -> Any:
        reply = await self.handler(self.call(kind, **given))
        if kind == "emit":
            return reply.receipt
        if kind == "stream":
            return reply
        return reply.body if reply.decoded else self.peer.decode(reply.body, Any)

    @property
    def attempts(self) -> int:
        return len(self.peer.requests)

    @property
    def slept(self) -> list[float]:
        return [round(seconds, 9) for seconds in self.clock.sleeps]


async def drain(reply: Reply, deadline: float = inf) -> list[Any]:
    """The items of a stream, its hooks told of the end."""
    assert reply.items is not None
    items = []
    try:
        while True:
            items.append(await reply.items.receive(deadline))
    except StopAsyncIteration:
        reply.complete(None, seen=bool(items))
    return items
