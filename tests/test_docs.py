"""What the documentation shows works: its code runs, and so does every example."""

from __future__ import annotations

import ast
import codeop
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import docs_snippets
from tests.peers.brokers import require_peer
from tests.peers.nest import typescript_missing

ROOT = docs_snippets.ROOT
PAGES = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts),
]
BROKERS = {"kafka_orders.py": "kafka_broker"}  # an example's argument: the URL of this
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

pytestmark = pytest.mark.timeout(150)  # each starts programs, on machines that are busy


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _run(arguments: list[str], folder: Path) -> None:
    """Run a Python program in this folder; its output is shown when it fails."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=140,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_the_blocks_of_a_page_are_in_order(page: Path) -> None:
    assert list(docs_snippets.complaints(page.read_text("utf-8"))) == []


def _marks(page: Path) -> list[pytest.MarkDecorator]:
    return [pytest.mark.interop] if "```typescript" in page.read_text("utf-8") else []


@pytest.mark.parametrize("page", [pytest.param(p, marks=_marks(p)) for p in PAGES], ids=_name)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    text = page.read_text("utf-8")
    if _marks(page):
        require_peer(typescript_missing())
    fixtures = {"mosquitto": "mqtt_broker"}
    places = [
        f"{usual}={request.getfixturevalue(fixtures.get(name, f'{name}_broker')).port}"
        for usual, name in docs_snippets.brokers(text).items()
    ]
    if docs_snippets.snippets(text):
        _run([docs_snippets.__file__, str(page), *places], tmp_path)


def test_the_tutorial_can_be_typed_along() -> None:
    """At `python -m asyncio`, where an indented block ends with an empty line."""
    compiled = codeop.CommandCompiler()
    compiled.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    page = docs_snippets.snippets((ROOT / "docs" / "tutorial" / "index.md").read_text("utf-8"))
    for block in (each.text for each in page if each.language == "python"):
        lines: list[str] = []
        for line in [*block.splitlines(), ""]:
            lines.append(line)
            if compiled("\n".join(lines)) is not None:
                lines = []
        assert not any(lines), block


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(each, marks=pytest.mark.broker if each.name in BROKERS else ())
        for each in EXAMPLES
    ],
    ids=_name,
)
def test_an_example_runs(example: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    broker = BROKERS.get(example.name)
    urls = [] if broker is None else [request.getfixturevalue(broker).url]
    _run([str(example), *urls], tmp_path)


@pytest.mark.parametrize("module", ["", ".testing", ".transports"])
def test_each_public_name_has_an_entry_in_the_reference(module: str) -> None:
    home = f"resilient_client{module}"
    pages = "\n".join(p.read_text("utf-8") for p in (ROOT / "docs" / "reference").glob("*.md"))
    entries = set(re.findall(r"auto\w+:: [\w.]*?(\w+)$", pages, re.MULTILINE))
    entries |= {
        name.strip()
        for members in re.findall(r":members: (.+)", pages)
        for name in members.split(",")
    }
    names = {name for name in importlib.import_module(home).__all__ if name != "__version__"}
    assert names - entries == set()


def test_each_logger_is_in_the_table_of_loggers() -> None:
    page = (ROOT / "docs" / "howto" / "correlation.md").read_text("utf-8")
    names = {
        name
        for path in (ROOT / "resilient_client").rglob("*.py")
        for name in re.findall(r'getLogger\("(resilient_client[\w.]*)"\)', path.read_text("utf-8"))
    }
    assert names - set(re.findall(r"`(resilient_client[\w.]*)`", page)) == set()


def _options(scheme: str, end: str) -> set[str]:
    ends = importlib.import_module(f"resilient_client.transports.{scheme}")
    parameters = inspect.signature(getattr(ends, end)).parameters.values()
    return {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}


@pytest.mark.parametrize(
    "scheme", ["memory", "tcp", "http", "redis", "amqp", "mqtt", "nats", "kafka", "grpc"]
)
def test_the_table_of_a_transports_options_is_what_it_takes(scheme: str) -> None:
    page = (ROOT / "docs" / "reference" / "transports.md").read_text("utf-8")
    table = page.partition(f"## {scheme}://")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \| (client|server|both) \|", table, re.MULTILINE)
    for end, cls in (("client", "ClientTransport"), ("server", "ServerListener")):
        told = {
            name
            for names, whose in rows
            if whose in {end, "both"}
            for name in re.findall(r"`(\w+)`", names)
        }
        taken = _options(scheme, cls)
        if scheme == "redis":
            taken.discard("queue")  # it is there to be refused, with a hint
        assert told == taken, end


@pytest.mark.parametrize(
    ("page", "extra"),
    [
        ("redis", "redis"), ("nats", "nats"), ("rabbitmq", "amqp"), ("kafka", "kafka"),
        ("grpc", "grpc"),
    ],
)  # fmt: skip
def test_a_transports_page_says_what_to_install(page: str, extra: str) -> None:
    text = (ROOT / "docs" / "reference" / f"{page}.md").read_text("utf-8")
    assert f'pip install "resilient-client[{extra}]"' in text


def _proofs(page: str) -> dict[str, dict[str, list[str]]]:
    """Of each row of the table of delivery, by its first cell: its clauses, and their tests."""
    comment = page.partition("<!-- proofs\n")[2].partition("\n-->")[0]
    found: dict[str, dict[str, list[str]]] = {}
    for paragraph in comment.split("\n\n")[1:]:
        row, *lines = paragraph.split("\n")
        found[row] = {}
        for line in lines:
            clauses, _, tests = line.partition(" = ")
            found[row] |= dict.fromkeys(clauses.split(" | "), tests.split())
    return found


def test_each_clause_of_the_table_of_delivery_is_backed_by_a_test() -> None:
    page = (ROOT / "docs" / "reference" / "delivery.md").read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    proofs = _proofs(page)
    assert [row[0] for row in rows] == list(proofs)
    there = {
        name: path.read_text("utf-8")
        for path in (ROOT / "tests").glob("**/test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    for scheme, *cells in rows:
        rest = " ; ".join(cells)
        for clause, tests in proofs[scheme].items():
            assert clause in rest, f"{scheme}: {clause!r} is in none of its cells"
            rest = rest.replace(clause, "")
            assert tests, f"{scheme}: nothing backs {clause!r}"
            for test in tests if tests[0] != "untested:" else ():
                name, _, case = test.rstrip("]").partition("[")
                assert name in there, f"{scheme}: there is no {name}"
                for part in case.split("-") if case else ():
                    assert f'"{part}"' in there[name], f"{scheme}: {name} has no case {case}"
        assert not re.sub(r"[\s;,]|\bor\b|\band\b", "", rest), f"{scheme}: unproved: {rest}"


PAGE = """
<!-- snippet: file=settings.toml -->
```toml
url = "tcp://127.0.0.1:3001"
```

