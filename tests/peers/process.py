"""Start, kill, freeze and restart a program that tests talk to."""

from __future__ import annotations

import asyncio
import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

LAUNCH = Path(__file__).with_name("launch.py")
HOST = "127.0.0.1"

# Linux kills the children when the *thread* that made them ends, so one thread, which lives as long
# as the interpreter, makes them all; start() and restart() may then be called from any thread.
_spawner = ThreadPoolExecutor(1, thread_name_prefix="peers")
_spawner.submit(int).result()  # the thread is there from now on: tests count threads
_running: dict[int, subprocess.Popen[bytes]] = {}


class PeerError(Exception):
    """A program the tests need did not start."""


class EndedError(PeerError):
    """It ended by itself before it was ready."""


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


_WORKERS = 8
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
# The kernel gives outgoing connections, and whoever asks for any port, one from above these. None
# of these comes twice, and other workers have others: one that is left for a while, as by a peer
# that is down, is still free afterwards.
_ports = random.sample(range(10_000 + _worker, 32_768, _WORKERS), 22_768 // _WORKERS)


def free_port() -> int:
    """A port that is free, and stays so."""
    while _ports:
        port = _ports.pop()
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, port))
            except OSError:
                continue
            return port
    raise PeerError("there is no port left")


def spawn(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    stdin: Any = subprocess.DEVNULL,
    stdout: Any = subprocess.DEVNULL,
    stderr: Any = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start ``command`` so that it is killed when this process ends, however that happens."""
    wrapped = [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), user or "-", *command]

    def popen() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            wrapped,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is for pytest, which then stops them one by one
        )

    process = _spawner.submit(popen).result()
    _running[process.pid] = process
    return process


def end(process: subprocess.Popen[bytes], number: int = signal.SIGKILL, grace: float = 5.0) -> None:
    """Send the signal to the process and what it started, wait, and kill what is still there."""
    for attempt in (number, signal.SIGKILL):
        if process.poll() is None:
            signal_group(process, signal.SIGCONT)
            signal_group(process, attempt)
            try:
                process.wait(grace)
            except subprocess.TimeoutExpired:
                continue
        break
    signal_group(process, signal.SIGKILL)
    _running.pop(process.pid, None)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _until_stopped(group: int) -> None:
    """A thread that runs on another processor goes on until it next meets the kernel."""
    for _ in range(1000):
        running = False
        for stat in Path("/proc").glob("[0-9]*/task/*/stat"):
            try:
                fields = stat.read_text().rpartition(") ")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            running |= int(fields[2]) == group and fields[0] not in "TtZX"
        if not running:
            return
        time.sleep(0.005)


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # all gone; the second is macOS's word for it
        return


@atexit.register
def _end_all() -> None:
    for process in list(_running.values()):
        end(process)


class Peer:
    """A program on one port with its data in one folder, both kept from start to restart.

    The methods block; in an async test use the ones that end in ``_async``, or the event loop
    stands still meanwhile.
    """

    name = "peer"
    ready_within = 20.0
    run_as: str | None = None  # a user of the system

    def __init__(self) -> None:
        self.host = HOST
        self.port = 0
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.process: subprocess.Popen[bytes] | None = None
        self.frozen = False

    # What a subclass says about its program.

    @property
    def url(self) -> str:
        raise NotImplementedError

    def prepare(self) -> None:
        """Write configuration, once, before the first start."""

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return {}

    def answers(self) -> bool:
        """Whether the program does its work now: one attempt, which may raise OSError."""
        raise NotImplementedError

    # What every test may do.

    @property
    def pid(self) -> int:
        if self.process is None:
            raise PeerError(f"{self.name} is not running")
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def log(self) -> str:
        """The end of what the program printed."""
        path = self.folder / "output.log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def start(self) -> Self:
        if self.running:
            return self
        if not self.port:
            self.port = free_port()
            self.prepare()
        with (self.folder / "output.log").open("ab") as output:
            self.process = spawn(
                self.command(),
                cwd=self.folder,
                environment=self.environment(),
                user=self.run_as,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def _wait_ready(self) -> None:
        started = time.monotonic()
        while True:
            if not self.running:
                raise EndedError(f"{self.name} ended by itself:\n{self.log}")
            try:
                if self.answers():
                    return
            except OSError:
                pause = 0.02
            else:
                pause = 0.1
            if time.monotonic() - started > self.ready_within:
                raise PeerError(f"{self.name} not ready in {self.ready_within} s:\n{self.log}")
            time.sleep(pause)

    def kill(self) -> None:
        """SIGKILL: connections are reset, nothing is said or written any more."""
        if self.process is not None:
            end(self.process)
            self.process = None
        self.frozen = False

    def terminate(self, grace: float = 10.0) -> None:
        """SIGTERM: an orderly end, as in a planned restart."""
        if self.process is not None:
            end(self.process, signal.SIGTERM, grace)
            self.process = None
        self.frozen = False

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, new ones are accepted by the kernel, nobody answers."""
        if self.process is not None:
            signal_group(self.process, signal.SIGSTOP)
            self.frozen = True
            _until_stopped(self.process.pid)

    def thaw(self) -> None:
        if self.process is not None:
            signal_group(self.process, signal.SIGCONT)
        self.frozen = False

    def restart(self) -> Self:
        """Start again on the same port with the data kept; kills first what still runs."""
        self.kill()
        return self.start()

    async def start_async(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def restart_async(self) -> Self:
        return await asyncio.to_thread(self.restart)

    async def terminate_async(self, grace: float = 10.0) -> None:
        await asyncio.to_thread(self.terminate, grace)

    def stop(self) -> None:
        """Kill and remove the folder: nothing is left."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def exchange(host: str, port: int, send: bytes, size: int, *, timeout: float = 1.0) -> bytes:
    """Connect, send, and read at least ``size`` bytes (fewer when the other side closes)."""
    with socket.create_connection((host, port), timeout) as connection:
        connection.settimeout(timeout)
        connection.sendall(send)
        received = b""
        while len(received) < size and (chunk := connection.recv(4096)):
            received += chunk
        return received
