"""The commands that serve and show: serve, listen, explain."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resilient_client.cli._words import options
from resilient_client.context import Context
from resilient_client.errors import ConfigurationError
from resilient_client.server import Server

if TYPE_CHECKING:
    from argparse import Namespace

    from resilient_client.cli._output import Output


_HOW = "write MODULE:NAME, as in shop.main:server"


def serve(given: Namespace, output: Output) -> int:
    """Run `module:server`."""
    module_name, _, attribute = given.server.partition(":")
    file = Path(module_name)
    if file.suffix == ".py":
        inside = not file.is_absolute() and ".." not in file.parts
        module_name = ".".join(file.with_suffix("").parts) if inside else file.stem
        there = "write" if inside else f"change to {file.parent} and write"
        raise ConfigurationError(
            f"{str(file)!r} is a file, not a module",
            hint=f"{there} {module_name}:{attribute or 'server'}",
        )
    if not module_name or module_name.startswith("."):
        raise ConfigurationError(f"{given.server!r} names no module", hint=_HOW)
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ConfigurationError(
            f"there is no module {module_name!r}", hint="run it where the module can be imported"
        ) from None
    server: Any = module
    for part in (attribute or "server").split("."):
        server = getattr(server, part, None)
    if not isinstance(server, Server) and _is_factory(server):
        server = server()
    if not isinstance(server, Server):
        raise ConfigurationError(f"{given.server!r} is not a Server", hint=_HOW)
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    del output
    if server._stopping is None:  # noqa: SLF001  (else its module has run it, and it has ended)
        server.run()
    return 0


def _is_factory(made: Any) -> bool:
    """Whether it is a function that can be called without arguments."""
    if not callable(made) or inspect.iscoroutinefunction(made):
        return False
    try:
        inspect.signature(made).bind()
    except (TypeError, ValueError):
        return False
    return True


async def listen(given: Namespace, output: Output) -> int:
    """Print the events of one pattern until interrupted, or until there were enough."""
    unwritten: OSError | None = None
    server = Server(given.url, **options(given.url, given.option))
    done = asyncio.Event()
    left = given.count

    @server.event_pattern(given.pattern)
    async def heard(payload: Any, context: Context) -> None:
        nonlocal left, unwritten
        headers = dict(context.headers)
        whole = {"pattern": context.pattern, "data": payload, "headers": headers}
        try:
            output.value(whole if output.as_json else payload)
        except OSError as error:  # nobody reads it any more
            unwritten = error
            done.set()
            return
        if left is not None:
            left -= 1
            if left <= 0:
                done.set()

    loop = asyncio.get_running_loop()
    async with server:  # a signal before that ends the start
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, done.set)
        print(f"listening on {', '.join(server.addresses)}", file=sys.stderr, flush=True)
        await done.wait()
    if unwritten is not None:
        raise unwritten
    return 0


def explain(given: Namespace, output: Output) -> int:
    """What a file for `Clients.from_toml` comes to."""
    from resilient_client.clients import Clients

    try:
        clients = Clients.from_toml(given.file)
    except OSError as error:
        raise ConfigurationError(f"{given.file} cannot be read: {error.strerror}") from None
    if output.as_json:
        for name in clients:
            output.value({"service": name, "pipeline": clients[name].explain().splitlines()})
    else:
        print(clients.explain())
    return 0
