"""What a pattern and its data are as an HTTP request: method, target, body and headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, quote_plus

from resilient_client.errors import ConfigurationError, PayloadError
from resilient_client.patterns import rest_parts

if TYPE_CHECKING:
    from resilient_client.codecs import Codec

# RFC 9110 section 9.2.2: PUT, DELETE and the safe methods.
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_IN_QUERY = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_slash = re.compile(r"[/\\]").split
# RFC 3986 section 3.3: what a segment may hold beside the unreserved characters.
_SEGMENT = ":@!$&'()*+,;="
_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch  # RFC 9110 section 5.6.2
_field_value = re.compile(rb"[\t\x20-\x7e\x80-\xff]*").fullmatch  # RFC 9110 section 5.5
# They frame the message, or belong to one connection: RFC 9110 section 7.6.1, RFC 9112 section 6.
_NOT_THE_CALLERS = frozenset(
    """connection content-length expect keep-alive proxy-connection te trailer transfer-encoding
    upgrade""".split()
)


class HttpRequest(NamedTuple):
    """A call as HTTP, the same for every attempt and endpoint.

    Attributes:
        method: such as "POST".
        target: path and query below the base, percent-encoded.
        content: the body, None for none.
        plain: whether it stands for a plain pattern rather than for a REST request.
    """

    method: str
    target: str
    content: bytes | None
    plain: bool


class Template(NamedTuple):
    """A REST pattern taken apart: literals and parameters take turns, a literal first."""

    method: str
    literals: tuple[str, ...]
    parameters: tuple[str, ...]
    query: str


@lru_cache(maxsize=512)
def rest_template(route: str) -> Template | None:
    """The parts of `"GET /users/{id}"`; None when the route is a plain one.

    Raises:
        ConfigurationError: braces that hold no name, or stand in the query, or the same name twice.
    """
    match = rest_parts(route)
    if match is None:
        return None
    path, _, query = match[2].partition("?")
    pieces = _PARAMETER.split(path)
    literals, parameters = pieces[::2], pieces[1::2]
    if any("{" in piece or "}" in piece for piece in literals):
        raise ConfigurationError(
            f"{route!r}: a path parameter is a name in braces", hint='as in "GET /users/{id}"'
        )
    if "{" in query or "}" in query:
        raise ConfigurationError(
            f"{route!r}: the query takes no parameters in braces",
            hint="what of the data is not in the path becomes the query",
        )
    if len(set(parameters)) != len(parameters):
        raise ConfigurationError(f"{route!r} names a path parameter twice")
    return Template(match[1], tuple(literals), tuple(parameters), query)


@lru_cache(maxsize=1024)
def plain_target(route: str) -> str:
    """The path of a plain pattern below the base: the server decodes it to the very same route.

    Slashes stay readable unless they would make segments that somebody on the way could tidy up.
    """
    segments = route.split("/")
    readable = len(segments) > 1 and not any(each in ("", ".", "..") for each in segments)
    try:
        text = quote(route, safe="/" + _SEGMENT if readable else _SEGMENT)
    except UnicodeEncodeError:
        raise PayloadError(f"the pattern {route!r} has no UTF-8 form") from None
    return "/" + (text.replace(".", "%2E") if route in (".", "..") else text)


def prepare(route: str, data: Any, codec: Codec) -> HttpRequest:
    """The request of a call.

    Raises:
        PayloadError: a path parameter is missing or unusable; the data has no JSON, or no query
            form.
    """
    template = rest_template(route)
    if template is None:
        return HttpRequest("POST", plain_target(route), codec.encode(data), True)
    method = template.method
    path = template.literals[0]
    if template.parameters:
        values = dict(_mapping(data, codec, route))
        pieces = [_literal(path)]
        for name, literal in zip(template.parameters, template.literals[1:], strict=True):
            pieces += (_path_value(name, values, codec, route), _literal(literal))
        path = "".join(pieces)
        data = values
    else:
        path = _literal(path)
    query = _literal(template.query)
    content = None
    if method in _IN_QUERY:
        if data is not None:
            told = _query(_mapping(data, codec, route), codec, route)
            query = f"{query}&{told}" if query and told else query or told
    elif data is not None:
        content = codec.encode(data)
    return HttpRequest(method, f"{path}?{query}" if query else path, content, False)


@lru_cache(maxsize=1024)
def _literal(text: str) -> str:
    """A part of a template, encoded where it is not already."""
    return quote(text, safe="/%?" + _SEGMENT)


def _mapping(data: Any, codec: Codec, route: str) -> Mapping[str, Any]:
    if isinstance(data, Mapping):
        return data
    if data is None:
        return {}
    plain = codec.decode(codec.encode(data))
    if not isinstance(plain, dict):
        raise PayloadError(
            f"{route}: the data is {type(data).__name__}, not a mapping",
            hint="the path parameters and the query are taken from it by name",
        )
    return plain


def _path_value(name: str, values: dict[str, Any], codec: Codec, route: str) -> str:
    if name not in values:
        raise PayloadError(
            f"{route}: the data has no {name!r} for the path", hint=f'add "{name}" to the data'
        )
    text = _text(values.pop(name), codec)
    # It would be another resource's path, now or after a proxy has decoded and tidied it up.
    if not text or any(part in (".", "..") for part in _slash(text)):
        raise PayloadError(
            f"{route}: {name!r} cannot be a part of a path: empty, dots or no scalar"
        )
    try:
        return quote(text, safe=_SEGMENT)
    except UnicodeEncodeError:
        raise PayloadError(f"{route}: {name!r} has no UTF-8 form") from None


def _query(values: Mapping[str, Any], codec: Codec, route: str) -> str:
    """`a=1&b=x&b=y`: None is left out, a list repeats its name."""
    pairs = []
    for name, value in values.items():
        if value is None:
            continue
        several = isinstance(value, list | tuple | set | frozenset)
        for each in value if several else (value,):
            text = _text(each, codec)
            if text is None:
                raise PayloadError(
                    f"{route}: {name!r} cannot be a part of a query",
                    hint="a query takes scalars and lists of scalars",
                )
            try:
                pairs.append(f"{quote_plus(str(name))}={quote_plus(text)}")
            except UnicodeEncodeError:
                raise PayloadError(f"{route}: {name!r} has no UTF-8 form") from None
    return "&".join(pairs)


def _text(value: Any, codec: Codec) -> str | None:
    """A scalar as it stands in a URL, None for what is no scalar."""
    if type(value) is str:
        return value
    if type(value) is int:
        return str(value)
    plain = codec.decode(codec.encode(value))
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if isinstance(plain, str):
        return plain
    return None if plain is None or isinstance(plain, dict | list) else str(plain)


def header(name: str, value: str) -> tuple[bytes, bytes]:
    """A header as bytes.

    Raises:
        PayloadError: it cannot be one. The value is not shown: it may be secret.
    """
    if name in _NOT_THE_CALLERS:
        raise PayloadError(f"header {name!r} belongs to the connection, not to a call")
    if _token(name) is None:
        raise PayloadError(f"header {name!r} has a name that HTTP does not allow")
    try:
        text = value.strip(" \t").encode()
    except UnicodeEncodeError:
        text = b"\0"
    if _field_value(text) is None:
        raise PayloadError(f"header {name!r} holds a character that no header can")
    return name.encode(), text
