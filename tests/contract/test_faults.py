"""The failure suite: real cuts, real kills, real freezes, one suite for every transport.

F1 to F11 are the names its tests are known by in the documentation of delivery and reconnection.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from resilient_client import (
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    Overloaded,
    Receipt,
    ReplyTimeout,
    ResilientClientError,
    Retry,
    Throttled,
    Timeout,
    TransportError,
)
from resilient_client.loops import fast_loop_factory
from tests.calls import outcome
from tests.peers.process import resident

from .rigs import DIRECT, RIGS, Rig

EVENTS = 210  # one in every hundredth of a second
SLACK = 1.0  # seconds beyond what is promised, for a machine that is busy with something else

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


ARRANGEMENTS = [  # F11: the same suite under uvloop
    pytest.param(loop, scheme, id=f"{scheme}-{loop}")
    for scheme in sorted(RIGS)
    for loop in ("asyncio", "uvloop")
]


def only(schemes: frozenset[str]) -> Callable[[Any], Any]:
    """Run the test for these schemes alone."""

    def mark(test: Any) -> Any:
        test.schemes = schemes
        return test

    return mark


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test for every transport and loop; a test may name the schemes that it is for."""
    if {"loop_name", "scheme"} <= set(metafunc.fixturenames):
        schemes = getattr(metafunc.function, "schemes", RIGS)
        chosen = [each for each in ARRANGEMENTS if each.values[1] in schemes]
        metafunc.parametrize(("loop_name", "scheme"), chosen)


def run(loop_name: str, scheme: str, test: Any) -> None:
    """Run `test(rig)` on that loop, against a fresh rig, and fail when anything is left behind."""

    async def main() -> None:
        before = _resources()
        async with RIGS[scheme](loop_name) as rig:
            await test(rig)
        for _ in range(100):
            left = asyncio.all_tasks() - {asyncio.current_task()}
            after = _resources()
            if not left and after["threads"] <= before["threads"]:
                break
            await asyncio.sleep(0.02)
        assert not left, f"tasks were left behind: {left}"
        assert after["sockets"] <= before["sockets"], "sockets were left behind"

    factory = fast_loop_factory() if loop_name == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def _resources() -> dict[str, int]:
    sockets = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            sockets += str(link.readlink()).startswith("socket:")
        except OSError:
            continue
    return {"sockets": sockets, "threads": threading.active_count()}


@asynccontextmanager
async def timed(limit: float) -> AsyncIterator[None]:
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    assert took < limit + SLACK, f"took {took:.2f} s instead of at most {limit} s"


def test_f1_a_kill_fails_what_is_pending_at_once_and_calls_work_again_after_the_restart(
    loop_name: str, scheme: str
) -> None:
    async def test(rig: Rig) -> None:
        states: list[str] = []
        async with rig.client(
            observers=[lambda e: states.append(getattr(e, "new", type(e).__name__))]
        ) as client:
            assert await client.send("fault.echo", 1) == 1
            pending = [
                asyncio.ensure_future(outcome(client.send("fault.slow", 30, timeout=30)))
                for _ in range(5)
            ]
            await asyncio.sleep(0.2)
            async with timed(0.5):
                await rig.kill()
                errors = await asyncio.gather(*pending)
            for error in errors:
                assert isinstance(error, ConnectionLost), error
                assert error.sent
            down = await outcome(client.send("fault.echo", 1, timeout=2))
            assert isinstance(down, TransportError | DeadlineExceeded), down
            await rig.restart()
            deadline = time.monotonic() + 5 + SLACK
            while (answer := await outcome(client.send("fault.echo", 2, timeout=1))) != 2:
                assert time.monotonic() < deadline, answer
                await asyncio.sleep(0.05)
            assert client.status == "connected"
            assert states.count("connected") >= 2, states

    run(loop_name, scheme, test)


