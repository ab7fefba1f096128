"""Sphinx: MyST pages on four shelves (tutorial, how-to, reference, explanation)."""

import re
from importlib.metadata import version as installed_version

project = "resilient_client"
author = "The resilient_client authors"
copyright = author  # noqa: A001  (Sphinx's name)
version = release = installed_version("resilient-client")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"  # `name` in a docstring is code, as it is in these pages

html_theme = "furo"
html_title = "resilient_client"
html_show_sphinx = False
html_copy_source = False

# Names that annotations mention and that have no page to point to: other libraries (nothing is
# fetched from the network while building), and type variables.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(asyncio|backoff|collections|contextvars|httpx|msgspec|opentelemetry|os|pathlib)\..*",
    ),
    ("py:.*", r"(pybreaker|ssl|types|typing|typing_extensions|logging|datetime|enum)\..*"),
    ("py:class", r"(.*\.)?[A-Z]|T_co|_[A-Za-z]\w*|.*\._[A-Za-z]\w*"),
    # Aliases, which documentation shows by what they stand for.
    ("py:class", r"(Event|HeadersSource|Jitter|Kind|Observer|On|Patterns|Status|Wait)"),
    ("py:class", r"resilient_client\.(handlers\.Handler|message\.Items)"),
    ("py:(class|exc|obj|data)", r"[a-z]+|optional|[A-Z]\w*(Error|Exception)"),
    (
        "py:class",
        r"(Any|Awaitable|Callable|Coroutine|Iterable|Iterator|AsyncIterator|Mapping|Sequence)",
    ),
]

_ENTRY = re.compile(r"^( +)(\w+(?:, \w+)+): ")
_FENCE = re.compile(r"^( *)```(\w*)$")


def _plain_docstring(app, what, name, obj, options, lines):
    """Make Sphinx read docstrings as people do.

    Entries for several names at once become one entry each, fenced code becomes a block, and the
    first words of an attribute's description are not taken for its type.
    """
    read: list[str] = []
    others: list[str] = []  # entries that follow the one that is being copied
    indent = ""
    fence: str | None = None
    for line in lines:
        if others and line.strip() and not line.startswith(f"{indent} "):
            read += others
            others = []
        if match := _FENCE.match(line):
            if fence is None:
                fence = match[1]
                read += [f"{fence}.. code-block:: {match[2] or 'text'}", ""]
            else:
                fence = None
                read.append("")
        elif fence is not None:
            read.append(f"   {line}" if line.strip() else line)
        elif match := _ENTRY.match(line):
            indent = match[1]
            first, *rest = match[2].split(", ")
            others = [f"{indent}{other}: see `{first}`." for other in rest]
            read.append(f"{indent}{first}: {line[match.end() :]}")
        else:
            read.append(line)
    lines[:] = read + others
    if what in {"attribute", "data", "property"}:
        lines[:1] = [f": {line}" for line in lines[:1]]  # the empty type


def setup(app):
    app.connect("autodoc-process-docstring", _plain_docstring, priority=400)
