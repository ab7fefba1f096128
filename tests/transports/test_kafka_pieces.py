"""kafka:// without a broker: values, headers, order and prefix of a partition, errors, names."""

from __future__ import annotations

import asyncio
import gc
import inspect
import ssl
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from aiokafka import errors as kafka
from aiokafka.protocol.metadata import MetadataResponse_v1

from resilient_client import (
    ClientProxy,
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    Context,
    PayloadError,
    Server,
)
from resilient_client.codecs import JsonCodec
from resilient_client.transports.kafka import _errors
from resilient_client.transports.kafka._driver import discard
from resilient_client.transports.kafka._headers import (
    CORRELATION,
    REPLY_TOPIC,
    headers_of,
    metadata_of,
)
from resilient_client.transports.kafka._lane import Lane
from resilient_client.transports.kafka._outbox import new_producer
from resilient_client.transports.kafka._partitions import Partitions
from resilient_client.transports.kafka._values import BatchCodec, KafkaCodec
from tests.waiting import eventually

CODEC = KafkaCodec(JsonCodec())
URL = "kafka://127.0.0.1:9"


# ------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("value", "body"),
    [
        (None, None),
        ("text", b"text"),
        ("", b""),
        ('{"a":1}', b'{"a":1}'),
        ("Zoë", "Zoë".encode()),
        ("lone \ud800", "lone \ufffd".encode()),
        (15, b"15"),
        (1.5, b"1.5"),
        (True, b"true"),
        (float("nan"), None),
        ([1, None], b"[1,null]"),
        ({"key": "k", "value": 1}, b'{"key":"k","value":1}'),
        (b"hi", b"hi"),
        (bytearray(b"\0\xff"), b"\0\xff"),
        ([b"hi"], b'["aGk="]'),
    ],
)
def test_values_stand_in_a_record_as_nest_writes_them(value: Any, body: bytes | None) -> None:
    assert CODEC.encode(value) == body


@pytest.mark.parametrize(
    ("body", "hint", "value"),
    [
        (None, Any, None),
        (b"", Any, ""),
        (b"15", Any, 15),
        (b"15", int, 15),
        (b"15", str, "15"),
        (b"15", float, 15.0),
        (b"-1.5e3", Any, -1500.0),
        (b"015", Any, "015"),
        (b"1e999999", Any, "1e999999"),
        (b"9" * 500, Any, "9" * 500),
        (b"true", Any, True),
        (b"true", str, "true"),
        (b"null", Any, "null"),
        (b'"quoted"', Any, '"quoted"'),
        (b'{"a":1}', Any, {"a": 1}),
        (b'{"a":1}', dict[str, int], {"a": 1}),
        (b'{"a":1}', str, '{"a":1}'),
        (b"{not json", Any, "{not json"),
        (b"[1,2]", list[int], [1, 2]),
        (b"\xff\xfe", Any, "\ufffd\ufffd"),
        (b"\0avro", Any, b"\0avro"),
        (b"\0avro", bytes, b"\0avro"),
        (b"[1]\xff", bytes, b"[1]\xff"),
        (b"hi", bytes | None, b"hi"),
        (None, bytes | None, None),
        (b'["aGk="]', list[bytes], [b"hi"]),
    ],
)
def test_values_are_read_as_nests_parser_reads_them(body: Any, hint: Any, value: Any) -> None:
    read = CODEC.decode(body, hint)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (None, int),
        (b"x", int),
        (b"{", dict[str, int]),
        (b'{"a":"x"}', dict[str, int]),
    ],
)
def test_what_does_not_fit_is_a_payload_error(body: Any, hint: Any) -> None:
    with pytest.raises(PayloadError):
        CODEC.decode(body, hint)


def test_a_batch_is_a_list_whose_items_are_checked_one_by_one() -> None:
    codec = BatchCodec(JsonCodec())
    assert codec.decode([b"1", b"2"], list[int]) == [1, 2]
    assert codec.decode([b"1", b"x", None]) == [1, "x", None]
    with pytest.raises(PayloadError, match="record 1 of the batch"):
        codec.decode([b"1", b"x"], list[int])


