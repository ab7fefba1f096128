"""A service's settings, as a file can say them, made into the arguments of a client."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from resilient_client.errors import ConfigurationError
from resilient_client.transports._options import client_options, from_text, near_miss

if TYPE_CHECKING:
    from collections.abc import Callable

_LAYERS = ("timeout", "attempt_timeout", "retry", "retry_budget", "circuit_breaker", "bulkhead")
_CLIENT = ("name", "headers", "patterns", "telemetry", "codec", "clock", "observers")
_REFERENCE = re.compile(r"\$(?:\$|\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\}|(?P<bad>\{))")


def merged(defaults: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings over the defaults; of tables in both, key by key."""
    result = dict(defaults)
    for key, value in settings.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def expanded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the environment's values in place of `${NAME}`, in every text.

    Raises:
        ConfigurationError: a variable is not set; it and the key are named.
    """
    return {key: _expand(value, str(key)) for key, value in settings.items()}


def _expand(value: Any, where: str) -> Any:
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: _value_of(match, where), value)
    if isinstance(value, dict):
        return {key: _expand(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, where) for item in value]
    if type(value) is tuple:
        return tuple(_expand(item, where) for item in value)
    return value


def _value_of(match: re.Match[str], where: str) -> str:
    if match["bad"] is not None:
        raise ConfigurationError(
            f"{where} holds a ${{ that is not ${{NAME}} or ${{NAME:-text}}",
            hint="a dollar itself is written $$",
        )
    name = match["name"]
    if name is None:
        return "$"
    value = os.environ.get(name)
    if match["default"] is not None:
        return value or match["default"]
    if value is None:
        raise ConfigurationError(
            f"{where} needs the environment variable {name}, which is not set",
            hint=f"set it, or write ${{{name}:-...}} with what to use instead",
        )
    return value


def client_arguments(service: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `ClientProxy` for these settings; policies are made anew at each call.

    Raises:
        ConfigurationError: a key that is not known, or a value that cannot be.
    """
    given = dict(settings)
    try:
        url = given.pop("url")
    except KeyError:
        raise ConfigurationError("url is missing", hint='write url = "tcp://host:port"') from None
    urls = [url] if isinstance(url, str) else url
    if not isinstance(urls, list | tuple) or not all(isinstance(each, str) for each in urls):
        raise ConfigurationError("url must be a text or a list of texts")
    if not all("://" in each for each in urls):
        raise ConfigurationError("url is not a URL", hint='write it like "tcp://127.0.0.1:3001"')
    options = client_options(urls[0]) if urls else {}
    known = {"url", "policies", "fallback", *_LAYERS, *_CLIENT, *options}
    refuse_unknown(given, known, "there is no setting {!r}")
    arguments: dict[str, Any] = {"target": url, "name": service}
    arguments.update({key: given.pop(key) for key in _CLIENT if key in given})
    if isinstance(patterns := arguments.get("patterns"), Mapping):
        arguments["patterns"] = {key: _pattern(key, each) for key, each in patterns.items()}
    elif isinstance(patterns, list | tuple):
        pairs: list[Any] = [each if isinstance(each, list | tuple) else () for each in patterns]
        if all(len(pair) == 2 for pair in pairs):  # else the client says what it wants
            arguments["patterns"] = [(key, _pattern(key, each)) for key, each in pairs]
    if "telemetry" in arguments:
        arguments["telemetry"] = typed(arguments["telemetry"], "bool", "telemetry")
    policies = given.pop("policies", None)
    layers = {key: given.pop(key) for key in (*_LAYERS, "fallback") if key in given}
    if policies is not None:
        if layers:
            raise ConfigurationError(
                f"policies= is the whole stack: {', '.join(layers)} beside it would be ignored"
            )
        arguments["policies"] = policies
    else:
        from resilient_client.policies import standard

        arguments["policies"] = standard(**_layers(layers))
    for key, value in given.items():
        arguments[key] = typed(value, options[key], key)
    return arguments


_PATTERN = {"timeout": "float", "idempotent": "bool", "attempts": "int"}


def _pattern(pattern: Any, given: Any) -> Any:
    if not isinstance(given, Mapping):
        return given
    return {
        key: typed(value, _PATTERN.get(key, "Any"), f"patterns.{pattern}.{key}")
        for key, value in given.items()
    }


def _layers(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `standard()`."""
    from resilient_client import policies

    makers: dict[str, Callable[..., Any]] = {
        "retry": _retry,
        "retry_budget": lambda value: _made(policies.RetryBudget, value, "retry_budget"),
        "circuit_breaker": lambda value: _made(policies.CircuitBreaker, value, "circuit_breaker"),
        "bulkhead": lambda value: _made(policies.Bulkhead, value, "bulkhead"),
    }
    layers: dict[str, Any] = {}
    for key, value in given.items():
        said = {"true": True, "false": False}.get(value) if isinstance(value, str) else value
        if said is False:
            layers[key] = None
        elif key in ("timeout", "attempt_timeout"):
            number = layers[key] = typed(value, "float", key)
            if isinstance(number, bool) or not isinstance(number, int | float) or not number > 0:
                raise ConfigurationError(f"{key} must be a number of seconds above 0, or false")
        elif key not in makers:
            if not hasattr(value, "wrap"):
                raise ConfigurationError(f"{key} must be a policy object")
            layers[key] = value
        elif isinstance(value, Mapping):
            layers[key] = makers[key](value)
        elif value is not None and isinstance(value, str | int | float | list) and said is not True:
            raise ConfigurationError(f"{key} must be a table, true or false")
        elif said is not True:
            layers[key] = value
    return layers


def _retry(given: Mapping[str, Any]) -> Any:
    from resilient_client.policies.retry import JITTERS, WAITS, Retry

    arguments = dict(given)
    if arguments.get("jitter") is False:
        arguments["jitter"] = None
    for key, named in (("wait", WAITS), ("jitter", JITTERS)):
        if isinstance(name := arguments.get(key), str):
            if name not in named:
                raise ConfigurationError(
                    f"retry.{key} names none of the known", hint=f"there are {', '.join(named)}"
                )
            arguments[key] = named[name]
    wait = arguments.get("wait", WAITS["expo"])
    parameters = inspect.signature(wait).parameters if callable(wait) else {}
    return _made(Retry, arguments, "retry", dict.fromkeys(parameters, "float"))


def _made(
    maker: Callable[..., Any],
    given: Mapping[str, Any],
    where: str,
    more: Mapping[str, str] | None = None,
) -> Any:
    """What `maker` makes with these settings; `more` are parameters it does not name."""
    known = dict(more or {})
    for name, each in inspect.signature(maker).parameters.items():
        if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL):
            known[name] = str(each.annotation)
    refuse_unknown(given, known, f"{where} has no setting {{!r}}")
    try:
        return maker(
            **{key: typed(value, known[key], f"{where}.{key}") for key, value in given.items()}
        )
    except TypeError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def refuse_unknown(given: Iterable[str], known: Iterable[str], text: str) -> None:
    """Raise `ConfigurationError` for the first that is not known, naming the near miss."""
    known = sorted(known)
    for key in given:
        if key not in known:
            raise ConfigurationError(text.format(key), hint=near_miss(str(key), known))


def typed(value: Any, annotation: str, where: str) -> Any:
    """A text as the number or truth value that its place asks for: what `${NAME}` gives is text."""
    if not isinstance(value, str):
        return value
    try:
        return from_text(value, annotation)
    except ValueError:
        raise ConfigurationError(f"{where} must be {annotation}, not a text") from None
