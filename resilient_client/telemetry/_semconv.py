"""OpenTelemetry's names, and ours where it has none.

From the semantic conventions 1.44.0: HTTP stable, RPC a release candidate, messaging in
development. They are spelt out because their package has the latter two only in its unstable part;
a test compares them with it.
"""

from __future__ import annotations

import re

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
SCOPE = "resilient_client"
OTHER = "_OTHER"
"""Stands for every value beyond those that are kept apart."""

ERROR_TYPE = "error.type"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"

RPC_SYSTEM_NAME = "rpc.system.name"
RPC_METHOD = "rpc.method"
RPC_METHOD_ORIGINAL = "rpc.method_original"
RPC_STATUS_CODE = "rpc.response.status_code"
RPC_CLIENT_CALL_DURATION = "rpc.client.call.duration"
RPC_SERVER_CALL_DURATION = "rpc.server.call.duration"

MESSAGING_SYSTEM = "messaging.system"
MESSAGING_OPERATION_NAME = "messaging.operation.name"
MESSAGING_OPERATION_TYPE = "messaging.operation.type"
MESSAGING_DESTINATION_NAME = "messaging.destination.name"
MESSAGING_BATCH_MESSAGE_COUNT = "messaging.batch.message_count"
MESSAGING_CLIENT_OPERATION_DURATION = "messaging.client.operation.duration"
MESSAGING_CLIENT_SENT_MESSAGES = "messaging.client.sent.messages"
MESSAGING_CLIENT_CONSUMED_MESSAGES = "messaging.client.consumed.messages"
MESSAGING_PROCESS_DURATION = "messaging.process.duration"

HTTP_REQUEST_METHOD = "http.request.method"
HTTP_REQUEST_RESEND_COUNT = "http.request.resend_count"
HTTP_RESPONSE_STATUS_CODE = "http.response.status_code"
HTTP_ROUTE = "http.route"
URL_FULL = "url.full"
URL_PATH = "url.path"
URL_SCHEME = "url.scheme"
URL_TEMPLATE = "url.template"
HTTP_CLIENT_REQUEST_DURATION = "http.client.request.duration"
HTTP_SERVER_REQUEST_DURATION = "http.server.request.duration"

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The bucket boundaries the conventions advise for every duration."""

# ---- ours: nothing standard exists for resilience ----

NAME = "resilient_client.name"
CORRELATION_ID = "resilient_client.correlation_id"
OUTCOME = "resilient_client.outcome"
REASON = "resilient_client.reason"
ATTEMPTS = "resilient_client.attempts"
ATTEMPT_NUMBER = "resilient_client.attempt.number"
ATTEMPT_TYPE = "resilient_client.attempt.type"
RETRY_DELAY = "resilient_client.retry.delay"
STREAM_MESSAGES = "resilient_client.stream.message_count"
STREAM_ABANDONED = "resilient_client.stream.abandoned"
BREAKER_NAME = "resilient_client.circuit_breaker.name"
BREAKER_STATE = "resilient_client.circuit_breaker.state"
BREAKER_FROM = "resilient_client.circuit_breaker.from"
BREAKER_TO = "resilient_client.circuit_breaker.to"

ATTEMPT_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30,
)  # fmt: skip
RETRIES = (1, 2, 3, 4, 5, 10)

_MESSAGING_SYSTEMS = {"memory": "nestjs", "tcp": "nestjs", "amqp": "rabbitmq"}
_PUBLISH_NAMES = {"memory": "emit", "tcp": "emit", "kafka": "send"}
_PORTS = {
    "http": 80, "https": 443, "tcp": 3000, "redis": 6379, "rediss": 6379, "nats": 4222,
    "amqp": 5672, "amqps": 5671, "kafka": 9092, "grpc": 50051, "grpcs": 443, "mqtt": 1883,
    "mqtts": 8883,
}  # fmt: skip


def base(scheme: str) -> str:
    """The scheme without the s of TLS."""
    return scheme[:-1] if scheme in {"https", "rediss", "amqps", "grpcs", "mqtts"} else scheme


def rpc_system(scheme: str) -> str:
    """`rpc.system.name` of a transport: Nest's protocol where nothing else is spoken."""
    name = base(scheme)
    return name if name in {"http", "grpc"} else "nestjs"


def messaging_system(scheme: str) -> str | None:
    """`messaging.system` of a transport; None where an event is a request like any other."""
    name = base(scheme)
    return None if name in {"http", "grpc"} else _MESSAGING_SYSTEMS.get(name, name)


def is_broker(scheme: str) -> bool:
    """Whether there is something between the two ends."""
    return base(scheme) not in {"memory", "tcp", "http", "grpc"}


def replies_carry_context(scheme: str) -> bool:
    """Whether a reply names the server's span: else what Node instruments begins a new trace."""
    return base(scheme) in {"amqp", "kafka"}


def publish_name(scheme: str) -> str:
    """`messaging.operation.name` of an emit: what the broker's own documentation calls it."""
    return _PUBLISH_NAMES.get(base(scheme), "publish")


_rest = re.compile(r"([A-Z]+) (/[^?]*)").match


def http_route(route: str) -> tuple[str, str]:
    """`http.request.method` and `http.route` of a pattern: a plain one is posted to."""
    match = _rest(route)
    return (match[1], match[2]) if match is not None else ("POST", f"/{route}")


def without_values(url: str) -> str:
    """The URL with the values in its query left out: they are the payload."""
    place, mark, query = url.partition("?")
    return place + mark + re.sub(r"=[^&]*", "=REDACTED", query)


def address(endpoint: str) -> tuple[str, int | None]:
    """`server.address` and `server.port` of a URL; several hosts are one address without a port.

    A URL without a host is that of a Unix domain socket: its path is the address.
    """
    scheme, _, rest = endpoint.partition("://")
    if rest.startswith("/"):
        return rest, None
    place = rest.partition("/")[0].rpartition("@")[2]
    if "," in place:
        return place, None
    host, colon, port = place.rpartition(":")
    if colon and port.isdigit() and not host.endswith(":"):
        return host.strip("[]"), int(port)
    return place.strip("[]"), _PORTS.get(scheme)
