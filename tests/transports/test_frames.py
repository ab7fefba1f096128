from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resilient_client.errors import ProtocolError
from resilient_client.transports._frames import ENVELOPE, FrameReader, frame, units
from tests.transports.portions import check_portions

TEXTS = [
    b"{}",
    b'{"response":3,"isDisposed":true,"id":"1"}',
    '{"pattern":"echo","data":"😀","id":"1"}'.encode(),
    '"é"'.encode(),
    '"中"'.encode(),
    "😀".encode(),
    "é".encode(),
    '{"a":"😀é中😀"}'.encode(),
    b"1",
]


def feed(reader: FrameReader, data: bytes, step: int = 1 << 30) -> list[bytes]:
    """Let `data` arrive in reads of at most `step` bytes; the frames that came out."""
    frames: list[bytes] = []
    while data:
        room = reader.get_buffer(-1)
        assert len(room) > 0
        taken = min(step, len(room), len(data))
        room[:taken] = data[:taken]
        data = data[taken:]
        frames += reader.buffer_updated(taken)
        if reader.error is not None:
            break
    return frames


def outcome(data: bytes, step: int = 1 << 30, max_size: int = 1000) -> tuple[list[bytes], bool]:
    """The frames that came out, and whether what followed them was refused."""
    reader = FrameReader(max_size)
    frames: list[bytes] = []
    while data:
        room = reader.get_buffer(-1)
        taken = min(step, len(room), len(data))
        room[:taken] = data[:taken]
        data = data[taken:]
        try:
            frames += reader.buffer_updated(taken)
        except ProtocolError:
            assert reader.error is not None
        assert len(reader._buffer) <= 2 * 64 * 1024 + max_size + ENVELOPE
        if reader.error is not None:
            return frames, True
    return frames, False


def test_frames_are_written_with_their_length_in_utf16_units() -> None:
    assert frame(b'{"response":3,"isDisposed":true,"id":"1"}').startswith(b"41#{")
    assert frame(b'{"pattern":{"cmd":"sum"},"data":[1,2],"id":"1"}').startswith(b"47#{")
    text = '{"pattern":"echo","data":"😀","id":"1"}'.encode()
    assert frame(text) == b"39#" + text
    text = '{"response":"😀","isDisposed":true,"id":"1"}'.encode()
    assert frame(text) == b"44#" + text


@given(st.text())
def test_units_are_what_javascript_counts(text: str) -> None:
    assert units(text.encode()) == len(text.encode("utf-16-le")) // 2


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 1000])
def test_frames_arrive_whole_however_they_are_split(step: int) -> None:
    data = b"".join(map(frame, TEXTS))
    reader = FrameReader()
    assert feed(reader, data, step) == TEXTS
    assert not reader.incomplete


def test_a_split_at_any_byte_is_no_matter_and_is_seen_as_incomplete() -> None:
    data = frame(TEXTS[2]) + frame(TEXTS[7])
    between = len(frame(TEXTS[2]))
    for cut in range(1, len(data)):
        reader = FrameReader()
        frames = feed(reader, data[:cut])
        assert frames == ([TEXTS[2]] if cut >= between else [])
        assert reader.incomplete == (cut != between)
        frames += feed(reader, data[cut:])
        assert frames == [TEXTS[2], TEXTS[7]]
        assert not reader.incomplete


@given(st.lists(st.text(min_size=1, max_size=50), max_size=30), st.integers(1, 100))
def test_any_text_passes_through(texts: list[str], step: int) -> None:
    encoded = [text.encode() for text in texts]
    reader = FrameReader()
    assert feed(reader, b"".join(map(frame, encoded)), step) == encoded
    assert not reader.incomplete


