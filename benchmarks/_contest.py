"""What the benchmarks of two processes have in common."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

ROOT = Path(__file__).parents[1]
Rates = dict[str, float]


async def rate(work: Callable[[], Awaitable[Any]], number: int, seconds: float) -> float:
    """How often a second `work` ends when so many of it are in flight."""
    began = time.perf_counter()
    end = began + seconds
    calls = 0

    async def caller() -> None:
        nonlocal calls
        while time.perf_counter() < end:
            await work()
            calls += 1

    await asyncio.gather(*(caller() for _ in range(number)))
    return calls / (time.perf_counter() - began)


def measure(server: list[str], client: Callable[[str], list[str]]) -> Rates:
    """Run a server and its client; the rates that the client prints as JSON.

    Args:
        server: prints READY and its URL, and ends with its standard input.
        client: the client's command for that URL.
    """
    with TemporaryFile("w+") as errors:
        serving = subprocess.Popen(
            server,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
        )
        try:
            assert serving.stdout is not None
            ready = serving.stdout.readline()
            if not ready.startswith("READY "):
                errors.seek(0)
                raise SystemExit(f"{server} did not start:\n{errors.read()[-2000:]}")
            output = subprocess.run(
                client(ready.split()[1]),
                capture_output=True,
                text=True,
                cwd=ROOT,
                timeout=300,
                check=False,
            )
            if output.returncode:
                raise SystemExit(f"{server}: its client failed:\n{output.stderr[-2000:]}")
            rates: Rates = json.loads(output.stdout.splitlines()[-1])
            return rates
        finally:
            serving.kill()
            serving.wait()


def best_of(rounds: int, contestants: Mapping[str, Callable[[], Rates]]) -> dict[str, Rates]:
    """Each one's best rates; they take turns, because the machine is never quiet."""
    best: dict[str, Rates] = {name: {} for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            for what, reached in run().items():
                best[name][what] = max(reached, best[name].get(what, 0.0))
    return best


def show(title: str, best: Mapping[str, Rates], columns: Iterable[str], base: str) -> None:
    """A table of rates, with the ratio to `base` behind each."""
    columns = list(columns)
    print(f"{title:42}" + "".join(f"{column:>20}" for column in columns))
    for name, rates in best.items():
        cells = ""
        for column in columns:
            if column not in rates:
                cells += f"{'-':>20}"
                continue
            of = best[base].get(column)
            ratio = f"({rates[column] / of:.2f})" if of else "      "
            cells += f"{rates[column]:>13.0f} {ratio}"
        print(f"{name:42}{cells}")
