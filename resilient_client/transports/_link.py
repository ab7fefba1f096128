"""One connection, kept: dialled once for all who wait, dialled again for ever after a loss."""

from __future__ import annotations

import asyncio
import logging
import random
from contextvars import Context
from copy import copy
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from resilient_client.clock import call_later
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ResilientClientError,
    client_closed,
    shown,
)
from resilient_client.events import ConnectionChanged
from resilient_client.transports._base import DEFAULT_MAX_SIZE
from resilient_client.transports._transport import BaseTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from resilient_client.clock import Clock
    from resilient_client.events import Event, Status
    from resilient_client.message import Call
    from resilient_client.transports._base import App, Environment, Target
    from resilient_client.transports._socket import SocketProtocol

log = logging.getLogger("resilient_client.server")
faults = logging.getLogger("resilient_client")

C = TypeVar("C")

FIRST_WAIT = 0.1
LONGEST_WAIT = 1.0
"""Seconds between two dials after a loss: doubling from the first to the longest, with jitter."""
DIAL_TIMEOUT = 5.0
"""Seconds one dial may take, whoever waits for it."""
RETURN_WAIT = 5.0
"""Seconds that what a server has to write waits for a connection that was lost."""


def spawn(
    coroutine: Coroutine[Any, Any, Any], name: str, among: set[asyncio.Task[Any]] | None = None
) -> asyncio.Task[Any]:
    """A task of ours: in an empty context, so that it does not keep its first caller's span.

    Args:
        among: it is kept in this set until it ends.
    """
    loop = asyncio.get_running_loop()
    task = Context().run(loop.create_task, coroutine, name=name)
    if among is not None:
        among.add(task)
        task.add_done_callback(among.discard)
    return task


