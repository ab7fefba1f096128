"""From a URL, and the options beside it, to a transport."""

from __future__ import annotations

import difflib
import inspect
import ssl
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from types import NoneType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from resilient_client._checks import integer
from resilient_client.errors import ConfigurationError
from resilient_client.transports._base import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import ModuleType

    from resilient_client.transports._base import App, Environment, ServerListener, Transport


@cache
def known_schemes() -> tuple[str, ...]:
    """The schemes there is a module for; most also take a trailing s for TLS."""
    return tuple(
        module.name
        for module in iter_modules(import_module(str(__package__)).__path__)
        if not module.name.startswith("_")
    )


@cache
def _is_known(scheme: str) -> bool:
    """Whether there is a module for it, also where modules are no files that could be listed."""
    name = f"{__package__}.{scheme}"
    return scheme.isidentifier() and scheme[0] != "_" and find_spec(name) is not None


def client_transports(
    target: str | Sequence[str] | Transport | Callable[[Environment], Transport],
    env: Environment,
    options: Mapping[str, Any],
    keywords: Mapping[str, str],
) -> list[Transport]:
    """The client's ends for what a client is given: one for each URL, or the one that is given.

    Args:
        options: the transport's own.
        keywords: what else could be meant by one that is unknown, and the hint then.

    Raises:
        ConfigurationError: it is none of these, unknown scheme or option, or the extra is not
            installed.
    """
    if not isinstance(target, str | list | tuple):
        if options:
            raise ConfigurationError(
                f"options {sorted(options)} mean nothing beside a Transport object",
                hint="give them to the transport itself",
            )
        if callable(target):
            target = target(env)
        if not hasattr(target, "request"):
            raise ConfigurationError(
                f"{type(target).__name__} is neither a URL nor a Transport",
                hint='write ClientProxy("tcp://127.0.0.1:3001")',
            )
        return [target]  # type: ignore[list-item]
    urls = [target] if isinstance(target, str) else list(target)
    if not urls:
        raise ConfigurationError("a client needs at least one URL")
    for url in urls:
        if not isinstance(url, str):
            raise ConfigurationError(
                f"{type(url).__name__} among the URLs is not a text",
                hint="several endpoints are several URLs; a transport of your own is one alone",
            )
    if len({url.partition("://")[0] for url in urls}) > 1:
        raise ConfigurationError(
            "the endpoints of one client speak one protocol",
            hint="make a client per scheme",
        )
    if len(set(urls)) != len(urls):
        raise ConfigurationError(f"the same endpoint twice in {len(urls)} URLs")
    return [_client_transport(url, env, options, keywords) for url in urls]


def _client_transport(
    url: str, env: Environment, options: Mapping[str, Any], keywords: Mapping[str, str]
) -> Transport:
    target, module = _resolve(url)
    settings, unknown = _settings(target, module, module.ClientTransport, options, keywords)
    _refuse(unknown, [target])
    transport: Transport = module.ClientTransport(target, env, **settings)
    return transport


def client_options(url: str) -> dict[str, str]:
    """The options that a client of this URL knows, with the text of their types.

    Raises:
        ConfigurationError: unknown scheme, or the extra is not installed.
    """
    _, module = _resolve(url)
    return _of_both(module)


