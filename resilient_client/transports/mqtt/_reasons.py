"""What a broker's reason codes mean to us: every code of the standard becomes one of our errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    NoHandlerError,
    PayloadError,
    RemoteError,
    ResilientClientError,
    Throttled,
)
from resilient_client.transports.mqtt._codec import REASON_STRING, SERVER_REFERENCE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

REASONS = {  # MQTT 5, section 2.4
    0x00: "success", 0x04: "disconnect with will", 0x10: "no matching subscribers",
    0x11: "no subscription existed", 0x18: "continue authentication", 0x19: "re-authenticate",
    0x80: "unspecified error", 0x81: "malformed packet", 0x82: "protocol error",
    0x83: "implementation specific error", 0x84: "unsupported protocol version",
    0x85: "client identifier not valid", 0x86: "bad user name or password",
    0x87: "not authorized", 0x88: "server unavailable", 0x89: "server busy", 0x8A: "banned",
    0x8B: "server shutting down", 0x8C: "bad authentication method", 0x8D: "keep alive timeout",
    0x8E: "session taken over", 0x8F: "topic filter invalid", 0x90: "topic name invalid",
    0x91: "packet identifier in use", 0x92: "packet identifier not found",
    0x93: "receive maximum exceeded", 0x94: "topic alias invalid", 0x95: "packet too large",
    0x96: "message rate too high", 0x97: "quota exceeded", 0x98: "administrative action",
    0x99: "payload format invalid", 0x9A: "retain not supported", 0x9B: "QoS not supported",
    0x9C: "use another server", 0x9D: "server moved",
    0x9E: "shared subscriptions not supported", 0x9F: "connection rate exceeded",
    0xA0: "maximum connect time", 0xA1: "subscription identifiers not supported",
    0xA2: "wildcard subscriptions not supported",
}  # fmt: skip
NO_SUBSCRIBERS = 0x10
TAKEN_OVER = 0x8E
TOO_LARGE = 0x95
_OLD_CONNECT_CODES = {1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}  # MQTT 3.1.1, section 3.2.2.3
# what comes out the same however often it is tried
_FINAL = frozenset(
    {0x81, 0x82, 0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C, 0x8F, 0x90, 0x94, 0x95, 0x99, 0x9A, 0x9B,
     0x9C, 0x9D, 0x9E, 0xA1, 0xA2}
)  # fmt: skip
_HINTS = {
    0x84: "try version=3.1.1",
    0x85: "give another client_id=",
    0x86: "check the user and password in the URL",
    0x87: "check the user and the broker's access rules for this topic",
    0x95: "send less, or raise the broker's limit",
    0x9B: "use qos=0",
    0x9C: "connect to the server that the broker names",
    0x9D: "connect to the server that the broker names",
    0x9E: "leave share= out",
}


def reason_text(code: int, properties: Mapping[int, Any] | None = None) -> str:
    """A code's name, and what the broker says beside it."""
    name = REASONS.get(code, "a reason unknown to MQTT 5")
    properties = properties or {}
    more = [properties[key] for key in (REASON_STRING, SERVER_REFERENCE) if key in properties]
    return f"{name} ({code:#04x})" + "".join(f", {text}" for text in more)


def connect_error(endpoint: str, code: int, properties: Mapping[int, Any]) -> ResilientClientError:
    """Why the broker does not let us in."""
    if code < 0x80:
        code = _OLD_CONNECT_CODES.get(code, 0x80)
    told = f"{endpoint} refuses the connection: {reason_text(code, properties)}"
    if code in _FINAL:
        return ConfigurationError(told, hint=_HINTS.get(code))
    return ConnectError(told)


def subscribe_error(
    topic: str, version: int, code: int, properties: Mapping[int, Any]
) -> ResilientClientError:
    """Why a subscription is refused."""
    told = f"the broker refuses the subscription to {topic!r}: {reason_text(code, properties)}"
    if version != 5:  # the one code it has says nothing
        return ConfigurationError(told, hint=_HINTS[0x87])
    if code in _FINAL:
        return ConfigurationError(told, hint=_HINTS.get(code))
    return ConnectError(told)


def publish_error(code: int, properties: Mapping[int, Any]) -> ResilientClientError | None:
    """Why a message was not taken; None when it was. Nothing of it was delivered."""
    if code == NO_SUBSCRIBERS:
        return NoHandlerError("nobody is subscribed to this topic", sent=False)
    if code < 0x80:
        return None
    told = f"the broker refuses the message: {reason_text(code, properties)}"
    if code in (0x96, 0x97):
        return Throttled(told, status=429, sent=False)
    if code == TOO_LARGE:
        return PayloadError(told, sent=False, hint=_HINTS[code])
    if code in _FINAL:
        return ConfigurationError(told, hint=_HINTS.get(code))
    return RemoteError(told, code=REASONS.get(code), status=503, sent=False)
