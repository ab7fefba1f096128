"""The queue and the exchange that both ends agree on, and where their topics lead."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from resilient_client.errors import ConfigurationError
from resilient_client.transports.amqp import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from resilient_client.transports._base import App
    from resilient_client.transports.amqp._channel import Channel

MAX_NAME = 255
"""Bytes of a queue's or an exchange's name, and of a routing key."""


@dataclass(frozen=True, slots=True)
class Topology:
    """Names and options, the same on both ends.

    Attributes:
        exchange: a durable topic exchange: patterns are routing keys, and may have wildcards.
            Without one everything goes straight to the queue.
        declare: make what is missing; otherwise it must be there.
    """

    queue: str
    exchange: str | None = None
    durable: bool = True
    auto_delete: bool = False
    declare: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def checked(
        cls,
        queue: str | None,
        exchange: str | None,
        durable: bool,  # noqa: FBT001
        auto_delete: bool,  # noqa: FBT001
        declare: bool,  # noqa: FBT001
        arguments: Mapping[str, Any] | None,
    ) -> Topology:
        """From a transport's options.

        Raises:
            ConfigurationError: there is no queue, or a name is too long.
        """
        if not queue:
            raise ConfigurationError(
                "amqp:// needs the name of a queue",
                hint='add queue="..." or ?queue=..., the same on both ends and in Nest',
            )
        for name in (queue, exchange or ""):
            if len(name.encode()) > MAX_NAME:
                raise ConfigurationError(f"a name of more than {MAX_NAME} bytes: {name:.20}...")
        return cls(queue, exchange or None, durable, auto_delete, declare, dict(arguments or {}))

    async def declare_queue(self, channel: Channel) -> None:
        """Have the queue.

        Raises:
            ConfigurationError: it is missing, or was declared with other options.
        """
        await channel.call(
            wire.QueueDeclare(
                queue=self.queue,
                passive=not self.declare,
                durable=self.durable,
                auto_delete=self.auto_delete,
                arguments=dict(self.arguments),
            )
        )

    async def declare_exchange(self, channel: Channel) -> None:
        """Have the exchange, if there is to be one. Raises as `declare_queue` does."""
        if self.exchange is not None:
            await channel.call(
                wire.ExchangeDeclare(
                    exchange=self.exchange,
                    exchange_type="topic",
                    passive=not self.declare,
                    durable=True,
                )
            )

    async def bind(self, channel: Channel, routes: Iterable[str]) -> None:
        """Lead these routing keys of the exchange to the queue."""
        if self.exchange is not None and self.declare:
            for route in routes:
                await channel.call(
                    wire.QueueBind(queue=self.queue, exchange=self.exchange, routing_key=route)
                )


def matches(pattern: list[str], words: list[str]) -> bool:
    """Whether a topic pattern leads to this key, both split at dots.

    `*` is one word, `#` any number of them, none included.
    """
    reached = {0}  # how many words the pattern's parts so far may have taken
    count = len(words)
    for part in pattern:
        if part == "#":
            reached = set(range(min(reached), count + 1))
        else:
            reached = {at + 1 for at in reached if at < count and part in {"*", words[at]}}
        if not reached:
            return False
    return count in reached


class Routes:
    """Which handler a message is for, where patterns are topics."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._topics: dict[bool, list[tuple[list[str], str]]] = {False: [], True: []}
        for each in app.subscriptions():
            words = each.route.split(".")
            if not {"*", "#"}.isdisjoint(words):
                self._topics[each.is_event].append((words, each.route))

    def find(self, route: str, *, is_event: bool) -> str:
        """The handler's route: exactly this one, else the first topic that matches, as in Nest."""
        app = self._app
        if app.receivers(route) if is_event else app.handles(route):
            return route
        words = route.split(".")
        for kind in (is_event, not is_event):
            for pattern, found in self._topics[kind]:
                if matches(pattern, words):
                    return found
        return route
