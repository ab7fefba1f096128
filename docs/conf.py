"""Sphinx: MyST pages on four shelves (tutorial, how-to, reference, explanation)."""

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
    ("py:class", r"[A-Z]|T_co|_[A-Za-z]\w*|.*\._[A-Za-z]\w*"),
    ("py:(class|exc|obj|data)", r"[a-z]+|optional|[A-Z]\w*(Error|Exception)"),
    (
        "py:class",
        r"(Any|Awaitable|Callable|Coroutine|Iterable|Iterator|AsyncIterator|Mapping|Sequence)",
    ),
]
