"""Patterns and the routes they stand for: NestJS's rules for channel names and handler keys.

A string or number is its own route. A mapping becomes `{"key":value,...}` with sorted keys. Nest
sorts with `localeCompare`, which is ICU collation and not code-point order: punctuation, digits,
then letters without regard to case. For ASCII keys the order here is exactly that. Letters with
accents sort by their base letter (as ICU does), any other character after all of ASCII by code
point: keys that both sides must sort alike are best kept lower-case ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from math import isfinite, isnan
from typing import Any
from unicodedata import combining, normalize

from resilient_client._json import encode, parse
from resilient_client.errors import ConfigurationError, PayloadError

_MAX_DEPTH = 5  # levels below the pattern itself
_MAX_KEYS = 20
_MAX_CACHED_KEY = 256
_MAX_LOOKUP_KEY = 16 * 1024
_SCALARS = frozenset({str, int, float, bool, type(None)})

# The primary order of ASCII under ICU's root collation; control characters that are not here
# carry no weight at all.
_ORDER = "\t\n\x0b\x0c\r _-,;:!?.'\"()[]{}@*/\\&#%`^+<=>|~$0123456789abcdefghijklmnopqrstuvwxyz"
_WEIGHTS = {character: weight for weight, character in enumerate(_ORDER)}
_WEIGHTS |= {letter.upper(): weight for letter, weight in _WEIGHTS.items() if letter.isalpha()}
# Combining accents, in its order too.
_ACCENTS = "\u0301\u0300\u0306\u0302\u030c\u030a\u0308\u030b\u0303\u0307\u0327\u0328\u0304"


rest_parts = re.compile(r"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) (/.*)", re.DOTALL).fullmatch
"""The method and the path of a REST pattern; None of any other."""


def prefixed(prefix: str, pattern: str) -> str:
    """The pattern with a router's prefix: before the path of a REST pattern, else before all."""
    rest = rest_parts(pattern)
    return prefix + pattern if rest is None else f"{rest[1]} /{prefix.lstrip('/')}{rest[2]}"


def _sort_key(key: str) -> tuple[list[int], list[int], list[bool]]:
    """ICU's three levels: base characters, then accents, then lower case before upper."""
    base: list[int] = []
    accents: list[int] = []
    upper: list[bool] = []
    for character in key if key.isascii() else normalize("NFD", key):
        weight = _WEIGHTS.get(character)
        if weight is None:
            if combining(character):
                accents.append(2 + _ACCENTS.find(character) if character in _ACCENTS else 99)
                continue
            if character < "\x80":
                continue
            weight = ord(character.lower()[0])
        base.append(weight)
        accents.append(1)  # a bare letter before an accented one
        upper.append(character.isupper())
    return base, accents, upper


