"""How a server begins and ends: signals, threads, the grace time, what fails on the way."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from resilient_client import (
    ClientProxy,
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    Server,
    SyncClientProxy,
    Throttled,
)
from tests.peers.process import free_port
from tests.waiting import eventually

PROGRAM = """
import asyncio, sys, time
from contextlib import asynccontextmanager
from pathlib import Path
from resilient_client import ClientProxy, Server

@asynccontextmanager
async def lifespan(server):
    print("starting", flush=True)
    {starting}
    asyncio.get_running_loop().call_later(0.1, asyncio.ensure_future, calls())
    yield
    print("closed", flush=True)

server = Server("memory://life", grace={grace}, lifespan=lifespan)

async def calls():
    async with ClientProxy("memory://life") as client:
        try:
            await client.send("work", timeout=60)
        except Exception as error:
            print(type(error).__name__, flush=True)

@server.message_pattern("work")
{handler}

server.run()
print("ended", flush=True)
"""
ASYNC = """
async def work():
    print("working", flush=True)
    await asyncio.sleep(60)
"""
WINDOWS = f"""{ASYNC}
class Loop(asyncio.SelectorEventLoop):
    def add_signal_handler(self, *_):
        raise NotImplementedError

sys.modules["resilient_client.server"].fast_loop_factory = lambda: Loop
"""
PLAIN = """
def work():
    print("working", flush=True)
    time.sleep(60)