def test_f1_events_at_100_a_second_through_a_kill_are_delivered_or_told(
    loop_name: str, scheme: str
) -> None:
    async def test(rig: Rig) -> None:
        told: dict[int, Any] = {}
        began: dict[int, float] = {}
        at: dict[int, float] = {}
        noticed: list[float] = []

        def observe(event: Any) -> None:
            if getattr(event, "new", "") == "reconnecting":
                noticed.append(time.monotonic())

        async with rig.client(observers=[observe]) as client:

            async def emit(n: int) -> None:
                began[n] = time.monotonic()
                told[n] = await outcome(client.emit("fault.event", n, timeout=1))
                at[n] = time.monotonic()

            async def steady() -> None:
                async with asyncio.TaskGroup() as group:
                    for n in range(EVENTS):
                        group.create_task(emit(n))
                        await asyncio.sleep(0.01)

            await rig.settle()
            load = asyncio.create_task(steady())
            await rig.journal("event", 80)
            killed = time.monotonic()
            await rig.kill()
            await asyncio.sleep(0.2)
            await rig.restart()
            returned = time.monotonic()
            await load
            await asyncio.sleep(0.3)
        ok = {  # no receivers is told, too
            n for n, r in told.items() if not isinstance(r, Exception) and r.receivers != 0
        }
        heard = Counter(await rig.journal("event", len(ok), 2.0))
        assert len(told) == EVENTS
        assert [
            (n, count, began[n] - killed, at[n] - killed)
            for n, count in heard.items()
            if count > 1
            and not (rig.forgets and began[n] <= killed and at[n] >= killed - rig.forgets)
        ] == [], "events were repeated"
        lost = ok - set(heard)
        if not rig.tells_absence:  # the service must return, too
            back = min(n for n in heard if at[n] > returned)
            lost -= {n for n in lost if returned < at[n] < at[back]}
        if rig.tells_loss:
            assert not lost, f"lost in silence: {sorted(lost)}"
        else:  # "written" promises no more: what was under way when the connection broke
            assert all(at[n] <= noticed[0] + 0.05 for n in lost), (sorted(lost), noticed)
        never_sent = {n for n, r in told.items() if isinstance(r, Exception) and not r.sent}
        assert not never_sent & set(heard), "an event said to be unsent arrived"

    run(loop_name, scheme, test)


def test_f2_a_frozen_peer_costs_a_call_its_own_deadline_and_no_more(
    loop_name: str, scheme: str
) -> None:
    async def test(rig: Rig) -> None:
        async with rig.client() as client:
            assert await client.send("fault.echo", 1) == 1
            rig.middle.freeze()
            try:
                async with timed(0.5):
                    error = await outcome(client.send("fault.echo", 2, timeout=0.5))
                assert isinstance(error, TransportError | DeadlineExceeded), error
                async with timed(0.5):
                    receipt = await outcome(client.emit("fault.event", 1, timeout=0.5))
                assert receipt is not None
                task = asyncio.current_task()
                assert task is not None
                assert task.cancelling() == 0, "a foreign cancellation came through"
            finally:
                rig.middle.thaw()
            deadline = time.monotonic() + 5 + SLACK
            while (answer := await outcome(client.send("fault.echo", 3, timeout=1))) != 3:
                assert time.monotonic() < deadline, answer
                await asyncio.sleep(0.05)

    run(loop_name, scheme, test)


def test_f2_a_line_that_swallows_bytes_costs_the_deadline_and_a_cut_ends_it(
    loop_name: str, scheme: str
) -> None:
    async def test(rig: Rig) -> None:
        async with rig.client() as client:
            assert await client.send("fault.echo", 1) == 1
            rig.proxy.blackhole("down")
            async with timed(0.4):
                error = await outcome(client.send("fault.echo", 2, timeout=0.4))
            assert isinstance(error, DeadlineExceeded), error
            pending = asyncio.ensure_future(outcome(client.send("fault.echo", 3, timeout=20)))
            await asyncio.sleep(0.1)
            async with timed(0.5):
                rig.proxy.cut()
                rig.proxy.heal()
                lost = await pending
            assert isinstance(lost, ConnectionLost), lost
            deadline = time.monotonic() + 5 + SLACK
            while (answer := await outcome(client.send("fault.echo", 4, timeout=1))) != 4:
                assert time.monotonic() < deadline, answer

    run(loop_name, scheme, test)


