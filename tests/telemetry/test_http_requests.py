"""HTTP has conventions of its own: one request, one span, named by method and template."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.trace import StatusCode

from resilient_client import ClientProxy, ConnectionLost, RemoteError, Retry
from resilient_client.message import Call, Reply
from resilient_client.testing import ScriptedTransport
from tests.telemetry.kit import Recorded, attributes


class Requests(ScriptedTransport):
    """A script that says it makes HTTP requests: integers are statuses."""

    def http_request(self, call: Call) -> tuple[str, str, str]:
        verb, _, path = call.route.partition(" ")
        return verb, path, f"http://api.example:8080/base{path}?token=s3cret&b=2"

    async def request(self, call: Call) -> Reply:
        reply = await super().request(call)
        call.status = int(reply.body)
        if call.status >= 300:
            raise RemoteError("it says no", status=call.status)
        return reply


def client(recorded: Recorded, *answers: Any, policies: Any = (), **given: Any) -> ClientProxy:
    transport = Requests(answers, endpoint="http://api.example:8080/base")
    return ClientProxy(transport, policies=policies, telemetry=recorded.but(**given))


async def test_a_request_that_is_not_repeated_is_the_only_span(recorded: Recorded) -> None:
    await client(recorded, 200).send("GET /users/{id}", {"id": 1})
    assert recorded.tree() == "CLIENT GET /users/{id}"
    (span,) = recorded.spans
    known = attributes(span)
    assert len(known.pop("resilient_client.correlation_id")) == 32
    assert known == {
        "http.request.method": "GET",
        "url.template": "/users/{id}",
        "server.address": "api.example",
        "server.port": 8080,
        "url.full": "http://api.example:8080/base/users/{id}?token=REDACTED&b=REDACTED",
        "http.response.status_code": 200,
    }
    assert recorded.value("rpc.client.call.duration") == 1
    labels = {
        "http.request.method": "GET",
        "url.template": "/users/{id}",
        "server.address": "api.example",
        "server.port": 8080,
        "http.response.status_code": 200,
    }
    assert recorded.points("http.client.request.duration") == [(labels, 1)]


async def test_a_call_that_may_be_repeated_stands_above_its_requests(recorded: Recorded) -> None:
    caller = client(
        recorded, 503, ConnectionLost("cut"), 200, policies=[Retry(jitter=None, wait=_at_once)]
    )
    await caller.send("GET /users", idempotent=True)
    assert recorded.tree() == (
        "CLIENT GET /users\n"
        "  CLIENT GET /users ! 503\n"
        "  CLIENT GET /users ! connection_lost\n"
        "  CLIENT GET /users"
    )
    call, *requests = sorted(recorded.spans, key=lambda each: each.start_time or 0)
    assert attributes(call)["rpc.system.name"] == "http"
    resends = [attributes(each).get("http.request.resend_count") for each in requests]
    assert resends == [None, 1, 2]
    assert recorded.points("resilient_client.attempt.duration") == []
    durations = recorded.points("http.client.request.duration")
    assert [labels.get("error.type") for labels, _ in durations] == ["503", "connection_lost", None]


@pytest.mark.parametrize(("status", "failed"), [(302, False), (404, True), (500, True)])
async def test_the_status_says_whether_it_failed(
    recorded: Recorded, status: int, failed: bool
) -> None:
    with pytest.raises(RemoteError):
        await client(recorded, status).send("GET /users")
    (span,) = recorded.spans
    assert (span.status.status_code is StatusCode.ERROR) is failed
    assert attributes(span).get("error.type") == (str(status) if failed else None)
    assert attributes(span)["http.response.status_code"] == status


async def test_with_attempt_spans_never_the_call_is_current_for_an_instrumented_client(
    recorded: Recorded,
) -> None:
    from opentelemetry import trace

    seen: list[int] = []

    def answer(_: Call) -> int:
        seen.append(trace.get_current_span().get_span_context().span_id)
        return 200

    await client(recorded, answer, attempt_spans="never").send("GET /users")
    (span,) = recorded.spans
    assert attributes(span)["rpc.method"] == "GET /users"
    assert seen == [span.context.span_id]
    assert not trace.get_current_span().get_span_context().is_valid


def _at_once() -> Any:
    while True:
        yield 0
