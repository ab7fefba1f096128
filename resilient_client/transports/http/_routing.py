"""Which handler an HTTP request is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from resilient_client.errors import ConfigurationError
from resilient_client.patterns import lookup_route
from resilient_client.transports.http._requests import Template, rest_template

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resilient_client.transports._base import App


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
        if (handled or app.receivers(route)) and _rest(route) is None:
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
            template = _rest(each.route)
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


def _rest(route: str) -> Template | None:
    """The REST pattern this is, if it is one; a broken one means something on another transport."""
    try:
        return rest_template(route)
    except ConfigurationError:
        return None


def _segments(template: Template) -> tuple[tuple[str, tuple[str, ...]], ...]:
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
    raw = scope.get("raw_path")
    if raw:
        segments = [unquote(part) for part in raw.decode("latin-1").split("/")]
    else:
        segments = scope["path"].split("/")
    root = scope.get("root_path", "")
    # what a proxy took off is in root_path but not in the path, what a framework mounts at in both
    mount = root.removeprefix(scope.get("app_root_path", ""))
    for above in (root, mount):
        inside = _below(segments, above)
        if inside is not None:
            segments = inside
            break
    below = _below(segments, base)
    return None if below is None else below[1:]


def _below(segments: list[str], root: str) -> list[str] | None:
    above = root.rstrip("/").split("/")
    if segments[: len(above)] != above:
        return None
    return ["", *segments[len(above) :]]
