"""aiokafka, behind the few functions that both ends use.

What of it is private and used nevertheless is used here only: the library has no callback for a
lost connection, and no end that does not wait for the broker.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import suppress
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

from resilient_client._checks import seconds
from resilient_client.errors import ConfigurationError, ConnectError
from resilient_client.transports._link import look_at, spawn
from resilient_client.transports._socket import client_tls, not_connected
from resilient_client.transports.kafka._aiokafka import CloseReason, create_conn, errors
from resilient_client.transports.kafka._errors import AIOKAFKA_ERRORS, REFUSED, ours

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilient_client.errors import ResilientClientError
    from resilient_client.transports._base import Target

DEFAULT_PORT = 9092
DEFAULT_CLIENT_ID = "resilient_client"
REQUEST_TIMEOUT = 10.0
"""Seconds until a broker that does not answer a request counts as gone."""
RETRY_WAIT = 0.05
"""Seconds between aiokafka's own tries: of metadata, coordinator, leader."""
METADATA_AGE = 10.0
"""Seconds after which it is looked whether topics have new partitions, or are there again."""
CLOSE_TIMEOUT = 2.0
"""Seconds that leaving the group in order may take."""
COMMITTED = "read_committed"
"""What a transaction of others has written counts when it is committed, as in kafkajs."""
_BREAKS = (
    CloseReason.CONNECTION_BROKEN,
    CloseReason.CONNECTION_TIMEOUT,
    CloseReason.OUT_OF_SYNC,
)
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


class _NoSecrets(logging.Filter):
    """Keeps out of the log what aiokafka writes there on DEBUG: the password."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.args if isinstance(record.args, tuple) else ()
        return not any(type(each).__name__.startswith("Sasl") for each in said)


class _Interrupted(Exception):  # noqa: N818  (no error: why a connection was closed here)
    """A fetch was ended on purpose."""


class _NoInterruptions(logging.Filter):
    """Keeps out of the log what aiokafka takes for an error there: see `interrupt`."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.args if isinstance(record.args, tuple) else ()
        return not any(
            isinstance(each, BaseException) and isinstance(each.__cause__, _Interrupted)
            for each in said
        )


logging.getLogger("aiokafka").addHandler(logging.NullHandler())  # what it says reaches no terminal
logging.getLogger("aiokafka.conn").addFilter(_NoSecrets())
logging.getLogger("aiokafka.consumer.fetcher").addFilter(_NoInterruptions())


def settings(
    target: Target,
    *,
    servers: str | Sequence[str],
    client_id: str | None,
    tls: bool | ssl.SSLContext,
    sasl: str,
    request_timeout: float,
) -> dict[str, Any]:
    """What every client object of aiokafka is made with.

    Raises:
        ConfigurationError: the security settings do not go together.
    """
    seconds("request_timeout", request_timeout, finite=True)
    context = client_tls(tls, secure=target.scheme == "kafkas")
    more = servers.split(",") if isinstance(servers, str) else servers
    made: dict[str, Any] = {
        "bootstrap_servers": [
            target.address(DEFAULT_PORT),
            *(each.strip() for each in more if each.strip()),
        ],
        "client_id": client_id or DEFAULT_CLIENT_ID,
        "request_timeout_ms": int(request_timeout * 1000),
        "retry_backoff_ms": int(RETRY_WAIT * 1000),
        "metadata_max_age_ms": int(METADATA_AGE * 1000),
        "security_protocol": "SSL" if context else "PLAINTEXT",
        "ssl_context": context,
    }
    if target.username is not None:
        if sasl not in MECHANISMS:
            raise ConfigurationError(
                f"sasl={sasl!r} is no mechanism", hint=f"there are {', '.join(MECHANISMS)}"
            )
        made.update(
            security_protocol="SASL_SSL" if context else "SASL_PLAINTEXT",
            sasl_mechanism=sasl,
            sasl_plain_username=target.username,
            sasl_plain_password=target.password or "",
        )
    return made


async def first_answering(made: dict[str, Any], cluster: Any = None) -> dict[str, Any]:
    """These settings with the one server that answers first, or refuses this client.

    aiokafka asks them one after another, and a silent one for as long as a request may take. Where
    none answers they are as they were: whoever uses them finds out why.

    Args:
        cluster: what a connection before this one knew; its brokers are asked too.
    """
    servers = list(made["bootstrap_servers"])
    servers += [] if cluster is None else map(_address, cluster.brokers())
    servers = list(dict.fromkeys(servers))
    if len(servers) == 1:
        return made
    rest = _of_connections(made)
    asked = {spawn(_greet(server, rest), f"ask {server}"): server for server in servers}
    left = set(asked)
    try:
        while left:
            done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None or isinstance(error, REFUSED):
                    return {**made, "bootstrap_servers": [asked[task]]}
    finally:
        for task in asked:
            task.cancel()
            task.add_done_callback(look_at)
        if left:
            await asyncio.wait(left)
    return made


