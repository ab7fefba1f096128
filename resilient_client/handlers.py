"""From a user's function to something that takes a payload and a context."""

from __future__ import annotations

import functools
import inspect
from contextlib import suppress
from dataclasses import dataclass, field
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NoReturn,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from resilient_client.context import Context
from resilient_client.errors import ConfigurationError
from resilient_client.patterns import route as route_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_client.message import Pattern

Style = Literal["async", "stream", "sync"]


def _not_registered(_body: Any) -> NoReturn:
    raise RuntimeError("a handler belongs to a server before it is given anything")


@dataclass(slots=True, eq=False)
class Handler:
    """A registered function.

    Attributes:
        pattern, route: what it is registered for.
        is_event: for events; otherwise it answers requests.
        extras: options that only a transport understands.
        function: `function(payload, context)`, whatever the user's signature is.
        payload_name, payload_type: its parameter, and what the payload is validated into.
        decode: how that is done with the server's codec.
        is_straight: whether it is a coroutine function with no policies around it.
        wants_payload: whether the payload is decoded at all.
        style: how it is run: awaited, iterated, or in a worker thread.
        name: for logs.
    """

    pattern: Pattern
    route: str
    is_event: bool
    function: Callable[[Any, Context], Any]
    payload_name: str
    payload_type: Any
    wants_payload: bool
    style: Style
    name: str
    extras: Mapping[str, Any] = field(default_factory=dict)
    decode: Callable[[Any], Any] = _not_registered
    is_straight: bool = False


def bind(
    function: Callable[..., Any], pattern: Pattern, *, is_event: bool, extras: Mapping[str, Any]
) -> Handler:
    """Look at the function's signature, once.

    An argument named `context`, or annotated with `Context`, gets the context; the other one, the
    payload. Either may be left out.

    Raises:
        ConfigurationError: a signature that cannot be called with these two.
    """
    target = inspect.unwrap(function) if inspect.isroutine(function) else type(function).__call__
    name = str(getattr(function, "__qualname__", type(function).__name__))
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"handler {name} has no signature to look at: {error}") from None
    if parameters and parameters[0].name == "self":  # it would be given the payload
        raise ConfigurationError(
            f"handler {name} is a method without its object",
            hint="register it where there is one: server.message_pattern(...)(object.method)",
        )
    hints = _hints(target, parameters, name)
    payload: inspect.Parameter | None = None
    context: inspect.Parameter | None = None
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        hint = hints.get(parameter.name, Any)
        if _is_context(hint) or (hint is Any and parameter.name == "context" and context is None):
            context = parameter
        elif payload is None:
            payload = parameter
        elif parameter.default is parameter.empty:
            raise ConfigurationError(
                f"handler {name} wants {parameter.name!r} besides a payload and a context",
                hint="a handler takes (payload, context: Context); either may be left out",
            )
    hint = Any if payload is None else hints.get(payload.name, Any)
    return Handler(
        pattern=pattern,
        route=route_of(pattern),
        is_event=is_event,
        function=_adapted(function, payload, context),
        payload_name="" if payload is None else payload.name,
        payload_type=hint,
        wants_payload=payload is not None,
        style=_style(function),
        name=name,
        extras=extras,
    )


def _is_context(hint: Any) -> bool:
    """Whether this is `Context`, perhaps with a note, or `None` for when nobody gives one."""
    if get_origin(hint) in (Union, UnionType, Annotated):
        return any(_is_context(each) for each in get_args(hint))
    return hint is Context


def _hints(target: Any, parameters: list[inspect.Parameter], name: str) -> dict[str, Any]:
    """The parameters' types, written as text or not; what the function returns does not matter."""
    while isinstance(target, functools.partial):
        target = target.func
    target = getattr(target, "__func__", target)
    told = {each.name: each.annotation for each in parameters if each.annotation is not each.empty}
    scope = dict(getattr(target, "__globals__", {}))
    cells = getattr(target, "__closure__", None) or ()
    for free, cell in zip(target.__code__.co_freevars if cells else (), cells, strict=True):
        with suppress(ValueError):  # a variable that is assigned later, such as a client
            scope[free] = cell.cell_contents
    try:
        return get_type_hints(type("_", (), {"__annotations__": told}), scope, include_extras=True)
    except NameError as error:
        raise ConfigurationError(
            f"handler {name}: an annotation cannot be resolved: {error}",
            hint="import the type where the handler is defined, not under TYPE_CHECKING",
        ) from None


def _style(function: Callable[..., Any]) -> Style:
    for candidate in (function, getattr(function, "__call__", None)):  # noqa: B004
        if inspect.isasyncgenfunction(candidate):
            return "stream"
        if inspect.iscoroutinefunction(candidate):
            return "async"
    return "sync"


def _adapted(
    function: Callable[..., Any],
    payload: inspect.Parameter | None,
    context: inspect.Parameter | None,
) -> Callable[[Any, Context], Any]:
    """The function with one signature, without asking again at each call."""
    if payload is None and context is None:
        return lambda _payload, _context: function()
    if payload is None:
        assert context is not None  # noqa: S101
        if context.kind is context.KEYWORD_ONLY:
            return lambda _payload, given: function(**{context.name: given})
        return lambda _payload, given: function(given)
    if context is None and payload.kind is not payload.KEYWORD_ONLY:
        return lambda given, _context: function(given)
    first = payload.kind is not payload.KEYWORD_ONLY
    names = (payload.name, None if context is None else context.name)

    def call(given: Any, about: Context) -> Any:
        keywords = {} if names[1] is None else {names[1]: about}
        if first and context is not None and context.kind is context.KEYWORD_ONLY:
            return function(given, **keywords)
        return function(**{names[0]: given}, **keywords)

    positional = inspect.Parameter.POSITIONAL_ONLY
    if context is not None and positional in (payload.kind, context.kind):
        return function
    return call