def number_text(number: float) -> str:
    """A finite number as JavaScript prints it: `1.0` is "1", `1e21` is "1e+21", `-0.0` is "0"."""
    if isinstance(number, int) and -(2**53) <= number <= 2**53:
        return str(int(number))
    try:
        double = float(number)
    except OverflowError:
        double = float("inf") if number > 0 else float("-inf")
    if not isfinite(double):
        return "NaN" if isnan(double) else "Infinity" if double > 0 else "-Infinity"
    if double == 0:
        return "0"
    sign = "-" if double < 0 else ""
    mantissa, _, exponent = repr(abs(double)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    # where the decimal point stands, counted from the first significant digit
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    if len(digits) <= point <= 21:
        return sign + digits.ljust(point, "0")
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    rest = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{rest}e{point - 1:+d}"


def _quoted(text: str) -> str:
    # nothing else is escaped, so a route is not always JSON
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _value(value: Any, depth: int) -> str:
    if isinstance(value, str):
        return _quoted(str.__str__(value))
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true" if value else "false"
    if isinstance(value, (int, float)):
        return number_text(value)
    return _object(value, depth)


def _object(pattern: Any, depth: int) -> str:
    if isinstance(pattern, (list, tuple)):
        pattern = {str(index): value for index, value in enumerate(pattern)}
    elif not isinstance(pattern, Mapping):
        raise ConfigurationError(
            f"a pattern is a string, a number or a mapping of these, not {_name(pattern)}"
        )
    if depth > _MAX_DEPTH:
        return "[MAX_DEPTH_REACHED]"
    if len(pattern) > _MAX_KEYS:
        return "[TOO_MANY_KEYS]"
    for key in pattern:
        if not isinstance(key, str):
            raise ConfigurationError(f"the keys of a pattern are strings, not {_name(key)}")
    keys = sorted(pattern, key=_sort_key) if len(pattern) > 1 else pattern
    return "{" + ",".join(f"{_quoted(key)}:{_value(pattern[key], depth + 1)}" for key in keys) + "}"


def _name(value: Any) -> str:
    return "None" if value is None else f"{type(value).__qualname__}"


def _finite(pattern: Any, depth: int = 0) -> bool:
    if isinstance(pattern, float):
        return isfinite(pattern)
    if depth > _MAX_DEPTH:
        return True
    if isinstance(pattern, Mapping):
        return all(_finite(value, depth + 1) for value in pattern.values())
    if isinstance(pattern, (list, tuple)):
        return all(_finite(value, depth + 1) for value in pattern)
    return True


def _checked(pattern: Any) -> str:
    if not _finite(pattern):
        raise ConfigurationError("NaN and Infinity have no place in a pattern: JSON has no such")
    return _object(pattern, 0)


# typed: 1, 1.0 and True are equal and hash alike, but their routes differ
@lru_cache(maxsize=512, typed=True)
def _flat(*items: Any) -> str:
    half = len(items) // 2
    return _checked(dict(zip(items[:half], items[half:], strict=True)))


def route(pattern: Any) -> str:
    """The address a pattern stands for: exactly Nest's `transformPatternToRoute` for ASCII keys.

    Raises:
        ConfigurationError: this cannot be a pattern (None, a bool, NaN, keys that are no strings).
    """
    if type(pattern) is str:
        return pattern
    if type(pattern) is dict:
        if len(pattern) == 1:
            [(key, value)] = pattern.items()
            if type(key) is str and type(value) is str:  # nearly all are
                return _flat(key, value)
        if len(pattern) <= _MAX_KEYS and _SCALARS.issuperset(map(type, pattern.values())):
            return _flat(*pattern, *pattern.values())
        return _checked(pattern)
    if isinstance(pattern, str):
        return str.__str__(pattern)
    if pattern is None or isinstance(pattern, bool):
        raise ConfigurationError(f"{pattern} is not a pattern: give a string, number or mapping")
    if isinstance(pattern, (int, float)):
        if not _finite(pattern):
            raise ConfigurationError(f"{pattern} is not a pattern: it is not a finite number")
        return number_text(pattern)
    return _checked(pattern)


def lookup_route(key: str | bytes) -> str | None:
    """The handler key a server looks up for an incoming pattern; None where no handler can be.

    Nest parses the incoming key as JSON if it parses, and routes the result: `42.0` looks up "42",
    `"echo"` in quotes "echo", and a handler named "null", "true" or "false" is never found.
    A key above 16 KiB is not looked at: sorting what a stranger put into it could take long.

    Args:
        key: a string is the pattern itself, or a channel, subject or topic; bytes are the JSON text
            of the pattern as it stood in a packet.
    """
    if len(key) <= _MAX_CACHED_KEY:
        return _cached_lookup(key)
    return _lookup(key) if len(key) <= _MAX_LOOKUP_KEY else None


def _lookup(key: str | bytes) -> str | None:
    if isinstance(key, bytes):
        try:
            key = key.decode()
        except UnicodeDecodeError:
            return None
        value = _parsed(key)
        if isinstance(value, str):
            value = _parsed(value)
    else:
        value = _parsed(key)
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return None
    return number_text(value) if isinstance(value, float) else _object(value, 0)


def _parsed(text: str) -> Any:
    try:
        return parse(text, parse_int=float)  # JavaScript has doubles only
    except (ValueError, RecursionError):
        return text


_cached_lookup = lru_cache(maxsize=1024)(_lookup)


def pattern_json(pattern: Any) -> bytes:
    """A pattern as it stands in a packet: compact JSON, keys in the caller's order.

    What a mapping holds is not looked at again: `route` has been asked before.

    Raises:
        ConfigurationError: this cannot be a pattern.
    """
    if type(pattern) is not str and type(pattern) is not dict:
        route(pattern)
    try:
        return encode(pattern)
    except PayloadError as error:
        raise ConfigurationError(f"this cannot be a pattern: {error.args[0]}") from error
