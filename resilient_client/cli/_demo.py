"""The demo: a steady load on two server processes, of which one is killed, then both."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from resilient_client import errors
from resilient_client.cli._demo_view import View
from resilient_client.cli._words import options as options_of
from resilient_client.client import ClientProxy
from resilient_client.errors import ConfigurationError, RejectedError, ResilientClientError
from resilient_client.events import CircuitChanged
from resilient_client.loops import fast_loop_factory
from resilient_client.policies import CircuitBreaker, Retry, standard

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

    from resilient_client.cli._demo_trace import Spans
    from resilient_client.cli._output import Output

TICK = 0.5  # seconds between two lines of the view
START_WITHIN = 20.0

SETTINGS = {
    "timeout": (2.0, 10.0, "so that the end of a lost call is seen"),
    "attempt_timeout": (0.6, 3.0, "several attempts fit into it"),
    "Retry.attempts": (4, 3, "two endpoints, each of which may be met twice"),
    "CircuitBreaker.window": (20, 100, "a judgement within the demo's seconds"),
    "CircuitBreaker.minimum_calls": (10, 20, "likewise"),
    "CircuitBreaker.open_for": (0.8, 5.0, "likewise"),
    "CircuitBreaker.open_for_max": (2.0, 60.0, "likewise"),
}

SHARED: dict[str, dict[str, Any]] = {
    "amqp": {"queue": "resilient_client.demo", "durable": False},
    "kafka": {"group": "resilient_client.demo"},
    "nats": {"queue": "resilient_client.demo"},
    "mqtt": {"share": "resilient_client.demo"},
}
"""What lets two servers share the work of one broker, and on RabbitMQ what cannot do without."""


def _policies() -> list[Any]:
    value = {name: setting[0] for name, setting in SETTINGS.items()}
    return standard(
        timeout=value["timeout"],
        attempt_timeout=value["attempt_timeout"],
        retry=Retry(attempts=int(value["Retry.attempts"])),
        circuit_breaker=CircuitBreaker(
            window=int(value["CircuitBreaker.window"]),
            minimum_calls=int(value["CircuitBreaker.minimum_calls"]),
            open_for=value["CircuitBreaker.open_for"],
            open_for_max=value["CircuitBreaker.open_for_max"],
        ),
    )


class Process:
    """A server process that can be killed and started again at the same address."""

    def __init__(self, url: str, name: str, options: Mapping[str, Any]) -> None:
        self.url = url
        self.name = name
        self._options = json.dumps(dict(options))
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Return when it answers."""
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "resilient_client.cli._demo_server",
            self.url,
            self.name,
            self._options,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None  # noqa: S101
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_WITHIN):
                while line := await process.stdout.readline():
                    word, _, said = line.decode().strip().partition(" ")
                    if word == "READY":
                        self.url = said
                        return
                    if word == "FAILED":
                        kind, text, hint = json.loads(said)
                        raise getattr(errors, kind, ConfigurationError)(text, hint=hint)
        raise ConfigurationError(f"the server process {self.name} did not start")

    async def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            self._process = None


