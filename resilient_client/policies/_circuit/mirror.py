"""A breaker's state in a pybreaker storage, so that other processes see its openings and it theirs.

A storage may block for as long as it likes (Redis does, on every property), so one daemon thread is
the only code that touches it, and nothing waits for that thread except connecting and closing, for
a moment.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias

from resilient_client.policies._circuit.states import CLOSED, HALF_OPEN, OPEN

logger = logging.getLogger("resilient_client.circuit_breaker")

POLL = 1.0
PATIENCE = 0.5
"""Seconds that connecting waits for the first read, and closing for the thread's end."""

Opened: TypeAlias = Callable[["float | None"], None]
"""Told, in the thread, of an opening elsewhere and of its age in seconds if that is known."""


class StorageThread:
    """The thread of one storage, for all the breakers of this process that share it.

    Attributes:
        key: what it is found by.
        opened: whom to tell of openings.
        read: set when the storage has answered, or failed, for the first time.
        ended: set when the thread is over.
    """

    def __init__(self, key: tuple[int, str], make: Callable[[], Any], name: str) -> None:
        self.key = key
        self.opened: list[Opened] = []
        self.read = threading.Event()
        self.ended = threading.Event()
        self._make = make
        self._name = name
        self._storage: Any = None
        self._seen: tuple[str, datetime | None] | None = None
        self._failing = False
        # to be published: only the newest state, and the newest opening even if it is over
        self._state: str | None = None
        self._opened_at: datetime | None = None
        self._source: Opened | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False

    def start(self) -> None:
        """Begin to write and read."""
        name = f"circuit-storage-{self._name}"
        try:
            threading.Thread(target=self._run, name=name, daemon=True).start()
        except RuntimeError:  # none can be started any more
            self.read.set()
            self.ended.set()

    def stop(self) -> None:
        """End after what is left to write; returns at once."""
        self._stopping = True
        self._wake.set()

    def add(self, opened: Opened) -> None:
        """Tell this one too, of the opening that is known if there is one."""
        with self._lock:
            self.opened.append(opened)
            seen = self._seen
        if seen is not None and seen[0] == OPEN:
            opened(_age(seen[1]))

    def publish(self, source: Opened, state: str) -> None:
        """Write this state as soon as the storage takes it; returns at once."""
        if state not in {CLOSED, OPEN, HALF_OPEN}:
            return  # what was steered by hand here; pybreaker knows no other states anyway
        with self._lock:
            self._state, self._source = state, source
            if state == OPEN:
                self._opened_at = datetime.now(UTC)
        self._wake.set()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping
            try:
                if self._storage is None:
                    self._storage = self._make()
                self._write()
                self._look()
                self._failing = False
            except Exception as error:  # noqa: BLE001 - a storage may raise anything
                if not self._failing:
                    logger.warning(
                        "the state storage of circuit %s fails (%s: %s); the circuit goes on alone",
                        self._name,
                        type(error).__name__,
                        error,
                    )
                self._failing = True
            self.read.set()
            if not stopping:
                self._wake.wait(POLL)
                self._wake.clear()
        self.ended.set()

    def _write(self) -> None:
        with self._lock:
            state, opened_at, source = self._state, self._opened_at, self._source
            self._state = self._opened_at = None
        if state is None:
            return
        storage = self._storage
        try:
            if opened_at is not None:
                storage.opened_at = opened_at
            storage.state = state
            if state == CLOSED:
                storage.reset_counter()  # else a plain pybreaker there opens at its next failure
        except BaseException:
            with self._lock:  # again at the next poll, unless there is something newer by then
                self._state = self._state or state
                self._opened_at = self._opened_at or opened_at
            raise
        self._seen = (str(storage.state), storage.opened_at)
        if opened_at is not None:
            self._tell(0.0, source)

    def _look(self) -> None:
        found = (str(self._storage.state), self._storage.opened_at)
        news = found != self._seen
        self._seen = found
        if news and found[0] == OPEN:
            self._tell(_age(found[1]), None)

    def _tell(self, age: float | None, source: Opened | None) -> None:
        with self._lock:
            others = [opened for opened in self.opened if opened is not source]
        for opened in others:
            opened(age)


def _age(opened_at: datetime | None) -> float | None:
    if opened_at is None:
        return None
    if opened_at.tzinfo is None:
        opened_at = opened_at.replace(tzinfo=UTC)
    return max(0.0, (datetime.now(UTC) - opened_at).total_seconds())


_running: dict[tuple[int, str], StorageThread] = {}  # each keeps its storage alive, and so its id
_registry = threading.RLock()  # the garbage collector may come while it is held


def forget_all() -> None:
    """In a forked child the threads are gone."""
    global _registry  # noqa: PLW0603
    _registry = threading.RLock()
    _running.clear()


class Mirror:
    """The mirror of one breaker; those of one storage share its thread.

    Args:
        storage: a pybreaker storage, or a function from the breaker's name to one; it too is only
            called in the thread.
        opened: told of openings elsewhere.
    """

    def __init__(self, storage: Any, opened: Opened) -> None:
        self._storage = storage
        self._opened = opened
        self._thread: StorageThread | None = None
        self._users: set[int] = set()

    def publish(self, state: str) -> None:
        """Let the others know."""
        if self._thread is not None:
            self._thread.publish(self._opened, state)

    def begin(self, user: object, name: str) -> StorageThread:
        """Have the thread run; returns at once."""
        self._users.add(id(user))
        if self._thread is None:
            self._thread = self._join(name)
        return self._thread

    async def start(self, user: object, name: str) -> None:
        """Have the thread run, and wait a moment for its first read."""
        await _happened(self.begin(user, name).read)

    async def stop(self, user: object) -> None:
        """Leave; the last one ends the thread and waits a moment for that."""
        ending = self.leave(user)
        if ending is not None:
            await _happened(ending.ended)

    def leave(self, user: object) -> StorageThread | None:
        """Have the thread end if this was the last one, which is told by the thread."""
        self._users.discard(id(user))
        thread = self._thread
        if self._users or thread is None:
            return None
        self._thread = None
        with _registry:
            thread.opened.remove(self._opened)
            last = not thread.opened
            if last and _running.get(thread.key) is thread:
                del _running[thread.key]
        if not last:
            return None
        thread.stop()
        return thread

    def forget(self) -> None:
        """In a forked child there is no such thread."""
        self._thread = None
        self._users.clear()

    def _join(self, name: str) -> StorageThread:
        storage = self._storage
        factory = callable(storage)
        key = (id(storage), name if factory else "")
        with _registry:
            thread = _running.get(key)
            if thread is None:
                make = (lambda: storage(name)) if factory else (lambda: storage)
                thread = _running[key] = StorageThread(key, make, name)
                thread.add(self._opened)
                thread.start()
                return thread
        thread.add(self._opened)
        return thread


async def _happened(event: threading.Event) -> None:
    """Wait for the thread without blocking the loop, and not for long."""
    end, pause = time.monotonic() + PATIENCE, 0.001
    while not event.is_set() and time.monotonic() < end:
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.02)
    await asyncio.sleep(0)  # what the thread has sent to the loop comes first
