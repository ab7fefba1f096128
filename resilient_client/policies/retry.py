"""Another attempt, where that is safe, worth its load, and still in time.

The waits come from `backoff`'s generators and jitter functions; its decorators are not used: they
know neither deadline nor cancellation, and read the wall clock. All of `backoff` is in this module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, ClassVar

import backoff

from resilient_client import defaults
from resilient_client._checks import integer, plain
from resilient_client.errors import (
    ConfigurationError,
    Outcome,
    PayloadError,
    ReplyTimeout,
    ResilientClientError,
)
from resilient_client.events import RetryScheduled, RetrySuppressed
from resilient_client.policies._on import On, matcher, named
from resilient_client.policies.retry_budget import RetryBudget

if TYPE_CHECKING:
    import asyncio

    from resilient_client.clock import Clock
    from resilient_client.events import Suppressed
    from resilient_client.message import Call, Reply
    from resilient_client.pipeline import Handler
    from resilient_client.policies.retry_budget import Withdrawal

Wait = Callable[..., Generator[float, Any, None]]
Jitter = Callable[[float], float]

WAITS: dict[str, Wait] = {
    "expo": backoff.expo,
    "fibo": backoff.fibo,
    "constant": backoff.constant,
}
JITTERS: dict[str, Jitter] = {
    "full_jitter": backoff.full_jitter,
    "random_jitter": backoff.random_jitter,
}
"""What a settings file can name."""

_WORTH = frozenset({Outcome.FAILURE, Outcome.NEVER_SENT, Outcome.THROTTLED})
_NEVER = (PayloadError, ConfigurationError)


class Retry:
    """Repeat what failed, up to `attempts` in all.

    Repeated is what was never executed (`sent` is False, or the peer asked to come back later), and
    what may have been executed only when the call is idempotent. Never repeated is what was refused
    on this side (an open circuit, a full bulkhead), what cannot be sent or decoded, and a
    deliberate error of the peer's handler. A stream is repeated only before its first item.

    A wait that would pass the call's deadline is not begun: the last error is raised at once.

    Args:
        attempts: in all, the first included; a pattern's own `attempts` setting comes before it.
        wait: a wait generator of `backoff`, or one of the same kind: it is started with `next` and
            sent each error, and yields seconds. When it ends, so do the attempts. `backoff.expo`
            starts at 0.1 s here and stops doubling at 2 s, unless `factor` and `max_value` are
            given.
        jitter: makes a wait random, `backoff`'s functions for example; None leaves it as it is.
            What a peer asks to wait is jittered upwards only.
        on: an exception class, a tuple of them, or a function of the error: which errors are worth
            repeating, instead of the above. What is unsafe, refused on this side, or cannot be sent
            or decoded is not repeated all the same. An error that is not this package's (of a
            policy of yours) is repeated only if `on` says so and nothing was sent or the call is
            idempotent.
        budget: bounds the repeats of all calls together; `standard()` brings one.
        arguments_of_the_wait_generator: as it says, such as `base=3`.

    Raises:
        ConfigurationError: a setting that cannot work.
    """

    scope: ClassVar[str] = "call"
    repeats: ClassVar[bool] = True
    """A `Timeout` further in is an attempt's."""

    def __init__(
        self,
        attempts: int = defaults.ATTEMPTS,
        wait: Wait = backoff.expo,
        jitter: Jitter | None = backoff.full_jitter,
        on: On | None = None,
        budget: RetryBudget | None = None,
        **arguments_of_the_wait_generator: Any,
    ) -> None:
        self.attempts = integer("Retry: attempts", attempts)
        self.wait = wait
        self.jitter = jitter
        self.on = on
        self.budget = None if budget is None else _checked(budget)
        arguments: dict[str, Any] = arguments_of_the_wait_generator
        if wait is backoff.expo:
            arguments = {
                "factor": defaults.RETRY_FACTOR,
                "max_value": defaults.RETRY_MAX_WAIT,
                **arguments,
            }
        self.arguments = arguments
        if jitter is not None:
            plain("Retry: jitter", jitter)
        try:
            waits = self._schedule()
            if wait in WAITS.values():  # another may look at the errors it is sent
                float(next(waits))
        except (TypeError, ValueError, AttributeError, StopIteration) as error:
            raise ConfigurationError(
                f"Retry: wait={named(wait)} cannot be used as a wait generator: {error}",
                hint="Retry has attempts=, wait=, jitter=, on= and budget=; the rest is the"
                " generator's own",
            ) from error
        self._means = None if on is None else matcher("Retry", on)

    def with_budget(self, budget: RetryBudget) -> Retry:
        """The same settings with this budget, in an object of its own."""
        other = copy.copy(self)
        other.budget = _checked(budget)
        return other

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """The budget's: see `RetryBudget.bind`."""
        if self.budget is not None:
            self.budget.bind(loop)

    def _schedule(self) -> Generator[float, Any, None]:
        generator = self.wait(**self.arguments)
        next(generator)
        return generator

    def _worth(self, error: Exception) -> bool:
        """Whether such an error is repeated at all, as far as it is safe."""
        if isinstance(error, ResilientClientError):
            if error.outcome is Outcome.REJECTED or isinstance(error, _NEVER):
                return False
            if self._means is None:
                return error.outcome in _WORTH
        return self._means is not None and self._means(error)

    def wrap(self, handler: Handler, clock: Clock, /) -> Handler:
        """See `Policy.wrap`."""
        budget, attempts, now, worth = self.budget, self.attempts, clock.now, self._worth
        # Whether an attempt that takes too long is followed by another: only then is it cut short.
        by_function = callable(self.on) and not isinstance(self.on, type)
        cut = by_function or worth(ReplyTimeout())

        def begin(call: Call, most: int, outer: bool) -> _Repeats:  # noqa: FBT001
            pauses = self._schedule()
            return _Repeats(self, clock, pauses, call, cut=cut, most=most, outer=outer)

        async def retry(call: Call) -> Reply:
            most = attempts if call.max_attempts is None else call.max_attempts
            outer = call.may_repeat is True  # another Retry around this one
            call.may_repeat = outer or (most > 1 and cut and call.idempotent)
            if budget is not None:
                budget.deposit(now())
            repeats: _Repeats | None = None  # few calls have any: less to keep for each in flight
            while True:
                try:
                    return await handler(call)
                except Exception as error:
                    if not worth(error):
                        raise
                    if repeats is None:
                        repeats = begin(call, most, outer)
                    if not repeats.plan(error):
                        raise
                await repeats.pause()

        return retry

    def describe(self) -> str:
        """The settings in words."""
        arguments = "".join(f", {key}={value!r}" for key, value in self.arguments.items())
        parts = [
            f"{self.attempts} attempts",
            f"wait {named(self.wait)}{arguments}",
            "no jitter" if self.jitter is None else named(self.jitter).replace("_", " "),
        ]
        if self.on is not None:
            parts.append(f"on {named(self.on)}")
        parts.append("no budget" if self.budget is None else f"budget {self.budget.describe()}")
        return "; ".join(parts)

    def __repr__(self) -> str:
        return f"<Retry {self.describe()}>"


