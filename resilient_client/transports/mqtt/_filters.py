"""What an MQTT server subscribes to, and which handler a message's topic is for."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from resilient_client.errors import ConfigurationError
from resilient_client.patterns import lookup_route
from resilient_client.transports.mqtt._codec import text, topic_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resilient_client.transports._base import Subscription
    from resilient_client.transports.mqtt._codec import Delivery

_SHORT = 256  # characters of a topic whose answer is kept: strangers name them
_LONGEST_TOPIC = 16 * 1024  # characters
_NO_RETAINED = 0x20  # [3.8.3.1] no messages from before the subscription: requests are not state


class Found:
    """What a topic stands for.

    Attributes:
        route: of the handler.
        subject: the topic, when the route is another.
        reply: the topic of its replies, as it is written.
    """

    __slots__ = ("_numbers", "_wild", "reply", "route", "subject")

    def __init__(self, route: str, topic: str, numbers: frozenset[int], *, wild: bool) -> None:
        self.route = route
        self.subject = topic if wild or route != topic else None
        self.reply = text(f"{topic}/reply")
        self._numbers = numbers
        self._wild = wild

    def not_for_us(self, message: Delivery, external: bool) -> bool:  # noqa: FBT001
        """A reply that a wildcard hears, or the copy for a pattern that another goes before."""
        told = message.subscriptions
        if told and self._numbers.isdisjoint(told):
            return True
        return self._wild and external and message.topic.endswith("/reply")


class Filters:
    """The topic filters that stand for the patterns of a server's handlers.

    Args:
        qos, share: of handlers that do not say otherwise.
        version: the protocol's own number: 5, or 4 for 3.1.1.

    Attributes:
        asked: each filter as it is subscribed to, with its options [3.8.3.1].
        wild: those with wildcards: their levels, and the handler's route.
    """

    def __init__(
        self, handlers: Iterable[Subscription], *, qos: int, share: str | None, version: int
    ) -> None:
        self.asked: dict[str, int] = {}
        self.wild: list[tuple[list[str], str]] = []
        self._kept = lru_cache(maxsize=1024)(self._look)
        self._exact: dict[str, str] = {}  # topic to route
        names: dict[str, set[str]] = {}
        for handler in handlers:
            group, topic = topic_of(handler.route)
            group = group or handler.extras.get("share", share)
            if "+" in topic or "#" in topic:
                self.wild.append((topic.split("/"), handler.route))
            else:
                self._exact.setdefault(topic, handler.route)
            name = f"$share/{group}/{topic}" if group else topic
            names.setdefault(handler.route, set()).add(name)
            wanted = handler.extras.get("qos", qos) if handler.is_event else 0
            # events are state, perhaps: a retained one is for all who come later
            fresh = 0 if handler.is_event or version != 5 else _NO_RETAINED
            old = self.asked.get(name)
            self.asked[name] = wanted | fresh if old is None else (old | wanted) & (fresh | 1)
        numbers = {name: number for number, name in enumerate(self.asked, 1)}
        self._numbers = {
            route: frozenset(numbers[name] for name in own) for route, own in names.items()
        }

    def find(self, topic: str) -> Found | None:
        """What a topic stands for, in Nest's order."""
        return self._kept(topic) if len(topic) <= _SHORT else self._look(topic)

    def _look(self, topic: str) -> Found | None:
        if len(topic) > _LONGEST_TOPIC:  # there is no room for its reply's
            return None
        route = self._exact.get(topic)
        if route is None and (known := lookup_route(topic)) is not None:
            route = self._exact.get(known)
        if route is not None:
            return Found(route, topic, self._numbers[route], wild=False)
        levels = topic.split("/")
        for wanted, route in self.wild:
            if matches(wanted, levels):
                return Found(route, topic, self._numbers[route], wild=True)
        return None


def topic_of(route: str) -> tuple[str | None, str]:
    """The group of replicas, if it names one, and the topic filter that a route stands for.

    Raises:
        ConfigurationError: it cannot be subscribed to.
    """
    group = None
    topic = route
    if route.startswith("$share/"):
        _, group, topic = (*route.split("/", 2), "", "")[:3]
        checked_share(group)
    levels = topic.split("/")
    for place, level in enumerate(levels):
        wild = "+" in level or "#" in level
        if wild and (len(level) > 1 or (level == "#" and place < len(levels) - 1)):
            raise ConfigurationError(
                f"{route!r} is no topic filter",
                hint="+ stands for one whole level, # for all that follow, at the end",
            )
    if not topic:
        raise ConfigurationError("an empty pattern is no topic filter")
    topic_text(topic)
    return group, topic


def checked_share(share: str | None) -> str | None:
    """The name of a group of replicas, if it can be one."""
    if share is not None and (not share or set(share) & {"/", "+", "#"}):
        raise ConfigurationError(f"share={share!r} is no name of a group: one without / + and #")
    return share


def matches(wanted: list[str], levels: list[str]) -> bool:
    """Whether a topic's levels are what a filter stands for [4.7]."""
    if levels[0].startswith("$") and wanted[0] in ("+", "#"):
        return False
    for place, level in enumerate(wanted):
        if level == "#":
            return True
        if place >= len(levels) or level not in ("+", levels[place]):
            return False
    return len(wanted) == len(levels)
