"""Every service a program calls, in one file: `Clients` (Nest's ClientsModule.register)."""

from __future__ import annotations

import asyncio
import contextlib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from resilient_client._settings import client_arguments, expanded, merged
from resilient_client.client import ClientProxy
from resilient_client.errors import ConfigurationError
from resilient_client.sync import SyncClientProxy
from resilient_client.transports._link import to_its_end

if TYPE_CHECKING:
    import os
    from types import TracebackType


class _Explains(Protocol):
    def explain(self) -> str: ...


P = TypeVar("P", bound=_Explains)


class UnknownService(ConfigurationError, KeyError):  # noqa: N818
    """No service of that name is set up; the hint lists those that are."""


class _Clients(Mapping[str, P], Generic[P]):
    def __init__(
        self, services: Mapping[str, Mapping[str, Any]], make: Callable[..., P] | None = None
    ) -> None:
        if make is None:
            raise ConfigurationError(
                "Clients are made of a file or of a mapping",
                hint='write Clients.from_toml("clients.toml") or Clients.from_mapping({...})',
            )
        self._services = services
        self._clients: dict[str, P] = {}
        for name, settings in services.items():
            try:
                self._clients[name] = make(**client_arguments(name, settings))
            except ConfigurationError as error:
                raise _of(name, error) from error

    def __getitem__(self, name: str) -> P:
        try:
            return self._clients[name]
        except KeyError:
            raise UnknownService(
                f"no service is called {name!r}",
                hint=f"there are {', '.join(self._clients) or 'none'}",
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)

    def explain(self) -> str:
        """The pipeline and every effective setting of every service, for people."""
        return "\n\n".join(client.explain() for client in self._clients.values())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(self._clients)}>"


class Clients(_Clients[ClientProxy]):
    """The clients of a program's services, by name: a mapping from names to `ClientProxy`.

    ```toml
    [defaults]                       # for every service that does not say otherwise
    timeout = 5

    [MATH_SERVICE]
    url = "tcp://${MATH_HOST:-127.0.0.1}:3001"     # or a list of URLs
    retry = { attempts = 4, wait = "expo", max_value = 1.0 }
    circuit_breaker = { failure_rate = 0.3 }
    bulkhead = false                 # leaves this layer out

    [MAIL_SERVICE]
    url = "${MAIL_URL}"
    headers = { authorization = "Bearer ${MAIL_TOKEN}" }
    patterns = { send = { timeout = 30, idempotent = true } }
    ```

    Keys of a service: `url`; the layers of `standard()`: `timeout`, `attempt_timeout`, `retry`,
    `retry_budget`, `circuit_breaker`, `bulkhead` (a table of that policy's arguments, false to
    leave it out, true for its defaults); `headers`, `patterns`, `telemetry` and `name` (by default
    the service's own) as for `ClientProxy`; and the options of the URL's transport. Nothing else: a
    mistyped key is refused.

    `${NAME}` is the environment variable of that name, `${NAME:-text}` the text where it is not set
    or empty, `$$` a dollar.

    All clients are made, and all settings checked, when the object is. None is connected then, nor
    on entering `async with clients`: each connects at its first call, so that a service that is
    down stops nobody else; `connect` connects all. Leaving the block closes all.
    """

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Self:
        """The services of a TOML file, one table each.

        Raises:
            ConfigurationError: it cannot work; service and key are named, no value is shown.
            OSError: it cannot be read.
        """
        try:
            services = tomllib.loads(Path(path).read_text("utf-8-sig"))
        except ValueError as error:
            raise ConfigurationError(f"{path} is not TOML: {error}") from None
        return cls.from_mapping(services)

    @classmethod
    def from_mapping(cls, services: Mapping[str, Mapping[str, Any]]) -> Self:
        """The services of a mapping from names to settings.

        Beside what a file can say, a layer may be a policy object, and `policies`, `fallback`,
        `codec`, `clock` and `observers` as for `ClientProxy` and `standard` are known.

        Raises:
            ConfigurationError: it cannot work; service and key are named, no value is shown.
        """
        if not isinstance(services, Mapping):
            raise ConfigurationError(
                f"services are a mapping of names to settings, not a {type(services).__name__}",
                hint="Clients.from_toml(path) reads a file",
            )
        tables = dict(services)
        defaults = tables.pop("defaults", {})
        for name, settings in (("defaults", defaults), *tables.items()):
            if not isinstance(settings, Mapping):
                raise ConfigurationError(
                    f"{name!r} is not a table of settings", hint='write [NAME] and url = "..."'
                )
        ready = {}
        for name, settings in tables.items():
            try:
                ready[name] = expanded(merged(defaults, settings))
            except ConfigurationError as error:
                raise _of(name, error) from error
        return cls(ready, ClientProxy)

    def sync(self) -> SyncClients:
        """The same services for code without an event loop; the two share no connection."""
        return SyncClients(self._services, SyncClientProxy)

    async def connect(self) -> None:
        """Connect all at once; raise the first failure when each has tried."""
        results = await asyncio.gather(
            *(client.connect() for client in self._clients.values()), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def aclose(self) -> None:
        """Close all, also where it is cancelled meanwhile. Idempotent."""
        await to_its_end(self._close)

    async def _close(self) -> None:
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class SyncClients(_Clients[SyncClientProxy]):
    """What `Clients.sync()` gives: a mapping of names to `SyncClientProxy`; `with` closes all."""

    def connect(self) -> None:
        """Connect one after the other."""
        for client in self._clients.values():
            client.connect()

    def close(self) -> None:
        """Close all. Idempotent."""
        with contextlib.ExitStack() as stack:
            for client in self._clients.values():
                stack.callback(client.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _of(name: str, error: ConfigurationError) -> ConfigurationError:
    return ConfigurationError(f"service {name!r}: {error.args[0]}", hint=error.hint)
