"""From words on the command line to values."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from resilient_client.transports._options import client_options, from_text

if TYPE_CHECKING:
    from collections.abc import Iterable


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(
            f"{what} is not JSON: {error} (a text needs quotes of its own: '\"text\"')"
        ) from None


def _whole(text: str, what: str) -> str:
    """A word as it was typed, where the locale has no letters for it: then as UTF-8."""
    if not any("\udc80" <= letter <= "\udcff" for letter in text):
        return text
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"{what} is not text") from None


def pattern(text: str) -> Any:
    """A word as it is; an object as JSON."""
    text = _whole(text, "the pattern")
    return _json(text, "the pattern") if text.lstrip().startswith("{") else text


def data(text: str) -> Any:
    """JSON, or `-` for JSON on standard input."""
    if text != "-":
        return _json(_whole(text, "the payload"), "the payload")
    try:
        return _json(_standard_input(), "the payload")
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"standard input is not text: {error}") from None


def _standard_input() -> str:
    """All of it; what is no terminal's is UTF-8, or UTF-16 or -32, whatever the locale is."""
    source = sys.stdin
    if source.isatty():
        return source.read()
    body = source.buffer.read()
    return body.decode(json.detect_encoding(body))


def positive(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError("it is written NAME=VALUE")  # without it: often a secret
    return name, value


header = option = _pair


def options(url: str, given: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """What these words say of a transport's options: as in the URL's query, or JSON.

    Raises:
        ConfigurationError: the URL's scheme is unknown, or the extra is not installed.
    """
    known = client_options(url)
    return {name: _option(text, known.get(name, "Any")) for name, text in given}


def _option(text: str, annotation: str) -> Any:
    if not text.startswith(("[", "{")) or annotation in ("str", "str | None"):
        with suppress(ValueError):
            return from_text(text, annotation)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