"""


def program(
    tmp_path: Path, *, handler: str = ASYNC, grace: float = 30.0, starting: str = "pass"
) -> subprocess.Popen[str]:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM.format(handler=handler, grace=grace, starting=starting))
    return subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True)


def read_until(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    pytest.fail(f"the program ended before it said {word!r}")


def end(process: subprocess.Popen[str], within: float) -> list[str]:
    """What it still says, without what becomes of its call."""
    try:
        out, _ = process.communicate(timeout=within)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    return [line for line in out.split() if line != "ConnectionLost"]


def test_a_plain_function_does_not_keep_the_process_beyond_the_grace_time(tmp_path: Path) -> None:
    process = program(tmp_path, handler=PLAIN, grace=0.2)
    read_until(process, "working")
    process.send_signal(signal.SIGTERM)
    assert end(process, within=10) == ["closed", "ended"]


def test_a_second_ctrl_c_ends_the_grace_time(tmp_path: Path) -> None:
    process = program(tmp_path)
    read_until(process, "working")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert end(process, within=10) == ["closed", "ended"]


def test_a_second_sigterm_does_not(tmp_path: Path) -> None:
    process = program(tmp_path, grace=2)
    read_until(process, "working")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert end(process, within=10) == ["closed", "ended"]
    assert time.monotonic() - began > 1.9


def test_ctrl_c_drains_where_loops_handle_no_signals(tmp_path: Path) -> None:
    process = program(tmp_path, handler=WINDOWS, grace=0.2)
    read_until(process, "working")
    process.send_signal(signal.SIGINT)
    assert end(process, within=10) == ["closed", "ended"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_start_that_hangs(tmp_path: Path, number: signal.Signals) -> None:
    process = program(tmp_path, starting="await asyncio.sleep(60)")
    read_until(process, "starting")
    process.send_signal(number)
    assert end(process, within=10) == ["ended"]


def test_run_works_in_a_thread_and_ends_by_shutdown() -> None:
    server = Server("tcp://127.0.0.1:0", telemetry=False)
    server.shutdown()  # nothing runs yet: that is no reason not to begin

    @server.message_pattern("echo")
    async def echo(payload: int) -> int:
        return payload

    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while server.addresses[0].endswith(":0") and time.monotonic() < deadline:
        time.sleep(0.01)
    with SyncClientProxy(server.addresses[0], telemetry=False) as client:
        assert client.send("echo", 1, timeout=5) == 1
    server.shutdown()
    thread.join(10)
    assert not thread.is_alive()
    server.shutdown()


def test_run_gives_the_signals_back_to_whom_they_belonged() -> None:
    heard: list[int] = []

    def mine(number: int, frame: object) -> None:
        heard.append(number)

    server = Server("memory://signals", telemetry=False)

    @server.message_pattern("end")
    async def end() -> None:
        signal.raise_signal(signal.SIGTERM)

    def ask() -> None:
        client = SyncClientProxy("memory://signals", telemetry=False)
        while client.ping(1).error is not None:  # it has not begun
            time.sleep(0.01)
        client.send("end")
        client.close()

    before = [signal.signal(number, mine) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        thread = threading.Thread(target=ask)
        thread.start()
        server.run()
        thread.join()
        assert heard == []
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert heard == [signal.SIGTERM, signal.SIGINT]
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


async def test_run_within_a_running_loop_says_what_to_write_instead() -> None:
    with pytest.raises(ConfigurationError, match=r"await server\.serve"):
        Server("memory://within").run()


async def test_a_lifespan_that_was_never_entered_is_not_left() -> None:
    steps: list[str] = []

    class Life:
        async def __aenter__(self) -> None:
            steps.append("enter")
            raise ValueError("no database")

        async def __aexit__(self, *error: object) -> None:
            steps.append("exit")

    with pytest.raises(ValueError, match="no database"):
        await Server("memory://never", lifespan=lambda _: Life()).start()
    assert steps == ["enter"]


@pytest.mark.parametrize("scheme", ["tcp", "http", "health"])
async def test_a_start_that_is_cancelled_at_any_moment_leaves_its_port_free(scheme: str) -> None:
    place = f"127.0.0.1:{free_port()}"
    if scheme == "health":
        server = Server("memory://cancelled-start", health=f"http://{place}", telemetry=False)
    else:
        server = Server(f"{scheme}://{place}", telemetry=False)
    for turns in range(20):
        starting = asyncio.ensure_future(server.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait({starting})
        await server.aclose()
    async with server:
        pass


async def test_a_drain_that_is_cancelled_still_closes_everything() -> None:
    ended: list[str] = []
    server = Server("tcp://127.0.0.1:0", grace=60, telemetry=False, lifespan=lambda _: Life())
    working = asyncio.Event()

    class Life:
        async def __aenter__(self) -> None:
            pass

        async def __aexit__(self, *error: object) -> None:
            ended.append("lifespan")

    @server.message_pattern("work")
    async def work() -> None:
        working.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("handler")

    await server.start()
    async with ClientProxy(server.addresses[0], policies=(), telemetry=False) as client:
        call = asyncio.ensure_future(client.send("work"))
        await working.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await server.aclose()
        assert ended == ["handler", "lifespan"]
        with pytest.raises(ConnectionLost):
            await call
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(server.addresses[0].rpartition(":")[2]))


@pytest.mark.parametrize("step", ["stop", "aclose"])
async def test_a_listener_is_closed_to_its_end_also_where_closing_is_cancelled(step: str) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    done: list[str] = []

    class Listener:
        address = "slow://here"

        async def start(self) -> None:
            pass

        async def stop(self) -> None:
            await self.do("stop")

        async def aclose(self) -> None:
            await self.do("aclose")

        async def do(self, what: str) -> None:
            if what == step:
                begun.set()
                await go_on.wait()  # for an answer of its broker's, say
            done.append(what)

    server = Server(lambda _: Listener(), "memory://slow", grace=60, telemetry=False)
    working = asyncio.Event()

    @server.message_pattern("work")
    async def work() -> None:
        working.set()
        await asyncio.sleep(60)

    await server.start()
    async with ClientProxy("memory://slow", policies=(), telemetry=False) as client:
        call = asyncio.ensure_future(client.send("work"))
        if step == "stop":
            await working.wait()
        else:
            call.cancel()
        closing = asyncio.ensure_future(server.aclose())
        await begun.wait()
        closing.cancel()
        asyncio.get_running_loop().call_soon(go_on.set)
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(10):  # not the grace time
                await closing
        await asyncio.gather(call, return_exceptions=True)
    assert done == ["stop", "aclose"]
    await server.start()
    await server.aclose()
    assert done == ["stop", "aclose"] * 2


async def test_a_second_serve_does_not_take_the_shutdown_of_the_first() -> None:
    server = Server("memory://twice", telemetry=False)
    first = asyncio.ensure_future(server.serve())
    await asyncio.sleep(0.01)
    with pytest.raises(ConfigurationError, match="started already"):
        await server.serve()
    server.shutdown()
    await asyncio.wait_for(first, 5)


@pytest.mark.parametrize(
    "url", ["tcp://127.0.0.1:1", "127.0.0.1:80", "http://127.0.0.1:99999", "http://127.0.0.1:x"]
)
def test_a_health_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="health="):
        Server("memory://health", health=url)


async def test_a_drain_waits_for_the_plain_functions_of_callers_that_have_left() -> None:
    done: list[Any] = []
    begun = threading.Event()
    server = Server("memory://left", grace=10, telemetry=False)

    @server.message_pattern("work")
    def work() -> None:
        begun.set()
        time.sleep(0.3)
        done.append(1)

    async with server, ClientProxy("memory://left", policies=(), telemetry=False) as client:
        call = asyncio.ensure_future(client.send("work"))
        await asyncio.to_thread(begun.wait, 10)
        call.cancel()
        await asyncio.sleep(0.05)
    assert done == [1]


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:0", "http://127.0.0.1:0"])
@pytest.mark.parametrize("pause", [0.0, 0.2])
async def test_a_request_that_arrives_as_an_idle_server_begins_to_drain_is_refused(
    url: str, pause: float
) -> None:
    server = Server(url, telemetry=False)

    @server.message_pattern("work")
    async def work() -> int:
        return 1

    await server.start()
    async with ClientProxy(server.addresses[0], policies=(), telemetry=False) as client:
        assert await client.send("work") == 1
        await asyncio.sleep(pause)
        second = asyncio.ensure_future(client.send("work"))
        await asyncio.sleep(0)  # it is written
        await server.aclose()
        with pytest.raises(Throttled):
            await second


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:0", "http://127.0.0.1:0"])
@pytest.mark.parametrize("kind", ["answer", "stream"])
async def test_callers_that_ask_on_during_a_drain_lose_nothing_that_may_have_run(
    url: str, kind: str
) -> None:
    server = Server(url, grace=10, telemetry=False)
    ran = 0

    @server.message_pattern("work")
    async def work() -> int:
        nonlocal ran
        await asyncio.sleep(0.05)
        ran += 1
        return 1

    @server.message_pattern("stream")
    async def stream() -> Any:
        nonlocal ran
        for number in range(3):
            yield number
            await asyncio.sleep(0.02)
        ran += 1

    answered = 0

    async def ask_on(client: ClientProxy) -> None:
        nonlocal answered
        while True:
            if kind == "answer":
                await client.send("work")
            else:
                assert [item async for item in client.stream("stream")] == [0, 1, 2]
            answered += 1

    await server.start()
    async with ClientProxy(server.addresses[0], policies=(), telemetry=False) as client:
        callers = [asyncio.ensure_future(ask_on(client)) for _ in range(20)]
        await asyncio.sleep(0.3)
        await server.aclose()
        ends = await asyncio.wait_for(asyncio.gather(*callers, return_exceptions=True), 10)
    assert {type(end) for end in ends} <= {Throttled, ConnectError}
    assert answered == ran > 0


async def test_the_threads_of_plain_handlers_end_with_their_server() -> None:
    server = Server("memory://threads-end", telemetry=False)
    threads: list[threading.Thread] = []
    server.message_pattern("plain")(lambda: threads.append(threading.current_thread()))
    async with server, ClientProxy("memory://threads-end", policies=()) as client:
        await client.send("plain")
    await eventually(lambda: not threads[0].is_alive())
