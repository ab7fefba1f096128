"""Real NestJS peers: a service with every kind of handler, and a driven ClientProxy."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .certificates import certificates
from .process import Peer, PeerError, end, signal_group, spawn

FOLDER = Path(__file__).parent.parent / "interop"
VERSIONS = (12, 11, 10)
STAMP = ".installed"
OWN_PORT = ("tcp", "grpc", "http")  # the others meet at a broker


def _wanted(packages: str) -> str:
    return hashlib.sha256((FOLDER / packages / "package.json").read_bytes()).hexdigest()


def _missing(packages: str) -> str | None:
    if shutil.which("node") is None:
        return "Node.js 20 or newer is not installed"
    stamp = FOLDER / packages / "node_modules" / STAMP
    if not stamp.exists() or stamp.read_text() != _wanted(packages):
        return f"what npm installs in tests/interop/{packages} is not there"
    return None


def nest_missing(version: int = 12) -> str | None:
    """Why that NestJS cannot be started here, or None."""
    return _missing(f"nest{version}")


def typescript_missing() -> str | None:
    """Why the TypeScript in the documentation cannot be run here, or None."""
    return nest_missing() or _missing("docs")


def install(versions: Sequence[int] = VERSIONS) -> None:
    """Install by npm what is not there yet; the exact versions are in each package.json.

    Beside the versions of Nest, what the TypeScript in the documentation needs.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise PeerError("npm is not installed (it comes with Node.js 20 or newer)")
    for packages in (*(f"nest{version}" for version in versions), "docs"):
        if _missing(packages) is None:
            continue
        folder = FOLDER / packages
        print(f"installing {packages} with npm", flush=True)
        command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock"]
        command += ["--ignore-scripts", "--loglevel=error", "--prefer-offline"]
        for last in (False, True):
            done = subprocess.run(command, cwd=folder, timeout=600, check=last)
            if done.returncode == 0:
                break
        (folder / "node_modules" / STAMP).write_text(_wanted(packages))


def tls_options(*, certificate: bool = True) -> dict[str, str]:
    """The ``tls`` option of a client or a broker's server: whom to trust, and who it is."""
    files = certificates()
    own = {"cert": str(files.client), "key": str(files.client_key)} if certificate else {}
    return {"ca": str(files.authority), **own}


def server_tls_options(*, client_required: bool = False) -> dict[str, Any]:
    """The ``tls`` option of a server that listens itself (tcp, grpc)."""
    files = certificates()
    own = {"cert": str(files.server), "key": str(files.server_key)}
    return {"ca": str(files.authority), **own, "requestCert": client_required}


