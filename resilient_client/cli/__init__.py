"""The command line: call, watch and serve from a shell.

Output is for people on a terminal, and JSON lines with `--json`. Errors go to standard error; the
exit code says what kind: 1 the call failed, 2 usage, 3 unreachable, 4 rejected locally, 5 timed
out.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from resilient_client import __version__
from resilient_client.cli._output import Output, exit_code
from resilient_client.cli._words import count, data, header, option, pattern, positive
from resilient_client.errors import ResilientClientError
from resilient_client.loops import fast_loop_factory

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

USAGE = 2
INTERRUPTED = 130


def run(arguments: Sequence[str]) -> int:
    """Run one command; the exit code."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed by whoever started this
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: PTH123, SIM115
    parser = _parser()
    try:
        given = parser.parse_args(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    output = Output(as_json=given.json)
    try:
        code: int = given.run(given, output)
        sys.stdout.flush()
    except ResilientClientError as error:
        with suppress(BrokenPipeError):  # the code tells, too
            output.error(error)
        return exit_code(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _async(coroutine: Coroutine[Any, Any, int]) -> int:
    with asyncio.Runner(loop_factory=fast_loop_factory()) as runner:
        return runner.run(coroutine)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resilient-client",
        description="Call, watch and serve microservices over any transport.",
        epilog="Exit codes: 0 ok, 1 the call failed, 2 usage, 3 unreachable, 4 rejected locally, "
        "5 timed out.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    as_json: dict[str, Any] = {"action": "store_true", "help": "JSON lines instead of text"}
    parser.add_argument("--json", **as_json)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, text: str, run: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        made.add_argument("--json", default=argparse.SUPPRESS, **as_json)
        return made

    def calls(name: str, text: str, run: Any) -> argparse.ArgumentParser:
        made = command(name, text, run)
        made.add_argument("url", metavar="URL", help="such as tcp://127.0.0.1:3001")
        if name != "ping":
            made.add_argument(
                "pattern", metavar="PATTERN", type=pattern, help='a word, or {"cmd":"sum"}'
            )
            made.add_argument(
                "data", metavar="JSON", nargs="?", type=data, help="- reads it from stdin"
            )
            made.add_argument(
                "-H", "--header", action="append", type=header, default=[], metavar="NAME=VALUE"
            )
            made.add_argument("--idempotent", action="store_true", help="may be repeated")
        made.add_argument("-t", "--timeout", type=positive, metavar="SECONDS")
        made.add_argument(
            "-o", "--option", action="append", type=option, default=[], metavar="NAME=VALUE",
            help="an option of the transport",
        )  # fmt: skip
        return made

    from resilient_client.cli import _calls, _demo, _serve

    demo = command("demo", "Watch calls while their servers are killed.", _demo.run)
    demo.add_argument("--url", default="tcp://127.0.0.1:0", help="play it over this transport")
    demo.add_argument(
        "-o", "--option", action="append", type=option, default=[], metavar="NAME=VALUE"
    )
    demo.add_argument("--seconds", type=positive, default=14.0, help="how long the load lasts")
    demo.add_argument("--rate", type=positive, default=100.0, help="calls a second")
    calls("call", "Send a request and print the answer.", lambda g, o: _async(_calls.call(g, o)))
    calls("emit", "Emit an event.", lambda g, o: _async(_calls.emit(g, o)))
    stream = calls(
        "stream", "Print every value of an answer.", lambda g, o: _async(_calls.stream(g, o))
    )
    stream.add_argument("--idle-timeout", type=positive, default=10.0, metavar="SECONDS")
    calls("ping", "Ask whether a service can be reached.", lambda g, o: _async(_calls.ping(g, o)))
    bench = calls("bench", "Measure a service under load.", lambda g, o: _async(_calls.bench(g, o)))
    bench.add_argument("-c", "--concurrency", type=count, default=64, help="calls in flight")
    bench.add_argument("-d", "--duration", type=positive, default=5.0, metavar="SECONDS")
    listen = command(
        "listen", "Print the events of a pattern.", lambda g, o: _async(_serve.listen(g, o))
    )
    listen.add_argument("url", metavar="URL")
    listen.add_argument("pattern", metavar="PATTERN", type=pattern)
    listen.add_argument("-n", "--count", type=count, help="end after so many")
    listen.add_argument(
        "-o", "--option", action="append", type=option, default=[], metavar="NAME=VALUE"
    )
    serve = command("serve", "Run a server until SIGTERM.", _serve.serve)
    serve.add_argument("server", metavar="MODULE:SERVER", help="such as shop.main:server")
    explain = command("explain", "Show what a clients' file comes to.", _serve.explain)
    explain.add_argument("file", metavar="FILE.toml")
    return parser
