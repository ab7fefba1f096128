"""Which handler an HTTP request is for."""

from __future__ import annotations

import typing
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from resilient_client.errors import PayloadError
from resilient_client.patterns import lookup_route
from resilient_client.transports.http._requests import rest_template

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resilient_client.codecs import Codec
    from resilient_client.transports._base import App

_MAX_QUERY = 1000  # fields


class Found(NamedTuple):
    """A handler, and what the path says.

    Attributes:
        route: the handler's lookup key.
        event: whether only event handlers listen.
        parameters: of the path; None for a plain pattern.
    """

    route: str
    event: bool
    parameters: dict[str, str] | None


class _Template(NamedTuple):
    method: str
    segments: tuple[tuple[str, tuple[str, ...]], ...]  # a prefix, then names and literals in turns
    route: str
    event: bool


class Router:
    """Finds handlers by method and path; looks anew when it finds none."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._known = -1
        self._templates: list[_Template] = []

    def find(self, method: str, segments: list[str], *, event: bool) -> Found | list[str]:
        """The handler, or the methods that this path does have (none: there is no such path).

        Args:
            segments: the decoded parts of the path below the base.
            event: the caller only hands something over.
        """
        app = self._app
        if self._known < 0:
            self._look()
        found = self._template(method, segments, event=event) if self._templates else None
        if isinstance(found, Found):
            return found
        route = "/".join(segments)
        if not app.handles(route) and not app.receivers(route):
            route = lookup_route(route) or route
        handled = app.handles(route)
        if handled or app.receivers(route):
            if method == "POST":
                return Found(route, event or not handled, None)
            return [*(found or ()), "POST"]
        if self._look():
            return self.find(method, segments, event=event)
        return found or []

    def _look(self) -> bool:
        """Read what is registered; True when that has changed."""
        subscriptions = self._app.subscriptions()
        if len(subscriptions) == self._known:
            return False
        self._known = len(subscriptions)
        templates = {}
        for each in subscriptions:
            template = rest_template(each.route)
            if template is not None:
                templates[each.route, each.is_event] = _Template(
                    template.method, _segments(template), each.route, each.is_event
                )
        # literal segments before parameters, so that /users/me is not taken for a user
        self._templates = sorted(
            templates.values(), key=lambda t: [len(names) > 0 for _, names in t.segments]
        )
        return True

    def _template(
        self, method: str, segments: list[str], *, event: bool
    ) -> Found | list[str] | None:
        allowed: set[str] = set()
        other: Found | None = None
        for template in self._templates:
            parameters = _match(template.segments, segments)
            if parameters is None:
                continue
            allowed.add(template.method)
            if template.method == "GET":
                allowed.add("HEAD")
            if template.method == method or (method == "HEAD" and template.method == "GET"):
                found = Found(template.route, template.event or event, parameters)
                if template.event == event:
                    return found
                other = other or found
        if other is not None:
            return other
        return sorted(allowed) if allowed else None


def _segments(template: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """A template's path, by segment: a literal, then names and literals in turns."""
    pieces: list[list[str]] = [[""]]
    names: list[list[str]] = [[]]
    for index, literal in enumerate(template.literals):
        if index:
            names[-1].append(template.parameters[index - 1])
            pieces[-1].append("")
        first, *rest = literal.split("/")
        pieces[-1][-1] += unquote(first)
        for part in rest:
            pieces.append([unquote(part)])
            names.append([])
    result = []
    for literals, own in zip(pieces[1:], names[1:], strict=True):
        turns = [item for pair in zip(own, literals[1:], strict=True) for item in pair]
        result.append((literals[0], tuple(turns)))
    return tuple(result)


def _match(
    template: tuple[tuple[str, tuple[str, ...]], ...], segments: list[str]
) -> dict[str, str] | None:
    if len(template) != len(segments):
        return None
    parameters: dict[str, str] = {}
    for (prefix, turns), segment in zip(template, segments, strict=True):
        if not turns:
            if segment != prefix:
                return None
            continue
        if not segment.startswith(prefix):
            return None
        rest = segment[len(prefix) :]
        for name, literal in zip(turns[::2], turns[1::2], strict=True):
            value, found, rest = rest.partition(literal) if literal else (rest, "yes", "")
            if not found or not value:
                return None
            parameters[name] = value
        if rest:
            return None
    return parameters


def path_segments(scope: Mapping[str, Any], base: str) -> list[str] | None:
    """The decoded segments of the path below where the application stands; None when outside it."""
    root = scope.get("root_path", "")
    path = scope["path"]
    raw = scope.get("raw_path")
    if raw:
        decoded = [unquote(part) for part in raw.decode("latin-1").split("/")]
    else:
        decoded = path.split("/")
    inside = _below(decoded, root) if root else decoded
    if inside is None:  # servers that leave the root out of the path
        inside = decoded
    if base:
        inside = _below(inside, base)
        if inside is None:
            return None
    return inside[1:]


def _below(segments: list[str], root: str) -> list[str] | None:
    above = root.rstrip("/").split("/")
    if segments[: len(above)] != above:
        return None
    return ["", *segments[len(above) :]]


class Fields(NamedTuple):
    """A payload put together from path, query and body; all but the body is text."""

    values: dict[str, Any]


class FieldsCodec:
    """Decodes `Fields`: text is taken for a number or bool where one is due."""

    __slots__ = ("_codec", "convert", "encode")

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.encode = codec.encode
        self.convert = codec.convert

    def decode(self, body: Any, type: Any = Any) -> Any:  # noqa: A002
        """See `Codec.decode`."""
        if not isinstance(body, Fields):
            return self._codec.decode(body, type)
        values = body.values
        for name in _lists(type):
            if name in values and not isinstance(values[name], list):
                values = {**values, name: [values[name]]}
        return self._codec.convert(values, type, strict=False)


def _lists(hint: Any) -> frozenset[str]:
    try:
        return _cached_lists(hint)
    except TypeError:  # a hint that cannot be hashed
        return frozenset()


@lru_cache(maxsize=256)
def _cached_lists(hint: Any) -> frozenset[str]:
    """The names of a type's fields that hold several values: one `tag=a` is a list of one."""
    if not isinstance(hint, type):
        return frozenset()
    try:
        hints = typing.get_type_hints(hint)
    except (NameError, TypeError):
        return frozenset()
    return frozenset(name for name, each in hints.items() if _several(each))


def _several(hint: Any) -> bool:
    origin = typing.get_origin(hint) or hint
    if isinstance(origin, type):
        return issubclass(origin, list | tuple | set | frozenset)
    return any(_several(each) for each in typing.get_args(hint))


def fields(parameters: Mapping[str, str], query: bytes, body: bytes, codec: Codec) -> Any:
    """The payload of a REST request: the body's object, the query, the path; the later wins.

    Raises:
        PayloadError: the body is no object but has to be put together with the others.
    """
    if not parameters and not query:
        return body or b"null"
    values: dict[str, Any] = {}
    if body:
        plain = codec.decode(body)
        if isinstance(plain, dict):
            values.update(plain)
        elif plain is not None:
            raise PayloadError("the body is no JSON object: path and query cannot be added to it")
    text = query.decode("latin-1")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_QUERY)
    except ValueError as error:
        raise PayloadError(f"the query has more than {_MAX_QUERY} fields") from error
    told: dict[str, Any] = {}
    for name, value in pairs:
        if name not in told:
            told[name] = value
        elif isinstance(told[name], list):
            told[name].append(value)
        else:
            told[name] = [told[name], value]
    values.update(told)
    values.update(parameters)
    return Fields(values)