def test_the_key_travels_beside_the_headers_and_nests_own_are_no_metadata() -> None:
    headers, key = headers_of({"a": "1", "kafka-key": "k"})
    assert (headers, key) == ([("a", b"1")], b"k")
    assert headers_of({"a": "1"}) == ([("a", b"1")], None)
    wire = [("A", b"1"), ("kafka_correlationId", b"x"), ("bad", b"\n"), ("none", None)]
    assert metadata_of(wire, b"k") == {"a": "1", "kafka-key": "k"}
    assert len(metadata_of([(f"h{n}", b"1") for n in range(100)], None)) <= 32


# ------------------------------------------------------------------------- order and the prefix


@dataclass
class Record:
    offset: int
    key: bytes | None = None


class Runs:
    def __init__(self, **options: Any) -> None:
        self.lane = Lane(lambda _, records: self.started.append(records), **options)
        self.started: list[list[Any]] = []
        self.lane.begin(0)

    @property
    def offsets(self) -> list[int]:
        return [record.offset for records in self.started for record in records]

    def end(self, *offsets: int) -> None:
        for records in tuple(self.started):
            if records[0].offset in offsets:
                self.lane.finished(records)


def test_only_the_contiguous_prefix_is_finished() -> None:
    runs = Runs()
    runs.lane.add([Record(n) for n in range(5)])
    assert runs.offsets == [0, 1, 2, 3, 4]
    runs.end(1, 3)
    assert runs.lane.prefix == 0
    runs.end(0)
    assert runs.lane.prefix == 2
    runs.end(2)
    assert runs.lane.prefix == 4
    runs.end(4)
    assert runs.lane.prefix == 5


def test_gaps_of_a_compacted_log_do_not_hold_the_prefix() -> None:
    runs = Runs()
    runs.lane.add([Record(3), Record(10)])
    runs.end(3)
    assert runs.lane.prefix == 4
    runs.end(10)
    assert runs.lane.prefix == 11


def test_records_of_one_key_run_one_after_another_others_side_by_side() -> None:
    runs = Runs()
    runs.lane.add([Record(0, b"a"), Record(1, b"a"), Record(2, b"b"), Record(3, b"a"), Record(4)])
    assert runs.offsets == [0, 2, 4]
    runs.end(0)
    assert runs.offsets == [0, 2, 4, 1]
    runs.end(1)
    assert runs.offsets == [0, 2, 4, 1, 3]


def test_concurrency_bounds_what_runs() -> None:
    runs = Runs(concurrency=2)
    runs.lane.add([Record(n) for n in range(4)])
    assert runs.offsets == [0, 1]
    assert runs.lane.waiting == 2
    runs.end(1)
    assert runs.offsets == [0, 1, 2]


def test_a_batch_takes_what_is_there_one_batch_at_a_time() -> None:
    runs = Runs(batch=3)
    runs.lane.add([Record(0, b"a")])
    runs.lane.add([Record(n, b"a") for n in range(1, 6)])
    assert runs.offsets == [0]
    runs.lane.finished(runs.started[0])
    assert [len(each) for each in runs.started] == [1, 3]
    runs.lane.finished(runs.started[1])
    assert runs.lane.prefix == 4
    assert runs.offsets == [0, 1, 2, 3, 4, 5]


def test_a_partition_that_comes_back_repeats_nothing_that_runs_or_has_ended_here() -> None:
    runs = Runs(concurrency=3)
    runs.lane.add([Record(n, b"k%d" % (n % 4)) for n in range(8)])
    assert runs.offsets == [0, 1, 2]
    runs.end(1)  # 3 begins
    runs.lane.drop_waiting()
    runs.end(2)
    assert runs.lane.begin(0) == 0
    runs.lane.add([Record(n, b"k%d" % (n % 4)) for n in range(8)])
    assert sorted(runs.offsets) == [0, 1, 2, 3, 5]
    runs.end(0, 3, 5)
    runs.end(4, 6, 7)
    assert sorted(runs.offsets) == list(range(8))
    assert runs.lane.prefix == 8


def test_what_another_member_has_finished_meanwhile_counts() -> None:
    runs = Runs()
    runs.lane.add([Record(n) for n in range(3)])
    runs.lane.drop_waiting()
    assert runs.lane.begin(10) == 10
    runs.lane.add([Record(2), Record(10)])
    assert runs.offsets == [0, 1, 2, 10]
    runs.end(0, 1, 2)
    assert runs.lane.prefix == 10
    runs.end(10)
    assert runs.lane.prefix == 11


# ------------------------------------------------------------------------------------- errors

