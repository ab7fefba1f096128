"""What RabbitMQ says went wrong, as errors of ours."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    NoHandlerError,
    PayloadError,
    ProtocolError,
)

if TYPE_CHECKING:
    from resilient_client.errors import ResilientClientError

Kind = Literal["lost", "configuration", "protocol", "payload", "nobody"]

REPLY_CODES: dict[int, Kind] = {
    311: "payload",  # content too large
    312: "nobody",  # no route: returned
    313: "nobody",  # no consumers: returned
    320: "lost",  # an operator closed the connection, or the broker is shutting down
    402: "configuration",  # no such virtual host
    403: "configuration",  # wrong credentials, no permission
    404: "configuration",  # no such queue or exchange
    405: "configuration",  # an exclusive queue of somebody else
    406: "configuration",  # declared with other options
    501: "protocol",
    502: "protocol",
    503: "protocol",
    504: "protocol",
    505: "protocol",
    506: "lost",  # not enough resources
    530: "configuration",  # no access to the virtual host
    540: "protocol",  # not implemented
    541: "lost",  # an internal error of the broker
}
"""What each of AMQP's reply codes means for a caller."""

_HINTS = {
    403: "check user and password, or certificate, and permissions (rabbitmqctl list_permissions)",
    404: "with declare=False the queue must exist; otherwise check its name",
    406: "durable, auto_delete and arguments must be the same on both ends (Nest: queueOptions)",
    530: "check the virtual host in the URL's path; no path is /",
}
_OTHER_TYPE = "declare=False takes an exchange of another type than topic as it is"
# A queue's or vhost's home is starting, too many are connected. Such words may stand in names, too.
_PASSING = re.compile(r"\b(?:is down|inaccessible|limit\b.* is reached)\b")


def closed_error(code: int, text: str, where: str, *, dialling: bool) -> ResilientClientError:
    """The error for the code and text with which the broker closed a channel or connection.

    Args:
        where: the endpoint, for people.
        dialling: nothing has been sent yet.
    """
    kind = REPLY_CODES.get(code, "lost")
    if kind == "configuration" and code != 403 and _PASSING.search(text):
        kind = "lost"
    if code == 404 and not dialling:  # an exchange was deleted: coming back, it is made anew
        kind = "lost"
    said = f"RabbitMQ at {where} says: {text or code}"
    if kind == "configuration":
        hint = _OTHER_TYPE if "'type' for exchange" in text else _HINTS.get(code)
        if code == 530 and "vhost" not in text:  # channel_max is too small, say
            hint = None
        return ConfigurationError(said, sent=not dialling, hint=hint)
    if kind == "protocol":
        return ProtocolError(said, sent=not dialling)
    if kind == "payload":
        return PayloadError(said, sent=False)
    return ConnectError(said) if dialling else ConnectionLost(said)


def unroutable(text: str, place: str) -> NoHandlerError:
    """The error for a request that came back because no queue wanted it."""
    return NoHandlerError(f"{place} leads to no queue ({text})", sent=False)
