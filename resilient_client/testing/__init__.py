"""For tests of what is built with this package: no sleeping, no network, no mock library."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilient_client.testing._check_transport import check_transport
    from resilient_client.testing._clock import FakeClock
    from resilient_client.testing._scripted import (
        NEVER,
        Delayed,
        Request,
        ScriptedTransport,
        Streamed,
    )

__all__ = [
    "NEVER",
    "Delayed",
    "FakeClock",
    "Request",
    "ScriptedTransport",
    "Streamed",
    "check_transport",
]

_HOMES = {
    "FakeClock": "_clock",
    "check_transport": "_check_transport",
    "NEVER": "_scripted",
    "Delayed": "_scripted",
    "Request": "_scripted",
    "ScriptedTransport": "_scripted",
    "Streamed": "_scripted",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
