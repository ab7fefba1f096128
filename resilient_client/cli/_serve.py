"""The commands that serve and show: serve, listen, explain."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import signal
import sys
from typing import TYPE_CHECKING, Any

from resilient_client.context import Context
from resilient_client.errors import ConfigurationError
from resilient_client.server import Server

if TYPE_CHECKING:
    from argparse import Namespace

    from resilient_client.cli._output import Output


def serve(given: Namespace, output: Output) -> int:
    """Run `module:server`."""
    module_name, _, attribute = given.server.partition(":")
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
    if callable(server) and not isinstance(server, Server):
        server = server()
    if not isinstance(server, Server):
        raise ConfigurationError(
            f"{given.server!r} is not a Server", hint="write MODULE:NAME, as in shop.main:server"
        )
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    del output
    server.run()
    return 0


async def listen(given: Namespace, output: Output) -> int:
    """Print the events of one pattern until interrupted, or until there were enough."""
    server = Server(given.url, **dict(given.option))
    done = asyncio.Event()
    left = given.count

    @server.event_pattern(given.pattern)
    async def heard(payload: Any, context: Context) -> None:
        nonlocal left
        if output.as_json:
            output.value(
                {"pattern": context.pattern, "data": payload, "headers": dict(context.headers)}
            )
        else:
            output.value(payload)
        if left is not None:
            left -= 1
            if left <= 0:
                done.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, done.set)
    async with server:
        print(f"listening on {', '.join(server.addresses)}", file=sys.stderr, flush=True)
        await done.wait()
    return 0


def explain(given: Namespace, output: Output) -> int:
    """What a file for `Clients.from_toml` comes to."""
    from resilient_client.clients import Clients

    clients = Clients.from_toml(given.file)
    if output.as_json:
        for name in clients:
            output.value({"service": name, "pipeline": clients[name].explain().splitlines()})
    else:
        print(clients.explain())
    return 0
