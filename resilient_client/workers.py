"""Worker threads that the end of the process does not wait for."""

from __future__ import annotations

import threading
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


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
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads = 0

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """See `Executor.submit`. To be called from one thread only."""
        future, work = piece_of_work(partial(fn, *args, **kwargs))
        self._work.put(work)
        if not self._idle.acquire(blocking=False) and self._threads < self._limit:
            self._threads += 1
            name = f"{self._name}_{self._threads - 1}"
            threading.Thread(target=self._run, name=name, daemon=True).start()
        return future

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # what it holds must not wait for the next
            self._idle.release()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """See `Executor.shutdown`; it never waits, and what has not begun is still done."""
        for _ in range(self._threads):
            self._work.put(None)