def ask_first(client: Any, server: str) -> None:
    """Let an `AIOKafkaClient` put its first question to this server, which has just answered.

    It would ask any broker, and one that is silent for as long as a request may take.
    """

    def node() -> Any:
        del client.get_random_node  # this server may be gone by the next time
        brokers = client.cluster.brokers()
        found = [broker.nodeId for broker in brokers if _address(broker) == server]
        return found[0] if found else client.get_random_node()

    client.get_random_node = node


def _address(broker: Any) -> str:
    host = f"[{broker.host}]" if ":" in broker.host else broker.host
    return f"{host}:{broker.port}"


async def _greet(server: str, made: dict[str, Any]) -> None:
    host, _, port = server.rpartition(":")
    (await create_conn(host.strip("[]"), int(port), **made)).close()


def _of_connections(made: dict[str, Any]) -> dict[str, Any]:
    others = {"bootstrap_servers", "retry_backoff_ms", "metadata_max_age_ms"}
    return {name: made[name] for name in made if name not in others}


def on_lost(client: Any, lost: Callable[[str], object]) -> None:
    """Call back when this `AIOKafkaClient` has lost its broker; not when it hangs up itself.

    Where there are other brokers and one of them answers, nothing is lost: the library sends to
    whoever leads a partition now, what it has sent before included, and the brokers know that.
    """
    before = client._on_connection_closed  # noqa: SLF001

    def closed(connection: Any, reason: CloseReason) -> None:
        before(connection, reason)
        if reason not in _BREAKS:
            return
        frozen = reason is CloseReason.CONNECTION_TIMEOUT
        why = "the broker does not answer" if frozen else "the connection broke"
        if len(client.cluster.brokers()) < 2:
            lost(why)
            return

        def asked(answer: asyncio.Future[bool]) -> None:
            if answer.cancelled() or not answer.result():
                lost(why)

        client.force_metadata_update().add_done_callback(asked)

    client._on_connection_closed = closed  # noqa: SLF001
    for connection in client._conns.values():  # noqa: SLF001
        connection._on_close_cb = closed  # noqa: SLF001


def on_metadata(consumer: Any, told: Callable[[Any], object]) -> None:
    """Call back with what is known of the cluster, whenever that is new."""
    consumer._client.cluster.add_listener(told)  # noqa: SLF001


def position_of(consumer: Any, place: Any) -> int | None:
    """The offset that is read next, where that is known."""
    assignment = consumer._subscription.subscription.assignment  # noqa: SLF001
    state = None if assignment is None else assignment.state_value(place)
    return state.position if state is not None and state.has_valid_position else None


def interrupt(consumer: Any) -> None:
    """End a fetch that is parked at the broker: it knows nothing of what was assigned since.

    A broker answers one request of a connection after another, so another connection it must be.
    """
    for connection in list(consumer._client._conns.values()):  # noqa: SLF001
        if connection._requests:  # noqa: SLF001
            connection.close(reason=CloseReason.SHUTDOWN, exc=_Interrupted())


async def read(consumer: Any, wait_ms: int, tell: Callable[[str], object]) -> dict[Any, list[Any]]:
    """Records by partition, as `getmany` has them.

    aiokafka does not read a header whose name is no UTF-8, as other producers may write it, and so
    would never come past it: the rest of such a producer's batch is passed over, which `tell` is
    told. What it had read until then is where it was reading.
    """
    try:
        found: dict[Any, list[Any]] = await consumer.getmany(timeout_ms=wait_ms)
    except UnicodeDecodeError as error:
        seen: dict[str, Any] = {}
        for frame, _ in walk_tb(error.__traceback__):
            seen |= frame.f_locals
        try:
            found, before = dict(seen["drained"]), list(seen["ret_list"])
            place, batch = seen["tp"], seen["next_batch"]
        except KeyError:
            raise errors.CorruptRecordException(str(error)) from error
        first = before[-1].offset + 1 if before else max(batch.base_offset, 0)
        if before:
            found[place] = before
        consumer.seek(place, batch.next_offset)
        tell(
            f"{place.topic}/{place.partition}: what is between {first} and {batch.next_offset - 1}"
            " cannot be read and is passed over: a header's name is no UTF-8"
        )
    return found