<!-- snippet: background -->
```python
import asyncio, signal

async def main():
    async def answer(reader, writer):
        writer.write(b"hello")
        writer.close()
    server = await asyncio.start_server(answer, *"127.0.0.1:3001".split(":"))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.close)
    await server.serve_forever()

try:
    asyncio.run(main())
except asyncio.CancelledError:
    pass
```

```python
import asyncio, tomllib
url = tomllib.load(open("settings.toml", "rb"))["url"]
reader, writer = await asyncio.open_connection("127.0.0.1", url.rpartition(":")[2])
```

    ```python
    print(await reader.read())
    writer.close()
    await writer.wait_closed()
    ```

<!-- snippet: output -->
```text
b'hello'
```

<!-- snippet: raises=ZeroDivisionError -->
```python
1 / 0
```
"""


def test_a_page_runs_as_one_program_beside_its_server(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    folder = tmp_path / "folder"
    folder.mkdir()
    _run([docs_snippets.__file__, str(page)], folder)


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("```python\nx = 1\nraise ValueError(x)\n```\n", 'page.md", line 3'),
        ("```python\nprint(1)\n```\n<!-- snippet: output -->\n```text\n2\n```\n", "printed was"),
        ("<!-- snippet: raises=KeyError -->\n```python\n```\n", "no KeyError was raised"),
        ("```toml\n= 1\n```\n", "TOMLDecodeError"),
    ],
)  # fmt: skip
def test_a_page_that_is_wrong_fails(page: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(page)
    with pytest.raises(AssertionError, match=said.replace(".", r"\.")):
        _run([docs_snippets.__file__, "page.md"], tmp_path)


def test_a_page_names_the_brokers_its_code_needs() -> None:
    page = "`127.0.0.1:9092`\n```python\nurl = 'redis://127.0.0.1:6379'\n```\n"
    assert docs_snippets.brokers(page) == {"6379": "redis"}


def test_marks_and_commands_are_checked() -> None:
    page = (
        "<!-- snippet: no-run too long -->\n```python\n```\n"
        "```pyhton\n```\n"
        "```typescript\n```\n"
        '```console\n$ pip install "resilient-client[nope]"\n$ make nothing\n```\n'
    )
    assert list(docs_snippets.complaints(page)) == [
        "line 2: python runs",
        f"line 4: the language 'pyhton' is none of {sorted(docs_snippets.LANGUAGES)}",
        "line 6: a program has a name",
        "line 8: there is no extra nope",
        "line 8: make has no target nothing",
    ]
