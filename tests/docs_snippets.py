"""Run the code in the documentation: `python tests/docs_snippets.py PAGE.md`, in an empty folder.

Brokers are what a page's code finds at their usual ports; whoever runs it says where they are:
`PAGE.md 6379=40123`. See `brokers`.

A page's Python blocks run in order, in one namespace, on one event loop; `await` works at the top
level. Ports written in a page (`127.0.0.1:3001`, `port: 3001`) are replaced by free ones, the same
ones all over the page. A comment just before a block says what else is to be done with it:

    <!-- snippet: file=clients.toml -->     write it to this file first (and run it if it is Python)
    <!-- snippet: background -->            Python, TypeScript: run it as a process of its own until
                                            the page ends; begun once the ports it names answer
    <!-- snippet: raises=ConnectError -->   Python: it must end with this exception
    <!-- snippet: output -->                any: it is what the block before printed
    <!-- snippet: run -->                   console: run the lines after `$`, each must succeed
    <!-- snippet: no-run WHY -->            not Python or TypeScript: leave it alone

TypeScript is a whole program with a name (`file=service.ts`): it is checked against NestJS 12's
types, and run by Node. TOML must parse. A console line after `$` must name a subcommand of ours, a
target of the Makefile or an extra that exists, where it mentions one.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LANGUAGES = {"python", "toml", "console", "text", "typescript", "json", "proto", "sh", "mermaid"}

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^`\n]*)\n"
    r"(?P<text>.*?)^(?P=indent)(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
_DIRECTIVE = re.compile(r"<!-- snippet: (?P<words>.*?) -->\s*\Z")
BROKER_PORTS = {
    "6379": "redis", "4222": "nats", "5672": "rabbitmq", "1883": "mosquitto", "9092": "kafka",
}  # fmt: skip
_PORT = re.compile(r"\b(127\.0\.0\.1:|localhost:|port: )(\d{4,5})\b")
INTEROP = ROOT / "tests" / "interop"
_COMPILE = (
    "node", str(INTEROP / "docs/node_modules/typescript/lib/tsc.js"),
    "--target", "es2022", "--module", "nodenext", "--strict", "--skipLibCheck", "--types", "node",
    "--experimentalDecorators", "--emitDecoratorMetadata",
)  # fmt: skip


@dataclass(frozen=True)
class Snippet:
    language: str
    text: str
    line: int  # of the fence; the text starts on the next
    options: Mapping[str, str]  # the words of the comment before it, name to value


def snippets(page: str) -> list[Snippet]:
    """The fenced blocks of a page; directives in braces (MyST's) are not code."""
    found = []
    for match in _FENCE.finditer(page):
        language = match["info"].strip()
        if language.startswith("{"):
            continue
        directive = _DIRECTIVE.search(page[: match.start()])
        words = directive["words"] if directive else ""
        if words.startswith("no-run"):
            options = {"no-run": words.removeprefix("no-run").strip()}
        else:
            options = dict(word.partition("=")[::2] for word in words.split())
        indent = match["indent"]
        text = "".join(line.removeprefix(indent) for line in match["text"].splitlines(True))
        found.append(Snippet(language, text, page.count("\n", 0, match.start()) + 1, options))
    return found


def brokers(page: str) -> dict[str, str]:
    """The brokers that a page's code needs, by the usual port it finds them at."""
    return {
        port: BROKER_PORTS[port]
        for snippet in snippets(page)
        if "no-run" not in snippet.options
        for _, port in _PORT.findall(snippet.text)
        if port in BROKER_PORTS
    }


def complaints(page: str) -> Iterator[str]:
    """What is wrong with a page's blocks, without running them."""
    for snippet in snippets(page):
        where = f"line {snippet.line}"
        if snippet.language not in LANGUAGES:
            yield f"{where}: the language {snippet.language!r} is none of {sorted(LANGUAGES)}"
        unknown = snippet.options.keys() - {
            "file", "background", "raises", "output", "run", "no-run",
        }  # fmt: skip
        if unknown:
            yield f"{where}: no snippet can be {sorted(unknown)}"
        if "no-run" in snippet.options:
            if snippet.language in {"python", "typescript"}:
                yield f"{where}: {snippet.language} runs"
            if not snippet.options["no-run"]:
                yield f"{where}: no-run needs a reason"
        elif snippet.language == "typescript" and "file" not in snippet.options:
            yield f"{where}: a program has a name"
        elif snippet.language == "console":
            for command in commands(snippet):
                yield from (f"{where}: {complaint}" for complaint in _complaints(command))


def commands(snippet: Snippet) -> list[str]:
    text = snippet.text.replace("\\\n", " ")
    return [line[2:].strip() for line in text.splitlines() if line.startswith("$ ")]


def _complaints(command: str) -> Iterator[str]:
    words = shlex.split(command, comments=True)
    if words[:1] == ["make"]:
        makefile = (ROOT / "Makefile").read_text()
        for target in words[1:]:
            if "=" not in target and not re.search(
                rf"^{re.escape(target)}:", makefile, re.MULTILINE
            ):
                yield f"make has no target {target}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for mention in re.findall(r"resilient-client\[([\w,-]+)\]", command):
        for extra in mention.split(","):
            if extra not in extras:
                yield f"there is no extra {extra}"
    if words[:1] == ["resilient-client"] and len(words) > 1:
        asked = subprocess.run(
            [sys.executable, "-m", "resilient_client", words[1], "--help"],
            capture_output=True,
            timeout=30,
        )
        if asked.returncode:
            yield f"resilient-client has no command {words[1]}"


class _Ports:
    """The free port that stands for each port in a page."""

    def __init__(self, known: Mapping[str, int]) -> None:
        self._free = dict(known)

    def __call__(self, text: str) -> str:
        return _PORT.sub(lambda match: f"{match[1]}{self._port(match[2])}", text)

    def _port(self, written: str) -> int:
        if written not in self._free:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._free[written] = probe.getsockname()[1]
        return self._free[written]


class Page:
    """Runs one page in the current folder."""

    def __init__(self, path: Path, ports: Mapping[str, int]) -> None:
        self.path = path
        self.text = path.read_text("utf-8")
        self.ports = _Ports(ports)
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.printed = ""
        self.background: list[subprocess.Popen[bytes]] = []

    def run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                for snippet in snippets(self.text):
                    if "no-run" not in snippet.options:
                        self._do(snippet, runner)
        finally:
            self._end()

    def _do(self, snippet: Snippet, runner: asyncio.Runner) -> None:
        text = self.ports(snippet.text)
        if "output" in snippet.options:
            assert self.printed.strip() == text.strip(), (
                f"{self.path}:{snippet.line}: printed was\n{self.printed}"
            )
            return
        if name := snippet.options.get("file"):
            Path(name).write_text(text, "utf-8")
        match snippet.language:
            case "python" if "background" in snippet.options:
                file = snippet.options.get("file") or f"line_{snippet.line}.py"
                Path(file).write_text(text, "utf-8")
                self._begin([sys.executable, file], text, snippet)
            case "typescript":
                command = ["node", self._compiled(Path(snippet.options["file"]))]
                if "background" in snippet.options:
                    self._begin(command, text, snippet)
                else:
                    self.printed = self._console(shlex.join(command))
            case "python":
                self._python(text, snippet, runner)
            case "toml":
                tomllib.loads(text)
            case "console" if "run" in snippet.options:
                self.printed = "".join(map(self._console, map(self.ports, commands(snippet))))

    def _python(self, text: str, snippet: Snippet, runner: asyncio.Runner) -> None:
        code = compile(
            "\n" * snippet.line + text,  # so that a traceback names the page's line
            str(self.path),
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
        wanted = snippet.options.get("raises")
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                if code.co_flags & inspect.CO_COROUTINE:
                    runner.run(eval(code, self.namespace))
                else:
                    exec(code, self.namespace)
        except Exception as error:
            if type(error).__name__ != wanted:
                raise
        else:
            assert wanted is None, f"{self.path}:{snippet.line}: no {wanted} was raised"
        finally:
            self.printed = output.getvalue()
            sys.stdout.write(self.printed)

    def _console(self, command: str) -> str:
        bin_folder = str(Path(sys.executable).parent)
        environment = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(
            command, shell=True, env=environment, stdout=subprocess.PIPE, timeout=60
        )
        assert done.returncode == 0, (
            f"{self.path}: {command}: exit code {done.returncode}\n{done.stdout.decode()}"
        )
        return done.stdout.decode()

    def _compiled(self, program: Path) -> str:
        if not Path("node_modules").exists():
            Path("package.json").write_text('{"type": "module"}')
            Path("node_modules/@types").mkdir(parents=True)
            for packages in (INTEROP / "docs/node_modules", INTEROP / "nest12/node_modules"):
                for package in (*packages.glob("*"), *packages.glob("@types/*")):
                    link = Path("node_modules") / package.relative_to(packages)
                    if not link.exists():
                        link.symlink_to(package)
        self._console(shlex.join([*_COMPILE, str(program)]))
        return str(program.with_suffix(".js"))

    def _begin(self, command: list[str], text: str, snippet: Snippet) -> None:
        process = subprocess.Popen(command)
        self.background.append(process)
        limit = time.monotonic() + 60
        for match in _PORT.finditer(text):
            while not _answers(int(match[2])):
                assert process.poll() is None, f"{self.path}:{snippet.line}: it ended at once"
                assert time.monotonic() < limit, f"{self.path}:{snippet.line}: nobody listens"
                time.sleep(0.02)

    def _end(self) -> None:
        for process in self.background:
            process.send_signal(signal.SIGTERM)
        for process in self.background:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    _, page, *known = sys.argv
    places = (each.partition("=") for each in known)
    Page(Path(page), {usual: int(port) for usual, _, port in places}).run()
