"""Event loops: the fast one, where it is installed, and the one that all sync callers share."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import os
import threading

# loaded here, because what uvloop needs of it can no longer be loaded once the process is ending
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from resilient_client.errors import ConfigurationError
from resilient_client.workers import piece_of_work

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

_LOOK_UP = 0.5
"""Seconds after which a waiting thread looks up: on Windows nothing interrupts a wait for a lock,
and elsewhere a signal that comes an instant before the wait begins does not."""
_KEEP = 60.0
"""Seconds of a loop's timers for something to be kept by."""
_log = logging.getLogger("resilient_client")


def running_loop() -> asyncio.AbstractEventLoop:
    """The event loop that runs here.

    Raises:
        ConfigurationError: none does, or none of asyncio's kind.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            "no asyncio event loop runs here",
            hint="SyncClientProxy needs none; under trio call it in trio.to_thread.run_sync",
        ) from None


def fast_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed (extra `fast`); None is asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class _Errand(Generic[T]):
    """One coroutine that runs on the loop while a thread waits for it."""

    __slots__ = ("coroutine", "done", "error", "left", "task", "value")

    value: T

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.coroutine = coroutine
        self.error: BaseException | None = None
        self.left = False
        self.task: asyncio.Task[None] | None = None
        self.done = threading.Lock()
        self.done.acquire()

    async def run(self) -> None:
        # Whatever ends it belongs to the thread that waits: a SystemExit must not end the loop.
        try:
            self.value = await self.coroutine
        except BaseException as error:  # noqa: BLE001
            self.error = error
        finally:
            self.done.release()

    def leave(self) -> None:
        """On the loop: nobody waits any more."""
        self.left = True
        if inspect.getcoroutinestate(self.coroutine) == inspect.CORO_CREATED:
            self.coroutine.close()
        if self.task is not None:
            self.task.cancel()


class _DaemonThreads(ThreadPoolExecutor):
    """A thread for each piece of work, one that the end of the process does not wait for.

    asyncio looks names up in its default executor: its own would keep the process for as long as a
    name server is silent, and take nothing any more once the interpreter is about to end.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future, work = piece_of_work(partial(fn, *args, **kwargs))
        try:
            threading.Thread(target=work, name="resilient_client work", daemon=True).start()
        except RuntimeError:  # Python 3.12 starts none once the process is ending
            work()
        return future


class BackgroundLoop:
    """An event loop in a daemon thread, for callers without one.

    Nothing stops it at exit: a daemon thread does not keep the process, calls made by `atexit`
    functions still work whatever their order, and what is left then ends with the process, unheard.
    """

    def __init__(self) -> None:
        self.loop: Final = (fast_loop_factory() or asyncio.new_event_loop)()
        self.loop.set_default_executor(_DaemonThreads())
        self._thread = threading.Thread(
            target=contextvars.Context().run,
            args=(self._serve,),
            name="resilient_client loop",
            daemon=True,
        )
        try:
            self._thread.start()
        except RuntimeError:  # see above
            self.loop.close()
            raise

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        while True:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                # raised by an observer, say: every sync client of the process needs this thread
                _log.exception("something on the sync clients' loop tried to end the process")

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it on the loop, in a copy of this thread's context, and wait for its end.

        An exception in this thread meanwhile, such as KeyboardInterrupt, cancels it.
        """
        if threading.get_ident() == self._thread.ident:
            coroutine.close()
            raise ConfigurationError(
                "a sync call on the sync clients' own loop would wait for itself for ever",
                hint="observers, fallbacks and async headers= run there: use ClientProxy in them",
            )
        errand = _Errand(coroutine)
        context = contextvars.copy_context()
        try:
            self.loop.call_soon_threadsafe(self._start, errand, context, context=context)
            while not errand.done.acquire(timeout=_LOOK_UP):
                pass
        except BaseException:
            self.loop.call_soon_threadsafe(errand.leave)
            raise
        error, errand.error = errand.error, None
        if error is None:
            return errand.value
        try:
            raise error
        finally:
            del (
                error
            )  # its traceback holds this frame: no cycle, neither here nor through the errand

    def start(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run it on the loop, and wait for nothing."""
        self.loop.call_soon_threadsafe(self._start, _Errand(coroutine), contextvars.Context())

    def _start(self, errand: _Errand[Any], context: contextvars.Context) -> None:
        if not errand.left:
            errand.task = self.loop.create_task(errand.run(), context=context)


class _Parting:
    """What a loop still has to do for something that was dropped.

    Nothing but the loop keeps it: a loop that is closed before lets go of it.
    """

    __slots__ = ("_close", "_kept", "_loop", "_name", "_otherwise", "_task")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        close: Callable[[], Coroutine[Any, Any, None]],
        otherwise: Callable[[], object],
        name: str,
    ) -> None:
        self._loop = loop
        self._close = close
        self._otherwise = otherwise
        self._name = name
        self._kept: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._keep()
        create = self._loop.create_task
        self._task = contextvars.Context().run(create, self._close(), name=self._name)
        self._task.add_done_callback(self._ended)

    def _keep(self) -> None:
        self._kept = self._loop.call_later(_KEEP, self._keep)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._kept is not None:
            self._kept.cancel()
        if not task.cancelled():
            task.exception()  # nobody else asks

    def __del__(self) -> None:
        task = self._task
        if task is None:
            self._otherwise()
        elif not task.done():
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
            with contextlib.suppress(RuntimeError):  # it waits for something on its way out
                task.get_coro().close()
            self._otherwise()


def close_behind(
    loop: asyncio.AbstractEventLoop,
    close: Callable[[], Coroutine[Any, Any, None]],
    name: str,
    otherwise: Callable[[], object] = lambda: None,
) -> None:
    """For finalisers, in whatever thread: have the loop close what was dropped.

    Args:
        otherwise: called instead where the loop is closed, or is before that has ended.
    """
    with contextlib.suppress(RuntimeError):  # closed, perhaps a moment ago
        loop.call_soon_threadsafe(_Parting(loop, close, otherwise, name).start)


_current: BackgroundLoop | None = None
_starting = threading.RLock()  # a signal handler may ask while its thread is starting one
_of_parents: list[BackgroundLoop] = []


def background_loop() -> BackgroundLoop:
    """The one of this process, started when first asked for."""
    global _current  # noqa: PLW0603
    if _current is None:
        with _starting:
            if _current is None:
                made = BackgroundLoop()
                _current = _current or made
    return _current


def _forget() -> None:
    """In a forked child: the thread is not there, and the loop's descriptors are the parent's too.

    The loop is kept, untouched, for ever: closing what it holds would reach into the parent.
    """
    global _current, _starting
    if _current is not None:
        _of_parents.append(_current)
    _current, _starting = None, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
