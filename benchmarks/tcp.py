"""Request/reply on TCP between two processes, next to Nest's own client and server, and grpc.aio.

`python -m benchmarks.tcp [--seconds S] [--rounds N]`. The contestants take turns in every round and
each is judged by its best one, because the machine is never quiet: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile

from tests.peers.process import free_port

PEERS = Path(__file__).with_name("peers")
IN_FLIGHT = (64, 1)


def _measure(server: list[str], client: Callable[[str], list[str]]) -> dict[int, float]:
    with TemporaryFile("w+") as errors:
        serving = subprocess.Popen(
            server,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=PEERS.parents[1],
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
                cwd=PEERS.parents[1],
                timeout=300,
                check=False,
            )
            if output.returncode:
                raise SystemExit(f"{server}: its client failed:\n{output.stderr[-2000:]}")
            rates = json.loads(output.stdout.splitlines()[-1])
            return {int(number): float(rate) for number, rate in rates.items()}
        finally:
            serving.kill()
            serving.wait()


def _ours(loop: str, stack: str, seconds: float) -> dict[int, float]:
    script = [sys.executable, "-m", "benchmarks.peers.ours"]
    numbers = [str(number) for number in IN_FLIGHT]
    return _measure(
        [*script, "server", loop],
        lambda url: [*script, "client", loop, url, stack, str(seconds), *numbers],
    )


def _nest(seconds: float) -> dict[int, float]:
    port = str(free_port())
    numbers = [str(number) for number in IN_FLIGHT]
    return _measure(
        ["node", str(PEERS / "nest_server.mjs"), port],
        lambda _: ["node", str(PEERS / "nest_client.mjs"), port, str(seconds), *numbers],
    )


def _grpc(seconds: float) -> dict[int, float]:
    script = [sys.executable, "-m", "benchmarks.peers.grpc_aio"]
    numbers = [str(number) for number in IN_FLIGHT]
    return _measure(
        [*script, "server"], lambda url: [*script, "client", url, str(seconds), *numbers]
    )


CONTESTANTS: dict[str, Callable[[float], dict[int, float]]] = {
    "nest 12": _nest,
    "ours, all defaults, uvloop": lambda seconds: _ours("uvloop", "full", seconds),
    "ours, all defaults, asyncio": lambda seconds: _ours("asyncio", "full", seconds),
    "ours, policies=(), uvloop": lambda seconds: _ours("uvloop", "bare", seconds),
    "grpc.aio": _grpc,
}


def main() -> None:
    """Measure and print the ratios to Nest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    best: dict[str, dict[int, float]] = {}
    for _ in range(given.rounds):
        for name, measure in CONTESTANTS.items():
            for number, rate in measure(given.seconds).items():
                of = best.setdefault(name, {})
                of[number] = max(rate, of.get(number, 0.0))
    print(f"{'TCP, calls a second (ratio to nest 12)':40}" + "".join(f"{n:>18}" for n in IN_FLIGHT))
    for name, rates in best.items():
        cells = "".join(
            f"{rates[n]:>10.0f} ({rates[n] / best['nest 12'][n]:.2f})" for n in IN_FLIGHT
        )
        print(f"{name:40}{cells}")
    rates = best["ours, all defaults, uvloop"]
    print(f"all defaults on uvloop: {rates[64] / best['grpc.aio'][64]:.1f} times grpc.aio at 64")


if __name__ == "__main__":
    main()
