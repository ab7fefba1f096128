"""What a kill, a freeze and a cut cost: `python -m benchmarks.recovery [SCHEME ..]`.

A service, and the broker where there is one, are processes; the broker (or else the service) is
killed with SIGKILL and started again, frozen with SIGSTOP, and its connection is cut. Printed is a
table for the documentation:

- told after kill, cut: from the fault until a pending call has its error.
- frozen, noticed: until a pending call with ample time has its error; "deadline" where only a
  call's own deadline ends it.
- back: from the moment the peer takes connections again until a call is answered.
- events: of 300 at 100 a second through kill and restart, how many `emit` reported as failed, how
  many of the others no handler heard, and how many were heard twice.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from typing import Any

from resilient_client import ResilientClientError
from resilient_client.loops import fast_loop_factory
from tests.contract.rigs import RIGS, Rig, stop_brokers

EVENTS = 300
LONGEST_FREEZE = 20.0  # seconds


async def _told(rig: Rig, client: Any, fault: Any) -> float:
    """Seconds from the fault until a pending call has its error."""
    await client.send("fault.echo", 1, timeout=20)
    pending = asyncio.ensure_future(client.send("fault.slow", 60, timeout=90))
    await asyncio.sleep(0.3)
    began = time.monotonic()
    done = fault()
    if asyncio.iscoroutine(done):
        await done
    try:
        await pending
    except ResilientClientError:
        return time.monotonic() - began
    raise SystemExit(f"{rig.scheme}: a lost call was answered")


async def _back(client: Any) -> float:
    began = time.monotonic()
    while True:
        try:
            await client.send("fault.echo", 1, timeout=1)
        except ResilientClientError:
            await asyncio.sleep(0.01)
            if time.monotonic() - began > 60:
                raise
        else:
            return time.monotonic() - began


async def _freeze(rig: Rig, client: Any) -> float | None:
    """Seconds until a pending call has its error, None when only its deadline ends it."""
    pending = asyncio.ensure_future(client.send("fault.echo", 1, timeout=LONGEST_FREEZE))
    rig.middle.freeze()
    began = time.monotonic()
    try:
        await asyncio.wait({pending})
        took = time.monotonic() - began
        return None if took > LONGEST_FREEZE - 0.5 else took
    finally:
        rig.middle.thaw()
        await asyncio.gather(pending, return_exceptions=True)


async def _events(rig: Rig, client: Any) -> tuple[int, int, int]:
    ok: set[int] = set()
    failed = 0

    async def emit(number: int) -> None:
        nonlocal failed
        try:
            await client.emit("fault.event", number, timeout=2)
        except ResilientClientError:
            failed += 1
        else:
            ok.add(number)

    async def steady() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(EVENTS):
                group.create_task(emit(number))
                await asyncio.sleep(0.01)

    load = asyncio.ensure_future(steady())
    await asyncio.sleep(1)
    await rig.kill()
    await asyncio.sleep(0.2)
    await rig.restart()
    await load
    heard = Counter(await rig.journal("event", len(ok), 5.0))
    return failed, len(ok - set(heard)), sum(n > 1 for n in heard.values())


async def _row(scheme: str) -> str:
    async with RIGS[scheme]("uvloop") as rig:
        async with rig.client() as client:
            kill = await _told(rig, client, rig.kill)
            await rig.restart()
            back = await _back(client)
            cut = await _told(rig, client, rig.proxy.cut)
            cut_back = await _back(client)
            frozen = await _freeze(rig, client)
            await _back(client)
        async with rig.client() as client:
            failed, lost, twice = await _events(rig, client)
    noticed = "deadline" if frozen is None else f"{frozen:.1f} s"
    return (
        f"| `{scheme}` | {kill:.2f} s | {back:.2f} s | {cut:.2f} s | {cut_back:.2f} s | {noticed}"
        f" | {failed} | {lost} | {twice} |"
    )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scheme", nargs="*", default=sorted(RIGS))
    given = parser.parse_args()
    columns = ["", "told after kill", "back", "told after cut", "back", "frozen: noticed"]
    columns += ["failed", "lost", "twice"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    try:
        for scheme in given.scheme:
            with asyncio.Runner(loop_factory=fast_loop_factory()) as runner:
                print(runner.run(_row(scheme)), flush=True)
    finally:
        stop_brokers()


if __name__ == "__main__":
    main()
