"""What a command prints, for people or for programs."""

from __future__ import annotations

import json
import re
import sys
from io import TextIOWrapper
from typing import Any

from resilient_client.codecs import JsonCodec
from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    DeadlineExceeded,
    NoHandlerError,
    Outcome,
    PayloadError,
    RejectedError,
    RemoteError,
    ReplyTimeout,
    ResilientClientError,
)

_steers = re.compile("[\x7f-\x9f]").search
FAILED, USAGE, UNREACHABLE, REJECTED, TIMED_OUT = 1, 2, 3, 4, 5


def exit_code(error: ResilientClientError) -> int:
    """What kind of error it is, as a shell sees it."""
    if isinstance(error, RejectedError):
        return REJECTED
    if isinstance(error, ConfigurationError):
        return USAGE
    if isinstance(error, ConnectError):
        return UNREACHABLE
    if isinstance(error, DeadlineExceeded | ReplyTimeout):
        return TIMED_OUT
    if isinstance(error, NoHandlerError) and error.outcome is Outcome.NEVER_SENT:
        return UNREACHABLE
    if isinstance(error, PayloadError) and not error.sent:
        return USAGE
    return FAILED


class Output:
    """Values to standard output, errors to standard error."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._pretty = not as_json and sys.stdout.isatty()
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")

    def value(self, value: Any) -> None:
        """An answer, or one value of it: JSON either way, indented on a terminal."""
        indent = 2 if self._pretty else None
        sys.stdout.write(_json_of(value, sys.stdout.encoding, indent) + "\n")
        sys.stdout.flush()

    def facts(self, text: str, **facts: Any) -> None:
        """A line for people, or the same as an object."""
        if self.as_json:
            self.value(facts)
        else:
            print(text, flush=True)

    def error(self, error: ResilientClientError) -> None:
        """What went wrong, and what can be done."""
        if not self.as_json:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            for attempt in error.attempts if len(error.attempts) > 1 else ():
                print(
                    f"  attempt {attempt.number} at {attempt.endpoint},"
                    f" {attempt.started:.3f} to {attempt.ended:.3f} s:"
                    f" {attempt.error} ({'sent' if attempt.sent else 'not sent'}): {attempt.cause}",
                    file=sys.stderr,
                )
            return
        facts: dict[str, Any] = {
            "error": type(error).__name__,
            "message": str(error.args[0]) if error.args else str(error),
            "sent": error.sent,
            "retryable": error.retryable,
            "endpoint": error.endpoint,
            "attempts": len(error.attempts),
            "hint": error.hint,
        }
        if isinstance(error, RemoteError):
            facts["payload"] = error.payload
        print(_json_of(facts, sys.stderr.encoding), file=sys.stderr)


def _json_of(value: Any, encoding: str, indent: int | None = None) -> str:
    """JSON with the letters of all languages, where they can be shown and do a terminal no harm.

    JSON itself escapes only the control characters of ASCII.
    """
    plain = _plain(value)
    text = json.dumps(plain, ensure_ascii=False, indent=indent)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(plain, indent=indent)
    return json.dumps(plain, indent=indent) if _steers(text) else text


def _plain(value: Any) -> Any:
    """What JSON has for it: what gRPC and Kafka can carry besides, such as bytes, as on TCP."""
    return json.loads(JsonCodec().encode(value))
