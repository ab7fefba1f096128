"""The conformance suite that the author of a transport runs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from resilient_client.errors import ConfigurationError
from resilient_client.events import Status
from resilient_client.testing._promises import Suite, Trial, checks, in_time

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from resilient_client.testing._promises import Check
    from resilient_client.transports._base import App, Environment, ServerListener, Transport

CHECK_LIMIT = 60.0
"""Seconds that one check may take."""


async def check_transport(
    listen: str | Callable[[App], ServerListener],
    connect: str | Callable[[Environment], Transport] | None = None,
    *,
    skip: Collection[str] = (),
    options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Run every check of what a transport promises; the names of those that were run.

    Both ends are made anew for each check, and outside an event loop, as in a module.

    Args:
        listen: what `Server` is given: a URL, or a function from the app to a listener.
        connect: what `ClientProxy` is given; by default the address the server really bound.
        skip: names of checks that this transport cannot pass, because its protocol cannot;
            "object_patterns" where a pattern can only be a text.
        options: the transport's own, for both ends.

    Raises:
        AssertionError: a check failed; the error's notes name it and say what it checks.
    """
    names = {*checks, "object_patterns"}
    if unknown := set(skip) - names:
        raise ValueError(f"there is no check {sorted(unknown)}; there are {sorted(names)}")
    run: list[str] = []
    before = asyncio.all_tasks()
    handles: list[int] = []
    for name, check in checks.items():
        if name in skip:
            continue
        suite = Suite(object_patterns="object_patterns" not in skip)
        trial = Trial(suite, listen, connect, dict(options or {}))
        try:
            await _try(trial, check)
        except BaseException as error:
            error.add_note(f"check_transport: {name}: {check.__doc__}")
            await _give_up(before)
            raise
        run.append(name)
        handles.append(_open_handles())
    for _ in range(20):
        await asyncio.sleep(0.01)
        if not asyncio.all_tasks() - before:
            break
    left = asyncio.all_tasks() - before
    assert not left, f"tasks were left behind: {left}"
    if len(handles) > 5:  # what a library makes once and keeps is not meant
        more = [after - before for before, after in pairwise(handles)]
        assert min(more) <= 0, f"sockets, pipes or files were left open by every check: {handles}"
    return run


async def _try(trial: Trial, check: Check) -> None:
    """One check, on a server and a client of its own, which are closed whatever it comes to."""
    try:
        await trial.open()
        await in_time(check(trial.client, trial), CHECK_LIMIT, "the check has not ended")
        await trial.aclose()
    except BaseException as error:
        with suppress(Exception):  # what failed first is told
            await trial.aclose()
        ours = isinstance(error, AssertionError | ConfigurationError)
        if ours or not isinstance(error, Exception):
            raise
        raise AssertionError(f"it ended with {type(error).__name__}: {error}") from error
    _agree(trial)


def _agree(trial: Trial) -> None:
    """What the client's observers were told of its connection makes sense."""
    status = "idle"
    for change in trial.changes:
        assert change.new in get_args(Status), f"{change} is told, which is no status"
        assert change.old == status, f"{change} is told while it is {status!r}"
        status = change.new
    told = [change.new for change in trial.changes]
    assert "connected" in told, f"env.notify was told of no connection: {told}"
    assert status == "closed", f"env.notify was not told that it was closed: {told}"


async def _give_up(before: set[asyncio.Task[Any]]) -> None:
    """End what a failed check has left, also what would go on when it is cancelled once."""
    for _ in range(10):
        left = asyncio.all_tasks() - before
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=0.1)


def _open_handles() -> int:
    """Descriptors of this process, 0 where the system does not tell."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            return sum(1 for _ in Path(folder).iterdir())
    return 0
