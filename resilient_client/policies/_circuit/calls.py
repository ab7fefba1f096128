"""Calling plain functions, generators and coroutines through a circuit breaker, as pybreaker does.

Unlike pybreaker, nothing is locked while the function runs, an `async def`, also one that yields,
is counted when it ends and not when it is called, and a cancelled one counts nothing.
"""

from __future__ import annotations

import inspect
import types
from contextlib import contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

    from resilient_client.policies._circuit.engine import Circuit


class Calls:
    """pybreaker's ways to call.

    Args:
        circuit: what admits and counts.
        new_error_on_trip: raise the circuit's refusal, caused by the failure that opened it, in
            place of that failure.
    """

    __slots__ = ("_circuit", "_new_error_on_trip")

    def __init__(self, circuit: Circuit, *, new_error_on_trip: bool) -> None:
        self._circuit = circuit
        self._new_error_on_trip = new_error_on_trip

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call it; what it returns is wrapped when it goes on after returning."""
        admission = self._admit(function, *args, **kwargs)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            self._failed(admission, error)
            raise
        if isinstance(result, types.GeneratorType):
            return self._through(admission, result)
        if isinstance(result, types.AsyncGeneratorType):
            return self._streamed(admission, result)
        if inspect.isawaitable(result):
            if hasattr(type(result), "__aenter__"):
                return _Entered(result, partial(self._awaited, admission))
            return self._awaited(admission, result)
        self._circuit.succeeded(admission)
        return result

    @contextmanager
    def calling(self) -> Generator[None]:
        """Guard the block, awaits inside included."""
        admission = self._admit(self.calling)
        try:
            yield
        except BaseException as error:
            self._failed(admission, error)
            raise
        self._circuit.succeeded(admission)

    def decorate(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, called through the breaker each time."""
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def asynchronous(*args: Any, **kwargs: Any) -> Any:
                return await self.call(function, *args, **kwargs)

            return asynchronous

        @wraps(function)
        def synchronous(*args: Any, **kwargs: Any) -> Any:
            return self.call(function, *args, **kwargs)

        return synchronous

    def _admit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        state = self._circuit.state
        return state if state.plain else self._circuit.admit(function, *args, **kwargs)

    def _failed(self, admission: Any, error: BaseException) -> None:
        circuit = self._circuit
        if circuit.failed(admission, error) and self._new_error_on_trip:
            raise circuit.refusal(circuit.state, circuit.now()) from error

    async def _awaited(self, admission: Any, awaitable: Awaitable[Any]) -> Any:
        try:
            result = await awaitable
        except BaseException as error:
            self._failed(admission, error)
            raise
        self._circuit.succeeded(admission)
        return result

    async def _streamed(
        self, admission: Any, generator: AsyncGenerator[Any, Any]
    ) -> AsyncGenerator[Any, Any]:
        """`_through` for an async one, which has no `yield from`."""
        step: Callable[[Any], Awaitable[Any]] = generator.asend
        given: Any = None
        try:
            while True:
                try:
                    value = await step(given)
                except StopAsyncIteration:
                    break
                try:
                    step, given = generator.asend, (yield value)
                except GeneratorExit:
                    await generator.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001
                    step, given = generator.athrow, error
        except BaseException as error:
            self._failed(admission, error)
            raise
        self._circuit.succeeded(admission)

    def _through(
        self, admission: Any, generator: Generator[Any, Any, Any]
    ) -> Generator[Any, Any, Any]:
        try:
            result = yield from generator
        except BaseException as error:
            self._failed(admission, error)
            raise
        self._circuit.succeeded(admission)
        return result


class _Entered:
    """What may be awaited or entered, as aiohttp's requests may: counted when it has been."""

    __slots__ = ("_count", "_result")

    def __init__(self, result: Any, count: Callable[[Awaitable[Any]], Awaitable[Any]]) -> None:
        self._result = result
        self._count = count

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._count(self._result).__await__()

    async def __aenter__(self) -> Any:
        return await self._count(self._result.__aenter__())

    async def __aexit__(self, *error: object) -> Any:
        return await self._result.__aexit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._result, name)
