"""Worker threads that the end of the process does not wait for."""

from __future__ import annotations

import threading
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_MANY = 256


def piece_of_work(function: Callable[[], T]) -> tuple[Future[T], Callable[[], None]]:
    """The future of what a function returns, and what a thread is to do for that."""
    future: Future[T] = Future()

    def work() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001  (whoever awaits it gets it)
            future.set_exception(error)

    return future, work


class WorkerThreads(Executor):
    """At most so many daemon threads, started as they are needed.

    Python joins those of a `ThreadPoolExecutor` before it ends: one function that hangs would keep
    the process for ever, whatever time it was given to end.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], None]] | None] = SimpleQueue()
        self._look_at = _MANY  # pieces that wait, when those that were cancelled are let go
        self._idle = threading.Semaphore(0)
        self._threads = 0
        self._ended = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """See `Executor.submit`. To be called from one thread only; also after `shutdown`."""
        piece = piece_of_work(partial(fn, *args, **kwargs))
        if self._ended:
            self._start()
            self._work.put(piece)
            self._work.put(None)
            return piece[0]
        if not self._idle.acquire(blocking=False) and self._threads < self._limit:
            try:
                self._start()
            except RuntimeError:  # the system has no more: those there are have to do
                if not self._threads:
                    raise
        if self._work.qsize() >= self._look_at:
            self._let_go()
        self._work.put(piece)
        return piece[0]

    def _start(self) -> None:
        name = f"{self._name}_{self._threads}"
        threading.Thread(target=self._run, name=name, daemon=True).start()
        self._threads += 1

    def _let_go(self) -> None:
        """Drop what was cancelled: while all threads hang, nobody else would."""
        kept = []
        with suppress(Empty):
            while (piece := self._work.get_nowait()) is not None:
                if not piece[0].cancelled():
                    kept.append(piece)
        for piece in kept:
            self._work.put(piece)
        self._look_at = max(_MANY, 2 * len(kept))

    def _run(self) -> None:
        while (piece := self._work.get()) is not None:
            piece[1]()
            del piece  # what it holds must not wait for the next
            self._idle.release()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """See `Executor.shutdown`; it never waits, and what has not begun is still done."""
        self._ended = True
        for _ in range(self._threads):
            self._work.put(None)
