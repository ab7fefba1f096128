"""HTTP has conventions of its own: one request, one span, named by method and template."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry.trace import StatusCode

from resilient_client import (
    ClientProxy,
    ConnectionLost,
    NoHandlerError,
    RemoteError,
    ResilientClientError,
    Retry,
    Server,
)
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


def serve(recorded: Recorded) -> Server:
    server = Server("http://127.0.0.1:0/api", telemetry=recorded.settings)
    failures = [503]

    @server.message_pattern("GET /users/{id}")
    async def user(query: dict[str, Any]) -> dict[str, Any]:
        if failures:
            raise RemoteError("later", status=failures.pop(), code="E_LATER")
        return query

    @server.message_pattern("sum")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    @server.message_pattern("refuse")
    async def refuse() -> None:
        raise RemoteError("no", code="E_NO", status=409)

    @server.message_pattern("fail")
    async def fail() -> None:
        raise KeyError("secret")

    @server.message_pattern("count")
    async def count(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i
        if n == 2:
            raise KeyError("secret")

    @server.event_pattern("told")
    async def told() -> None:
        raise KeyError("secret")

    return server


async def test_over_the_network_each_request_is_the_parent_of_the_servers_span(
    recorded: Recorded,
) -> None:
    server = serve(recorded)
    async with server:
        base = server.addresses[0]
        async with ClientProxy(base, telemetry=recorded.settings) as caller:
            await caller.send("GET /users/{id}", {"id": 7, "token": "s3cret"})
    assert recorded.tree() == (
        "CLIENT GET /users/{id}\n"
        "  CLIENT GET /api/users/{id} ! 503\n"
        "    SERVER GET /users/{id} ! 503\n"
        "  CLIENT GET /api/users/{id}\n"
        "    SERVER GET /users/{id}"
    )
    *_, asked, served = sorted(recorded.spans, key=lambda each: each.start_time or 0)
    host, port = base.removeprefix("http://").removesuffix("/api").split(":")
    own = attributes(asked)
    assert own.pop("resilient_client.retry.delay") >= 0
    assert own == {
        "http.request.method": "GET",
        "http.request.resend_count": 1,
        "http.response.status_code": 200,
        "url.template": "/api/users/{id}",
        "url.full": f"{base}/users/7?token=REDACTED",
        "server.address": host,
        "server.port": int(port),
    }
    assert attributes(served)["http.response.status_code"] == 200
    assert recorded.value("http.client.request.duration", http__response__status_code=503) == 1
    assert recorded.value("http.server.request.duration", http__response__status_code=503) == 1


@pytest.mark.parametrize(
    ("pattern", "data", "status", "ours", "servers"),
    [
        ("sum", [1, 2], 200, None, None),
        ("refuse", None, 409, "409", None),
        ("fail", None, 500, "500", "KeyError"),
        ("sum", "no list", 422, "422", None),
    ],
)
async def test_both_ends_tell_the_status_that_was_sent(
    recorded: Recorded, pattern: str, data: Any, status: int, ours: str | None, servers: str | None
) -> None:
    server = serve(recorded)
    async with (
        server,
        ClientProxy(server.addresses[0], policies=(), telemetry=recorded.settings) as caller,
    ):
        with contextlib.suppress(ResilientClientError):
            await caller.send(pattern, data)
    for span, failure in (
        (recorded.named(f"POST /api/{pattern}", "CLIENT"), ours),
        (recorded.named(f"POST /{pattern}", "SERVER"), servers),
    ):
        assert attributes(span)["http.response.status_code"] == status
        assert attributes(span).get("error.type") == failure
        assert (span.status.status_code is StatusCode.ERROR) is (failure is not None)


@pytest.mark.parametrize(("n", "failure"), [(0, None), (3, None), (2, "KeyError")])
async def test_a_streams_status_is_the_one_that_was_sent_before_its_first_value(
    recorded: Recorded, n: int, failure: str | None
) -> None:
    server = serve(recorded)
    async with (
        server,
        ClientProxy(server.addresses[0], policies=(), telemetry=recorded.settings) as caller,
    ):
        with contextlib.suppress(RemoteError):
            assert [i async for i in caller.stream("count", n)] == list(range(n))
    served = attributes(recorded.named("POST /count", "SERVER"))
    assert served["http.response.status_code"] == 200
    assert served.get("error.type") == failure
    asked = attributes(recorded.named("POST /api/count"))
    assert asked["http.response.status_code"] == 200
    assert asked["resilient_client.stream.message_count"] == n


async def test_a_stream_that_is_left_says_so_on_its_only_request(recorded: Recorded) -> None:
    server = serve(recorded)
    async with (
        server,
        ClientProxy(server.addresses[0], policies=(), telemetry=recorded.settings) as caller,
    ):
        async with caller.stream("count", 9) as items:
            await anext(items)
    asked = attributes(recorded.named("POST /api/count"))
    assert asked["resilient_client.stream.message_count"] == 1
    assert asked["resilient_client.stream.abandoned"] is True


async def test_a_path_that_nobody_handles_is_counted_and_names_no_route(recorded: Recorded) -> None:
    server = serve(recorded)
    async with (
        server,
        ClientProxy(server.addresses[0], policies=(), telemetry=recorded.settings) as caller,
    ):
        with pytest.raises(NoHandlerError):
            await caller.send("nobody/there", [1])
    asked, served = recorded.named("POST /api/nobody/there"), recorded.named("POST", "SERVER")
    assert served.parent is not None
    assert served.parent.span_id == asked.context.span_id
    assert served.status.status_code is StatusCode.UNSET
    assert attributes(served) == {
        "http.request.method": "POST",
        "http.response.status_code": 404,
        "url.path": "/api/nobody/there",
        "url.scheme": "http",
    }
    reason = {"resilient_client__reason": "no_handler"}
    assert recorded.value("resilient_server.rejections", **reason) == 1


async def test_an_event_whose_handler_fails_was_accepted_and_has_failed(
    recorded: Recorded,
) -> None:
    server = serve(recorded)
    async with server:
        async with ClientProxy(
            server.addresses[0], policies=(), telemetry=recorded.settings
        ) as caller:
            await caller.emit("told")
    served = attributes(recorded.named("POST /told", "SERVER"))
    assert served["http.response.status_code"] == 202
    assert served["error.type"] == "KeyError"


async def test_an_instrumented_client_finds_the_requests_span_as_its_parent(
    recorded: Recorded,
) -> None:
    import httpx
    from opentelemetry import trace

    seen: list[int] = []

    def answer(_: httpx.Request) -> httpx.Response:
        seen.append(trace.get_current_span().get_span_context().span_id)
        return httpx.Response(200, json=1)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as theirs:
        caller = ClientProxy("http://api.example", client=theirs, telemetry=recorded.settings)
        await caller.send("GET /users")
        await caller.aclose()
    request = recorded.spans[0]
    assert seen == [request.context.span_id]
    assert attributes(request)["http.response.status_code"] == 200


def _at_once() -> Any:
    while True:
        yield 0
