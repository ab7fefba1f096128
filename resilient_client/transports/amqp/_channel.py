"""One channel of a connection to RabbitMQ: messages put together, questions and their answers."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from resilient_client.errors import ConfigurationError
from resilient_client.transports.amqp import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_client.transports.amqp._connection import Connection
    from resilient_client.transports.amqp._wire import Delivery


class Channel:
    """One channel of a connection.

    Attributes:
        on_delivery, on_return, on_confirm: called with what arrives: a `Delivery`, a returned one,
            and `(tag, multiple, accepted)`.
        on_cancel: the broker has cancelled the consumer: its queue is gone.
    """

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.number = number
        self.on_delivery: Callable[[Delivery], object] = ignore
        self.on_return: Callable[[Delivery], object] = ignore
        self.on_confirm: Callable[[int, bool, bool], object] = ignore
        self.on_cancel: Callable[[], object] = ignore
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._partial: Delivery | None = None
        self._returned = False
        self._missing = -1  # bytes of its body still to come; -1: its header is still to come
        self._parts: list[bytes] = []

    def ask(self, data: bytes) -> asyncio.Future[Any]:
        """Write, and have the next answer of this channel."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.connection.closed:
            raise self.connection.reason()
        self._waiting.append(future)
        self.connection.send(data)
        return future

    async def call(self, method: Any) -> Any:
        """A method of the codec's, and its answer.

        Raises:
            ConfigurationError: the broker refuses it, or it cannot be written.
            ConnectError, ConnectionLost: the connection has ended.
        """
        try:
            data = wire.method_frame(self.number, method)
        except ValueError as error:
            raise ConfigurationError(f"{method.name} cannot be asked for: {error}") from error
        return await self.ask(data)

    def fail(self) -> None:
        """The connection has ended."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(self.connection.reason())
                future.exception()  # whoever asked may have left

    # ---- what arrives ----

    def begin(self, message: Delivery, *, returned: bool) -> None:
        """A message's method frame; header and body follow."""
        if self._partial is not None:
            raise ValueError("a message in the middle of another")
        self._partial, self._returned, self._missing = message, returned, -1

    def header(self, data: bytes) -> None:
        message = self._partial
        if message is None or self._missing >= 0:
            raise ValueError("a header without a message")
        message.read_header(data)
        self._missing = message.size
        if self._missing == 0:
            message.body = b""
            self._complete(message)

    def body(self, data: memoryview) -> None:
        message = self._partial
        size = len(data)
        if message is None or size > self._missing:
            raise ValueError("a body without a message, or longer than announced")
        self._missing -= size
        taken = message.size <= self.connection.max_body
        if self._missing == 0:
            if taken:
                if self._parts:
                    self._parts.append(bytes(data))
                    message.body = b"".join(self._parts)
                    self._parts = []
                else:
                    message.body = bytes(data)
            self._complete(message)
        elif taken:
            self._parts.append(bytes(data))

    def _complete(self, message: Delivery) -> None:
        self._partial = None
        if self._returned:
            self.on_return(message)
        else:
            self.on_delivery(message)

    def method(self, method: Any) -> None:
        """Any other method: the broker's wish, or the answer to the oldest question."""
        if isinstance(method, wire.ChannelClose):
            code, text = method.reply_code or 0, str(method.reply_text)
            self.connection.send(wire.method_frame(self.number, wire.ChannelCloseOk()))
            self.connection.refused(code, text)
        elif isinstance(method, wire.BasicCancel):
            self.on_cancel()
        elif isinstance(method, wire.ChannelFlow):
            answer = wire.ChannelFlowOk(active=method.active)
            self.connection.send(wire.method_frame(self.number, answer))
        elif isinstance(method, wire.Close):
            self.connection.refused(method.reply_code or 0, str(method.reply_text), over=True)
        elif isinstance(method, wire.Blocked):
            self.connection.block(str(method.reason))
        elif isinstance(method, wire.Unblocked):
            self.connection.unblock()
        elif self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(method)
        else:
            raise ValueError(f"an unexpected {method.name}")


def ignore(*_: object) -> None:
    """Nobody wants to know."""
