"""The threads that plain handlers run in."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from resilient_client.workers import WorkerThreads


def test_a_thread_that_cannot_be_started_costs_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = WorkerThreads(1, "places")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            with pytest.raises(RuntimeError):
                threads.submit(int)
    assert threads.submit(int, "42").result(10) == 42
    threads.shutdown()


def test_where_no_further_thread_can_be_started_the_others_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = WorkerThreads(2, "others")
    go = threading.Event()
    first = threads.submit(go.wait)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    second = threads.submit(int, "42")
    go.set()
    assert first.result(10)
    assert second.result(10) == 42
    threads.shutdown()


def test_what_is_cancelled_while_all_threads_hang_is_let_go() -> None:
    class Payload:
        """What a request holds."""

    threads = WorkerThreads(1, "hanging")
    go, kept = threading.Event(), []
    threads.submit(go.wait)
    live = threads.submit(int, "42")
    for _ in range(2000):
        payload = Payload()
        kept.append(weakref.ref(payload))
        threads.submit(id, payload).cancel()
        del payload
    gc.collect()
    assert sum(each() is not None for each in kept) < 300
    go.set()
    assert live.result(10) == 42
    threads.shutdown()


def test_what_comes_after_the_end_is_done_and_leaves_no_thread() -> None:
    threads = WorkerThreads(1, "after-the-end")
    assert threads.submit(int, "1").result(10) == 1
    threads.shutdown()
    assert threads.submit(int, "2").result(10) == 2
    for thread in threading.enumerate():
        if thread.name.startswith("after-the-end"):
            thread.join(10)
            assert not thread.is_alive()
