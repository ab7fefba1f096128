"""http:// with both ends ours, and our server as strangers see it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from typing import Any

import httpx
import pytest

from resilient_client import (
    ClientProxy,
    ConfigurationError,
    Context,
    InvalidPayloadError,
    NoHandlerError,
    PayloadError,
    RemoteError,
    Server,
    Throttled,
)
from resilient_client.testing import check_transport
from tests.peers.brokers import require_peer

LOCAL = "http://127.0.0.1:0"


def server(*urls: str, **options: Any) -> Server:
    made = Server(*(urls or (LOCAL,)), telemetry=False, **options)

    @made.message_pattern("echo")
    async def echo(payload: Any) -> Any:
        return payload

    @made.message_pattern({"cmd": "sum"})
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    @made.message_pattern("fail")
    async def fail(payload: dict[str, Any]) -> None:
        raise RemoteError("no", **payload)

    @made.message_pattern("bug")
    async def bug() -> None:
        raise KeyError("a secret")

    @made.message_pattern("count")
    async def count(n: int):
        for i in range(n):
            yield i

    @made.message_pattern("torn")
    async def torn(n: int):
        for i in range(n):
            yield i
        raise RemoteError("torn", code="E_TORN")

    @made.message_pattern("headers")
    async def headers(context: Context) -> dict[str, str]:
        return dict(context.headers)

    @made.message_pattern("busy")
    async def busy() -> None:
        raise Throttled("later", retry_after=0.25)

    @made.event_pattern("happened")
    async def happened(payload: Any) -> None:
        made.seen.append(payload)  # type: ignore[attr-defined]

    made.seen = []  # type: ignore[attr-defined]
    return made


@contextlib.asynccontextmanager
async def both(**options: Any):
    async with server(**options) as made:
        async with ClientProxy(made.addresses[0], policies=(), telemetry=False) as client:
            yield client, made


@contextlib.asynccontextmanager
async def raw(**options: Any):
    async with server(**options) as made:
        async with httpx.AsyncClient(base_url=made.addresses[0], trust_env=False) as client:
            yield client, made


async def test_it_keeps_every_promise_of_a_transport():
    await check_transport(LOCAL)


# ------------------------------------------------------------------------------- both ends ours


async def test_errors_arrive_with_code_status_and_payload():
    async with both() as (client, _):
        with pytest.raises(RemoteError) as caught:
            await client.send("fail", {"code": "E_X", "status": 409})
        assert (caught.value.code, caught.value.status, caught.value.message) == ("E_X", 409, "no")
        assert caught.value.payload == {"status": 409, "message": "no", "code": "E_X"}
        with pytest.raises(RemoteError) as caught:
            await client.send("fail", {})
        assert caught.value.status == 400
        assert caught.value.payload == {"status": "error", "message": "no"}
        with pytest.raises(Throttled) as throttled:
            await client.send("busy")
        assert (throttled.value.retry_after, throttled.value.status) == (0.25, 429)
        with pytest.raises(NoHandlerError) as nobody:
            await client.send("nobody")
        assert nobody.value.sent
        with pytest.raises(InvalidPayloadError):
            await client.send({"cmd": "sum"}, ["x"])


async def test_an_error_after_some_values_comes_after_them():
    async with both() as (client, _):
        got = []
        with pytest.raises(RemoteError) as caught:
            async for each in client.stream("torn", 3):
                got.append(each)  # noqa: PERF401
        assert got == [0, 1, 2]
        assert caught.value.code == "E_TORN"


async def test_an_event_is_accepted_and_says_how_many_heard_it(caplog: pytest.LogCaptureFixture):
    async with both() as (client, made):
        receipt = await client.emit("happened", {"a": 1})
        assert (receipt.delivery, receipt.receivers) == ("accepted", 1)
        for _ in range(200):
            if made.seen:
                break
            await asyncio.sleep(0.01)
        assert made.seen == [{"a": 1}]
        assert (await client.emit("nobody hears", 1)).receivers == 0
        assert caplog.messages == ["nobody handles the event 'nobody hears'"]


async def test_headers_may_hold_any_letters_but_not_frame_the_message():
    async with both() as (client, _):
        told = await client.send("headers", headers={"x-name": "Zoë 你好"})
        assert told["x-name"] == "Zoë 你好"
        for name in ("content-length", "transfer-encoding", "connection", "a b", "a:b"):
            with pytest.raises(PayloadError) as caught:
                await client.send("headers", headers={name: "1"})
            assert not caught.value.sent, name


@pytest.mark.parametrize("base", ["/a%20b", "/gr%C3%B6%C3%9Fe", "/größe"])
async def test_a_base_path_may_be_percent_encoded(base: str):
    async with server(f"http://127.0.0.1:0{base}") as made:
        async with ClientProxy(made.addresses[0], policies=(), telemetry=False) as client:
            assert await client.send("echo", 1) == 1


async def test_a_base_path_stands_before_every_route():
    async with server("http://127.0.0.1:0/api/v1/") as made:
        assert made.addresses[0].endswith("/api/v1")
        async with ClientProxy(made.addresses[0], policies=(), telemetry=False) as client:
            assert await client.send("echo", 1) == 1
        async with httpx.AsyncClient(trust_env=False) as other:
            root = made.addresses[0].removesuffix("/api/v1")
            assert (await other.post(f"{root}/echo", json=1)).status_code == 404
            assert (await other.post(f"{root}/api/v1/echo", json=1)).json() == 1


# ----------------------------------------------------------------------- as strangers see it


async def test_a_stranger_posts_json_and_gets_json():
    async with raw() as (http, _):
        answer = await http.post("/echo", json={"a": [1, None]})
        assert (answer.status_code, answer.json()) == (200, {"a": [1, None]})
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-correlation-id"]
        assert "date" in answer.headers
        known = await http.post("/echo", json=1, headers={"X-Correlation-Id": "mine"})
        assert known.headers["x-correlation-id"] == "mine"
        assert (await http.post("/echo")).json() is None
        assert (await http.post("/%7B%22cmd%22:%22sum%22%7D", json=[1, 2])).json() == 3
        assert (await http.post('/{"cmd": "sum"}', json=[1, 2])).json() == 3


async def test_statuses_say_what_went_wrong():
    async with raw(max_size=1000) as (http, _):

        async def status(path: str, method: str = "POST", **request: Any) -> int:
            return (await http.request(method, path, **request)).status_code

        assert await status("/nobody", json=1) == 404
        assert await status("/echo", method="GET") == 405
        assert await status("/%7B%22cmd%22:%22sum%22%7D", json=["x"]) == 422
        assert await status("/echo", content=b"{nope") == 422
        assert await status("/echo", content=b"a=1", headers={"content-type": "text/plain"}) == 415
        packed = await http.post("/echo", json=1, headers={"content-encoding": "gzip"})
        assert (packed.status_code, packed.headers["accept-encoding"]) == (415, "identity")
        assert await status("/echo", json=1, headers={"content-encoding": "identity"}) == 200
        assert await status("/echo", json="x" * 1000) == 413
        assert await status("/bug") == 500
        assert await status("/fail", json={"status": 418}) == 418
        assert await status("/fail", json={"status": 200}) == 400
        busy = await http.post("/busy")
        assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
        assert (await http.get("/echo")).headers["allow"] == "POST, OPTIONS"


@pytest.mark.parametrize("told", [True, False])
async def test_a_client_that_sends_too_much_reads_why_it_is_refused(told: bool):
    async def pieces():
        for _ in range(80):
            yield b"x" * 2**16

    async with raw(max_size=2**20) as (http, _):
        for _ in range(3):
            content: Any = b"x" * (5 * 2**20) if told else pieces()
            assert (await http.post("/echo", content=content)).status_code == 413


async def test_a_stranger_reads_a_stream_as_events():
    async with raw() as (http, _):
        answer = await http.post("/count", json=2)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.text == "data: 0\n\ndata: 1\n\nevent: end\ndata: \n\n"
        first = await http.post("/count", json=2, headers={"accept": "application/json"})
        assert first.json() == 0
        none = await http.post("/count", json=0, headers={"accept": "application/json"})
        assert none.status_code == 204


async def test_curl_is_understood():
    curl = shutil.which("curl")
    require_peer(None if curl else "curl is not installed")
    assert curl is not None
    async with server() as made:
        process = await asyncio.create_subprocess_exec(
            curl, "-s", "--noproxy", "*", "--max-time", "20",
            "-H", "content-type: application/json",
            "-d", "[1,2,3]", "--globoff", f'{made.addresses[0]}/%7B"cmd":"sum"%7D',
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert out == b"6"


async def test_an_extra_that_is_missing_names_the_line_to_type(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(ConfigurationError, match=r"pip install .resilient-client\[http-server\]"):
        Server(LOCAL, telemetry=False)
