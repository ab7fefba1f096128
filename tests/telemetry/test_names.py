"""Names, settings, and what must not be in them."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_client import ClientProxy, ConfigurationError, ConnectError, Server, Telemetry
from resilient_client.events import Suppressed
from resilient_client.policies._circuit.states import Reason
from resilient_client.telemetry import _semconv as names
from resilient_client.telemetry._client import _SUPPRESSED
from resilient_client.telemetry._errors import _NAMES
from resilient_client.telemetry._metrics import Instruments
from resilient_client.testing import ScriptedTransport
from tests.telemetry.kit import Recorded

ROOT = Path(__file__).resolve().parents[2]
STANDARD = {
    "attributes.error_attributes": ["ERROR_TYPE"],
    "attributes.server_attributes": ["SERVER_ADDRESS", "SERVER_PORT"],
    "attributes.http_attributes": [
        "HTTP_REQUEST_METHOD",
        "HTTP_REQUEST_RESEND_COUNT",
        "HTTP_RESPONSE_STATUS_CODE",
        "HTTP_ROUTE",
    ],
    "attributes.url_attributes": ["URL_FULL", "URL_PATH", "URL_SCHEME"],
    "_incubating.attributes.url_attributes": ["URL_TEMPLATE"],
    "_incubating.attributes.rpc_attributes": [
        "RPC_SYSTEM_NAME",
        "RPC_METHOD",
        "RPC_METHOD_ORIGINAL",
        "RPC_RESPONSE_STATUS_CODE",
    ],
    "_incubating.attributes.messaging_attributes": [
        "MESSAGING_SYSTEM",
        "MESSAGING_OPERATION_NAME",
        "MESSAGING_OPERATION_TYPE",
        "MESSAGING_DESTINATION_NAME",
    ],
    "metrics.http_metrics": ["HTTP_CLIENT_REQUEST_DURATION", "HTTP_SERVER_REQUEST_DURATION"],
    "_incubating.metrics.rpc_metrics": ["RPC_CLIENT_CALL_DURATION", "RPC_SERVER_CALL_DURATION"],
    "_incubating.metrics.messaging_metrics": [
        "MESSAGING_CLIENT_OPERATION_DURATION",
        "MESSAGING_CLIENT_SENT_MESSAGES",
        "MESSAGING_CLIENT_CONSUMED_MESSAGES",
        "MESSAGING_PROCESS_DURATION",
    ],
}
OURS = {"RPC_RESPONSE_STATUS_CODE": "RPC_STATUS_CODE"}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, each in STANDARD.items() for name in each]
)
def test_each_standard_name_is_what_the_conventions_call_it(module: str, name: str) -> None:
    home = import_module(f"opentelemetry.semconv.{module}")
    assert getattr(names, OURS.get(name, name)) == getattr(home, name)


def test_the_reference_lists_every_metric_attribute_reason_and_kind_of_error() -> None:
    page = (ROOT / "docs" / "reference" / "telemetry.md").read_text("utf-8")

    made: set[str] = set()

    class Collects:
        def __getattr__(self, _: str) -> Any:
            return lambda name, *rest, **named: made.add(name)

    Instruments(Collects())
    table = page.partition("## Metrics")[2]
    assert set(re.findall(r"^\| `([a-z_.]+)` \|", table, re.MULTILINE)) == made
    attributes = {
        value
        for name, value in vars(names).items()
        if name.isupper() and isinstance(value, str) and "." in value and "://" not in value
    }
    told = {*re.findall(r"`([a-z_.]+)`", page)}
    told |= {f"resilient_client.circuit_breaker{short}" for short in told if short[0] == "."}
    assert attributes - told == set()
    assert {*get_args(Reason), *(_SUPPRESSED.get(s, s) for s in get_args(Suppressed))} <= told
    assert {*_NAMES.values()} <= told


def test_the_schema_is_the_one_the_names_are_from() -> None:
    schemas = import_module("opentelemetry.semconv.schemas")
    assert names.SCHEMA_URL in {each.value for each in schemas.Schemas}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("tcp://127.0.0.1:3001", ("127.0.0.1", 3001)),
        ("tcp://host", ("host", 3000)),
        ("tcp://[::1]:3001", ("::1", 3001)),
        ("tcp://[::1]", ("::1", 3000)),
        ("https://api.example/base/path", ("api.example", 443)),
        ("memory://bus", ("bus", None)),
        ("amqp://user:p%40ss@mq:5672/vhost", ("mq", 5672)),
        ("kafka://a:9092,b:9092", ("a:9092,b:9092", None)),
        ("nats://", ("", 4222)),
        ("unix:///run/service.sock", ("/run/service.sock", None)),
    ],
)
def test_an_address_is_taken_from_the_url(url: str, expected: tuple[str, int | None]) -> None:
    assert names.address(url) == expected


@given(st.text(), st.text(), st.text())
def test_no_url_breaks_it_or_shows_its_password(scheme: str, user: str, rest: str) -> None:
    host, _ = names.address(f"{scheme}://{user}:hunter2@host/{rest}")
    if "/" not in user and "://" not in scheme and "/" not in scheme:
        assert "hunter2" not in host


@pytest.mark.parametrize(
    ("scheme", "rpc", "messaging", "publish"),
    [
        ("tcp", "nestjs", "nestjs", "emit"),
        ("memory", "nestjs", "nestjs", "emit"),
        ("rediss", "nestjs", "redis", "publish"),
        ("nats", "nestjs", "nats", "publish"),
        ("amqps", "nestjs", "rabbitmq", "publish"),
        ("mqtt", "nestjs", "mqtt", "publish"),
        ("kafka", "nestjs", "kafka", "send"),
        ("https", "http", None, "publish"),
        ("grpc", "grpc", None, "publish"),
    ],
)
def test_each_transport_has_its_systems(
    scheme: str, rpc: str, messaging: str | None, publish: str
) -> None:
    assert names.rpc_system(scheme) == rpc
    assert names.messaging_system(scheme) == messaging
    assert names.publish_name(scheme) == publish


async def test_a_transport_may_name_its_own_systems(recorded: Recorded) -> None:
    transport = ScriptedTransport([1])
    transport.rpc_system = "dubbo"  # type: ignore[attr-defined]
    client = ClientProxy(transport, policies=(), telemetry=recorded.settings)
    await client.send("sum")
    assert dict(recorded.spans[0].attributes or {})["rpc.system.name"] == "dubbo"


async def test_on_a_broker_the_destination_is_told_on_the_span_and_not_on_the_metric(
    recorded: Recorded,
) -> None:
    client = ClientProxy(
        ScriptedTransport([1, 1], endpoint="amqp://mq/math"),
        policies=(),
        telemetry=recorded.settings,
    )
    await client.send("sum")
    await client.emit("happened")
    first, second = (dict(each.attributes or {}) for each in recorded.spans)
    assert first["messaging.system"] == "rabbitmq"
    assert first["messaging.destination.name"] == "sum"
    ((labels, _),) = recorded.points("rpc.client.call.duration")
    assert set(labels) == {"rpc.system.name", "rpc.method", "server.address", "server.port"}
    assert recorded.spans[1].name == "publish happened"
    assert second["messaging.operation.name"] == "publish"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"trust_context": "maybe"}, "there are parent, link, ignore"),
        ({"attempt_spans": True}, "there are auto, always, never"),
        ({"tracer_provider": "x"}, "no get_tracer"),
        ({"meter_provider": 1}, "no get_meter"),
        ({"propagator": {}}, "no inject"),
        ({"baggage_keys": "tenant"}, "baggage_keys"),
        ({"baggage_keys": [1]}, "baggage_keys"),
        ({"baggage_keys": 1}, "baggage_keys"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        Telemetry(**given)


@pytest.mark.parametrize("make", [ClientProxy, Server])
def test_only_a_bool_or_settings_turn_it_on(make: Any) -> None:
    with pytest.raises(ConfigurationError, match="neither True, False nor a Telemetry"):
        make("memory://x", telemetry="yes")


async def test_no_secret_is_in_any_span_or_metric(recorded: Recorded) -> None:
    secret = "s3cr3t"
    transport = ScriptedTransport(
        [
            ConnectError(f"amqp://user:{secret}@mq refused"),
            lambda call: {"password": secret},
        ],
        endpoint="amqp://mq:5672",
    )
    client = ClientProxy(
        transport,
        headers={"authorization": f"Bearer {secret}"},
        telemetry=recorded.settings,
    )
    for _ in range(2):
        await client.send(
            "login",
            {"password": secret},
            headers={"cookie": secret, "baggage": f"token={secret}"},
            idempotency_key=secret,
        )
        transport._answers.append({"x": 1})
    everything = json.dumps([json.loads(each.to_json()) for each in recorded.spans])
    everything += str(recorded.metrics())
    assert len(recorded.spans) > 2
    assert secret not in everything
