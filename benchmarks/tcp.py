"""Request/reply on TCP between two processes, next to Nest's own client and server, and grpc.aio.

`python -m benchmarks.tcp [--seconds S] [--rounds N]`. The contestants take turns in every round and
each is judged by its best one, because the machine is never quiet: read the ratios. "cmd:64" is 64
in flight with `{"cmd": "sum"}` for a pattern: Nest takes longer to look a text up than an object.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks._contest import Rates, best_of, measure, show
from tests.peers.process import free_port

PEERS = Path(__file__).with_name("peers")
IN_FLIGHT = ("64", "cmd:64", "1")


def _ours(loop: str, stack: str, seconds: float) -> Rates:
    script = [sys.executable, "-m", "benchmarks.peers.ours"]
    return measure(
        [*script, "server", loop],
        lambda url: [*script, "client", loop, url, stack, str(seconds), *IN_FLIGHT],
    )


def _nest(seconds: float) -> Rates:
    given = f'{{"transport":"tcp","port":{free_port()}}}'
    return measure(
        ["node", str(PEERS / "nest_server.mjs"), given],
        lambda _: ["node", str(PEERS / "nest_client.mjs"), given, str(seconds), *IN_FLIGHT],
    )


def _grpc(seconds: float) -> Rates:
    script = [sys.executable, "-m", "benchmarks.peers.grpc_aio", "bytes"]
    return measure(
        [*script, "server"], lambda url: [*script, "client", url, str(seconds), "64", "1"]
    )


def main() -> None:
    """Measure and print the ratios to Nest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    seconds = given.seconds
    best = best_of(
        given.rounds,
        {
            "nest 12": lambda: _nest(seconds),
            "ours, all defaults, uvloop": lambda: _ours("uvloop", "full", seconds),
            "ours, all defaults, asyncio": lambda: _ours("asyncio", "full", seconds),
            "ours, policies=(), uvloop": lambda: _ours("uvloop", "bare", seconds),
            "grpc.aio": lambda: _grpc(seconds),
        },
    )
    show("TCP, calls a second (ratio to nest 12)", best, IN_FLIGHT, "nest 12")
    ours, theirs = best["ours, all defaults, uvloop"]["64"], best["grpc.aio"]["64"]
    print(f"all defaults on uvloop: {ours / theirs:.1f} times grpc.aio at 64")


if __name__ == "__main__":
    main()
