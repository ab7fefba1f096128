"""A policy is an object with `wrap`: one that measures on the client, one that asks for a token."""

import asyncio
from collections.abc import Iterable

from resilient_client import Call, ClientProxy, Handler, RemoteError, Reply, Server, standard
from resilient_client.clock import Clock


class SlowCalls:
    """Collects the calls that took longer than so many seconds, retries included."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.seen: list[str] = []

    def wrap(self, handler: Handler, clock: Clock, /) -> Handler:
        # Called once, when the client is built: look everything up here, not at each call.
        now, limit, seen = clock.now, self.seconds, self.seen

        async def slow_calls(call: Call) -> Reply:
            started = now()
            try:
                return await handler(call)  # the reply passes through as it is
            finally:
                if now() - started > limit:
                    seen.append(call.route)

        return slow_calls


class RequireToken:
    """Lets a message pass that carries one of these tokens."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._known = {f"Bearer {token}" for token in tokens}

    def wrap(self, handler: Handler, clock: Clock, /) -> Handler:
        known = self._known

        async def require_token(call: Call) -> Reply:
            if call.headers.get("authorization") not in known:
                raise RemoteError("not allowed", code="UNAUTHORIZED", status=401)
            return await handler(call)

        return require_token


server = Server("memory://reports", policies=[RequireToken({"let-me-in"})])


@server.message_pattern("report")
async def report(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


async def main() -> None:
    slow = SlowCalls(0.1)
    token = {"authorization": "Bearer let-me-in"}
    async with (
        server,
        # First in the list is outermost: it sees the call once, whatever is repeated inside.
        ClientProxy("memory://reports", policies=[slow, *standard()], headers=token) as allowed,
        ClientProxy("memory://reports") as stranger,
    ):
        await allowed.send("report", 0.0)
        await allowed.send("report", 0.15)
        print("slow calls:", slow.seen)
        try:
            await stranger.send("report", 0.0)
        except RemoteError as error:
            print("the stranger:", error.status, error.code, error.message)
        print(allowed.explain())


if __name__ == "__main__":
    asyncio.run(main())