async def to_its_end(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Close something, all of it: where this is cancelled meanwhile, it is so afterwards."""
    task = spawn(close(), "close")
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(look_at)
        await asyncio.wait({task})
        raise


class Link(Generic[C]):
    """One connection: dialled when it is first wanted, and again after every loss.

    Whoever finds it away (`current` is None) waits in `get` for the result of one dial, which is
    started at once, and gets that dial's error. After a loss dialling goes on by itself besides,
    until it succeeds or the link is closed.

    Args:
        endpoint: the URL for people.
        dial: makes a ready connection (subscribed, acknowledged), or raises. It must call `lost`
            with the same connection object when it ends.
        notify: told of every change of status.
        dial_timeout: seconds that one dial may take; None where it bounds itself.

    Attributes:
        current: the connection; None while there is none.
        dials: how many were tried.
    """

    def __init__(
        self,
        endpoint: str,
        dial: Callable[[], Awaitable[C]],
        *,
        clock: Clock,
        notify: Callable[[Event], None],
        dial_timeout: float | None = DIAL_TIMEOUT,
    ) -> None:
        self.current: C | None = None
        self.status: Status = "idle"
        self.dials = 0
        self._endpoint = endpoint
        self._dial = dial
        self._clock = clock
        self._notify = notify
        self._dial_timeout = dial_timeout
        self._dialling: asyncio.Task[C] | None = None
        self._keeper: asyncio.Task[None] | None = None  # dials for ever after a loss
        self._hurry: asyncio.Event | None = None  # ends its pause between two dials
        self._wait = 0.0  # before the next dial
        self._connected_at = 0.0

    async def get(self, deadline: float, call: Call | None = None) -> C:
        """The connection, for a call if one waits for it.

        Raises:
            ConnectError: the dial that was waited for failed, or did not end by `deadline`.
        """
        while (connection := self.current) is None:
            if self.status == "closed":
                raise client_closed()
            dialling = self._dialling or self._start_dial()
            if not await self._until(dialling, deadline):
                late = f"no connection to {self._endpoint} in time"
                raise ConnectError(late) if call is None else call.unready(late)
            if self.current is None:
                error = dialling.exception()
                if error is None:
                    continue  # connected and lost again in the meantime
                # others get it too: each its own, or each traceback would grow into the next
                raise copy(error) if isinstance(error, ResilientClientError) else error
        return connection

    def _start_dial(self) -> asyncio.Task[C]:
        if self._keeper is None:
            self._change("connecting")
        if self._hurry is not None:
            self._hurry.set()
        self.dials += 1
        self._dialling = task = spawn(self._dialled(), f"dial {self._endpoint}")
        task.add_done_callback(look_at)
        return task

    async def _until(self, task: asyncio.Future[Any], deadline: float) -> bool:
        """Wait for what others may wait for too; False when the time is up before."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def over(value: bool) -> None:  # noqa: FBT001
            if not waiter.done():
                waiter.set_result(value)

        def ended(_: object) -> None:
            over(True)

        task.add_done_callback(ended)
        timer = None
        if deadline < inf:
            left = deadline - self._clock.now()
            timer = call_later(self._clock, left, lambda: over(False))
        try:
            in_time = await waiter
        finally:
            task.remove_done_callback(ended)
            if timer is not None:
                timer.cancel()
        if in_time and task.cancelled():
            raise client_closed()
        return in_time

    async def _dialled(self) -> C:
        try:
            try:
                async with asyncio.timeout(self._dial_timeout):
                    connection = await self._dial()
            except TimeoutError as error:
                if isinstance(error, ResilientClientError):
                    raise
                raise ConnectError(
                    f"no answer from {self._endpoint} in {self._dial_timeout} s"
                ) from None
        except BaseException as error:
            self._dialling = None
            if self._keeper is None and isinstance(error, Exception):
                self._change("idle", str(error))
            raise
        self._dialling = None
        self.current = connection
        self._connected_at = self._clock.now()
        self._change("connected")
        return connection

    def lost(self, connection: C, reason: str) -> None:
        """That connection has ended: start coming back, unless the link is closed."""
        if self.current is not connection:
            return
        self.current = None
        if self.status == "closed":
            return
        if self._clock.now() - self._connected_at > LONGEST_WAIT:
            self._wait = 0.0  # else it goes on growing: a peer that accepts and closes, say
        self._change("reconnecting", reason)
        if self._keeper is None:
            self._keeper = spawn(self._come_back(), f"reconnect {self._endpoint}")

    async def _come_back(self) -> None:
        """Dial until there is a connection: at once, then after growing waits."""
        told = ""
        try:
            while self.current is None and self.status != "closed":
                if self._wait:
                    await self._pause(self._wait * random.uniform(0.5, 1.0))
                self._wait = min(LONGEST_WAIT, max(FIRST_WAIT, self._wait * 2))
                if self.current is not None:
                    break
                dialling = self._dialling or self._start_dial()
                await asyncio.wait({dialling})
                if not dialling.cancelled() and (error := dialling.exception()) is not None:
                    if isinstance(error, ConfigurationError):  # such as wrong credentials
                        self._change("idle", str(error))
                        break
                    reason = shown(str(error))
                    if not isinstance(error, ResilientClientError) and reason != told:
                        told = reason  # a fault, here or in a library: no reason to stay away
                        faults.error("%s: dialling failed", self._endpoint, exc_info=error)
                    self._still_away(reason)
        finally:
            self._keeper = None

    def _still_away(self, reason: str) -> None:
        """A dial after a loss has failed; another follows."""

    async def _pause(self, seconds: float) -> None:
        """Wait, or until a call starts a dial of its own."""
        hurry = self._hurry = asyncio.Event()
        timer = call_later(self._clock, seconds, hurry.set)
        try:
            await hurry.wait()
        finally:
            self._hurry = None
            timer.cancel()

    def _change(self, status: Status, reason: str = "") -> None:
        if status != self.status:
            old, self.status = self.status, status
            self._notify(ConnectionChanged(self._endpoint, old, status, reason))

    def forget_loop(self) -> None:
        """See `Transport`: as if there had never been a connection."""
        self.current = self._dialling = self._keeper = self._hurry = None
        if self.status != "closed":
            self._change("idle", "its event loop has ended")

    async def aclose(self) -> C | None:
        """Stop dialling; the connection, if any, is handed back for the owner to close."""
        self._change("closed")
        tasks = [task for task in (self._keeper, self._dialling) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        connection, self.current = self.current, None
        return connection


class ServerLink(Link[C]):
    """The connection of a server's end."""

    def __init__(
        self,
        endpoint: str,
        dial: Callable[[], Awaitable[C]],
        app: App,
        dial_timeout: float | None = DIAL_TIMEOUT,
    ) -> None:
        super().__init__(
            endpoint, dial, clock=app.clock, notify=app.notify, dial_timeout=dial_timeout
        )
        self._away = ""  # why it is not back yet, as last told
        self._back: asyncio.Future[None] | None = None  # it is, or will not be

    async def start(self) -> None:
        """Connect, or raise what stands against it; anew where it has been closed."""
        if self.status == "closed":
            self.status = "idle"
        await self.get(inf)

    async def soon(self) -> C:
        """The connection; one that was lost is waited for, because it comes back as a rule.

        Raises:
            ConnectError: it has not, in `RETURN_WAIT` seconds.
        """
        deadline = self._clock.now() + RETURN_WAIT
        while (connection := self.current) is None:
            if self.status != "reconnecting":
                raise ConnectError(f"{self._endpoint} is not connected any more")
            if self._back is None:
                self._back = asyncio.get_running_loop().create_future()
            if not await self._until(self._back, deadline):
                raise ConnectError(f"{self._endpoint} is not back in {RETURN_WAIT} s")
        return connection

    def _change(self, status: Status, reason: str = "") -> None:
        self._away = ""
        super()._change(status, reason)
        if status != "reconnecting" and self._back is not None:
            back, self._back = self._back, None
            back.set_result(None)

    def _still_away(self, reason: str) -> None:
        if reason != self._away:
            self._away = reason
            log.warning("%s: not back yet: %s", self._endpoint, reason)


class LinkedTransport(BaseTransport, Generic[C]):
    """What the clients' ends that keep one connection have in common; each says how to `_dial`."""

    def __init__(self, target: Target, env: Environment, max_size: int = DEFAULT_MAX_SIZE) -> None:
        super().__init__(target, env, max_size)
        self._link = Link[C](self.endpoint, self._dial, clock=env.clock, notify=env.notify)

    async def _dial(self) -> C:
        """Make a connection: see `Link`."""
        raise NotImplementedError

    @property
    def status(self) -> Status:  # type: ignore[override]
        """See `Transport.status`."""
        return self._link.status

    async def connect(self, deadline: float) -> None:
        """See `Transport.connect`."""
        await self._link.get(deadline)

    async def _drained(self, socket: SocketProtocol, call: Call) -> None:
        """Wait until the peer has read enough for this call to be written."""
        async with self._before_sending(call):
            await socket.drained()

    def numbers(self) -> dict[str, int]:
        """See `BaseTransport.numbers`."""
        return {**super().numbers(), "connection.attempts": self._link.dials}

    def forget_loop(self) -> None:
        """See `Transport`."""
        self._link.forget_loop()


def look_at(task: asyncio.Task[Any]) -> None:
    """Take note of a task's error, which asyncio would report where nobody waits any more."""
    if not task.cancelled():
        task.exception()