async def learn(consumer: Any, topic: str) -> None:
    """Let a consumer know a topic's leaders before it is assigned a partition of it."""
    known = consumer._client.add_topic(topic)  # noqa: SLF001
    interrupt(consumer)
    await known


def look_at_commits(consumer: Any) -> None:
    """Take in how its commits end: what nobody waits for any more, asyncio reports as an error."""
    commit = consumer._coordinator._do_commit_offsets  # noqa: SLF001

    def begun(*what: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(commit(*what))
        task.add_done_callback(look_at)
        return task

    consumer._coordinator._do_commit_offsets = begun  # noqa: SLF001


async def why_unreachable(
    made: dict[str, Any], endpoint: str, error: BaseException
) -> ResilientClientError:
    """The truth about a failed start: aiokafka tells it to its log only."""
    if not isinstance(error, errors.KafkaConnectionError):
        if isinstance(error, AIOKAFKA_ERRORS):
            return ours(error, endpoint, sent=False)
        return ConnectError(f"{endpoint}: {type(error).__name__}: {error}")
    rest = _of_connections(made)
    reasons = [await _tried(server, rest, endpoint) for server in made["bootstrap_servers"]]
    fatal = [reason for reason in reasons if isinstance(reason, ConfigurationError)]
    return (fatal or reasons)[0]


async def _tried(server: str, made: dict[str, Any], endpoint: str) -> ResilientClientError:
    """Why one of the servers will not do."""
    host, _, port = server.rpartition(":")
    try:
        connection = await create_conn(host.strip("[]"), int(port), **made)
    except ssl.SSLCertVerificationError as reason:
        return not_connected(endpoint, reason)
    except ssl.SSLError as reason:
        return ConfigurationError(
            f"{endpoint} and this client do not agree on TLS: {reason.reason or reason}",
            hint="check tls=, and whether this port of the broker speaks TLS",
        )
    except TimeoutError:
        return ConnectError(f"no answer from {endpoint}")
    except OSError as reason:
        if isinstance(reason, ConnectionResetError) and made["ssl_context"] is not None:
            return ConnectError(
                f"{endpoint} hung up when it was spoken to in TLS",
                hint="check tls=, and whether this port of the broker speaks TLS",
            )
        return not_connected(endpoint, reason)
    except ValueError as reason:  # SCRAM: the broker does not know the password either
        return ConfigurationError(f"{endpoint}: {reason}", hint="check who answers there")
    except errors.KafkaError as reason:
        return _ended_early(endpoint, reason) or ours(reason, endpoint, sent=False)
    connection.close()
    hint = None if "sasl_mechanism" in made else "does this port want a user and a password?"
    return ConnectError(f"{endpoint}: the broker is not ready", hint=hint)


def _ended_early(endpoint: str, error: errors.KafkaError) -> ResilientClientError | None:
    """A port that hangs up on the first words may want TLS, or a certificate of ours."""
    cause = error.__cause__
    if isinstance(cause, ssl.SSLError):
        return ConfigurationError(
            f"{endpoint} refuses this client's certificate: {cause.reason or cause}",
            hint="give tls= an ssl.SSLContext with a client certificate that the broker trusts",
        )
    if isinstance(error, errors.KafkaConnectionError):
        return ConnectError(
            f"{endpoint} hung up at the first words",
            hint="does this port want TLS (tls=), or a user and a password?",
        )
    return None


async def start(part: Any) -> None:
    """Start a producer or consumer.

    Cut short, aiokafka leaves open the connection that it asks first, and nothing leads to it but
    the frame where it was cut.
    """
    try:
        await part.start()
    except BaseException as error:
        for frame, _ in walk_tb(error.__traceback__):
            connection = frame.f_locals.get("bootstrap_conn")
            if connection is not None:
                connection.close()
        raise


async def flush(producer: Any) -> None:
    """Wait, for a moment, until the broker has what was handed over."""
    with suppress(TimeoutError, *AIOKAFKA_ERRORS):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await producer.flush()


async def discard(*parts: Any) -> None:
    """End producers and consumers now: what was not sent never will be, and nothing is left."""
    for part in parts:
        with suppress(*AIOKAFKA_ERRORS):
            if hasattr(part, "_sender"):
                await _discard_producer(part)
            else:
                await _discard_consumer(part)


async def _discard_producer(producer: Any) -> None:
    producer._closed = True  # noqa: SLF001
    client, sender = producer.client, producer._sender.sender_task  # noqa: SLF001
    batches = producer._message_accumulator  # noqa: SLF001
    batches._closed = True  # noqa: SLF001
    if sender is not None:
        sender.cancel()
    await _hang_up(client)
    if sender is not None:
        await asyncio.wait({sender}, timeout=CLOSE_TIMEOUT)
        if sender.done() and not sender.cancelled():
            sender.exception()
    _fail(batches)
    await _hang_up(client)  # what its sender may have opened meanwhile


def _fail(accumulator: Any) -> None:
    """Fail what was not sent, in silence: whoever waits for it has its own error already."""
    pending = accumulator._pending_batches  # noqa: SLF001
    for queue in accumulator._batches.values():  # noqa: SLF001
        pending.update(queue)  # where each expects to be when it ends
    batches = list(pending)
    accumulator.fail_all(errors.KafkaConnectionError("the producer was closed"))
    for batch in batches:
        for future in (batch.future, batch._drain_waiter):  # noqa: SLF001
            if future.done() and not future.cancelled():
                future.exception()


async def _discard_consumer(consumer: Any) -> None:
    consumer._closed = True  # noqa: SLF001
    coordinator, fetcher = consumer._coordinator, consumer._fetcher  # noqa: SLF001
    tasks = [
        getattr(coordinator, name, None)
        for name in ("_coordination_task", "_heartbeat_task", "_commit_refresh_task",
                     "_reset_committed_task")
    ]  # fmt: skip
    if fetcher is not None:
        fetcher._closed = True  # noqa: SLF001
        tasks += [fetcher._fetch_task, *fetcher._pending_tasks]  # noqa: SLF001
    running = {task for task in tasks if task is not None and not task.done()}
    for task in running:
        task.cancel()
    await _hang_up(consumer._client)  # noqa: SLF001
    if running:
        await asyncio.wait(running, timeout=CLOSE_TIMEOUT)
    for task in tasks:
        if task is not None and task.done() and not task.cancelled():
            task.exception()
    await _hang_up(consumer._client)  # noqa: SLF001


async def _hang_up(client: Any) -> None:
    """Close its connections without waiting for what the broker has not read."""
    sync, client._sync_task = client._sync_task, None  # noqa: SLF001
    if sync is not None:
        sync.cancel()
        await asyncio.wait({sync}, timeout=CLOSE_TIMEOUT)
    client.force_metadata_update = _no_update
    if client._md_update_fut is not None and not client._md_update_fut.done():  # noqa: SLF001
        client._md_update_fut.set_result(False)  # noqa: SLF001
    closed: list[Any] = []
    for connection in list(client._conns.values()):  # noqa: SLF001
        writer = connection._writer  # noqa: SLF001
        if writer is not None:
            writer.transport.abort()
        closed.append(connection.close(reason=CloseReason.SHUTDOWN))
    client._conns.clear()  # noqa: SLF001
    if closed:
        await asyncio.wait(closed, timeout=CLOSE_TIMEOUT)


def _no_update() -> asyncio.Future[bool]:
    """In place of `force_metadata_update` where nothing will update any more."""
    future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    future.set_result(False)
    return future


def on_ended(producer: Any, ended: Callable[[], object]) -> None:
    """Call back when a producer has given up for good, as it does when its numbers are refused."""

    def done(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            ended()

    producer._sender.sender_task.add_done_callback(done)  # noqa: SLF001


def take_back(producer: Any, place: Any, count: int) -> None:
    """The broker has refused so many records: the next ones of the partition have their numbers.

    aiokafka counts on, and a broker takes nothing from a producer after a gap.
    """
    producer._txn_manager.increment_sequence_number(place, -count)  # noqa: SLF001


def forget(*parts: Any) -> None:
    """Leave producers and consumers of a loop that has ended: no callback of theirs will run."""
    for part in parts:
        part._closed = True  # noqa: SLF001
        client = part.client if hasattr(part, "_sender") else part._client  # noqa: SLF001
        for connection in client._conns.values():  # noqa: SLF001
            connection._reader = None  # noqa: SLF001


def rejoin(consumer: Any) -> None:
    """Give up all partitions and ask the group for them anew."""
    consumer._coordinator.request_rejoin()  # noqa: SLF001


async def leave(consumer: Any) -> None:
    """End a member of a group in order, so that the others need not wait for its session."""
    task = asyncio.ensure_future(consumer.stop())
    await asyncio.wait({task}, timeout=CLOSE_TIMEOUT)
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CLOSE_TIMEOUT)
    if not task.cancelled() and task.done():
        task.exception()
    await discard(consumer)
