"""The default stack, and what is checked of any stack as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from resilient_client import defaults
from resilient_client.errors import UNSET, ConfigurationError
from resilient_client.policies.timeout import Timeout

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from resilient_client.pipeline import Policy
    from resilient_client.policies.bulkhead import Bulkhead
    from resilient_client.policies.circuit_breaker import CircuitBreaker
    from resilient_client.policies.fallback import Fallback
    from resilient_client.policies.retry import Retry
    from resilient_client.policies.retry_budget import RetryBudget
    from resilient_client.transports._base import Transport


def standard(
    *,
    timeout: float | None = defaults.TIMEOUT,
    attempt_timeout: float | None = UNSET,
    retry: Retry | None = UNSET,
    retry_budget: RetryBudget | None = UNSET,
    circuit_breaker: CircuitBreaker | None = UNSET,
    bulkhead: Bulkhead | None = UNSET,
    fallback: Fallback | None = None,
) -> list[Policy]:
    """The default stack, outermost first; None leaves a layer out.

    What is not given is made anew at each call, so that no two clients share it by accident.

    Args:
        timeout: seconds for the whole call.
        attempt_timeout: seconds for an attempt that another may follow; by default 3, or `timeout`
            if that is less. Where `retry` is None there is no other attempt, so none by default.
        retry: by default `Retry()`.
        retry_budget: the budget for a `retry` that has none of its own; by default `RetryBudget()`.
            The object given as `retry` is left as it is.
        circuit_breaker: by default `CircuitBreaker()`.
        bulkhead: by default `Bulkhead()`.
        fallback: by default none.

    Returns:
        A list, for you to add to. `[*standard(), mine]` puts a policy of your own innermost.

    Raises:
        ConfigurationError: layers that do not fit together.
    """
    stack: list[Any] = []
    if timeout is not None:
        stack.append(Timeout(timeout))
    if fallback is not None:
        if not hasattr(fallback, "wrap"):
            raise ConfigurationError(
                "standard: fallback= is neither a Fallback nor another policy",
                hint="write fallback=Fallback(value)",
            )
        stack.append(fallback)
    _refuse_plain("retry", retry, "Retry(attempts=3)")
    _refuse_plain("circuit_breaker", circuit_breaker, "CircuitBreaker(failure_rate=0.5)")
    _refuse_plain("bulkhead", bulkhead, "Bulkhead(pending=1000)")
    if bulkhead is UNSET:
        from resilient_client.policies.bulkhead import Bulkhead

        bulkhead = Bulkhead()
    if bulkhead is not None:
        stack.append(bulkhead)
    if retry is UNSET:
        from resilient_client.policies.retry import Retry

        retry = Retry()
    if retry is not None:
        if retry_budget is UNSET:
            from resilient_client.policies.retry_budget import RetryBudget

            retry_budget = RetryBudget()
        if retry_budget is not None and getattr(retry, "budget", retry_budget) is None:
            retry = retry.with_budget(retry_budget)
        stack.append(retry)
    if circuit_breaker is UNSET:
        from resilient_client.policies.circuit_breaker import CircuitBreaker

        circuit_breaker = CircuitBreaker()
    if circuit_breaker is not None:
        stack.append(circuit_breaker)
    if attempt_timeout is UNSET and retry is not None:
        attempt_timeout = min(
            defaults.ATTEMPT_TIMEOUT, defaults.TIMEOUT if timeout is None else timeout
        )
    if attempt_timeout is not UNSET and attempt_timeout is not None:
        stack.append(Timeout(attempt_timeout))
    arrange(stack)  # refuses layers that do not fit together
    return stack


def _refuse_plain(layer: str, given: object, example: str) -> None:
    """Refuse a setting in place of the policy that has it."""
    if isinstance(given, int | float | str | dict) and not isinstance(given, bool):
        raise ConfigurationError(
            f"standard: {layer}= is a policy, not a {type(given).__name__}",
            hint=f"write {layer}={example}",
        )


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A stack, sorted by what each policy sees.

    Attributes:
        overall: seconds for the whole call, None when no `Timeout` says so.
        outer: what stands around the choice of the endpoint, the overall timeouts taken out.
        inner: what guards an endpoint: wrapped once for each.
    """

    overall: float | None
    outer: list[Policy]
    inner: list[Policy]


def arrange(policies: Iterable[Policy]) -> Arrangement:
    """Check a client's stack as a whole, and sort it.

    Raises:
        ConfigurationError: it cannot work; the text says what to change.
    """
    stack = list(policies)
    _check_each(stack)
    _check_repeated(stack)
    choice = _first(stack, "scope", "endpoint")
    for policy in stack[choice:]:
        if getattr(policy, "scope", None) == "call":
            raise ConfigurationError(
                f"{_name(policy)} stands inside {_name(stack[choice])}, which guards one endpoint",
                hint=f"put {_name(policy)} before it: it is for the call as a whole",
            )
    attempts = min(choice, _first(stack, "repeats", True))
    around, outer = stack[:attempts], stack[attempts:choice]
    limits = [policy.seconds for policy in around if isinstance(policy, Timeout)]
    overall = min(limits, default=None)
    _check_attempts(stack[attempts:], overall)
    outer = [policy for policy in around if not isinstance(policy, Timeout)] + outer
    return Arrangement(overall, outer, stack[choice:])