class _Repeats:
    """The repeats of one call.

    Args:
        pauses: the seconds before each, out of the wait generator.
        cut: whether an attempt that takes too long is followed by another.
        most: attempts in all.
        outer: another `Retry` is around this one.
    """

    __slots__ = ("_budget", "_call", "_clock", "_cut", "_failed", "_failed_at", "_jitter", "_most",
                 "_number", "_outer", "_pause", "_pauses", "_withdrawal")  # fmt: skip

    def __init__(
        self,
        retry: Retry,
        clock: Clock,
        pauses: Generator[float, Any, None],
        call: Call,
        *,
        cut: bool,
        most: int,
        outer: bool,
    ) -> None:
        self._budget, self._jitter = retry.budget, retry.jitter
        self._clock = clock
        self._pauses = pauses
        self._call = call
        self._cut, self._most, self._outer = cut, most, outer
        self._number = 1
        self._failed: Exception | None = None
        self._withdrawal: Withdrawal | None = None

    def plan(self, error: Exception) -> bool:
        """Whether this failure is followed by another attempt; then `pause` comes next."""
        now = self._clock.now()
        suppressed = self._plan(error, now)
        call = self._call
        if suppressed is not None:
            if call.observer is not None:
                call.observer(RetrySuppressed(call.route, call.attempt, suppressed, error))
            return False
        self._failed, self._failed_at = error, now
        if call.observer is not None:
            call.observer(RetryScheduled(call.route, call.attempt, self._pause, error))
        return True

    def _plan(self, error: Exception, now: float) -> Suppressed | None:
        """Set how long to wait and what the budget gave, or say why there is no other attempt."""
        call = self._call
        if not (call.idempotent or _harmless(error, call)):
            return "not_idempotent"
        if self._number >= self._most:
            return "attempts"
        try:
            scheduled = self._pauses.send(error)
        except StopIteration:
            return "attempts"
        self._pause = _pause(scheduled, getattr(error, "retry_after", None), self._jitter)
        if now + self._pause >= call.opened_by:
            return "deadline"
        if self._budget is not None:
            self._withdrawal = self._budget.withdraw(now)
            if self._withdrawal is None:
                return "budget"
        return None

    async def pause(self) -> None:
        """Wait, and begin the next attempt."""
        call, failed = self._call, self._failed
        assert failed is not None  # noqa: S101
        self._failed = None
        try:
            await self._clock.sleep(self._pause)
            begin = self._clock.now()
            if begin >= call.opened_by:  # the loop was busy for longer than the wait
                raise failed
        except BaseException:
            if self._withdrawal is not None:
                self._withdrawal.give_back()
            raise
        self._number += 1
        call.failed(failed, self._failed_at)
        again = self._number < self._most and self._cut and call.idempotent
        call.next_attempt(begin, self._outer or again)


def _pause(scheduled: float, asked: object, jitter: Jitter | None) -> float:
    """The wait in seconds. What the peer asked is a floor, whatever the jitter does."""
    if isinstance(asked, int | float) and asked > 0:
        if not isfinite(asked):
            return inf
        if jitter is None:
            return max(asked, scheduled)
        return asked + max(0.0, jitter(max(scheduled, asked * defaults.PUSHBACK_SPREAD)))
    return max(0.0, scheduled if jitter is None else jitter(scheduled))


def _checked(budget: RetryBudget) -> RetryBudget:
    if not isinstance(budget, RetryBudget):
        raise ConfigurationError(
            f"Retry: budget={budget!r} is not a RetryBudget", hint="write RetryBudget(ratio=0.2)"
        )
    return budget


def _harmless(error: Exception, call: Call) -> bool:
    """Whether this attempt was certainly not executed."""
    if isinstance(error, ResilientClientError):
        return error.outcome is Outcome.THROTTLED or not error.sent
    return not call.sent
