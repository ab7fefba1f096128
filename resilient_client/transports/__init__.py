"""One module per transport, named after its URL scheme and imported when a URL asks for it.

What transports are built of is public here, for people who write their own: `Transport` and
`ServerListener` say what the two ends are, the other names are blocks that ours are made of. They
load when they are first used (PEP 562).

Words that mean the same in all of them:

- target: a URL taken apart; endpoint: the same for people, credentials redacted.
- connection: one socket, or one object of a library's, that speaks the protocol.
- session: what a client has while a connection lasts: who waits for which reply on it, and what the
  peer is known to have done. Where a protocol takes two connections, they are one session.
- link: keeps a connection or session, which is to say that it dials, again after every loss.
- slots: a server's handlers that run for one connection or consumer, as many as may.
- of our make, ours: a peer that is built with this package too. It shows itself, and is then told
  which callers have left.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilient_client.errors import remote_error, wire_error
    from resilient_client.message import NO_VALUE
    from resilient_client.patterns import pattern_json
    from resilient_client.transports._base import (
        DEFAULT_MAX_SIZE,
        App,
        Environment,
        Job,
        Respond,
        ServerListener,
        Slots,
        Subscription,
        Target,
        Transport,
    )
    from resilient_client.transports._link import Link, LinkedTransport
    from resilient_client.transports._metadata import sanitised
    from resilient_client.transports._nest import CANCEL_ROUTE, answer, cancel_packet, deliver
    from resilient_client.transports._packets import (
        event_packet,
        read_request,
        read_response,
        request_packet,
    )
    from resilient_client.transports._replies import ItemStream, PendingReplies
    from resilient_client.transports._transport import BaseTransport

__all__ = [
    "CANCEL_ROUTE",
    "DEFAULT_MAX_SIZE",
    "NO_VALUE",
    "App",
    "BaseTransport",
    "Environment",
    "ItemStream",
    "Job",
    "Link",
    "LinkedTransport",
    "PendingReplies",
    "Respond",
    "ServerListener",
    "Slots",
    "Subscription",
    "Target",
    "Transport",
    "answer",
    "cancel_packet",
    "deliver",
    "event_packet",
    "pattern_json",
    "read_request",
    "read_response",
    "remote_error",
    "request_packet",
    "sanitised",
    "wire_error",
]

_HOMES = {
    "_base": (
        "DEFAULT_MAX_SIZE",
        "App",
        "Environment",
        "Job",
        "Respond",
        "ServerListener",
        "Slots",
        "Subscription",
        "Target",
        "Transport",
    ),
    "_link": ("Link", "LinkedTransport"),
    "_nest": ("CANCEL_ROUTE", "answer", "cancel_packet", "deliver"),
    "_packets": ("event_packet", "read_request", "read_response", "request_packet"),
    "_transport": ("BaseTransport",),
    "_replies": ("ItemStream", "PendingReplies"),
    "_metadata": ("sanitised",),
    ".errors": ("remote_error", "wire_error"),
    ".message": ("NO_VALUE",),
    ".patterns": ("pattern_json",),
}
_home_of = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    home = _home_of.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value