GROUPS = [_errors.REFUSED, _errors.TOO_LARGE, _errors.FOREIGN, _errors.NOT_STORED,
          _errors.SLOW_DOWN, _errors.UNKNOWN]  # fmt: skip


class _Place(NamedTuple):
    topic: str
    partition: int


async def test_a_log_that_begins_anew_under_a_reader_is_read_from_where_it_begins() -> None:
    started: list[int] = []

    def lane_of(_: str) -> Lane:
        return Lane(lambda _, records: started.append(records[0].offset))

    class Member:
        async def committed(self, _: _Place) -> int:
            return 7

        def partitions_for_topic(self, _: str) -> set[int]:
            return {0}

        def seek(self, _: _Place, offset: int) -> None:
            pass

    place = _Place("t", 0)
    partitions = Partitions(lane_of, "g", session=6.0, request_timeout=5.0, from_beginning=False)
    partitions.consumer = Member()
    await partitions.on_partitions_assigned([place])
    partitions.read(place, [Record(7), Record(8)])
    partitions.read(place, [Record(0), Record(1)])  # as aiokafka goes on when 9 does not exist
    partitions.read(place, [Record(2)])
    assert started == [7, 8, 0, 1, 2]


def test_every_error_of_aiokafka_is_mapped() -> None:
    there = {
        value
        for value in vars(kafka).values()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    bases = {kafka.KafkaError, kafka.BrokerResponseError}
    mapped = {each for group in GROUPS for each in group}
    assert mapped == there - bases, "aiokafka has an error that nobody has looked at"
    assert sum(len(group) for group in GROUPS) == len(mapped)
    assert all(issubclass(each, _errors.AIOKAFKA_ERRORS) for each in there)


def test_errors_say_what_happened_to_the_record() -> None:
    for error, kind, sent in (
        (kafka.SaslAuthenticationFailed("no"), ConfigurationError, False),
        (kafka.MessageSizeTooLargeError(), PayloadError, False),
        (kafka.NotEnoughReplicasError(), ConnectError, False),
        (kafka.KafkaConnectionError("gone"), ConnectionLost, True),
        (kafka.UnknownError(), ConnectionLost, True),
    ):
        mapped = _errors.ours(error, "kafka://broker", sent=True)
        assert (type(mapped), mapped.sent) == (kind, sent), error
        assert mapped.__cause__ is error
    assert isinstance(_errors.ours(kafka.UnknownError(), "x", sent=False), ConnectError)


# -------------------------------------------------------------------------------- registration


@pytest.mark.parametrize("pattern", [{"cmd": "sum"}, "a b", "a/b", "", ".", "..", "x" * 244, "ü"])
async def test_what_cannot_be_a_topic_is_refused_when_it_is_registered(pattern: Any) -> None:
    server = Server(URL)
    with pytest.raises(ConfigurationError, match="cannot be a Kafka topic"):
        server.message_pattern(pattern)(lambda: None)
    assert server.message_pattern("x" * 243)(len) is len
    assert server.event_pattern(42)(len) is len


def test_a_handler_of_batches_is_alone() -> None:
    server = Server(URL)
    server.event_pattern("alone", batch=10)(lambda items: None)
    with pytest.raises(ConfigurationError, match="batches already"):
        server.event_pattern("alone")(lambda item: None)
    with pytest.raises(ConfigurationError, match="share"):
        server.event_pattern("alone", batch=10)(lambda items: None)
    for size in (0, "many", True):
        with pytest.raises(ConfigurationError, match="number"):
            server.event_pattern("other", batch=size)(lambda items: None)
    with pytest.raises(ConfigurationError, match="event handlers only"):
        server.message_pattern("request", batch=10)(lambda items: None)


def test_settings_that_cannot_work_are_refused_at_once() -> None:
    for options in ({"concurrency": 0}, {"max_deliver": 0}, {"dead_letter": "a b"}):
        with pytest.raises(ConfigurationError):
            Server(URL, **options)
    for options in ({"partitions": 0}, {"replication": 0}, {"request_timeout": 0}):
        for end in (Server, ClientProxy):
            with pytest.raises(ConfigurationError, match=f"{next(iter(options))}=0"):
                end(URL, **options)
    with pytest.raises(ConfigurationError, match="no mechanism"):
        ClientProxy("kafka://me:secret@127.0.0.1:9?sasl=MD5")
    client = ClientProxy(
        "kafka://me:secret@127.0.0.1:9?sasl=SCRAM-SHA-256&partitions=2&group=g&servers=b:1,c:2"
    )
    assert "secret" not in repr(client) + client.explain()
    made: Any = client._transports[0]
    assert made._made["security_protocol"] == "SASL_PLAINTEXT"
    assert made._made["bootstrap_servers"] == ["127.0.0.1:9", "b:1", "c:2"]
    secure: Any = ClientProxy("kafkas://127.0.0.1:9")._transports[0]
    assert secure._made["security_protocol"] == "SSL"
    assert isinstance(secure._made["ssl_context"], ssl.SSLContext)


@pytest.mark.filterwarnings("error")  # such as: Unclosed AIOKafkaConnection
async def test_giving_up_while_the_first_broker_is_asked_closes_that_connection() -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Tells its versions, and nothing more."""
        (size,) = struct.unpack(">i", await reader.readexactly(4))
        correlation = (await reader.readexactly(size))[4:8]
        versions = [(3, 0, 5), (18, 0, 2), (22, 0, 1)]
        answer = correlation + struct.pack(">hi", 0, len(versions))
        answer += b"".join(struct.pack(">hhh", *each) for each in versions)
        writer.write(struct.pack(">i", len(answer)) + answer)
        await reader.readexactly(4)
        asked.set()
        await reader.read()
        writer.close()
        ended.set()

    async with await asyncio.start_server(broker, "127.0.0.1", 0) as listening:
        url = f"kafka://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        client = ClientProxy(url, policies=(), telemetry=False)
        connecting = asyncio.ensure_future(client.connect())
        await asyncio.wait_for(asked.wait(), 10)
        await client.aclose()
        with pytest.raises(ConnectError):
            await connecting
        await asyncio.wait_for(ended.wait(), 10)
        gc.collect()


async def test_a_producers_first_question_goes_to_the_broker_that_has_just_answered() -> None:
    """Any other may be silent; and so may this one by the next time."""

    async def answer(brokers: list[tuple[int, str, int, None]], server: str) -> list[int]:
        producer = new_producer({"bootstrap_servers": [server]}, 1000)
        client = producer.client
        client.cluster.update_metadata(MetadataResponse_v1(brokers, 1, []))
        asked = [client.get_random_node() for _ in range(200)]
        await discard(producer)
        return asked

    brokers = [(number, f"10.0.0.{number}", 9092, None) for number in (1, 2, 3)]
    for number in (1, 2, 3):
        first, *later = await answer(brokers, f"10.0.0.{number}:9092")
        assert first == number
        assert set(later) == {1, 2, 3}
    assert (await answer([(7, "::1", 9092, None)], "[::1]:9092"))[0] == 7
    assert set(await answer(brokers, "kafka.example:9092")) == {1, 2, 3}  # known by another name


async def test_a_server_that_ended_while_it_was_paused_reads_when_it_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server("kafka://127.0.0.1:1", telemetry=False)
    listener: Any = server._listeners[0]
    listener._pause()  # every handler was busy when it ended

    async def connected() -> None:
        assert listener._flow.is_set()
        raise ConnectError("far enough")

    monkeypatch.setattr(listener._link, "start", connected)
    with pytest.raises(ConnectError, match="far enough"):
        await server.start()


async def test_a_request_whose_cancel_came_first_is_not_begun() -> None:
    @dataclass
    class Asked:
        offset: int
        topic: str = "ask"
        partition: int = 0
        key: bytes | None = None
        value: bytes | None = None
        timestamp: int = 0

        @property
        def headers(self) -> list[tuple[str, bytes]]:
            return [(CORRELATION, b"id-%d" % self.offset), (REPLY_TOPIC, b"ask.reply")]

    server = Server("kafka://127.0.0.1:1", telemetry=False)
    begun: list[int] = []

    @server.message_pattern("ask")
    async def ask(context: Context) -> None:
        begun.append(context.raw.offset)
        await asyncio.Event().wait()

    listener: Any = server._listeners[0]
    lane = listener._lane("ask")
    lane.begin(0)
    for offset in (0, 1, 3):
        listener._cancels.overtaken.add(b"id-%d" % offset)
    lane.add([Asked(offset) for offset in range(4)])
    await eventually(lambda: lane.prefix == 2)
    await eventually(lambda: begun == [2])
    server._app.abort()
    await eventually(lambda: not server._app.running)
