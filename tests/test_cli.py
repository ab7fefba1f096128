"""The command line, run as its users run it: in processes of its own."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import math
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from resilient_client import ClientProxy, RemoteError, Server, TransportError
from resilient_client.cli import run
from resilient_client.cli._demo_view import View
from resilient_client.cli._output import Output
from resilient_client.cli._words import data, option, options

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.timeout(120)


async def cli(
    *words: str, text: str | None = None, cwd: Path = ROOT, **environ: str
) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "resilient_client",
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
    )
    try:
        out, err = await asyncio.wait_for(
            process.communicate(None if text is None else text.encode()), 60
        )
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def service(**caps: int) -> AsyncIterator[str]:
    server = Server("tcp://127.0.0.1:0", telemetry=False, grace=0.2, **caps)

    @server.message_pattern([{"cmd": "sum"}, "sum"])
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    @server.message_pattern("count")
    async def count(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    @server.message_pattern("fail")
    async def fail() -> None:
        raise RemoteError("no", code="E_NO")

    @server.message_pattern("echo")
    async def echo(payload: Any) -> Any:
        return payload

    @server.message_pattern("slow")
    async def slow() -> None:
        await asyncio.sleep(30)

    async with server:
        yield server.addresses[0]


async def test_call_prints_the_answer() -> None:
    async with service() as url:
        assert await cli("call", url, '{"cmd":"sum"}', "[1,2,3]") == (0, "6\n", "")
        assert await cli("call", url, "sum", "-", text="[4,5]") == (0, "9\n", "")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
async def test_what_the_terminal_cannot_show_is_escaped_as_json_escapes(encoding: str) -> None:
    async with service() as url:
        for text in ("\xfc", "\ud800"):
            code, out, err = await cli(
                "call", url, "echo", json.dumps(text), PYTHONIOENCODING=encoding
            )
            assert (code, json.loads(out), err) == (0, text, "")


def test_what_json_cannot_say_is_printed_as_the_wire_would_have_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Output(as_json=True).value(
        {"bytes": b"\x00\x01", "nan": math.nan, "big": 2**70, "half": "\ud800"}
    )
    told = json.loads(capsys.readouterr().out)
    assert told == {"bytes": "AAE=", "nan": None, "big": 2**70, "half": "\ud800"}


@pytest.mark.parametrize("as_json", [True, False])
def test_a_peers_text_does_not_steer_the_terminal(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Output(as_json=as_json)
    output.value("\x9b31m \xfc \x1b[31m")
    output.error(RemoteError("\x9b31m \x1b[31m\nforged"))
    out, err = capsys.readouterr()
    assert out.rstrip("\n").isprintable()
    assert err.rstrip("\n").isprintable()
    assert json.loads(out) == "\x9b31m \xfc \x1b[31m"


async def test_closed_standard_streams_do_no_harm() -> None:
    async with service() as url:
        process = await asyncio.create_subprocess_shell(
            f"'{sys.executable}' -m resilient_client call {url} echo 1 <&- >&- 2>&-", cwd=ROOT
        )
        assert await asyncio.wait_for(process.wait(), 60) == 0


async def test_listen_ends_when_nobody_reads_it_any_more() -> None:
    process = await asyncio.create_subprocess_shell(
        f"'{sys.executable}' -m resilient_client listen tcp://127.0.0.1:0 happened | head -n 1",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stderr is not None
    line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
    url = line.split("listening on ")[1].strip()
    async with ClientProxy(url, policies=(), telemetry=False) as client, asyncio.timeout(30):
        with pytest.raises(TransportError):
            while True:
                await client.emit("happened", 1)
                await asyncio.sleep(0.05)
        assert await process.communicate() == (b"1\n", b"")


async def test_ctrl_c_ends_listen_while_it_waits_for_its_broker() -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as broker:
        url = f"mqtt://127.0.0.1:{broker.sockets[0].getsockname()[1]}"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "resilient_client", "listen", url, "happened"), cwd=ROOT
        )
        await asyncio.wait_for(asked.wait(), 60)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 60) == 130


async def test_stream_prints_a_line_per_value_and_emit_its_receipt() -> None:
    async with service() as url:
        assert await cli("stream", url, "count", "3") == (0, "0\n1\n2\n", "")
        for words in (
            ("emit", url, "happened", '{"a":1}', "--json"),
            ("--json", "emit", url, "happened", '{"a":1}'),
        ):
            code, out, _ = await cli(*words)
            assert (code, json.loads(out)["delivery"]) == (0, "written")


async def test_exit_codes_tell_what_kind_of_failure_it_was() -> None:
    async with service() as url:
        code, out, err = await cli("call", url, "fail", "--json")
        assert (code, out) == (1, "")
        assert json.loads(err)["payload"] == {"status": "error", "message": "no", "code": "E_NO"}
        code, _, err = await cli("call", url, "slow", "--timeout", "0.5")
        assert code == 5
        assert "DeadlineExceeded" in err
        code, _, err = await cli("ping", url, "--json")
        assert code == 0
    code, _, err = await cli("call", url, "sum", "[1]", "--timeout", "1")
    assert code == 3
    assert "ConnectError" in err
    assert (await cli("ping", url))[0] == 3


@pytest.mark.parametrize(
    ("url", "word", "value"),
    [
        ("amqp://h", "queue=7", "7"),
        ("amqp://h", "queue=[7]", "[7]"),
        ("amqp://h", "durable=no", False),
        ("amqp://h", 'arguments={"x-queue-type": "quorum"}', {"x-queue-type": "quorum"}),
        ("redis://h", "password=123456", "123456"),
        ("nats://h", 'servers=["a:1", "b:2"]', ["a:1", "b:2"]),
        ("nats://h", "servers=a:1,b:2", "a:1,b:2"),
        ("mqtt://h", "version=3.1.1", "3.1.1"),
        ("tcp://h", "tls=true", True),
        ("tcp://h", "max_size=many", "many"),
    ],
)
def test_an_option_of_the_transport_is_what_it_is_in_a_url(
    url: str, word: str, value: object
) -> None:
    assert options(url, [option(word)]) == {word.partition("=")[0]: value}


def test_standard_input_may_begin_with_a_mark_and_must_be_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf[1]"), "utf-8"))
    assert data("-") == [1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"\xff"'), "utf-8"))
    with pytest.raises(argparse.ArgumentTypeError, match="not text"):
        data("-")


@pytest.mark.parametrize("written", ["utf-8", "utf-16", "utf-32"])
def test_standard_input_is_json_whatever_the_locale_is(
    monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    body = io.BytesIO('{"name":"Zo\u00eb"}'.encode(written))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(body, "cp1252"))
    assert data("-") == {"name": "Zo\u00eb"}


async def test_words_arrive_as_typed_where_the_locale_has_no_letters_for_them() -> None:
    script = (
        "import sys; from resilient_client.cli._words import data, pattern;"
        "print(ascii([pattern(sys.argv[1]), data(sys.argv[2])]))"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "utf8=0", "-c", script, "gr\u00fc\u00df", '"\U0001f388"'.encode()),
        env=os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert said == b"['gr\\xfc\\xdf', '\\U0001f388']\n"
    for word in ("\udcff", '"\udcff"'):
        with pytest.raises(argparse.ArgumentTypeError, match="not text"):
            data(word)


async def test_the_exit_code_is_true_when_nobody_reads_the_error() -> None:
    script = f"'{sys.executable}' -m resilient_client call tcp://127.0.0.1:1 x 2>&1 | true"
    process = await asyncio.create_subprocess_exec(
        *("bash", "-o", "pipefail", "-c", script), cwd=ROOT
    )
    assert await asyncio.wait_for(process.wait(), 60) == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["call", "tcp://127.0.0.1:1", "sum", "not json"], "not JSON"),
        (["call", "smoke://x", "sum"], "no transport speaks"),
        (["call", "tcp://127.0.0.1:1", "sum", "-o", "max_sise=3"], "max_size"),
        (["call", "tcp://127.0.0.1:1", "sum", "--timeout", "-1"], "not above 0"),
        (["call", "tcp://127.0.0.1:1", "sum", "-H", "token: s3cret"], "NAME=VALUE"),
        (["nonsense"], "invalid choice"),
        (["serve", "there.is.no:module"], "no module"),
        (["serve", ":server"], "names no module"),
        (["serve", ".shop:server"], "names no module"),
        (["serve", "shop.py"], "write shop:server"),
        (["serve", "./shop/main.py:app"], "write shop.main:app"),
        (["serve", "/srv/shop.py"], "change to /srv and write shop:server"),
        (["serve", "json:loads"], "is not a Server"),
        (["call", "tcp://[::1", "sum"], "usable host"),
        (["call", "tcp://127.0.0.1:1", "sum", "[" * 100_000], "not JSON"),
        (["bench", "tcp://127.0.0.1:1", "sum", "-c", "0"], "above 0"),
        (["listen", "tcp://127.0.0.1:0", "sum", "-n", "0"], "above 0"),
        (["explain", "there/is/no.toml"], "cannot be read"),
        (["demo", "--url", "memory://x"], "within one process"),
    ],
)
def test_bad_usage_is_told_at_once(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "s3cret" not in said


RUNS_ITSELF = "import logging\nlogging.basicConfig(level='INFO')\nserver.run()\n"


@pytest.mark.parametrize("end", ["", RUNS_ITSELF], ids=["served", "that runs itself"])
async def test_serve_runs_a_modules_server_until_sigterm(tmp_path: Path, end: str) -> None:
    (tmp_path / "shop.py").write_text(
        "from resilient_client import Server\n"
        "server = Server('tcp://127.0.0.1:0', telemetry=False)\n"
        "@server.message_pattern('hello')\n"
        "def hello() -> str:\n"
        f"    return 'world'\n{end}"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "resilient_client",
        "serve",
        "shop:server",
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            while b"listening on" not in (line := await process.stderr.readline()):
                assert line, "it ended"
        url = line.decode().split("listening on ")[1].strip()
        assert await cli("call", url, "hello") == (0, '"world"\n', "")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_listen_prints_events_and_bench_prints_rates() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "resilient_client", "listen", "tcp://127.0.0.1:0", "happened", "--json", "-n", "1"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stderr is not None
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
        url = line.split("listening on ")[1].strip()
        assert (await cli("emit", url, "happened", '{"n":1}'))[0] == 0
        heard: dict[str, Any] = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
        assert (heard["pattern"], heard["data"]) == ("happened", {"n": 1})
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    async with service(max_calls=2000, max_calls_per_connection=2000) as url:
        for at_once in ("4", "1100"):  # more than a client's own cap, too
            words = ("bench", url, "sum", "[1]", "-d", "0.3", "-c", at_once, "--json")
            code, out, _ = await cli(*words)
            told = json.loads(out)
            assert code == 0
            assert told["calls"] > 0
            assert told["errors"] == {}


async def test_a_terminal_of_80_by_24_shows_the_demos_news_as_they_come(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", "FORCE_COLOR": "1"}
    for name, value in terminal.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    two = ClientProxy(["tcp://127.0.0.1:10001", "tcp://127.0.0.1:10002"])
    for breaker in two.circuit_breakers.values():
        breaker.half_open()
    with View(Output(as_json=False), {}) as view:
        for number in range(30):
            view.say(f"news {number}.")
            view.tick(Counter(succeeded=50, failed=100), two)
        seen = capsys.readouterr().out
        assert all(f"news {number}." in seen for number in range(30))
    frame = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", capsys.readouterr().out)
    table = [line for line in frame.splitlines() if line.startswith(("┏", "┃", "┡", "│", "└"))]
    assert 6 < len(table) < 24 - 8
    assert max(map(len, table)) <= 80
    assert "succeeded" in frame
    assert "10001 half-open, 10002 half-open" in frame


async def test_the_demo_says_why_its_servers_do_not_start() -> None:
    code, _, err = await cli("demo", "--url", "mqtt://127.0.0.1:1")
    assert (code, err.count("\n")) == (3, 1), err
    assert "ConnectError" in err
    code, _, err = await cli("demo", "-o", "max_sise=3")
    assert (code, err.count("\n")) == (2, 1), err
    assert "did you mean 'max_size'" in err


async def test_a_demo_that_ends_while_circuits_are_open_waits_to_show_its_trace() -> None:
    code, out, err = await cli("demo", "--json", "--seconds", "1", "--rate", "60")
    assert code in (0, 1), err  # a busy machine may have answered nothing
    assert any("tree" in json.loads(line) for line in out.splitlines())


def test_the_demos_summary_has_every_kind_of_end(capsys: pytest.CaptureFixture[str]) -> None:
    View(Output(as_json=True), {}).summary(1, Counter(succeeded=1), Counter())
    assert json.loads(capsys.readouterr().out) == {
        "started": 1, "counted": 1, "succeeded": 1, "retried": 0, "failed": 0, "rejected": 0,
        "errors": {},
    }  # fmt: skip


async def test_the_demo_plays_its_scene_and_its_numbers_add_up() -> None:
    code, out, err = await cli("demo", "--json", "--seconds", "7", "--rate", "60")
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    news = [line["news"] for line in lines if "news" in line]
    assert 'send("demo.sum", [1, 2, 3]) = 6' in news
    assert any("SIGKILL to alpha" in each for each in news)
    assert any("closed -> open" in each for each in news)
    assert any("started again" in each for each in news)
    summary = lines[-1]
    kinds = ("succeeded", "retried", "failed", "rejected")
    assert summary["started"] == summary["counted"] == sum(summary[kind] for kind in kinds)
    assert summary["succeeded"] > 0
    assert summary["rejected"] > 0
    (trace,) = (line["tree"] for line in lines if "tree" in line)
    assert any("[client]" in line for line in trace)
    assert any("[alpha]" in line or "[beta]" in line for line in trace)
