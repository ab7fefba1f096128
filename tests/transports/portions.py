"""What a reader of frames takes at once."""

from __future__ import annotations

from typing import Any


def check_portions(reader: Any, large: bytes, small: bytes) -> None:
    """Let it read as much as it has room for: of what is behind the large frame, 64 KiB at most."""
    data = large + small
    read = 0
    while data:
        room = reader.get_buffer(-1)
        taken = min(len(room), len(data))
        room[:taken] = data[:taken]
        data = data[taken:]
        read += taken
        if read > len(large) + 64 * 1024:
            assert taken <= 64 * 1024
        reader.buffer_updated(taken)