class Load:
    """Calls at a steady rate, half of them declared idempotent; every end is counted once."""

    def __init__(self, client: ClientProxy, rate: float) -> None:
        self._client = client
        self._rate = rate
        self.started = 0
        self.total: Counter[str] = Counter()
        self.tick: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def _count(self, kind: str) -> None:
        self.total[kind] += 1
        self.tick[kind] += 1

    async def _one(self, number: int) -> None:
        idempotent = number // 2 % 2 == 0  # endpoints take turns: each is to get both kinds
        call = "demo.read" if idempotent else "demo.order"
        try:
            answer = await self._client.send(call, number, idempotent=idempotent)
        except RejectedError as error:
            self._count("rejected")
            self.errors[f"{type(error).__name__}, {_sent(error)}"] += 1
        except ResilientClientError as error:
            self._count("failed")
            self.errors[f"{type(error).__name__}, {_sent(error)}"] += 1
        else:
            self._count("retried" if answer["attempt"] > 1 else "succeeded")

    async def run(self, until: asyncio.Task[None]) -> None:
        """Start calls until that task has ended, then wait for the last of them."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while not until.done():
                while self.started < (time.monotonic() - began) * self._rate:
                    group.create_task(self._one(self.started))
                    self.started += 1
                await asyncio.sleep(1 / self._rate)


def _sent(error: ResilientClientError) -> str:
    return "may have been executed" if error.sent else "never sent"


async def _play(given: Namespace, output: Output, spans: Spans) -> int:
    view = View(output, SETTINGS)
    scheme = given.url.partition("://")[0]
    options = SHARED.get(scheme.removesuffix("s"), {}) | options_of(given.url, given.option)
    own_port = given.url.rstrip("/").endswith(":0")
    processes = [Process(given.url, name, options) for name in ("alpha", "beta")]
    async with AsyncExitStack() as stack:
        for process in processes:
            stack.push_async_callback(process.kill)
        await asyncio.gather(*(process.start() for process in processes))
        urls = [process.url for process in processes] if own_port else [given.url]
        client = ClientProxy(
            urls, policies=_policies(), name="demo", telemetry=spans.telemetry, **options
        )
        await stack.enter_async_context(client)
        view.settings(client.explain(), urls, options)
        await _first_calls(client, view)
        load = Load(client, given.rate)
        _watch(client, view)
        with view:
            script = asyncio.create_task(_script(processes, given.seconds, view))
            ticks = asyncio.create_task(_ticks(load, client, view))
            try:
                await load.run(script)
                await script
            finally:
                script.cancel()
                ticks.cancel()
                await asyncio.gather(script, ticks, return_exceptions=True)
            view.tick(load.tick, client)
        await _trace(client, spans, view, replicas=len(processes))
        view.summary(load.started, load.total, load.errors)
    counted = sum(load.total.values())
    return 0 if counted == load.started and load.total["succeeded"] else 1


async def _first_calls(client: ClientProxy, view: View) -> None:
    total = await client.send("demo.sum", [1, 2, 3], returns=int)
    view.say(f'send("demo.sum", [1, 2, 3]) = {total}')
    receipt = await client.emit("demo.viewed", 42)
    view.say(f'emit("demo.viewed", 42): {receipt.delivery}')
    items = [item async for item in client.stream("demo.count", 5, returns=int)]
    view.say(f'stream("demo.count", 5) = {items}')


def _watch(client: ClientProxy, view: View) -> None:
    """Show the breakers' transitions."""

    def observe(event: Any) -> None:
        if isinstance(event, CircuitChanged):
            view.say(f"circuit {event.name}: {event.old} -> {event.new} ({event.reason})")

    client.listen(observe)


async def _script(processes: list[Process], seconds: float, view: View) -> None:
    """What happens to the servers while the load runs, as shares of its time."""
    first, second = processes
    unit = seconds / 14
    await asyncio.sleep(3 * unit)
    view.say(f"SIGKILL to {first.name}")
    await first.kill()
    await asyncio.sleep(2.5 * unit)
    view.say(f"SIGKILL to {second.name}: nobody is left")
    await second.kill()
    await asyncio.sleep(2.5 * unit)
    await asyncio.gather(*(process.start() for process in processes))
    view.say(f"{first.name} and {second.name} are started again")
    await asyncio.sleep(5 * unit)


async def _ticks(load: Load, client: ClientProxy, view: View) -> None:
    while True:
        await asyncio.sleep(TICK)
        counts, load.tick = load.tick, Counter()
        view.tick(counts, client)


async def _trace(client: ClientProxy, spans: Spans, view: View, replicas: int) -> None:
    """The tree of a call that is refused once and repeated, its spans from every process."""
    from resilient_client.cli._demo_trace import tree

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_WITHIN):  # a short load ends before the circuits close
            while any(each.current_state != "closed" for each in client.circuit_breakers.values()):
                with contextlib.suppress(ResilientClientError):
                    await client.send("demo.sum", [1])
                await asyncio.sleep(TICK / 10)
    await client.send("demo.flaky", 1, idempotent=True)
    chosen = [
        trace_id
        for trace_id, own in spans.traces().items()
        if any(span["name"].endswith("demo.flaky") for span in own)
    ][-1]
    found = {span["id"]: span for span in spans.of(chosen)}
    for _ in range(2 * replicas):
        for span in await client.send("demo.spans", chosen, idempotent=True):
            found.setdefault(span["id"], span)
    view.trace(chosen, tree(list(found.values())))


def run(given: Namespace, output: Output) -> int:
    """Play it."""
    if given.url.startswith("memory://"):
        raise ConfigurationError(
            "memory:// is within one process, and the demo's servers are two of their own",
            hint="leave --url out, or give it that of a broker",
        )
    try:
        from resilient_client.cli._demo_trace import Spans
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the demo needs the library {error.name!r}, which is not installed",
            hint='pip install "resilient-client[cli]"',
        ) from None
    logging.getLogger("resilient_client").setLevel(logging.CRITICAL)  # the view says it all
    with asyncio.Runner(loop_factory=fast_loop_factory()) as runner:
        return runner.run(_play(given, output, Spans("client")))
