"""Unary calls over gRPC, next to bare grpc.aio and to Nest 12: `python -m benchmarks.grpc`.

Both ends are processes; ours read the .proto at run time and speak in mappings. grpc.aio runs on
asyncio's own loop, and so do ours here.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks._contest import ROOT, Rates, best_of, measure, show
from tests.peers.process import free_port

PEERS = Path(__file__).with_name("peers")
PROTO = ROOT / "tests" / "interop" / "shared" / "interop.proto"
IN_FLIGHT = ("64", "1")


def _bare(kind: str, seconds: float) -> Rates:
    script = [sys.executable, "-m", "benchmarks.peers.grpc_aio", kind]
    return measure(
        [*script, "server"], lambda url: [*script, "client", url, str(seconds), *IN_FLIGHT]
    )


def _ours(stack: str, seconds: float) -> Rates:
    script = [sys.executable, "-m", "benchmarks.peers.ours"]
    return measure(
        [*script, "server", "asyncio", f"grpc://127.0.0.1:0?proto={PROTO}"],
        lambda url: [*script, "client", "asyncio", url, stack, str(seconds), *IN_FLIGHT],
    )


def _nest(seconds: float) -> Rates:
    given = f'{{"transport":"grpc","port":{free_port()}}}'
    return measure(
        ["node", str(PEERS / "nest_server.mjs"), given],
        lambda _: ["node", str(PEERS / "nest_client.mjs"), given, str(seconds), *IN_FLIGHT],
    )


def main() -> None:
    """Measure and print the ratios to bare grpc.aio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    seconds = given.seconds
    best = best_of(
        given.rounds,
        {
            "grpc.aio, messages": lambda: _bare("messages", seconds),
            "grpc.aio, bytes": lambda: _bare("bytes", seconds),
            "ours, all defaults": lambda: _ours("full", seconds),
            "ours, policies=()": lambda: _ours("bare", seconds),
            "nest 12": lambda: _nest(seconds),
        },
    )
    show("gRPC, calls a second (ratio to grpc.aio)", best, IN_FLIGHT, "grpc.aio, messages")


if __name__ == "__main__":
    main()
