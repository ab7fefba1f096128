"""One connection to a NATS server that lets us in."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from resilient_client._json import decode, encode
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    PayloadError,
    ProtocolError,
    ResilientClientError,
)
from resilient_client.transports._link import spawn
from resilient_client.transports.nats._library import NoResponders, translate
from resilient_client.transports.nats._wire import header_block

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_client.transports._base import Target
    from resilient_client.transports.nats._library import Library
    from resilient_client.transports.nats._socket import Receive, Socket

ANSWER_TIMEOUT = 2.0
"""Seconds for each answer of a server."""
_FIRST_SID = 1 << 20  # nats-py counts its own from 1


class Connection:
    """A connection that is ready: authenticated, nothing subscribed yet.

    Args:
        ended: called once with the reason when it is over.
        violated: called with the server's text when it refuses a subject.

    Attributes:
        target: the server it is connected to.
        server_name: whom its certificate names, where it has one.
        max_payload: bytes of one message, headers included, that the server takes.
        jetstream: it has answered, here or on the connection before.
        established: its owner has subscribed, and been refused nothing that it needs.
    """

    def __init__(
        self,
        target: Target,
        server_name: str,
        socket: Socket,
        library: Library,
        ended: Callable[[str], None],
        violated: Callable[[str], object],
    ) -> None:
        self.target = target
        self.server_name = server_name
        self.max_payload: int = library.max_payload
        if type(self.max_payload) is not int:
            raise ProtocolError(f"{target} has no number for max_payload", sent=False)
        self.violations: list[str] = []
        self.jetstream = False
        self.established = False
        self._asking: dict[asyncio.Future[str], str] = {}  # what waits for JetStream's API
        self.socket = socket
        self._closing: asyncio.Task[None] | None = None
        self._violated = violated
        self._library = library
        self._sid = _FIRST_SID

        def over(reason: str) -> None:
            told = library.last_error
            ended(reason if told is None else str(told).removeprefix("nats: "))
            # nats-py's own tasks may not have noticed, and would stay
            self._closing = spawn(library.close(), f"close {target}")

        socket.ended = over
        library.on_reader_end(self.abort)

    @property
    def closed(self) -> bool:
        """It has ended."""
        return self.socket.closed

    def violated(self, text: str) -> None:
        """The server refuses a subject; all it says of it is this text, in lower case."""
        subject = text.partition('"')[2].rpartition('"')[0]
        asking = [future for future, each in self._asking.items() if each == subject]
        for future in asking:
            if not future.done():
                future.set_result(text)
        if asking:
            return
        if len(self.violations) < 10:
            self.violations.append(text)
        self._violated(text)
        if self.established and "violation for subscription" in text:
            self.abort()  # it was taken from us: see whether a new connection gets it

    def message(
        self, subject: str, reply: str, headers: Mapping[str, str] | None, payload: bytes
    ) -> bytes:
        """A message as `send` takes it.

        Raises:
            PayloadError: it is more than the server takes, or a header's name cannot travel.
        """
        size = len(payload)
        if headers:
            block = header_block(headers)
            length = len(block) if block.isascii() else len(block.encode(errors="replace"))
            size += length
            head = f"HPUB {subject} {reply} {length} {size}\r\n{block}"
        else:
            head = f"PUB {subject} {reply} {size}\r\n"
        if size > self.max_payload:
            raise PayloadError(
                f"the message has {size} bytes, more than the server's max_payload of "
                f"{self.max_payload}",
                hint="send less, or raise max_payload in the server's configuration",
            )
        if not head.isascii():
            return head.encode(errors="replace") + payload + b"\r\n"
        return head.encode() + payload + b"\r\n"

    def send(self, message: bytes) -> None:
        """Write to the socket, in order."""
        self.socket.send(message)

    def subscribe(self, subject: str, receive: Receive, queue: str = "") -> int:
        """Ask for a subject's messages; `round_trip` proves that the server has it."""
        self._sid += 1
        self.socket.receivers[b"%d" % self._sid] = receive
        self.socket.send(f"SUB {subject} {queue} {self._sid}\r\n".encode())
        return self._sid

    def unsubscribe(self, sid: int) -> None:
        """No more of it; what is under way still arrives."""
        self.socket.send(b"UNSUB %d\r\n" % sid)

    async def round_trip(self, timeout: float = ANSWER_TIMEOUT) -> None:
        """Return when the server has read everything so far.

        Raises:
            ConnectError: it did not answer.
            ConfigurationError: it refused a subject meanwhile.
        """
        try:
            await self._library.flush(timeout)  # type: ignore[arg-type]
        except Exception as error:
            raise translate(error, self.target) from error
        if self.closed:
            raise ConnectError(f"{self.target} closed the connection")
        if self.violations:
            raise ConfigurationError(
                f"{self.target}: {self.violations[0]}",
                hint="give this user the permission",
            )

    async def api(self, subject: str, body: Any = None) -> Any:
        """Ask JetStream; the answer as decoded, `error` in it included.

        Raises:
            ConfigurationError: there is no JetStream.
            ConnectError: no answer.
        """
        payload = b"" if body is None else encode(body)
        subject = f"$JS.API.{subject}"
        refused: asyncio.Future[str] = self.socket.loop.create_future()
        self._asking[refused] = subject.lower()
        request = asyncio.ensure_future(self._library.request(subject, payload, ANSWER_TIMEOUT))
        try:
            waiting: set[asyncio.Future[Any]] = {request, refused}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if refused.done():
                raise ConfigurationError(
                    f"{self.target}: {refused.result()}",
                    hint="give this user the permission, or make the stream and leave it to others",
                )
            answer = await request
        except NoResponders:
            if self.jetstream:
                raise ConnectError(f"JetStream is not there, says {self.target}") from None
            raise ConfigurationError(
                f"stream= is given, but {self.target} has no JetStream",
                hint="switch it on in the server's configuration: jetstream {}",
            ) from None
        except ResilientClientError:
            raise
        except TimeoutError:
            raise ConnectError(f"JetStream of {self.target} does not answer") from None
        except Exception as error:
            raise translate(error, self.target) from error
        finally:
            del self._asking[refused]
            request.cancel()
            refused.cancel()
        self.jetstream = True
        return decode(answer.data)

    def discovered(self) -> list[str]:
        """Further servers of its cluster, as host:port."""
        return [server.netloc for server in self._library.discovered_servers]

    def abort(self) -> None:
        """End it at once: it is told as a loss."""
        self.socket.transport.abort()

    async def aclose(self) -> None:
        """Write what waits, and close."""
        self.socket.ended = None
        await self.socket.close()
        await self._library.close()
