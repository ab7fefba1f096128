"""SyncClientProxy: the client without an event loop."""

from __future__ import annotations

import _thread
import asyncio
import contextvars
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import inf
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from resilient_client import (
    ClientProxy,
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    NoHandlerError,
    PayloadError,
    RemoteError,
    ReplyTimeout,
    Server,
    SyncClientProxy,
    correlation_id,
    current_context,
    sync,
)
from resilient_client.events import ConnectionChanged
from resilient_client.loops import background_loop
from resilient_client.telemetry import Telemetry
from tests.server_thread import BOUND, Served, serving


def until(condition: Any, seconds: float = BOUND) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


@pytest.fixture(params=["tcp", "memory"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    url = "tcp://127.0.0.1:0" if request.param == "tcp" else "memory://sync"
    with serving(url) as server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[SyncClientProxy]:
    with SyncClientProxy(served.url, policies=(), telemetry=False) as proxy:
        yield proxy


def tcp_client(served: Served, **options: Any) -> SyncClientProxy:
    return SyncClientProxy(served.url, policies=(), telemetry=False, **options)


# ------------------------------------------------------------------------------------- the calls


def test_send_returns_the_validated_answer(client: SyncClientProxy) -> None:
    assert client.send("sum", [1, 2, 3], returns=int) == 6
    assert client.send("echo", {"a": None}) == {"a": None}
    with pytest.raises(PayloadError):
        client.send("echo", "six", returns=int)


def test_errors_are_those_of_the_async_client(client: SyncClientProxy) -> None:
    with pytest.raises(RemoteError, match="not like this") as remote:
        client.send("refuse")
    assert remote.value.pattern == "refuse"
    with pytest.raises(NoHandlerError):
        client.send("nobody")
    with pytest.raises(DeadlineExceeded):
        client.send("wait", 5, timeout=0.05)
    with pytest.raises(ConfigurationError):
        client.send("sum", [], timeout=0)
    with pytest.raises(ConfigurationError, match="idle_timeout"):
        client.stream("count", 1, idle_timeout=0)


def test_an_error_leaves_no_cycle_that_keeps_the_frames_alive(client: SyncClientProxy) -> None:
    class Big:
        pass

    gone = threading.Event()

    def fail() -> None:
        import weakref

        big = Big()
        weakref.finalize(big, gone.set)
        try:
            client.send("nobody")
        except NoHandlerError:
            return

    gc.collect()
    gc.disable()
    try:
        fail()
        assert gone.is_set()
    finally:
        gc.enable()


def test_emit_says_what_is_proved(served: Served, client: SyncClientProxy) -> None:
    receipt = client.emit("news", {"id": 7})
    assert receipt.delivery in ("written", "accepted")
    until(lambda: served.seen == [{"id": 7}])


def test_ping_status_explain_and_repr(served: Served, client: SyncClientProxy) -> None:
    health = client.ping()
    assert health.reachable
    assert client.status == "connected"
    assert client.name in repr(client)
    assert repr(client).startswith("<SyncClientProxy ")
    assert isinstance(client.explain(), str)
    assert client.circuit_breakers == {}
    with pytest.raises(ConfigurationError, match="0 breakers"):
        client.circuit_breaker  # noqa: B018


def test_it_connects_at_first_use_and_is_closed_for_good(served: Served) -> None:
    client = tcp_client(served)
    assert client.status == "idle"
    assert client.send("sum", [1], returns=int) == 1
    assert client.status == "connected"
    client.close()
    client.close()
    assert client.status == "closed"
    with pytest.raises(ConnectError, match="closed"):
        client.send("sum", [1])


def test_a_failed_entry_raises_and_closes(served: Served) -> None:
    client = SyncClientProxy("tcp://127.0.0.1:1", policies=(), telemetry=False)
    with pytest.raises(ConnectError), client:
        pytest.fail("not reached")
    assert client.status == "closed"


def test_listeners_hear_of_the_connection(served: Served) -> None:
    news: list[Any] = []
    early: list[Any] = []
    client = tcp_client(served, observers=[early.append])
    unsubscribe = client.listen(news.append)
    with client:
        client.ping()
    assert [event.new for event in news if isinstance(event, ConnectionChanged)][-1] == "closed"
    assert early == news
    unsubscribe()


def test_bad_arguments_are_refused_in_the_constructor() -> None:
    with pytest.raises(ConfigurationError, match="max_sise"):
        SyncClientProxy("tcp://127.0.0.1:1", policies=(), telemetry=False, max_sise=3)


# ----------------------------------------------------------------------------------- the streams


def test_a_stream_is_an_iterator(client: SyncClientProxy) -> None:
    stream = client.stream("count", 5, returns=int)
    assert iter(stream) is stream
    assert list(stream) == [0, 1, 2, 3, 4]
    assert list(stream) == []
    with pytest.raises(StopIteration):
        next(stream)


def test_a_stream_raises_its_error_after_its_values(client: SyncClientProxy) -> None:
    seen = []
    stream = client.stream("break", 3)
    with pytest.raises(RemoteError, match="no more"):
        while True:
            seen.append(next(stream))
    assert seen == [0, 1, 2]


def test_a_long_stream_comes_whole_and_in_order(client: SyncClientProxy) -> None:
    assert list(client.stream("burst", 3000, returns=int)) == list(range(3000))


def test_values_that_have_come_already_are_fetched_together(
    served: Served, client: SyncClientProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = []
    wait_for = sync._wait_for
    monkeypatch.setattr(sync, "_wait_for", lambda step: (turns.append(1), wait_for(step))[1])
    stream = client.stream("burst", 2000)
    assert next(stream) == 0
    time.sleep(0.1)
    assert len(list(stream)) == 1999
    assert len(turns) < 1000


def test_an_error_waits_for_the_values_before_it(client: SyncClientProxy) -> None:
    client.ping()
    stream = client.stream("break", 50)
    assert next(stream) == 0
    time.sleep(0.05)
    assert [0, *(next(stream) for _ in range(49))] == list(range(50))
    with pytest.raises(RemoteError, match="no more"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_closing_throws_away_what_has_come(client: SyncClientProxy) -> None:
    stream = client.stream("break", 50)
    next(stream)
    time.sleep(0.05)
    next(stream)
    stream.close()
    assert list(stream) == []


def test_a_stream_checks_each_value(client: SyncClientProxy) -> None:
    with pytest.raises(PayloadError):
        list(client.stream("count", 3, returns=str))


def test_leaving_the_loop_cancels_the_call(served: Served, client: SyncClientProxy) -> None:
    client.ping()  # a peer that has shown itself to be ours is told of a cancellation
    for value in client.stream("count", 100_000):
        if value == 3:
            break
    assert served.cancelled.wait(BOUND)
    until(lambda: served.streaming == 0)


def test_a_stream_is_a_context_manager(served: Served, client: SyncClientProxy) -> None:
    client.ping()
    with client.stream("count", 100_000) as stream:
        assert next(stream) == 0
    assert served.cancelled.wait(BOUND)
    assert list(stream) == []
    stream.close()


def test_a_silent_stream_ends_by_its_idle_timeout(client: SyncClientProxy) -> None:
    start = time.monotonic()
    with pytest.raises((ReplyTimeout, DeadlineExceeded)):
        list(client.stream("wait", 100, idle_timeout=0.1))
    assert time.monotonic() - start < 30


# ------------------------------------------------------------------- threads and their contexts


def test_thirty_two_threads_share_a_client(client: SyncClientProxy) -> None:
    def work(number: int) -> list[int]:
        return [client.send("sum", [number, i], returns=int) for i in range(20)]

    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(work, range(32)))
    assert results == [[n + i for i in range(20)] for n in range(32)]


def test_all_clients_share_one_loop_and_one_thread(served: Served) -> None:
    clients = [tcp_client(served) for _ in range(3)]
    for each in clients:
        each.ping()
    names = [t.name for t in threading.enumerate() if t.name == "resilient_client loop"]
    assert len(names) == 1
    for each in clients:
        each.close()


def test_the_callers_correlation_id_travels(served: Served, client: SyncClientProxy) -> None:
    token = correlation_id.set("of-this-thread")
    try:
        client.send("sum", [1])
    finally:
        correlation_id.reset(token)
    client.send("sum", [2])
    assert served.contexts[0].correlation_id == "of-this-thread"
    assert served.contexts[1].correlation_id != "of-this-thread"


def test_a_stream_and_an_event_carry_the_context_too(
    served: Served, client: SyncClientProxy
) -> None:
    token = correlation_id.set("an-event")
    try:
        client.emit("news", 1)
    finally:
        correlation_id.reset(token)
    until(lambda: served.contexts)
    assert served.contexts[0].correlation_id == "an-event"


def test_a_plain_handler_hands_on_its_remaining_time_and_its_correlation_id(
    served: Served,
) -> None:
    inner = tcp_client(served)
    outcome: list[Any] = []
    caller_told = threading.Event()
    server = Server("memory://front", telemetry=False)

    @server.message_pattern("front")
    def front(payload: Any) -> str:
        outcome.append(current_context() is not None)
        try:
            inner.send("wait", 100, timeout=60)
        except DeadlineExceeded as error:
            outcome.append(error)
        caller_told.wait(30)  # both have the same deadline: either may be told first
        return "done"

    async def main() -> None:
        async with server, ClientProxy("memory://front", policies=(), telemetry=False) as outer:
            with pytest.raises(DeadlineExceeded):
                await outer.send(
                    "front", timeout=1.5, headers={"x-correlation-id": "through-and-through"}
                )
            caller_told.set()
            while len(outcome) < 2:
                await asyncio.sleep(0.01)

    start = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - start < 30
    assert outcome[0] is True
    assert isinstance(outcome[1], DeadlineExceeded)
    assert served.contexts[0].correlation_id == "through-and-through"
    inner.close()


def test_the_callers_span_is_the_parent_of_the_calls(served: Served) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry = Telemetry(tracer_provider=provider)
    with SyncClientProxy(served.url, policies=(), telemetry=telemetry) as client:
        with provider.get_tracer("test").start_as_current_span("outer"):
            client.send("sum", [1])
            assert list(client.stream("count", 2)) == [0, 1]
        client.send("sum", [1])
    spans = exporter.get_finished_spans()
    outer = next(span for span in spans if span.name == "outer")
    children = [span for span in spans if span.parent is not None]
    assert len(children) == 2
    for child in children:
        assert child.parent is not None
        assert child.parent.span_id == outer.context.span_id
    assert len(spans) == 4
    provider.shutdown()


def test_what_runs_on_the_loop_does_not_leak_into_the_callers_context(
    served: Served,
) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen = []

    async def headers() -> dict[str, str]:
        seen.append(variable.get("unset"))
        variable.set("changed over there")
        return {}

    with tcp_client(served, headers=headers) as client:
        variable.set("of the caller")
        client.send("sum", [1])
        assert seen == ["of the caller"]
        assert variable.get() == "of the caller"


def test_plain_headers_are_asked_in_the_calling_thread(served: Served) -> None:
    threads = []

    def headers() -> dict[str, str]:
        threads.append(threading.current_thread())
        return {"Authorization": "token", "x-other": "client"}

    with tcp_client(served, headers=headers) as client:
        client.send("sum", [1], headers={"X-Other": "call"})
        client.emit("news", 1)
        assert list(client.stream("count", 2)) == [0, 1]
    assert threads == [threading.current_thread()] * 3
    assert served.contexts[0].headers["authorization"] == "token"
    assert served.contexts[0].headers["x-other"] == "call"


def test_a_headers_callable_may_give_an_awaitable_which_the_deadline_bounds(
    served: Served,
) -> None:
    async def later(seconds: float) -> dict[str, str]:
        await asyncio.sleep(seconds)
        return {"x-token": "later"}

    waits = [0.0, 0.0, 5.0]
    with tcp_client(served, headers=lambda: later(waits.pop(0))) as client:
        client.send("sum", [1])
        assert served.contexts[0].headers["x-token"] == "later"
        with pytest.raises(PayloadError):  # before the headers were awaited
            client.send("sum", object())
        with pytest.raises(DeadlineExceeded):
            client.send("sum", [1], timeout=0.05)
    gc.collect()  # nothing was left unawaited: warnings are errors here


def test_a_headers_callable_that_fails_fails_the_call(served: Served) -> None:
    def headers() -> dict[str, str]:
        raise LookupError("no token")

    with tcp_client(served, headers=headers) as client:
        with pytest.raises(LookupError):
            client.send("sum", [1])
        with pytest.raises(LookupError):
            next(client.stream("count", 1))
    gc.collect()


def test_a_call_on_the_shared_loop_itself_is_refused_instead_of_waiting_for_itself(
    served: Served,
) -> None:
    other = tcp_client(served)
    caught: list[BaseException] = []

    async def headers() -> dict[str, str]:
        try:
            other.send("sum", [1])
        except ConfigurationError as error:
            caught.append(error)
        return {}

    with tcp_client(served, headers=headers) as client:
        assert client.send("sum", [1]) == 1
    assert "wait for itself" in str(caught[0])


def test_the_end_of_the_process_raised_on_the_loop_reaches_the_caller_and_not_the_loop(
    served: Served,
) -> None:
    async def headers() -> dict[str, str]:
        raise SystemExit(3)

    with tcp_client(served, headers=headers) as client:
        with pytest.raises(SystemExit):
            client.send("sum", [1])
        assert client.ping().reachable


# ----------------------------------------------------------------------- interrupted and blocked


def test_keyboard_interrupt_cancels_the_call(served: Served, client: SyncClientProxy) -> None:
    client.ping()

    def interrupt() -> None:
        assert served.waiting.wait(BOUND)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    start = time.monotonic()
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        client.send("wait", 100, timeout=50)
    assert time.monotonic() - start < 30
    thread.join()
    assert served.cancelled.wait(BOUND)
    assert client.send("sum", [1]) == 1


def test_an_interrupt_that_wakes_nobody_is_noticed_all_the_same(
    served: Served, client: SyncClientProxy
) -> None:
    """As on Windows, or just before the wait begins."""

    def interrupt() -> None:
        assert served.waiting.wait(BOUND)
        time.sleep(0.1)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        client.send("wait", 100, timeout=50)
    thread.join()
    assert served.cancelled.wait(BOUND)


def test_an_interrupt_ends_a_stream_that_is_waited_for(
    served: Served, client: SyncClientProxy
) -> None:
    client.ping()
    thread = threading.Timer(0.3, _thread.interrupt_main)
    thread.start()
    stream = client.stream("wait", 100, idle_timeout=50)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    thread.join()
    assert served.cancelled.wait(BOUND)
    assert list(stream) == []


def test_an_interrupt_before_a_call_has_begun_leaves_no_coroutine_behind(
    client: SyncClientProxy, recwarn: pytest.WarningsRecorder
) -> None:
    client.ping()
    busy, go_on = threading.Event(), threading.Event()

    def keep_busy() -> None:
        busy.set()
        assert go_on.wait(BOUND)

    background_loop().loop.call_soon_threadsafe(keep_busy)
    assert busy.wait(BOUND)
    thread = threading.Timer(0.1, _thread.interrupt_main)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        client.send("sum", [1])
    thread.join()
    go_on.set()
    assert client.send("sum", [20, 22]) == 42
    gc.collect()
    assert not [str(each.message) for each in recwarn if "never awaited" in str(each.message)]


def test_closing_a_stream_in_another_thread_ends_it_for_the_one_that_reads(
    client: SyncClientProxy,
) -> None:
    class Closed(deque[Any]):
        def popleft(self) -> Any:
            if self:
                stream.close()  # as another thread does, an instant before
            return super().popleft()

    stream = client.stream("count", 5)
    stream._values = Closed()
    assert list(stream) == []


def test_a_signal_handler_may_call_while_its_thread_waits(
    served: Served, client: SyncClientProxy
) -> None:
    answers = []

    def handler(*_: object) -> None:
        answers.append(client.send("sum", [20, 22]))

    before = signal.signal(signal.SIGUSR1, handler)
    try:

        def poke() -> None:
            assert served.waiting.wait(BOUND)
            os.kill(os.getpid(), signal.SIGUSR1)

        thread = threading.Thread(target=poke)
        thread.start()
        assert client.send("wait", 0.3) == "waited"
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert answers == [42]


async def test_inside_a_running_loop_it_works_and_warns_of_blocking(served: Served) -> None:
    client = tcp_client(served)
    with pytest.warns(RuntimeWarning, match="blocks the running event loop; use ClientProxy") as w:
        assert client.send("sum", [1, 2]) == 3
    assert [warning.filename for warning in w] == [__file__]
    with pytest.warns(RuntimeWarning, match="blocks"):
        client.close()


async def test_the_warning_comes_once_per_line(served: Served) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        client = tcp_client(served)
        for _ in range(3):
            client.send("sum", [1])
        with client:
            pass
    lines = [warning.lineno for warning in caught]
    assert len(lines) == len(set(lines)) == 2


async def test_a_warning_turned_into_an_error_makes_no_call(served: Served) -> None:
    client = tcp_client(served)
    with pytest.raises(RuntimeWarning):
        client.send("sum", [1])
    assert served.contexts == []


async def test_a_server_in_the_blocked_loop_cannot_answer_and_the_deadline_ends_it() -> None:
    server = Server("tcp://127.0.0.1:0", telemetry=False)

    @server.message_pattern("x")
    async def x() -> int:
        return 1

    async with server:
        client = SyncClientProxy(server.addresses[0], policies=(), telemetry=False)
        start = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(DeadlineExceeded):
                client.send("x", timeout=1.5)
            assert time.monotonic() - start < 30
            client.close()
        await asyncio.sleep(0.05)


# ----------------------------------------------------------------------------------- the closing


def test_a_client_that_is_dropped_is_closed_in_the_background() -> None:
    with serving() as served:
        client = tcp_client(served)
        client.send("sum", [1])
        assert served.connections() == 1
        del client
        gc.collect()
        until(lambda: served.connections() == 0)


def test_a_stream_keeps_its_client_open(served: Served) -> None:
    stream = tcp_client(served).stream("burst", 1000)
    assert next(stream) == 0
    gc.collect()
    assert len(list(stream)) == 999


def test_closing_ends_the_calls_of_other_threads_with_the_truth(served: Served) -> None:
    client = tcp_client(served)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            client.send("wait", 100, timeout=50)
        except ConnectionLost as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(served.contexts) == 4)
    client.close()
    for thread in threads:
        thread.join(BOUND)
    assert len(errors) == 4
    assert all(error.sent for error in errors)  # type: ignore[attr-defined]


def test_many_clients_come_and_go_without_a_trace() -> None:
    with serving() as served:
        tcp_client(served).close()
        threads = threading.active_count()
        for _ in range(20):
            with tcp_client(served) as client:
                client.send("sum", [1])
        until(lambda: served.connections() == 0)
        assert threading.active_count() == threads
        until(lambda: not asyncio.all_tasks(background_loop().loop))


# ------------------------------------------------------------------------------ forks and the end

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def in_child(work: Any) -> Any:
    """What `work()` returned in a forked child, by its repr."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads, Python 3.12
        pid = os.fork()
    if pid == 0:
        try:
            os.write(write, repr(work()).encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    end = time.monotonic() + BOUND
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail("the child hangs")
        time.sleep(0.005)
    with os.fdopen(read) as pipe:
        return pipe.read()


@needs_fork
def test_a_forked_child_has_its_own_loop_and_connection() -> None:
    with serving() as served, tcp_client(served) as client:
        assert client.send("sum", [1]) == 1
        assert served.connections() == 1

        def child() -> Any:
            answer = client.send("sum", [2, 3])
            connections = served_connections(served, client)
            client.close()
            return answer, connections, client.status

        assert in_child(child) == "(5, True, 'closed')"
        # the parent's connection is untouched: the same one still answers
        until(lambda: served.connections() == 1)
        assert client.status == "connected"
        assert client.send("sum", [4]) == 4


def served_connections(served: Served, client: SyncClientProxy) -> bool:
    """Whether this process's client has a connection of its own."""
    link = client._client._transports[0]._link  # type: ignore[attr-defined]
    return link.current is not None and link.current.loop is background_loop().loop


@needs_fork
def test_closing_in_a_forked_child_leaves_the_parents_connection_alone() -> None:
    with serving() as served, tcp_client(served) as client:
        client.send("sum", [1])
        assert in_child(client.close) == "None"
        time.sleep(0.05)
        assert served.connections() == 1
        assert client.send("sum", [4]) == 4


@needs_fork
def test_a_fork_while_other_threads_call_does_not_hang_the_child() -> None:
    with serving() as served, tcp_client(served) as client:
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                client.send("sum", [1])

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for number in range(5):
                assert in_child(lambda n=number: client.send("sum", [n, 1])) == str(number + 1)
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@needs_fork
def test_a_forked_child_leaves_the_parents_streams_to_the_parent() -> None:
    with serving() as served, tcp_client(served) as client:
        with client.stream("count", 150, idle_timeout=2) as stream:
            assert next(stream) == 0

            def child() -> Any:
                stream.close()  # as leaving the parent's `with` by an exception does
                return client.send("sum", [2, 3])

            assert in_child(child) == "5"
            assert list(stream) == list(range(1, 150))
        with client.stream("count", 150, idle_timeout=2) as stream:
            assert "the parent's" in in_child(lambda: list(stream))
            assert list(stream) == list(range(150))


@needs_fork
def test_a_memory_server_stays_with_the_parent() -> None:
    with serving("memory://stays") as served, tcp_client(served) as client:
        client.send("sum", [1])
        assert "ConnectError" in in_child(lambda: client.send("sum", [1], timeout=1))
        assert client.send("sum", [1]) == 1


def run_script(
    script: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "default",
            "-X",
            "faulthandler",
            "-c",
            textwrap.dedent(script),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, **environment},
        check=False,
    )


PREFACE = """
import atexit, os, sys, threading, time
from resilient_client import SyncClientProxy
client = SyncClientProxy(sys.argv[1], policies=(), telemetry=False)
"""

ENDINGS = {
    "an unclosed client": "client.send('sum', [1])",
    "an unused client": "",
    "a closed client": "client.send('sum', [1]); client.close()",
    "sys.exit in a with block": """
with client:
    client.send('sum', [1])
    sys.exit(0)
""",
    "sys.exit in the middle of a stream": """
for value in client.stream('count', 100000):
    if value == 3:
        sys.exit(0)
""",
    "a stream that is still open": """
stream = client.stream('count', 100000)
next(stream)
""",
    "a call pending in a daemon thread": """
client.ping()
waiting = lambda: client.send('wait', 100, timeout=100)
threading.Thread(target=waiting, daemon=True).start()
time.sleep(0.2)
""",
    "calls without end in daemon threads": """
def work():
    while True:
        client.send('sum', [1])
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
""",
    "streams without end in daemon threads": """
def work():
    while True:
        for value in client.stream('count', 500):
            pass
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
""",
    "a call in a thread that the interpreter waits for": """
client.ping()
threading.Thread(target=client.send, args=('wait', 0.3)).start()
""",
    "a service that is down": """
client = SyncClientProxy('tcp://127.0.0.1:1', policies=(), telemetry=False)
try:
    client.send('x', timeout=0.3)
except ConnectionError:
    pass
""",
    "a call from an atexit function": """
client.send('sum', [1])
atexit.register(lambda: os.write(1, b'%d' % client.send('sum', [40, 2])))
""",
    "a first call from an atexit function": """
atexit.register(lambda: os.write(1, b'%d' % client.send('sum', [40, 2])))
""",
    "a call by name from an atexit function": """
client.ping()
url = sys.argv[1].replace('127.0.0.1', 'localhost')
client = SyncClientProxy(url, policies=(), telemetry=False)
atexit.register(lambda: os.write(1, b'%d' % client.send('sum', [40, 2])))
""",
    "a name server that is silent": """
import socket
socket.getaddrinfo = lambda *a, **k: time.sleep(200)
client = SyncClientProxy('tcp://silent.invalid:1', policies=(), telemetry=False)
try:
    client.send('x', timeout=0.3)
except ConnectionError:
    pass
""",
    "an atexit function that ends a daemon thread in a call": """
client.ping()
thread = threading.Thread(target=client.send, args=('wait', 0.5), daemon=True)
atexit.register(thread.join)
thread.start()
""",
    "a client closed by an atexit function": """
client.send('sum', [1])
atexit.register(client.close)
""",
    "a client in a cycle": """
client.send('sum', [1])
class Holder: pass
holder = Holder(); holder.me = holder; holder.client = client
del client, holder
""",
    "a child that is forked and exits": """
import warnings; warnings.simplefilter('ignore', DeprecationWarning)
client.send('sum', [1])
pid = os.fork()
client.send('sum', [1])
if pid:
    assert os.waitpid(pid, 0)[1] == 0
""",
}


ON_ASYNCIO_TOO = (
    "an unclosed client",
    "a stream that is still open",
    "calls without end in daemon threads",
    "a service that is down",
    "a call by name from an atexit function",
    "a name server that is silent",
    "a child that is forked and exits",
)


@pytest.mark.parametrize(
    ("ending", "loop"),
    [*((ending, "uvloop") for ending in ENDINGS), *((each, "asyncio") for each in ON_ASYNCIO_TOO)],
)
def test_the_interpreter_ends_at_once_and_in_silence_with(ending: str, loop: str) -> None:
    if ending.startswith("a first call from an atexit") and sys.version_info[:2] == (3, 12):
        pytest.skip("Python 3.12 starts no thread any more by then")
    script = PREFACE + textwrap.dedent(ENDINGS[ending])
    if loop == "asyncio":
        script = "import sys; sys.modules['uvloop'] = None" + script
    with serving() as served:
        ended = run_script(script, served.url)
    assert ended.stderr == ""
    assert ended.returncode == 0
    assert ended.stdout == ("42" if "call" in ending and "from an atexit" in ending else "")


def test_an_interrupt_ends_a_program_that_waits_for_an_answer() -> None:
    script = PREFACE + "print('ready', flush=True)\nclient.send('wait', 100, timeout=100)"
    with serving() as served:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), served.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert served.waiting.wait(30)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT


def test_no_timeout_at_all_is_possible(client: SyncClientProxy) -> None:
    assert client.send("wait", 0.01, timeout=inf) == "waited"