def test_f3_a_peer_absent_at_the_start_bounds_connecting_and_can_be_cancelled(
    loop_name: str, scheme: str
) -> None:
    async def test(rig: Rig) -> None:
        await rig.kill()
        client = rig.client(policies=[Timeout(1.0)])
        async with timed(1.0):
            error = await outcome(client.connect())
        assert isinstance(error, ConnectError), error
        async with timed(1.0):
            error = await outcome(client.send("fault.echo", 1))
        assert isinstance(error, ConnectError | DeadlineExceeded), error
        assert not error.sent
        for wait in (0.0, 0.001, 0.02):
            task = asyncio.ensure_future(client.send("fault.echo", 1, timeout=20))
            await asyncio.sleep(wait)
            task.cancel()
            async with timed(0.2):
                await asyncio.gather(task, return_exceptions=True)
        await rig.restart()
        deadline = time.monotonic() + 5 + SLACK
        while (answer := await outcome(client.send("fault.echo", 1, timeout=1))) != 1:
            assert time.monotonic() < deadline, answer
            await asyncio.sleep(0.05)
        await client.aclose()

    run(loop_name, scheme, test)


def test_f4_closing_while_the_peer_is_gone_for_ever_leaves_nothing(
    loop_name: str, scheme: str
) -> None:
    async def test(rig: Rig) -> None:
        client = rig.client()
        assert await client.send("fault.echo", 1) == 1
        pending = asyncio.ensure_future(outcome(client.send("fault.slow", 30, timeout=30)))
        await asyncio.sleep(0.1)
        await rig.kill()
        assert isinstance(await pending, ConnectionLost)
        await asyncio.sleep(0.3)
        async with timed(2.0):
            await client.aclose()
        assert client.status == "closed"

    run(loop_name, scheme, test)


def test_f4_closing_while_the_peer_is_frozen_leaves_nothing(loop_name: str, scheme: str) -> None:
    async def test(rig: Rig) -> None:
        client = rig.client()
        assert await client.send("fault.echo", 1) == 1
        rig.middle.freeze()
        try:
            pending = asyncio.ensure_future(outcome(client.send("fault.echo", 2, timeout=30)))
            await asyncio.sleep(0.1)
            async with timed(3.0):
                await client.aclose()
            assert isinstance(await pending, ConnectionLost)
        finally:
            rig.middle.thaw()

    run(loop_name, scheme, test)


def test_f5_a_cancel_storm_mismatches_no_reply(loop_name: str, scheme: str) -> None:
    async def test(rig: Rig) -> None:
        async with rig.client() as client:
            for turn in range(20):
                tasks = [
                    asyncio.ensure_future(client.send("fault.echo", [turn, n])) for n in range(64)
                ]
                await asyncio.sleep(0.001 * (turn % 5))
                for task in tasks[::2]:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                for n, result in enumerate(results):
                    if n % 2:
                        assert result == [turn, n]
                    else:
                        assert result == [turn, n] or isinstance(result, asyncio.CancelledError)
            assert await client.send("fault.echo", "after") == "after"

    run(loop_name, scheme, test)


def test_f6_what_is_refused_while_down_is_never_delivered_later(
    loop_name: str, scheme: str
) -> None:
    async def test(rig: Rig) -> None:
        async with rig.client() as client:
            await client.send("fault.echo", 1)
            rig.proxy.refuse()
            rig.proxy.cut()
            await asyncio.sleep(0.1)
            for n in range(5):
                error = await outcome(client.emit("fault.event", n, timeout=0.3))
                assert isinstance(error, ResilientClientError), error
                assert not error.sent
            error = await outcome(client.send("fault.slow", 0, timeout=0.3))
            assert isinstance(error, ResilientClientError), error
            assert not error.sent
            rig.proxy.accept()
            deadline = time.monotonic() + 5 + SLACK
            while (answer := await outcome(client.send("fault.echo", 4, timeout=1))) != 4:
                assert time.monotonic() < deadline, answer
            await asyncio.sleep(0.3)
        assert rig.service.journal("event") == []
        assert rig.service.journal("finished") == []

    run(loop_name, scheme, test)


def test_f7_only_idempotent_calls_are_repeated_through_a_cut(loop_name: str, scheme: str) -> None:
    async def test(rig: Rig) -> None:
        async with rig.client(policies=[Timeout(20), Retry(attempts=5)]) as client:
            await client.send("fault.echo", 1)
            once = asyncio.ensure_future(outcome(client.send("fault.slow", 0.5)))
            again = asyncio.ensure_future(outcome(client.send("fault.slow", 0.5, idempotent=True)))
            await asyncio.sleep(0.2)
            rig.proxy.cut()
            error = await once
            assert isinstance(error, ConnectionLost), error
            assert error.sent
            assert len(error.attempts) == 1
            assert await again == 0.5

    run(loop_name, scheme, test)


