"""The public names: a change of this list is a change that users see."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

import pytest

import resilient_client

ENDS = [
    "ClientProxy",
    "SyncClientProxy",
    "Clients",
    "Server",
    "Router",
    "Context",
    "Receipt",
    "Health",
]
POLICIES = "standard Timeout Retry RetryBudget CircuitBreaker Bulkhead Fallback".split()
FOR_AUTHORS = ["Call", "Reply", "Message", "Handler", "Policy", "Transport"]
ERRORS = {  # each with what it also is
    "ResilientClientError": Exception,
    "TransportError": "ResilientClientError",
    "ConnectError": ("TransportError", ConnectionError),
    "ConnectionLost": ("TransportError", ConnectionError),
    "ReplyTimeout": ("TransportError", TimeoutError),
    "ProtocolError": "TransportError",
    "DeadlineExceeded": ("ResilientClientError", TimeoutError),
    "RejectedError": "ResilientClientError",
    "CircuitOpenError": "RejectedError",
    "Overloaded": "RejectedError",
    "RemoteError": "ResilientClientError",
    "NoHandlerError": "RemoteError",
    "InvalidPayloadError": "RemoteError",
    "Throttled": "RemoteError",
    "PayloadError": ("ResilientClientError", ValueError),
    "ConfigurationError": ("ResilientClientError", ValueError),
}
REST = ["current_context", "correlation_id", "CorrelationFilter", "Telemetry", "__version__"]
NAMES = [*ENDS, *POLICIES, *FOR_AUTHORS, *ERRORS, *REST]


def test_the_public_names_are_these() -> None:
    assert sorted(resilient_client.__all__) == sorted(NAMES)
    assert sorted(dir(resilient_client)) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_loads_from_the_top(name: str) -> None:
    assert getattr(resilient_client, name) is getattr(resilient_client, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ClientProxi'"):
        _ = resilient_client.ClientProxi


@pytest.mark.parametrize(("name", "bases"), ERRORS.items())
def test_an_error_stands_in_its_place_in_the_tree(name: str, bases: object) -> None:
    for base in bases if isinstance(bases, tuple) else (bases,):
        wanted = getattr(resilient_client, base) if isinstance(base, str) else base
        assert issubclass(getattr(resilient_client, name), wanted)


def test_an_open_circuit_is_also_pybreakers_error() -> None:
    import pybreaker

    assert issubclass(resilient_client.CircuitOpenError, pybreaker.CircuitBreakerError)


POSITIONAL = {
    "Timeout": "seconds",
    "Retry": "attempts wait jitter on budget",
    "RetryBudget": "ratio reserve_per_second window",
    "CircuitBreaker": "failure_rate window minimum_calls slow_call slow_call_rate open_for"
    " open_for_max probes listeners exclude state_storage name",
    "Bulkhead": "pending",
    "Fallback": "value_or_callable on",
}


@pytest.mark.parametrize(("name", "settings"), POSITIONAL.items())
def test_a_policy_takes_its_settings_in_their_order(name: str, settings: str) -> None:
    parameters = inspect.signature(getattr(resilient_client, name)).parameters.values()
    positional = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert positional == settings.split()


def test_the_testing_kit_loads() -> None:
    from resilient_client import testing

    for name in ("FakeClock", "ScriptedTransport", "check_transport"):
        assert getattr(testing, name)


def test_the_version_is_the_packages() -> None:
    assert resilient_client.__version__ == version("resilient-client")


@pytest.mark.skipif(
    find_spec("resilient_client.__main__") is None, reason="the command line is still to come"
)
def test_the_command_says_its_subcommands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "resilient_client", "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    for command in [
        "demo",
        "call",
        "emit",
        "stream",
        "ping",
        "serve",
        "listen",
        "bench",
        "explain",
    ]:
        assert command in done.stdout


FROM_MEMORY = '''
import asyncio, sys
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.util import spec_from_loader
from pathlib import Path

class Memory(MetaPathFinder, InspectLoader):
    """Modules without a path, as some tools that pack a program into one file have them."""

    sources = {}

    def find_spec(self, name, path, target=None):
        return spec_from_loader(name, self) if name in self.sources else None

    def is_package(self, name):
        return self.sources[name][0]

    def get_source(self, name):
        return self.sources[name][1]

top = Path(sys.argv[1])
for file in top.rglob("*.py"):
    parts = file.relative_to(top.parent).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    Memory.sources[name] = is_package, file.read_text(encoding="utf-8")
sys.meta_path.insert(0, Memory())

from resilient_client import ClientProxy, ConfigurationError, Server
import resilient_client
assert not hasattr(resilient_client, "__file__")

async def main():
    server = Server("tcp://127.0.0.1:0", telemetry=False)
    server.message_pattern("sum")(sum)
    async with server, ClientProxy(server.addresses[0], telemetry=False) as client:
        print(await client.send("sum", [1, 2]))
    for url in ("_base://x", "nowhere://x"):
        try:
            ClientProxy(url)
        except ConfigurationError:
            pass

asyncio.run(main())
'''


def test_the_package_works_where_its_modules_are_no_files() -> None:
    found = find_spec("resilient_client")
    assert found is not None
    assert found.submodule_search_locations
    [top] = found.submodule_search_locations
    done = subprocess.run(
        [sys.executable, "-c", FROM_MEMORY, top], capture_output=True, text=True, timeout=50
    )
    assert (done.stdout, done.returncode) == ("3\n", 0), done.stderr