@pytest.mark.parametrize("size", [60_000, 65_536, 70_000, 500_000])
@pytest.mark.parametrize("letter", ["x", "é", "中", "😀"])
@pytest.mark.parametrize("step", [1000, 65_536, 1 << 30])
def test_large_messages_pass_and_leave_a_small_buffer(size: int, letter: str, step: int) -> None:
    text = (letter * (size // len(letter.encode()))).encode()
    reader = FrameReader()
    data = frame(b"1") + frame(text) + frame(b"2") + frame((letter * 100).encode())
    assert feed(reader, data, step) == [b"1", text, b"2", (letter * 100).encode()]
    assert len(reader._buffer) == 64 * 1024
    assert not reader.incomplete


def test_what_was_handed_out_does_not_change_when_more_arrives() -> None:
    reader = FrameReader()
    first = feed(reader, frame(b"first"))
    feed(reader, frame(b"other"))
    assert first == [b"first"]


def test_small_messages_are_read_into_one_buffer_for_ever() -> None:
    reader = FrameReader()
    buffer = reader._buffer
    for _ in range(2000):
        assert feed(reader, frame(TEXTS[1]) + frame(TEXTS[2])) == TEXTS[1:3]
    assert reader._buffer is buffer


def test_the_buffer_makes_room_when_frames_end_in_the_middle_of_reads() -> None:
    data = frame(TEXTS[1]) * 20_000
    reader = FrameReader()
    assert feed(reader, data, 40_001) == [TEXTS[1]] * 20_000
    assert len(reader._buffer) == 64 * 1024


def test_the_buffer_is_small_until_there_is_more_to_read_than_it_holds() -> None:
    reader = FrameReader()
    for _ in range(100):
        assert feed(reader, frame(TEXTS[1])) == [TEXTS[1]]
    assert len(reader._buffer) == 4 * 1024
    for size in (4 * 1024, 16 * 1024, 64 * 1024, 64 * 1024):
        assert len(reader._buffer) == size
        whole = frame(b"1" * (size - len("65536#")))
        feed(reader, b" " * (size - len(whole)) + whole, size)


@pytest.mark.parametrize(
    "header", [b" 2#", b"\t\n\v\f\r 2#", b"+2#", b"002#", b" +02#", b"2abc#", b"2 #", b"2.9#",
               b"2-#"]
)  # fmt: skip
def test_the_length_is_read_as_javascripts_parse_int_does(header: bytes) -> None:
    for step in (1, 1000):
        assert outcome(header + b"{}" + frame(b"1"), step) == ([b"{}", b"1"], False)


@pytest.mark.parametrize(
    "data",
    [
        b"abc#{}",
        b"#{}",
        b"0#{}",
        b"00#",
        b"-2#{}",
        b"+ 2#{}",
        b"_2#{}",
        b"\xd9\xa2#{}",  # a digit elsewhere, not in JavaScript
        b"x" * 64,
        b" " * 64,
        b"1" * 64,
        b"999999999999#{}",
        b"GET / HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nUser-Agent: somebody lost\r\n\r\n",
        b"\x16\x03\x01" + bytes(80),
        "1#😀".encode(),  # cuts a character in two
        '2#"😀"'.encode(),
        b"1#\x80\x80\x80\x80",
        b"2#" + b"\x80" * 10,
    ],
)
def test_malformed_framing_is_refused_but_not_what_came_before(data: bytes) -> None:
    for step in (1, 3, 1000):
        assert outcome(data, step) == ([], True)
        assert outcome(frame(TEXTS[2]) + frame(b"1") + data, step) == ([TEXTS[2], b"1"], True)


def test_after_an_error_nothing_more_is_taken() -> None:
    reader = FrameReader()
    assert feed(reader, frame(b"1") + b"#" + frame(b"2")) == [b"1"]
    assert reader.error is not None
    assert reader.incomplete
    with pytest.raises(ProtocolError):
        reader.get_buffer(-1)
    with pytest.raises(ProtocolError):
        reader.buffer_updated(1)
    alone = FrameReader()
    alone.get_buffer(-1)[:1] = b"#"
    with pytest.raises(ProtocolError, match="length"):
        alone.buffer_updated(1)


def test_a_frame_that_is_too_large_is_refused_when_it_is_announced() -> None:
    reader = FrameReader(max_size=1000)
    header = b"%d#" % (1000 + ENVELOPE + 1)
    reader.get_buffer(-1)[: len(header)] = header
    with pytest.raises(ProtocolError, match=f"{1000 + ENVELOPE + 1} characters"):
        reader.buffer_updated(len(header))
    largest = b"x" * (1000 + ENVELOPE)
    assert outcome(frame(largest)) == ([largest], False)


def test_a_frame_whose_bytes_are_more_than_the_limit_is_refused() -> None:
    text = ("中" * ((1000 + ENVELOPE) // 3 + 1)).encode()
    for step in (10_000, 1 << 30):
        assert outcome(frame(text), step) == ([], True)
    assert outcome(frame(text[:-3])) == ([text[:-3]], False)


def test_an_announced_length_alone_takes_no_memory() -> None:
    reader = FrameReader()
    feed(reader, b"%d#" % (16 * 1024 * 1024) + b"x" * 1000)
    assert len(reader._buffer) == 4 * 1024
    assert reader.incomplete


@example(b'39#{"pattern":"echo","data":""\xf00\x9f\x98\x80","id":\xfd}', 1)
@example(b"3#\xfda\x80", 1)
@given(st.binary(max_size=200), st.integers(1, 20))
def test_how_garbage_is_split_makes_no_difference(data: bytes, step: int) -> None:
    assert outcome(data, step) == outcome(data)


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=5),
    st.lists(
        st.tuples(
            st.integers(0, 150),
            st.integers(0, 2),
            st.binary(max_size=2)
            | st.sampled_from([b"#", b"9", b"0", b"\xf0\x9f", b"\xfd", b"\x80", b" ", b"+"]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 20),
)
def test_damaged_frames_are_refused_and_nothing_else_happens(
    texts: list[bytes], damage: list[tuple[int, int, bytes]], step: int
) -> None:
    data = bytearray(b"".join(map(frame, texts)))
    for at, removed, put in damage:
        data[at : at + removed] = put
    assert outcome(bytes(data), step) == outcome(bytes(data))


async def test_frames_pass_through_a_real_socket() -> None:
    received: list[bytes] = []
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Protocol(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.reader = FrameReader()

        def get_buffer(self, sizehint: int) -> Any:
            return self.reader.get_buffer(sizehint)

        def buffer_updated(self, nbytes: int) -> None:
            received.extend(self.reader.buffer_updated(nbytes))

        def connection_lost(self, exc: Exception | None) -> None:
            done.set_result(None)

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    transport, _ = await asyncio.get_running_loop().create_connection(Protocol, sock=theirs)
    texts = [*TEXTS, ("é" * 300_000).encode(), *TEXTS]
    await asyncio.get_running_loop().sock_sendall(ours, b"".join(map(frame, texts)))
    ours.close()
    async with asyncio.timeout(10):
        await done
    transport.close()
    assert received == texts


def test_small_frames_behind_a_large_one_are_not_read_by_the_megabyte() -> None:
    reader = FrameReader()
    large, small = frame(b'"%b"' % (b"x" * 10_000_000)), frame(b"{}")
    check_portions(reader, large, small * 100_000)
