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
_BY_PLACE_ONLY = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
_BY_PLACE = (*_BY_PLACE_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


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

    An argument named `context`, or annotated with `Context`, gets the context; of the others one
    gets the payload: the one without a default, else the one named `payload`, else the first,
    which may be `*args`. Either may be left out.

    Raises:
        ConfigurationError: a signature that cannot be called with these two.
    """
    name = _name(function)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"handler {name} has no signature to look at: {error}") from None
    if parameters and parameters[0].name == "self":  # it would be given the payload
        raise ConfigurationError(
            f"handler {name} is a method without its object",
            hint="register it where there is one: server.message_pattern(...)(object.method)",
        )
    hints = _hints(_written(function), parameters, name)
    places = [each for each in parameters if each.kind is not each.VAR_KEYWORD]
    contexts = [each for each in places if _is_context(hints.get(each.name, Any))] or [
        each for each in places if each.name == "context" and hints.get("context", Any) is Any
    ]
    context = contexts[0] if contexts else None
    others = [each for each in places if each not in contexts]
    wanted = [each for each in places if each is not context and _is_required(each)]
    if len(wanted) > 1 or (wanted and wanted[0] in contexts):
        raise ConfigurationError(
            f"handler {name} wants {wanted[-1].name!r} besides a payload and a context",
            hint="a handler takes (payload, context: Context); either may be left out",
        )
    named = [each for each in others if each.name == "payload"]
    payload = next(iter(wanted or named or others), None)
    return Handler(
        pattern=pattern,
        route=route_of(pattern),
        is_event=is_event,
        function=_adapted(function, parameters, payload, context, name),
        payload_name="" if payload is None else payload.name,
        payload_type=Any if payload is None else hints.get(payload.name, Any),
        wants_payload=payload is not None,
        style=_style(function),
        name=name,
        extras=extras,
    )


def _name(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__qualname__", type(function).__name__))


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL


def _is_context(hint: Any) -> bool:
    """Whether this is `Context`, perhaps with a note, or `None` for when nobody gives one."""
    if get_origin(hint) in (Union, UnionType, Annotated):
        return any(_is_context(each) for each in get_args(hint))
    return hint is Context


def _written(function: Callable[..., Any]) -> Any:
    """The function that the signature is of: where its annotations were written."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif (inner := inspect.unwrap(function)) is not function:
            function = inner
        elif inspect.isroutine(function):
            return getattr(function, "__func__", function)
        else:
            function = type(function).__call__


def _hints(written: Any, parameters: list[inspect.Parameter], name: str) -> dict[str, Any]:
    """The parameters' types, written as text or not; what the function returns does not matter."""
    told = {each.name: each.annotation for each in parameters if each.annotation is not each.empty}
    scope = dict(getattr(written, "__globals__", {}))
    scope |= {each.__name__: each for each in getattr(written, "__type_params__", ())}
    cells = getattr(written, "__closure__", None) or ()
    for free, cell in zip(written.__code__.co_freevars if cells else (), cells, strict=True):
        with suppress(ValueError):  # a variable that is assigned later, such as a client
            scope[free] = cell.cell_contents
    try:
        return get_type_hints(type("_", (), {"__annotations__": told}), scope, include_extras=True)
    except NameError as error:
        raise ConfigurationError(
            f"handler {name}: an annotation cannot be resolved: {error}",
            hint="import or define its type above the handler, in the module and not under"
            " TYPE_CHECKING",
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
    parameters: list[inspect.Parameter],
    payload: inspect.Parameter | None,
    context: inspect.Parameter | None,
    name: str,
) -> Callable[[Any, Context], Any]:
    """The function with one signature, without asking again at each call.

    A decorator may have put something around it that takes them by name only, or by position only.
    """
    ours = {each.name: index for index, each in enumerate((payload, context)) if each is not None}
    try:
        real = inspect.signature(function, follow_wrapped=False)
    except ValueError:  # as one that functools.cache made
        real = inspect.signature(function)
    kinds = (_BY_PLACE_ONLY, _BY_PLACE) if len(ours) > 1 else (_BY_PLACE, _BY_PLACE_ONLY)
    for placed in kinds:
        last = max(
            (at for at, each in enumerate(parameters) if each.name in ours and each.kind in placed),
            default=-1,
        )
        places = parameters[: last + 1]
        names = [each.name for each in parameters[last + 1 :] if each.name in ours]
        try:
            real.bind(*places, **dict.fromkeys(names))
        except TypeError:
            continue
        return _called(function, ours, places, names)
    raise ConfigurationError(
        f"handler {name} has a decorator around it that cannot be called so: it takes {real}",
        hint="let the function that the decorator makes take (*args, **kwargs)",
    )


def _called(
    function: Callable[..., Any],
    ours: Mapping[str, int],
    places: list[inspect.Parameter],
    names: list[str],
) -> Callable[[Any, Context], Any]:
    """The function, given the payload (0 in `ours`) and the context (1) by position and by name."""
    order = [ours.get(each.name) for each in places]
    match order, [ours[each] for each in names]:
        case [], []:
            return lambda _payload, _context: function()
        case [0], []:
            return lambda given, _context: function(given)
        case [1], []:
            return lambda _payload, about: function(about)
        case [0, 1], []:
            return function
        case [], ([0, 1] | [1, 0]):
            first, second = ours
            return lambda given, about: function(**{first: given, second: about})
        case _:  # keyword-only, positional-only, or behind others that have defaults
            pass
    defaults = [each.default for each in places]

    def call(given: Any, about: Context) -> Any:
        values = (given, about)
        return function(
            *(
                default if at is None else values[at]
                for at, default in zip(order, defaults, strict=True)
            ),
            **{each: values[ours[each]] for each in names},
        )

    return call