def test_f8_a_tenfold_overload_is_told_and_memory_stays_flat(loop_name: str, scheme: str) -> None:
    async def test(rig: Rig) -> None:
        async with rig.client() as client:
            await client.send("fault.echo", 1)
            before = await client.send("fault.memory")
            results: Counter[str] = Counter()

            async def call() -> None:
                result = await outcome(client.send("fault.slow", 0.2, timeout=5))
                results[type(result).__name__] += 1

            for _ in range(3):
                await asyncio.gather(*(call() for _ in range(2_000)))
            after = await client.send("fault.memory")
            assert results["float"] >= 256, results
            assert set(results) <= {
                "float",
                Throttled.__name__,
                Overloaded.__name__,
                DeadlineExceeded.__name__,
                ReplyTimeout.__name__,
                ConnectError.__name__,
            }, results
            assert after - before < 64 * 1024 * 1024

    run(loop_name, scheme, test)


# gRPC's library shows nobody what it has not written, and keeps it until keepalive has noticed
@only(frozenset(RIGS) - {"grpc"})
def test_f8_a_peer_that_takes_nothing_costs_errors_and_no_memory(
    loop_name: str, scheme: str
) -> None:
    async def test(rig: Rig) -> None:
        payload = "x" * 500_000
        async with rig.client() as client:
            await client.send("fault.echo", 1)
            await client.emit("fault.nobody", payload, timeout=10)
            before = resident()
            rig.proxy.stall("up")
            told: Counter[type] = Counter()  # the errors themselves keep the calls they are of

            async def emit() -> None:
                told[type(await outcome(client.emit("fault.nobody", payload, timeout=0.2)))] += 1

            for _ in range(5):
                async with timed(0.2):
                    await asyncio.gather(*(emit() for _ in range(32)))
            assert told.pop(Receipt, 0) < 80, "most of 80 MB finds no room"
            assert all(issubclass(each, UNTAKEN) for each in told), told
            assert resident() - before < 40 * 1024 * 1024
            rig.proxy.heal()
            deadline = time.monotonic() + 5 + SLACK
            while (answer := await outcome(client.send("fault.echo", 2, timeout=1))) != 2:
                assert time.monotonic() < deadline, answer

    run(loop_name, scheme, test)


UNTAKEN = (DeadlineExceeded, ReplyTimeout, ConnectError, ConnectionLost, Overloaded)


@only(DIRECT)  # over a broker a cancel is best effort: the deadline does the work
def test_f9_an_event_handler_finishes_when_its_connection_drops_a_request_handler_is_cancelled(
    loop_name: str, scheme: str
) -> None:
    async def test(rig: Rig) -> None:
        async with rig.client() as client:
            await client.send("fault.echo", 1)
            await client.emit("fault.slow_event", 7)
            pending = asyncio.ensure_future(
                outcome(
                    client.send("fault.slow", 5, headers={"x-correlation-id": "gone"}, timeout=10)
                )
            )
            await rig.journal("slow_event_started", 1)
            await asyncio.sleep(0.1)
            rig.proxy.cut()
            assert isinstance(await pending, ConnectionLost)
            assert await rig.journal("slow_event", 1) == [7]
            assert await rig.journal("cancelled", 1) == ["gone"]

    run(loop_name, scheme, test)


def test_f9_an_attempt_that_is_given_up_ends_its_handler_and_the_next_one_runs(
    loop_name: str, scheme: str
) -> None:
    async def test(rig: Rig) -> None:
        policies = [Timeout(20), Retry(attempts=2), Timeout(0.5)]
        async with rig.client(policies=policies) as client:
            await client.send("fault.echo", 1)
            headers = {"x-correlation-id": "given-up"}
            assert await client.send("fault.slow", 1.5, headers=headers, idempotent=True) == 1.5
            assert rig.service.journal("cancelled") == ["given-up"]
            assert rig.service.journal("finished") == ["given-up"]

    run(loop_name, scheme, test)


def test_a_stream_that_is_cut_says_so_after_its_items(loop_name: str, scheme: str) -> None:
    async def test(rig: Rig) -> None:
        async with rig.client() as client:
            got: list[int] = []
            with pytest.raises(ConnectionLost):
                async for item in client.stream("fault.count", 1000):
                    got.append(item)
                    if len(got) == 5:
                        rig.proxy.cut()
            assert got[:5] == [0, 1, 2, 3, 4]
            assert got == list(range(len(got)))

    run(loop_name, scheme, test)