def server_listeners(
    urls: Iterable[str | Callable[[App], ServerListener]],
    app: App,
    options: Mapping[str, Any],
    keywords: Mapping[str, str],
) -> list[ServerListener]:
    """The server's ends for these URLs; see `client_transports`.

    Raises:
        ConfigurationError: unknown scheme, an option that none of them has, or the extra is not
            installed.
    """
    listeners: list[ServerListener] = []
    targets: list[Target] = []
    nobodys = dict.fromkeys(options, "")  # options that none of them has had so far
    for url in urls:
        if not isinstance(url, str):
            if not callable(url):
                raise ConfigurationError(
                    f"{type(url).__name__} is neither a URL nor makes a ServerListener",
                    hint="several URLs are several arguments: Server(url, another)",
                )
            listener = url(app)
            if not hasattr(listener, "start"):
                raise ConfigurationError(
                    f"what Server was given made a {type(listener).__name__}, no ServerListener",
                    hint="write Server(lambda app: MyListener(app))",
                )
            listeners.append(listener)
            continue
        target, module = _resolve(url)
        settings, unknown = _settings(target, module, module.ServerListener, options, keywords)
        _refuse({k: v for k, v in unknown.items() if k not in options}, [target])
        listeners.append(module.ServerListener(target, app, **settings))
        targets.append(target)
        nobodys = {name: unknown[name] for name in nobodys if name in unknown}
    if nobodys and not targets:
        raise ConfigurationError(f"options {sorted(options)} mean nothing without a URL")
    _refuse(nobodys, targets)
    return listeners


def _resolve(url: str) -> tuple[Target, ModuleType]:
    if not isinstance(url, str) or "://" not in url:
        shown = (
            "a text" if "@" in str(url) else repr(url)
        )  # with an @ there may be a password in it
        raise ConfigurationError(f"{shown} is not a URL", hint="write it like tcp://127.0.0.1:3001")
    try:
        target = Target(url)
        target.port(0)
        if "@" not in target.url.netloc and _of_a_login(target.scheme, target.url.path):
            raise ValueError
    except ValueError:  # its text is what was taken for the host or port: perhaps a password
        raise ConfigurationError(
            f"this {url.partition('://')[0]}:// URL has no usable host and port",
            hint="in user and password, / ? # [ ] and @ are written %2F %3F %23 %5B %5D and %40"
            if "@" in url
            else "a port is a number up to 65535, and IPv6 has brackets: tcp://[::1]:3001",
        ) from None
    for name in (target.scheme, target.scheme.removesuffix("s")):
        if _is_known(name):
            return target, _load(name)
    raise ConfigurationError(
        f"no transport speaks {target.scheme}://",
        hint=f"there are {', '.join(known_schemes() or ('others',))}",
    )


def _of_a_login(scheme: str, path: str) -> bool:
    """Whether a path may be what a slash has cut off a user or password."""
    return "@" in path and (not scheme.startswith("http") or ":" in path.partition("@")[0])