class NestServer(Peer):
    """A NestJS service: ``async with NestServer("tcp") as server: ... server.url``.

    ``broker`` is the URL of the broker for transports that have one. ``options`` go to Nest as they
    are; ``settings`` are those of tests/interop/shared/transports.mjs: prefix (put before every
    pattern, so that services on one broker do not meet), queue, tls, handlers, name, sasl ...
    It can be killed, frozen and restarted as a broker can. tests/interop/README.md: its handlers.
    """

    name = "nest"
    ready_within = 150.0

    def __init__(
        self,
        transport: str,
        broker: str | None = None,
        *,
        version: int = 12,
        options: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if (broker is None) != (transport in OWN_PORT):
            raise ValueError(f"a broker's URL is for transports other than {OWN_PORT}")
        self.transport = transport
        self.broker = broker
        self.version = version
        self.settings = {**settings, "options": dict(options or {})}
        self.ready: dict[str, Any] = {}
        self._log_start = 0

    @property
    def url(self) -> str:
        if self.broker is not None:
            return self.broker
        return f"{self.transport}://{self.host}:{self.port}"

    def arguments(self) -> dict[str, Any]:
        place = {"url": self.broker} if self.broker else {"host": self.host, "port": self.port}
        return {"transport": self.transport, **place, **self.settings}

    def command(self) -> Sequence[str]:
        missing = nest_missing(self.version)
        if missing is not None:
            raise PeerError(missing)
        script = FOLDER / f"nest{self.version}" / "server.mjs"
        return ["node", str(script), json.dumps(self.arguments())]

    def environment(self) -> Mapping[str, str]:
        return {"NODE_NO_WARNINGS": "1", "NO_COLOR": "1"}

    def start(self) -> Self:
        if not self.running:
            output = self.folder / "output.log"
            self._log_start = output.stat().st_size if output.exists() else 0
        return super().start()

    def answers(self) -> bool:
        output = (self.folder / "output.log").read_bytes()[self._log_start :]
        ready = re.search(rb"^READY (.*)\n", output, re.MULTILINE)
        if ready is not None:
            self.ready = json.loads(ready[1])
        return ready is not None

    async def __aenter__(self) -> Self:
        return await self.start_async()

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)

    def stop(self) -> None:
        if self.transport == "kafka" and self.running and not self.frozen:
            self.terminate()  # it deletes its topics
        super().stop()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a Nest caller saw."""

    values: list[Any]
    times: list[float]  # milliseconds after the call at which each value came
    complete: bool
    error: Any = None  # as it was raised; for an Error, {"message": ..., "code": ...}
    error_name: str | None = None  # "TimeoutError", "Error", ...; None for a raw remote error

    @property
    def value(self) -> Any:
        """The only value of a call that succeeded."""
        assert self.complete, f"the call failed: {self.error_name} {self.error!r}"
        assert len(self.values) == 1, f"not one value: {self.values!r}"
        return self.values[0]


class NestClient:
    """A real Nest ClientProxy: ``async with NestClient("tcp", port=...) as client``.

    ``url`` is the broker's, for transports that have one. On Kafka ``patterns`` must name what will
    be called. Further settings are those of tests/interop/shared/transports.mjs.
    """

    def __init__(
        self,
        transport: str,
        url: str | None = None,
        *,
        port: int | None = None,
        host: str = "127.0.0.1",
        version: int = 12,
        options: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        place = {"url": url} if url else {"host": host, "port": port}
        self.version = version
        self.unhandled: list[str] = []  # rejections that would have ended a Node process
        self._arguments = {"transport": transport, **place, **settings}
        self._arguments["options"] = dict(options or {})
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._errors = b""

    async def __aenter__(self) -> Self:
        missing = nest_missing(self.version)
        if missing is not None:
            raise PeerError(missing)
        script = FOLDER / f"nest{self.version}" / "client.mjs"
        pipe = subprocess.PIPE
        self._process = process = spawn(
            ["node", str(script), json.dumps(self._arguments)],
            environment={"NODE_NO_WARNINGS": "1", "NO_COLOR": "1"},
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
        )
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = loop.create_future()
        output, errors = await _reader(process.stdout), await _reader(process.stderr)
        self._readers = (output, errors)
        self._tasks = [
            asyncio.create_task(self._read(output[0])),
            asyncio.create_task(self._read_errors(errors[0])),
        ]
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), 150)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it printed on standard error."""
        return self._errors.decode(errors="replace")

    async def send(
        self,
        pattern: Any,
        data: Any = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        timeout: float | None = 10.0,
        take: int | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Call and collect what comes. ``timeout`` (seconds) is Nest's, as its users set it.

        ``record`` holds what only some transports know: key (Kafka), qos (MQTT), priority ...
        (RabbitMQ), requests, interval, deadline in milliseconds (gRPC).
        """
        command = {"op": "send", "pattern": pattern, "data": data, "metadata": metadata}
        command |= {"take": take, "record": record}
        if timeout is not None:
            command["timeout"] = round(timeout * 1000)
        return await self._ask(command, None if timeout is None else timeout + 20)

    async def emit(
        self, pattern: Any, data: Any = None, *, metadata: Mapping[str, Any] | None = None
    ) -> Answer:
        command = {"op": "emit", "pattern": pattern, "data": data, "metadata": metadata}
        return await self._ask({**command, "timeout": 10_000}, 30)

    async def connect(self) -> Answer:
        return await self._ask({"op": "connect"}, 30)

    async def close(self) -> Answer:
        """The proxy's own close(); the process stays."""
        return await self._ask({"op": "close"}, 30)

    def freeze(self) -> None:
        assert self._process is not None
        signal_group(self._process, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        signal_group(self._process, signal.SIGCONT)

    async def _ask(self, command: dict[str, Any], within: float | None) -> Answer:
        assert self._process is not None
        assert self._process.stdin is not None
        number = next(self._ids)
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        present = {
            key: value for key, value in command.items() if value is not None or key == "data"
        }
        # Commands are small and Node reads them at once: the pipe does not fill up.
        self._process.stdin.write(json.dumps({"id": number, **present}).encode() + b"\n")
        self._process.stdin.flush()
        try:
            said = await asyncio.wait_for(future, within)
        finally:
            self._waiting.pop(number, None)
        return Answer(
            values=said["values"],
            times=said["times"],
            complete=said.get("complete", False),
            error=said.get("error"),
            error_name=said.get("error_name"),
        )

    async def _read(self, output: asyncio.StreamReader) -> None:
        while line := await output.readline():
            try:
                said = json.loads(line)
            except ValueError:
                self.unhandled.append(line.decode(errors="replace"))
                continue
            if said.get("ready"):
                self._ready.set_result(None)
            elif said["id"] is None:
                self.unhandled.append(said["unhandled"])
            elif (future := self._waiting.get(said["id"])) and not future.done():
                future.set_result(said)
        await asyncio.sleep(0.05)  # its last words
        failure = PeerError(f"the Nest client ended:\n{self.log}")
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._waiting.values()]
        for lost in waiting:
            if not lost.done():
                lost.set_exception(failure)
        if not self._ready.cancelled():
            self._ready.exception()  # it is looked at by whoever waits, if anybody does

    async def _read_errors(self, errors: asyncio.StreamReader) -> None:
        while data := await errors.read(4096):
            self._errors = (self._errors + data)[-20_000:]

    async def aclose(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _, transport in self._readers:
            transport.close()
        await asyncio.to_thread(end, process)
        for future in self._waiting.values():
            future.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            self._ready.cancel()
        await asyncio.sleep(0)  # the pipes' transports say goodbye


async def _reader(pipe: Any) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    reader = asyncio.StreamReader(limit=64 * 1024 * 1024)
    own = os.fdopen(os.dup(pipe.fileno()), "rb", 0)  # the transport closes it
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), own)
    return reader, transport
