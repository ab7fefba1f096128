"""grpcio's channels: their settings, one connection of one of them, and how it is watched."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Mapping
from math import inf
from pathlib import Path
from typing import Any

from resilient_client._checks import integer, seconds
from resilient_client.errors import ConfigurationError, ConnectError, ResilientClientError
from resilient_client.transports._link import DIAL_TIMEOUT, spawn
from resilient_client.transports.grpc._headers import USER_AGENT
from resilient_client.transports.grpc._library import aio, grpc
from resilient_client.transports.grpc._status import not_connected
from resilient_client.transports.grpc._unary import Unary, unary_of

READY = grpc.ChannelConnectivity.READY
_FAILED = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_NEVER = 2**31 - 1  # milliseconds, as the C library counts
_OVERHEAD = 64 * 1024  # bytes that the envelope of a plain pattern may add to a payload
_METADATA = 64 * 1024  # bytes of metadata taken in
_PENDING = 10_000
# Seconds until all are told that a channel was closed. It takes a moment, but where a peer does not
# read, or somebody still holds a call.
_TOLD = 0.5
_PROBE = "/grpc.health.v1.Health/Check"
_COMPRESSIONS = {
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
    "none": grpc.Compression.NoCompression,
}
ChannelOptions = list[tuple[str, Any]]


def compression_of(name: str | None) -> grpc.Compression | None:
    """The library's word for an algorithm.

    Raises:
        ConfigurationError: there is none of that name.
    """
    if name is None:
        return None
    try:
        return _COMPRESSIONS[name.lower()]
    except (KeyError, AttributeError):
        raise ConfigurationError(
            f"compression={name!r} is not known", hint=f"there are {', '.join(_COMPRESSIONS)}"
        ) from None


def common_options(
    max_size: int,
    keepalive: float,
    keepalive_timeout: float,
    ping_timeout: float | None,
    given: Mapping[str, Any] | None,
) -> ChannelOptions:
    """What both ends set.

    All three knobs of keepalive are needed: with the default of the third (a minute) a frozen peer
    is noticed only after that minute.

    Raises:
        ConfigurationError: a number that makes no sense.
    """
    integer("max_size", max_size)
    seconds("keepalive", keepalive, zero=True)
    seconds("keepalive_timeout", keepalive_timeout)
    ping = keepalive_timeout if ping_timeout is None else seconds("ping_timeout", ping_timeout)
    options: ChannelOptions = [
        ("grpc.max_send_message_length", -1),  # looked at before it comes to that
        ("grpc.max_receive_message_length", min(max_size + _OVERHEAD, _NEVER)),
        ("grpc.max_metadata_size", _METADATA),
        ("grpc.absolute_max_metadata_size", 2 * _METADATA),
    ]
    if keepalive:
        options += [
            ("grpc.keepalive_time_ms", _milliseconds(keepalive)),
            ("grpc.keepalive_timeout_ms", _milliseconds(keepalive_timeout)),
            ("grpc.http2.ping_timeout_ms", _milliseconds(ping)),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    options += list((given or {}).items())
    return options


def _milliseconds(seconds: float) -> int:
    return max(1, min(int(seconds * 1000), _NEVER)) if seconds < inf else _NEVER


def client_options(
    common: ChannelOptions, server_name: str | None, *, proxy: bool
) -> ChannelOptions:
    """What only a client sets.

    One channel is one connection, dialled by the `Link` and never by the library's own backoff. Its
    transparent retries stay on: they repeat only what the peer has said it never looked at.
    """
    options: ChannelOptions = [
        ("grpc.primary_user_agent", USER_AGENT),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.min_reconnect_backoff_ms", _milliseconds(DIAL_TIMEOUT)),
        ("grpc.client_idle_timeout_ms", _NEVER),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_http_proxy", int(proxy)),
    ]
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    return [*options, *common]


def server_options(
    common: ChannelOptions,
    max_connection_age: float | None,
    max_connection_age_grace: float,
    max_connection_idle: float | None,
) -> ChannelOptions:
    """What only a server sets. Clients may ping as often as they like: they are told nothing."""
    options: ChannelOptions = [
        ("grpc.so_reuseport", 0),  # a port that is taken is an error
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1),
        ("grpc.http2.max_ping_strikes", 0),
        # calls that wait to be looked at: over this they are reset without a word
        ("grpc.server.max_pending_requests", _PENDING),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING),
    ]
    seconds("max_connection_age_grace", max_connection_age_grace, zero=True)
    if max_connection_age is not None:
        seconds("max_connection_age", max_connection_age)
        options += [
            ("grpc.max_connection_age_ms", _milliseconds(max_connection_age)),
            ("grpc.max_connection_age_grace_ms", _milliseconds(max_connection_age_grace)),
        ]
    if max_connection_idle is not None:
        seconds("max_connection_idle", max_connection_idle)
        options.append(("grpc.max_connection_idle_ms", _milliseconds(max_connection_idle)))
    return [*options, *common]


def pem(given: str | os.PathLike[str] | bytes | None, option: str) -> bytes | None:
    """A certificate or key: its text, or where it is.

    Raises:
        ConfigurationError: there is no such file.
    """
    if given is None or isinstance(given, bytes):
        return given
    try:
        return Path(given).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{option}= cannot be read: {error}") from error


class Connection:
    """A channel that was connected when it was made, until it no longer is.

    Calls on it that are under way when it is left (the peer's GOAWAY) run to their end; then it is
    closed.

    Attributes:
        closed: whether it has been closed here.
        retired: whether it has been left.
    """

    __slots__ = (
        "_callables",
        "_calls",
        "_close",
        "_left",
        "_unaries",
        "_under_way",
        "channel",
        "closed",
        "retired",
        "watcher",
    )

    def __init__(self, channel: aio.Channel, close: Callable[[Connection], None]) -> None:
        self.channel = channel
        self.watcher: asyncio.Task[None] | None = None
        self._callables: dict[tuple[str, bool, bool], Any] = {}
        self._unaries: dict[str, Unary | None] = {}
        self._under_way: set[Any] = set()
        self._calls = 0
        self._close = close
        self._left: asyncio.Future[None] | None = None  # whether those under way have, at the end
        self.closed = self.retired = False

    @property
    def connected(self) -> bool:
        """Whether it still is."""
        return not self.closed and self.channel.get_state() is READY

    async def aclose(self) -> None:
        """Close it; calls under way are cancelled."""
        self.closed = self.retired = True
        told: list[asyncio.Future[Any]] = [] if self.watcher is None else [self.watcher]
        self.watcher = None
        if self._under_way:
            self._left = asyncio.get_running_loop().create_future()
            told.append(self._left)
        self._cancel()
        await close(self.channel, told)
        self._unaries.clear()
        self._callables.clear()  # a cycle would keep the library's thread and sockets

    def _cancel(self) -> None:
        # not in `aclose`: the loop variable would keep a call, and so the channel, while it waits
        for call in tuple(self._under_way):
            call.cancel("the client was closed")

    def callable(self, path: str, requests: bool, responses: bool) -> Any:  # noqa: FBT001
        """What makes calls of a method, on bytes."""
        key = (path, requests, responses)
        known = self._callables.get(key)
        if known is None:
            channel = self.channel
            make = {
                (False, False): channel.unary_unary,
                (False, True): channel.unary_stream,
                (True, False): channel.stream_unary,
                (True, True): channel.stream_stream,
            }[requests, responses]
            known = self._callables[key] = make(path, None, None)
        return known

    def unary(self, path: str) -> Unary | None:
        """The short way to call a method with one request and one response, where there is one."""
        try:
            return self._unaries[path]
        except KeyError:
            known = self._unaries[path] = unary_of(self.channel, path, self._under_way)
            return known

    def begun(self) -> None:
        """A call is under way. Those of `unary` need not say so."""
        self._calls += 1

    def ended(self) -> None:
        """A call has ended."""
        self._calls -= 1
        if self.retired:
            self.leave()

    def retire(self) -> None:
        """Make no more calls on it: close it when the last has ended."""
        self.retired = True
        self.leave()

    def leave(self) -> None:
        """Close it, being retired, when nothing is under way."""
        if self._left is not None:
            if not self._under_way and not self._left.done():
                self._left.set_result(None)
        elif not self._calls and not self._under_way and not self.closed:
            self._close(self)


async def close(channel: aio.Channel, told: Collection[asyncio.Future[Any]]) -> None:
    """Close a channel, and wait until the library has told that to all who wait for it.

    Whoever is cancelled instead is told later: if the loop has closed by then, the library reports
    that to another loop of the process, as an error.
    """
    await channel.close()
    if told:
        _, late = await asyncio.wait(told, timeout=_TOLD)
        for each in late:
            each.cancel()


async def connected(channel: aio.Channel) -> None:
    """Return when the channel has a connection; it is closed when this is cancelled.

    Raises:
        ConnectError: the attempt failed.
        ConfigurationError: whoever answers is not trusted.
    """
    state = channel.get_state(try_to_connect=True)
    while state is not READY:
        if state is _FAILED:
            raise await _why(channel)
        change = spawn(channel.wait_for_state_change(state), "watch a gRPC channel")
        try:
            await asyncio.shield(change)
        except asyncio.CancelledError:
            await close(channel, [change])
            raise
        state = channel.get_state(try_to_connect=True)


async def _why(channel: aio.Channel) -> ResilientClientError:
    """Only a call is told the reason; this one fails without being sent."""
    try:
        probe: Any = channel.unary_unary(_PROBE, None, None)
        await probe(b"", timeout=1.0)
    except aio.AioRpcError as error:
        return not_connected(error.details() or "no connection")
    return ConnectError("no connection")


def watch(connection: Connection, lost: Callable[[Connection], None]) -> None:
    """Call `lost` once the connection is no longer usable for new calls."""

    async def wait() -> None:
        await connection.channel.wait_for_state_change(READY)
        if not connection.closed:
            lost(connection)

    connection.watcher = spawn(wait(), "watch a gRPC channel")