def _load(name: str) -> ModuleType:
    try:
        return import_module(f"{__package__}.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("resilient_client"):
            raise
        raise ConfigurationError(
            f"{name}:// needs the library {error.name!r}, which is not installed",
            hint=f'pip install "resilient-client[{name}]"',
        ) from error


@cache
def _parameters(cls: type) -> Mapping[str, str]:
    """The options of one end: the keyword-only parameters of its constructor, with their types.

    The types stay text (`from __future__ import annotations`): of a URL's options only the simple
    ones can be written in a URL.
    """
    return {
        name: str(parameter.annotation)
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def _of_both(module: ModuleType) -> dict[str, str]:
    return {**_parameters(module.ClientTransport), **_parameters(module.ServerListener)}


def _settings(
    target: Target,
    module: ModuleType,
    end: type,
    options: Mapping[str, Any],
    keywords: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """The options for this end out of keywords and URL query; and the unknown ones, with hints."""
    mine = _parameters(end)
    both = _of_both(module)
    _refuse_idle_parts(target, end, both)
    settings: dict[str, Any] = {}
    unknown: dict[str, str] = {}
    for name, text in parse_qsl(target.url.query, keep_blank_values=True):
        if name not in both:
            unknown[name] = near_miss(name, both)
        elif name in mine:
            settings[name] = _from_text(name, text, mine[name])
    for name, value in options.items():
        if name not in both:
            unknown[name] = near_miss(name, both, keywords)
        elif name in mine:
            settings[name] = value
    for name, value in settings.items():
        _refuse_unfit(name, value, mine[name])
    return settings, unknown


def _refuse_idle_parts(target: Target, end: type, options: Iterable[str]) -> None:
    """Raise `ConfigurationError` for a part of the URL that would do nothing."""
    if not _is_known(target.scheme) and not getattr(end, "url_tls", False):
        plain = f"{target.scheme.removesuffix('s')}://"
        raise ConfigurationError(
            f"{target.scheme}:// is no scheme: it would not mean TLS",
            hint=f"write {plain} and give tls=" if "tls" in options else f"write {plain}",
        )
    if "@" in target.url.netloc and not getattr(end, "url_login", False):
        raise ConfigurationError(
            f"{target.scheme}:// has no use for a user in this URL: nobody would check it",
            hint="a client says who it is in headers=, and a policy of the server checks it",
        )
    if target.url.path.strip("/") and not getattr(end, "url_path", False):
        raise ConfigurationError(
            f"{target.scheme}:// has no use for a path in its URL",
            hint="end the URL after host and port",
        )
    if target.url.fragment:
        raise ConfigurationError(
            f"{target.scheme}:// has no use for a fragment in its URL",
            hint="a # that belongs to another part is written %23",
        )


def _refuse(unknown: Mapping[str, str], targets: list[Target]) -> None:
    """Raise `ConfigurationError` for the first of these options, naming the near miss."""
    for name, hint in unknown.items():
        schemes = ", ".join(sorted({target.scheme for target in targets}))
        raise ConfigurationError(f"{schemes}:// has no option {name!r}", hint=hint)


def near_miss(name: str, known: Iterable[str], more: Mapping[str, str] | None = None) -> str:
    """The hint for a name that is unknown.

    Args:
        more: what else could be meant, but is not listed, and the hint then.
    """
    known, more = sorted(known), more or {}
    for close in difflib.get_close_matches(name, [*known, *more], n=1):
        return more.get(close, f"did you mean {close!r}?")
    return f"there are {', '.join(known)}"


def _from_text(name: str, text: str, annotation: str) -> Any:
    try:
        return from_text(text, annotation)
    except ValueError:
        simple = not _simple.keys().isdisjoint(_parts(annotation))
        raise ConfigurationError(
            f"the URL's option {name}={text!r} is not {annotation}",
            hint=None if simple else f"give {name}= as a keyword argument",
        ) from None


_number = (int, float)
_kinds: dict[str, Any] = {
    "bool": bool, "str": str, "int": _number, "float": _number, "None": NoneType,
    "ssl.SSLContext": ssl.SSLContext, "Mapping[str, Any]": Mapping, "Sequence[str]": (list, tuple),
}  # fmt: skip


def _refuse_unfit(name: str, value: Any, annotation: str) -> None:
    """Refuse what is not of the option's type; it is not shown, for it may be secret.

    Which numbers will do, and what is more than a choice of these types, is the transport's
    business.
    """
    if name == "max_size":
        integer(name, value)
    parts = _parts(annotation)
    mixed = isinstance(value, list | tuple) and not all(isinstance(each, str) for each in value)
    if parts <= _kinds.keys() and (
        mixed or not any(isinstance(value, _kinds[part]) for part in parts)
    ):
        raise ConfigurationError(
            f"the option {name}= must be {annotation}, not {type(value).__name__}"
        )


_booleans = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_simple: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "bool": lambda text: _booleans[text.lower()],
}


def from_text(text: str, annotation: str) -> Any:
    """What a text stands for where a value of such a type is wanted.

    Raises:
        ValueError: for none.
    """
    accepted = _parts(annotation)
    for kind, convert in _simple.items():
        if kind in accepted:
            with suppress(ValueError, KeyError):
                return convert(text)
    if accepted.isdisjoint({"str", "Any"}):
        raise ValueError(f"not {annotation}")
    return text


def _parts(annotation: str) -> set[str]:
    return {part.strip() for part in annotation.split("|")}
