"""MQTT's packets: what is written can be read, what arrives in pieces too, and nothing else."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_client.errors import ConfigurationError, PayloadError, ProtocolError
from resilient_client.transports.mqtt import _codec as codec
from resilient_client.transports.mqtt._codec import OVERSIZED, Answer, Delivery, PacketReader
from tests.transports.portions import check_portions

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\t"), max_size=40)
TOPICS = TEXTS.filter(bool)


def feed(reader: PacketReader, data: bytes, step: int = 1 << 30) -> list[tuple[int, bytes]]:
    """Let `data` arrive in reads of at most `step` bytes; the packets that came out."""
    packets: list[tuple[int, bytes]] = []
    while data:
        room = reader.get_buffer(-1)
        assert len(room) > 0
        taken = min(step, len(room), len(data))
        room[:taken] = data[:taken]
        data = data[taken:]
        packets += reader.buffer_updated(taken)
    return packets


def one(data: bytes) -> tuple[int, bytes]:
    [packet] = feed(PacketReader(1 << 20), data)
    return packet


# ---- as the standard has them ----


def test_packets_are_those_of_the_standard() -> None:
    assert codec.connect(4, "a", None, None, 60, True, {}) == (
        b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a"
    )
    assert codec.connect(5, "a", "u", "p", 10, False, {codec.SESSION_EXPIRY: 10}) == (
        b"\x10\x19\x00\x04MQTT\x05\xc0\x00\x0a\x05\x11\x00\x00\x00\x0a\x00\x01a\x00\x01u\x00\x01p"
    )
    assert codec.publish(codec.text("a/b"), b"hi") == b"\x30\x07\x00\x03a/bhi"
    assert codec.publish(codec.text("a"), b"x", 10, b"") == b"\x32\x07\x00\x01a\x00\x0a\x00x"
    assert codec.puback(258) == b"\x40\x02\x01\x02"
    assert codec.puback(1, 0x83) == b"\x40\x03\x00\x01\x83"
    assert codec.subscribe(4, 10, [("a/b", 1)]) == b"\x82\x08\x00\x0a\x00\x03a/b\x01"
    assert codec.subscribe(5, 10, [("a", 0), ("b", 1)]) == (
        b"\x82\x0b\x00\x0a\x00\x00\x01a\x00\x00\x01b\x01"
    )
    assert codec.unsubscribe(4, 10, ["a/b"]) == b"\xa2\x07\x00\x0a\x00\x03a/b"
    assert codec.unsubscribe(5, 10, ["a/b"]) == b"\xa2\x08\x00\x0a\x00\x00\x03a/b"
    assert codec.PING == b"\xc0\x00"
    assert codec.disconnect(5) == codec.disconnect(4) == b"\xe0\x00"
    assert codec.user_properties({"a": "b"}) == b"\x26\x00\x01a\x00\x01b"


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0, b"\x00"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (16_383, b"\xff\x7f"),
        (16_384, b"\x80\x80\x01"),
        (2_097_152, b"\x80\x80\x80\x01"),
        (codec.MAX_PACKET, b"\xff\xff\xff\x7f"),
    ],
)
def test_lengths_are_those_of_the_standard(number: int, written: bytes) -> None:
    assert codec.varint(number) == written
    assert codec._read_varint(written, 0) == (number, len(written))


def test_answers_are_read() -> None:
    def answer(data: bytes, version: int = 5) -> Answer:
        return Answer(*one(data), version)

    connack = answer(b"\x20\x08\x01\x00\x05\x21\x00\x0a\x24\x00")
    assert (connack.session, connack.reasons) == (True, b"\x00")
    assert connack.properties == {codec.RECEIVE_MAXIMUM: 10, codec.MAXIMUM_QOS: 0}
    old = answer(b"\x20\x02\x00\x01")  # a broker that knows no version 5
    assert (old.session, old.reasons, old.properties) == (False, b"\x01", {})
    assert answer(b"\x40\x02\x00\x07").reasons == b"\x00"
    refused = answer(b"\x40\x08\x00\x07\x87\x04\x1f\x00\x01n")
    assert (refused.packet_id, refused.reasons) == (7, b"\x87")
    assert refused.properties == {codec.REASON_STRING: "n"}
    assert answer(b"\x90\x05\x00\x01\x00\x01\x87").reasons == b"\x01\x87"
    assert answer(b"\x90\x04\x00\x01\x01\x80", 4).reasons == b"\x01\x80"
    assert answer(b"\xb0\x02\x00\x01", 4).packet_id == 1
    assert answer(b"\xe0\x00").reasons == b"\x00"
    assert answer(b"\xe0\x01\x8e").reasons == b"\x8e"


# ---- what is written can be read ----


@given(
    TOPICS,
    st.binary(max_size=300),
    st.none() | st.integers(1, 0xFFFF),
    st.none() | st.dictionaries(TEXTS, TEXTS, max_size=5),
    st.none() | st.integers(0, 0xFFFFFFFF),
    st.integers(1, 50),
)
def test_a_message_arrives_as_it_was_written(
    topic: str,
    payload: bytes,
    packet_id: int | None,
    headers: dict[str, str] | None,
    expiry: int | None,
    step: int,
) -> None:
    values = None if headers is None else codec.user_properties(headers)
    if values is not None and expiry is not None:
        values += bytes((codec.MESSAGE_EXPIRY,)) + expiry.to_bytes(4, "big")
    raw = codec.publish(codec.text(topic), payload, packet_id, values)
    packets = feed(PacketReader(1 << 20), raw * 3, step)
    assert len(packets) == 3
    for first, body in packets:
        message = Delivery(first, body, 4 if headers is None else 5)
        assert (message.topic, message.payload) == (topic, payload)
        assert message.packet_id == packet_id
        assert message.headers == (headers or {})
        assert (message.retained, message.duplicate) == (False, False)


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=400)), max_size=20), st.data())
def test_packets_come_out_whole_however_they_arrive(
    packets: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    raw = b"".join(codec._packet(first, body) for first, body in packets)
    reader = PacketReader(1 << 20)
    got: list[tuple[int, bytes]] = []
    while raw:
        step = data.draw(st.integers(1, len(raw)))
        got += feed(reader, raw[:step])
        raw = raw[step:]
    assert got == packets


@given(st.integers(0, 3000), st.integers(1, 700), st.booleans(), st.integers(1, 30))
def test_a_message_that_is_too_large_is_passed_over(
    size: int, step: int, acknowledged: bool, topic_size: int
) -> None:
    limit = 500
    reader = PacketReader(limit)
    topic = codec.text("t" * topic_size)
    large = codec.publish(topic, b"x" * size, 77 if acknowledged else None)
    small = codec.publish(topic, b"small")
    packets = feed(reader, large + small + large + small, step)
    assert len(packets) == 4
    over = size + len(topic) + 2 * acknowledged > limit
    for first, body in packets[::2]:
        assert bool(first & OVERSIZED) == over
        message = Delivery(first, body, 4)
        assert message.topic == "t" * topic_size
        assert message.packet_id == (77 if acknowledged else None)
        assert over or message.payload == b"x" * size
    for first, body in packets[1::2]:
        assert Delivery(first, body, 4).payload == b"small"


def test_a_large_message_is_taken_and_its_memory_given_back() -> None:
    reader = PacketReader(20 << 20)
    raw = codec.publish(codec.text("t"), b"x" * (10 << 20))
    [(first, body)] = feed(reader, raw, 256 * 1024)
    assert len(Delivery(first, body, 4).payload) == 10 << 20
    assert len(reader._buffer) == 64 * 1024
    reader = PacketReader(1 << 20)
    [(first, body)] = feed(reader, raw, 256 * 1024)
    assert first & OVERSIZED
    assert len(body) < 70_000
    assert len(reader._buffer) == 64 * 1024


def test_small_packets_behind_a_large_one_are_not_read_by_the_megabyte() -> None:
    reader = PacketReader(20 << 20)
    large = codec.publish(codec.text("t"), b"x" * 10_000_000, None, b"")
    check_portions(reader, large, codec.publish(codec.text("t"), b"", None, b"") * 200_000)


# ---- and what is not, is refused ----


@given(st.binary(max_size=200), st.integers(1, 60))
def test_noise_is_read_or_refused_within_bounds(noise: bytes, step: int) -> None:
    reader = PacketReader(1000)
    try:
        packets = feed(reader, noise, step)
    except ProtocolError:
        packets = []
    assert len(reader._buffer) <= 128 * 1024
    for first, body in packets:
        for version in (4, 5):
            for kind in (Delivery, Answer):
                with suppress(ProtocolError):
                    kind(first, body, version)


@given(st.sampled_from([0x20, 0x40, 0x90, 0xB0, 0xE0, 0x30, 0x32]), st.binary(max_size=60))
def test_a_malformed_body_is_a_protocol_error_and_nothing_else(first: int, body: bytes) -> None:
    for version in (4, 5):
        with suppress(ProtocolError):
            (Delivery if first & 0xF0 == 0x30 else Answer)(first, body, version)


@pytest.mark.parametrize(
    "data",
    [
        b"\x30\x80\x80\x80\x80\x01",  # a length of five bytes
        b"\x20\xff\xff\xff\x7f",  # a huge packet that is no message
        b"\x30\xff\xff\x7f\xff\xff",  # a huge message whose topic is longer than itself
    ],
)
def test_what_cannot_be_a_packet_is_refused(data: bytes) -> None:
    reader = PacketReader(1000)
    if data[:2] == b"\x30\xff":
        data = b"\x30\xe9\x07\xff\xff" + b"x" * 100
    with pytest.raises(ProtocolError):
        feed(reader, data)


@pytest.mark.parametrize(
    ("first", "body"),
    [
        (0x30, b""),
        (0x30, b"\x00\x00\x00"),  # no topic
        (0x30, b"\x00\x05abc"),
        (0x32, b"\x00\x01a"),  # no packet id
        (0x32, b"\x00\x01a\x00\x00\x00"),  # packet id 0
        (0x34, b"\x00\x01a\x00\x01\x00"),  # QoS 2
        (0x36, b"\x00\x01a\x00\x01\x00"),
        (0x30, b"\x00\x01a\x02\x7f\x00"),  # an unknown property
        (0x30, b"\x00\x01a\x03\x02\x00\x00"),  # one that is cut
        (0x30, b"\x00\x01a\x09\x00"),
        (0x30, b"\x00\x01a"),  # no properties at all
    ],
)
def test_a_message_that_breaks_the_rules_is_refused(first: int, body: bytes) -> None:
    with pytest.raises(ProtocolError):
        Delivery(first, body, 5)


@pytest.mark.parametrize("value", ["x" * 65_536, "a\0b", "\ud800"])
def test_what_is_no_text_for_mqtt_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError):
        codec.text(value)


def test_a_header_that_is_too_long_is_refused_and_one_that_is_odd_is_sent() -> None:
    with pytest.raises(PayloadError):
        codec.user_properties({"a": "x" * 65_536})
    values: Any = codec.user_properties({"a": "\ud800"})
    raw = codec.publish(codec.text("t"), b"", None, values)
    assert Delivery(*one(raw), 5).headers == {"a": "?"}