def validate_server(policies: Iterable[Policy]) -> None:
    """Check a server's stack as a whole.

    Raises:
        ConfigurationError: something in it makes sense for callers only.
    """
    stack = list(policies)
    _check_each(stack)
    for policy in stack:
        if getattr(policy, "scope", None) in {"call", "endpoint"}:
            raise ConfigurationError(
                f"{_name(policy)} is for callers: a server has nothing to repeat or to go round",
                hint="a server takes Timeout, Bulkhead and policies of your own",
            )
    _check_repeated(stack)


def _first(stack: Sequence[Policy], attribute: str, value: object) -> int:
    found = (i for i, policy in enumerate(stack) if getattr(policy, attribute, None) == value)
    return next(found, len(stack))


def _name(policy: object) -> str:
    return type(policy).__name__


def _is_one_of(policy: object, others: Iterable[object]) -> bool:
    return any(policy is other for other in others)


def _check_each(stack: Sequence[object]) -> None:
    for policy in stack:
        if isinstance(policy, type):
            raise ConfigurationError(
                f"{policy.__name__} is a class, not a policy", hint=f"write {policy.__name__}()"
            )
        if callable(getattr(policy, "wrap", None)):
            continue
        if hasattr(policy, "withdraw"):
            hint = f"give it to those that repeat: Retry(budget={_name(policy)}(...))"
        elif type(policy).__module__.partition(".")[0] == "pybreaker":
            hint = "resilient_client.CircuitBreaker takes the same arguments"
        elif isinstance(policy, list | tuple):
            hint = "unpack it: [*standard(), mine]"
        elif isinstance(policy, bool):
            hint = "standard() takes None to leave a layer out, and has each by default"
        else:
            hint = "a policy has a method wrap(handler, clock) that returns a handler"
        raise ConfigurationError(f"{policy!r} is not a policy", hint=hint)


def _check_repeated(stack: Sequence[Policy]) -> None:
    """What keeps a state of its own counts every call once more for each place it stands in."""
    for index, policy in enumerate(stack):
        if getattr(policy, "scope", None) is not None and _is_one_of(policy, stack[:index]):
            raise ConfigurationError(
                f"the same {_name(policy)} object stands in the list twice",
                hint="leave one out, or make a second object",
            )


def _check_attempts(inner: Sequence[Policy], overall: float | None) -> None:
    limit, said = overall, "the overall timeout"
    if limit is None:
        limit, said = defaults.TIMEOUT, "the overall timeout (the default)"
    for policy in inner:
        if isinstance(policy, Timeout) and limit < policy.seconds < inf:
            raise ConfigurationError(
                f"the attempt timeout of {policy.seconds:g} s is above {said} of {limit:g} s",
                hint="an attempt's Timeout stands after Retry or CircuitBreaker, the whole call's"
                " before both and is the longer one",
            )


def explain(
    name: str,
    transports: Sequence[Transport],
    policies: Sequence[Policy],
    timeout: float,
    patterns: Mapping[str, Any],
) -> str:
    """A client's pipeline and every effective setting, a line each, outermost first."""
    arranged = arrange(policies)
    limit = "no limit" if timeout == inf else f"{timeout:.4g} s"
    lines = [f"client {name}", _line("deadline", f"{limit} for the whole call")]
    repeated = _first(arranged.outer, "repeats", True) < len(arranged.outer)
    lines += [_line(_name(policy), _described(policy, repeated)) for policy in arranged.outer]
    urls = ", ".join(transport.endpoint for transport in transports)
    lines.append(_line("endpoint", urls if len(transports) == 1 else f"one of {urls}"))
    lines += [_line(_name(policy), _described(policy, repeated)) for policy in arranged.inner]
    size: int | None = getattr(transports[0], "max_size", None)
    if size is not None:
        text = f"{size / 2**20:.4g} MiB" if size >= 2**20 else f"{size} bytes"
        lines.append(_line("payload", f"{text} at most, each way"))
    for route, settings in patterns.items():
        said = []
        if settings.timeout is not None:
            said.append(f"{settings.timeout:.4g} s for the whole call")
        if settings.idempotent is not None:
            said.append("idempotent" if settings.idempotent else "not idempotent")
        if settings.attempts is not None:
            said.append("1 attempt" if settings.attempts == 1 else f"{settings.attempts} attempts")
        lines.append(_line("pattern", f"{route}: {', '.join(said)}"))
    return "\n".join(lines)


def _line(layer: str, said: str) -> str:
    return f"  {layer:<15} {said}".rstrip()


def _described(policy: object, repeated: bool) -> str:  # noqa: FBT001
    describe = getattr(policy, "describe", None)
    if isinstance(policy, Timeout):
        whom = (
            "an attempt that another may follow, and for connecting" if repeated else "an attempt"
        )
        return f"{policy.describe()} for {whom}"
    return str(describe()) if callable(describe) else ""
