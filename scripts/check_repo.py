"""Checks of the repository that no linter has. Prints each finding, and fails if there is one."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "resilient_client"

# Where packages come from is a setting of the machine, never of the project.
HOSTS = re.compile(
    r"pypi\.org|pythonhosted\.org|registry\.npmjs\.org|registry\.yarnpkg\.com|repo1?\.maven\.|"
    r"proxy\.golang\.org|sum\.golang\.org|static\.crates\.io|index\.crates\.io|"
    r"deb\.debian\.org|archive\.ubuntu\.com|objects\.githubusercontent\.com",
)
ADDRESSES = re.compile(
    r"https?://[^\s\"'<>)]+\.(?:whl|tgz|tar\.gz|tar\.xz|zip|jar|deb)\b|"
    r"https?://[^\s\"'<>)]+/releases/download/|"
    r"--(?:extra-)?index-url[ =]|--registry[ =]|\"resolved\": *\"http",
)
# A reader has the text, not the tracker of whoever wrote it.
TRACKER = re.compile(r"\b[Ii]ssues? +#?\d+\b|\b(?:[Ff]ixes|[Cc]loses|[Ss]ee) #\d+\b|\(#\d+\)")
MACHINE = re.compile(r"/work/(?:wt|main|shared)\b|/roo[t]/")

# Modules of policies/ and transports/ that their siblings may import, besides those with an
# underscore.
SHARED = {"resilient_client.policies.retry_budget"}
# Libraries that may be imported in more than one module, with the reason.
SPREAD: set[str] = set()


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def texts(paths: list[Path]) -> Iterator[str]:
    rules = {
        "names a package registry": HOSTS,
        "holds a download address": ADDRESSES,
        "mentions a tracker's number": TRACKER,
        "mentions a path of one machine": MACHINE,
    }
    for path in paths:
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            for rule, expression in rules.items():
                if expression.search(line):
                    yield f"{path.relative_to(ROOT)}:{number}: {rule}: {line.strip()[:120]}"


def is_type_checking(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def imports(module: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Absolute names of what a module imports at run time, wherever in it, with the line."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            continue
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield node.lineno, alias.name
            case ast.ImportFrom(module=source, level=0, names=names) if source:
                for alias in names:
                    yield node.lineno, f"{source}.{alias.name}"
            case ast.ImportFrom():
                yield node.lineno, f"{module} (a relative import)"
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]) if ast.unparse(
                func
            ) in {"import_module", "importlib.import_module", "__import__"}:
                yield node.lineno, name
        yield from imports(module, node)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package() -> Iterator[str]:
    homes: dict[str, dict[str, str]] = defaultdict(dict)
    for path in sorted(PACKAGE.rglob("*.py")):
        module = module_name(path)
        for line, name in imports(module, ast.parse(path.read_text("utf-8"))):
            where = f"{path.relative_to(ROOT)}:{line}"
            top = name.partition(".")[0]
            if name.startswith("opentelemetry.sdk"):
                top = "opentelemetry.sdk"  # the application's part: of ours, only the demo's
            if top in {"pickle", "marshal", "shelve", "dill", "cloudpickle"}:
                yield f"{where}: {top} runs code from its input"
            elif top == "resilient_client":
                if sibling := known_sibling(module, name):
                    yield f"{where}: imports its sibling {sibling}"
            elif top not in sys.stdlib_module_names:
                homes[top].setdefault(module, where)
    for library, modules in sorted(homes.items()):
        if len(modules) > 1 and library not in SPREAD:
            yield f"{library} is imported in {len(modules)} modules: {', '.join(modules.values())}"


def known_sibling(module: str, name: str) -> str | None:
    """The other policy or transport that a policy or transport imports, if it does."""
    own, other = module.split("."), name.split(".")
    if len(own) < 3 or len(other) < 3 or own[1] not in {"policies", "transports"}:
        return None
    if own[2].startswith("_"):
        return None  # what its siblings share is none of them: it may put them together
    folder = PACKAGE / own[1] / other[2]
    if own[1] != other[1] or own[2] == other[2] or other[2].startswith("_"):
        return None
    if not folder.is_dir() and not folder.with_suffix(".py").is_file():
        return None  # a name of the package itself, not a module in it
    sibling = ".".join(other[:3])
    return None if sibling in SHARED else sibling


def main() -> int:
    findings = [*texts(tracked()), *package()]
    for finding in findings:
        print(finding)
    print(f"{len(findings)} findings in the repository")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
