from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from resilient_client import ClientProxy, ConfigurationError, Context, Server
from tests import calls

if TYPE_CHECKING:
    from decimal import Decimal


@dataclass
class User:
    name: str


async def told(prefix: str, user: User, context: Context) -> list[Any]:
    return [prefix, user.name, context.pattern]


class Controller:
    async def get(self, user: User, context: Context) -> list[Any]:
        return ["method", user.name, context.pattern]

    async def __call__(self, user: User, context: Context) -> list[Any]:
        return ["object", user.name, context.pattern]

    bound_later = functools.partialmethod(get)


async def first_alone(user: User, /, *, context: Context) -> list[Any]:
    return ["first alone", user.name, context.pattern]


async def context_first(context: Context, user: User, /) -> list[Any]:
    return ["context first", user.name, context.pattern]


async def context_alone_first(context: Context, /, *, user: User) -> list[Any]:
    return ["context alone first", user.name, context.pattern]


async def between(
    user: User, text: str = "between", context: Context | None = None, /
) -> list[Any]:
    assert context is not None
    return [text, user.name, context.pattern]


async def required(*, text: str = "required", user: User, context: Context) -> list[Any]:
    return [text, user.name, context.pattern]


async def named(
    text: str = "named", payload: User | None = None, context: Context | None = None
) -> list[Any]:
    assert payload is not None
    assert context is not None
    return [text, payload.name, context.pattern]


async def called_context(context: User, about: Context) -> list[Any]:
    return ["called context", context.name, about.pattern]


async def unannotated(context, about: Context) -> list[Any]:
    return ["unannotated", context["name"], about.pattern]


async def ordinary(user: User, context: Context) -> list[Any]:
    return ["ordinary", user.name, context.pattern]


@functools.wraps(ordinary)
async def other_names(given, about):
    return await ordinary(given, about)


@functools.wraps(ordinary)
async def by_name(**named):
    return await ordinary(**named)


@functools.wraps(ordinary)
async def by_place(*args):
    return await ordinary(*args)


@functools.wraps(ordinary)
async def too_few(user):
    return user


async def two_contexts(context: Context, again: Context) -> None: ...


async def not_there(price: Decimal) -> None: ...


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (functools.partial(told, "partial"), "partial"),
        (functools.partial(told, prefix="named partial"), "named partial"),
        (functools.partial(functools.partial(told), "twice"), "twice"),
        (functools.partial(Controller()), "object"),
        (Controller(), "object"),
        (Controller().get, "method"),
        (Controller().bound_later, "method"),
        (calls.Counted(Controller().get), "method"),
        (functools.partial(calls.Counted(told), "counted"), "counted"),
        (first_alone, "first alone"),
        (context_first, "context first"),
        (context_alone_first, "context alone first"),
        (between, "between"),
        (required, "required"),
        (named, "named"),
        (called_context, "called context"),
        (unannotated, "unannotated"),
        (other_names, "ordinary"),
        (by_name, "ordinary"),
        (by_place, "ordinary"),
    ],
)
async def test_whatever_its_signature_a_handler_is_given_its_payload_and_its_context(
    handler: Any, says: str
) -> None:
    server = Server("memory://signatures", telemetry=False)
    server.message_pattern("get")(handler)
    async with server, ClientProxy("memory://signatures", telemetry=False) as client:
        assert await client.send("get", {"name": "Ann"}) == [says, "Ann", "get"]


async def test_what_a_decorator_without_wraps_makes_is_given_the_payload() -> None:
    server = Server("memory://bare", telemetry=False)

    def logged(function: Any) -> Any:
        async def call(*args, **named):
            return await function(*args, **named)

        return call

    @server.message_pattern("double")
    @logged
    async def double(number: int) -> int:
        return 2 * number

    async with server, ClientProxy("memory://bare", telemetry=False) as client:
        assert await client.send("double", 21) == 42


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (too_few, "handler ordinary .*cannot be called"),
        (two_contexts, "wants 'again'"),
        (not_there, "'Decimal' is not defined.*above the handler"),
    ],
)
def test_a_handler_that_could_never_be_called_is_refused_when_registered(
    handler: Any, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Server("memory://refused").message_pattern("get")(handler)


def test_a_handler_may_refer_to_a_variable_that_is_assigned_later() -> None:
    server = Server("memory://later", telemetry=False)

    @server.message_pattern("front")
    async def front(payload: int) -> object:
        return client, payload

    client: object = None
    assert "front" in [handler.route for handler in server.handlers]
