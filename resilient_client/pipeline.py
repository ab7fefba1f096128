"""The whole architecture: a handler is an async function from a call to a reply.

The transport's last step is a handler, a handler inside a policy is a handler, the whole client is
one, and so is a server's dispatch. (tower's Service and Layer.)
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol, TypeAlias

from resilient_client.clock import Clock
from resilient_client.errors import ConfigurationError
from resilient_client.message import Call, Reply

Handler: TypeAlias = Callable[[Call], Coroutine[Any, Any, Reply]]


class Policy(Protocol):
    """Something that stands around a handler.

    A policy needs no base class and no registration. It passes the inner reply through, and bounds
    its own waits by `call.deadline`. One that guards an endpoint rather than the call as a whole
    says so with a class attribute `scope = "endpoint"`: it is then wrapped once per endpoint.
    """

    def wrap(self, handler: Handler, clock: Clock, /) -> Handler:
        """The handler with this policy around it; called once, when the client is built."""


def compose(policies: Iterable[Policy], handler: Handler, clock: Clock) -> Handler:
    """The handler inside all the policies, the first listed outermost.

    Raises:
        ConfigurationError: a policy wraps it in something that cannot be called.
    """
    for policy in reversed(list(policies)):
        handler = policy.wrap(handler, clock)
        if not callable(handler):
            if hasattr(handler, "close"):  # a coroutine, which nobody will await
                handler.close()
            raise ConfigurationError(
                f"{type(policy).__name__}.wrap() gave a {type(handler).__name__}, not a handler",
                hint="write it as a plain def that returns an async function of the call",
            )
    return handler


def note(error: BaseException) -> None:
    """Say of an error what it comes from, where that is a policy that keeps the reply to itself."""
    if isinstance(error, AttributeError) and hasattr(Reply, error.name or ""):
        given = error.obj
        if not isinstance(given, Reply):
            error.add_note(
                f"a policy answered with a {type(given).__name__}, not with a Reply:"
                " its handler ends with `return await handler(call)`"
            )
