"""Run `async def` tests on a fresh event loop each, and fail a test that leaves tasks behind."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.peers.fixtures"]

# The same examples in every run, however slow the machine; `make soak` looks for new ones.
_slow = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("steady", derandomize=True, database=None, **_slow)
settings.register_profile("searching", max_examples=2000, **_slow)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

# Started in the background of a script, all of this would ignore Ctrl-C, which tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side (`-n 4 --dist loadgroup`), what shares a broker or a file runs on one worker."""
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        scheme = parameters.get("scheme") or getattr(parameters.get("row"), "scheme", None)
        group = scheme or parameters.get("meeting") or item.path.name
        if group == "kafka":  # the longest: a broker for each third of it
            group = f"kafka {parameters.get('loop_name', '')}"
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, object]:
    """Half of a surrogate pair in what was captured would end the whole run: xdist sends UTF-8."""
    report = yield
    report.sections = [
        (title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections
    ]
    return report


async def _run(function: Any, arguments: dict[str, Any]) -> None:
    await function(**arguments)
    left: set[asyncio.Task[Any] | None] = set()
    for turn in range(23):  # let callbacks of what just ended run, and generators be closed
        await asyncio.sleep(0 if turn < 3 else 0.005)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if turn >= 2 and not left:
            break
    assert not left, f"the test left tasks behind: {left}"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(_run(pyfuncitem.obj, {name: pyfuncitem.funcargs[name] for name in names}))
    return True
