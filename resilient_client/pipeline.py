"""The whole architecture: a handler is an async function from a call to a reply.

The transport's last step is a handler, a handler inside a policy is a handler, the whole client is
one, and so is a server's dispatch. (tower's Service and Layer.)
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol, TypeAlias

from resilient_client.clock import Clock
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
    """The handler inside all the policies, the first listed outermost."""
    for policy in reversed(list(policies)):
        handler = policy.wrap(handler, clock)
    return handler
