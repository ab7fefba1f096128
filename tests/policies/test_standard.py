from __future__ import annotations

import asyncio
import subprocess
import sys
from math import inf
from pathlib import Path

import pybreaker
import pytest

from resilient_client import (
    Bulkhead,
    CircuitBreaker,
    ClientProxy,
    ConfigurationError,
    Fallback,
    Retry,
    RetryBudget,
    Server,
    Timeout,
    defaults,
    standard,
)
from resilient_client.policies import arrange, validate_server
from resilient_client.testing import ScriptedTransport


class Mine:
    def wrap(self, handler, clock):
        return handler


def kinds(policies):
    return [type(policy) for policy in policies]


# -------------------------------------------------------------------------------------- standard()


def test_the_default_stack_outermost_first():
    stack = standard()
    assert kinds(stack) == [Timeout, Bulkhead, Retry, CircuitBreaker, Timeout]
    overall, bulkhead, retry, breaker, attempt = stack
    assert (overall.seconds, bulkhead.pending, retry.attempts, attempt.seconds) == (10, 1000, 3, 3)
    assert retry.arguments == {"factor": 0.1, "max_value": 2.0}
    budget = retry.budget
    assert (budget.ratio, budget.reserve_per_second, budget.window) == (0.2, 10, 10)
    assert breaker.current_state == "closed"


def test_a_fallback_stands_inside_the_deadline_and_outside_the_rest():
    assert kinds(standard(fallback=Fallback(1)))[:3] == [Timeout, Fallback, Bulkhead]


def test_each_call_makes_everything_anew():
    first, second = standard(), standard()
    assert not any(one is other for one in first for other in second)
    assert first[2].budget is not second[2].budget


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"timeout": None}, [Bulkhead, Retry, CircuitBreaker, Timeout]),
        ({"bulkhead": None}, [Timeout, Retry, CircuitBreaker, Timeout]),
        ({"circuit_breaker": None}, [Timeout, Bulkhead, Retry, Timeout]),
        ({"attempt_timeout": None}, [Timeout, Bulkhead, Retry, CircuitBreaker]),
        ({"retry": None}, [Timeout, Bulkhead, CircuitBreaker]),
        ({"retry": None, "attempt_timeout": 2}, [Timeout, Bulkhead, CircuitBreaker, Timeout]),
    ],
)
def test_none_leaves_a_layer_out(given, left):
    assert kinds(standard(**given)) == left


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ({}, 3),
        ({"timeout": 2}, 2),
        ({"timeout": 60}, 3),
        ({"timeout": inf}, 3),
        ({"timeout": None}, 3),
    ],
)
def test_the_attempt_timeout_is_3_s_or_the_whole_calls_if_less(given, seconds):
    assert standard(**given)[-1].seconds == seconds


def test_without_a_retry_a_call_has_all_its_time():
    """With neither Retry nor CircuitBreaker a second Timeout would even be the whole call's."""
    assert arrange(standard(retry=None, circuit_breaker=None)).overall == 10


def test_a_retrys_own_budget_comes_first_and_the_users_object_stays_as_it_is():
    own, shared = RetryBudget(), RetryBudget()
    mine = Retry(budget=own)
    assert standard(retry=mine, retry_budget=shared)[2] is mine
    assert mine.budget is own
    plain = Retry(5)
    first, second = standard(retry=plain)[2], standard(retry=plain)[2]
    assert plain.budget is None
    assert (first.attempts, second.attempts) == (5, 5)
    assert first.budget is not second.budget
    assert standard(retry=plain, retry_budget=shared)[2].budget is shared
    assert standard(retry=plain, retry_budget=None)[2] is plain
    assert standard(retry_budget=None)[2].budget is None


# --------------------------------------------------------------------------- what does not fit


def test_an_attempt_timeout_above_the_overall_one_names_both():
    for make in (
        lambda: standard(timeout=2, attempt_timeout=5),
        lambda: ClientProxy("tcp://127.0.0.1:1", policies=[Timeout(2), Retry(), Timeout(5)]),
        lambda: ClientProxy(
            "tcp://127.0.0.1:1", policies=[Timeout(2), CircuitBreaker(), Timeout(5)]
        ),
    ):
        with pytest.raises(ConfigurationError, match=r"5 s is above .* 2 s"):
            make()
    with pytest.raises(ConfigurationError, match=r"20 s is above .*default.* 10 s"):
        arrange([Retry(), Timeout(20)])
    assert arrange([Timeout(inf), Retry(), Timeout(20)]).overall == inf
    assert arrange([Timeout(5), Retry(), Timeout(5), Timeout(inf)]).overall == 5


@pytest.mark.parametrize("policy", [Retry(), Fallback(1)])
def test_retry_and_fallback_stand_outside_the_choice_of_the_endpoint(policy):
    name = type(policy).__name__
    with pytest.raises(ConfigurationError, match=f"{name} stands inside CircuitBreaker"):
        ClientProxy("tcp://127.0.0.1:1", policies=[CircuitBreaker(), policy])
    arrange([policy, CircuitBreaker()])


def test_the_same_object_twice_is_refused_where_it_keeps_a_state():
    breaker, retry, mine = CircuitBreaker(), Retry(), Mine()
    with pytest.raises(ConfigurationError, match="same CircuitBreaker object"):
        arrange([breaker, breaker])
    with pytest.raises(ConfigurationError, match="same Retry object"):
        arrange([retry, retry])
    arrange([mine, Retry(), mine])
    limit = Timeout(1)
    assert arrange([limit, Retry(), limit]).overall == 1


@pytest.mark.parametrize(
    ("policy", "hint"),
    [
        (Retry, r"Retry\(\)"),
        (RetryBudget(), r"Retry\(budget="),
        (pybreaker.CircuitBreaker(), r"resilient_client.CircuitBreaker"),
        (3, "wrap"),
        ("Retry", "wrap"),
        ([], r"\[\*standard\(\), mine\]"),
    ],
)
def test_what_is_no_policy_is_refused_with_advice(policy, hint):
    for check in (arrange, validate_server):
        with pytest.raises(ConfigurationError, match=hint):
            check([policy])


@pytest.mark.parametrize("policy", [Retry(), Fallback(1), CircuitBreaker()])
def test_a_server_neither_repeats_nor_goes_round(policy):
    with pytest.raises(ConfigurationError, match=f"{type(policy).__name__} is for callers"):
        Server("memory://standard", policies=[policy])


def test_a_server_takes_limits_and_policies_of_the_users():
    validate_server([Timeout(5), Bulkhead(10), Mine()])


def test_a_fallback_is_a_policy_and_not_a_value():
    with pytest.raises(ConfigurationError, match=r"Fallback\(value\)"):
        standard(fallback=0)


# ------------------------------------------------------------------------------- what stands where


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ({"retry": 3}, "retry=Retry("),
        ({"circuit_breaker": {"window": 5}}, "circuit_breaker=CircuitBreaker("),
        ({"bulkhead": 10}, "bulkhead=Bulkhead("),
    ],
)
def test_a_setting_in_place_of_a_policy_is_refused_with_what_to_write(given, instead):
    with pytest.raises(ConfigurationError, match="is a policy") as caught:
        standard(**given)
    assert instead in caught.value.hint


def test_position_says_what_a_timeout_limits():
    mine, retry, breaker = Mine(), Retry(), CircuitBreaker()
    inner = Timeout(1)
    arranged = arrange([mine, Timeout(7), retry, inner, breaker, inner])
    assert arranged.overall == 7
    assert arranged.outer == [mine, retry, inner]
    assert arranged.inner == [breaker, inner]
    assert arrange([Timeout(7), mine, Timeout(5)]).overall == 5
    assert arrange([breaker, inner]).overall is None
    assert arrange(()).overall is None


def test_explain_shows_every_layer_and_setting():
    client = ClientProxy(
        ["tcp://127.0.0.1:1", "tcp://127.0.0.1:2"],
        policies=[*standard(timeout=8, fallback=Fallback(0)), Mine()],
        patterns={"slow": {"timeout": 60, "attempts": 1}, "get": {"idempotent": True}},
        name="stock",
    )
    lines = client.explain().splitlines()
    assert [line.split()[0] for line in lines] == [
        "client", "deadline", "Fallback", "Bulkhead", "Retry", "endpoint", "CircuitBreaker",
        "Timeout", "Mine", "payload", "pattern", "pattern",
    ]  # fmt: skip
    text = "\n".join(lines)
    for setting in (
        "client stock",
        "8 s for the whole call",
        "1000 calls in flight",
        "3 attempts",
        "0.2 of calls + 10/s over 10 s",
        "one of tcp://127.0.0.1:1, tcp://127.0.0.1:2",
        "3 s for an attempt",
        "16 MiB at most, each way",
        "slow: 60 s for the whole call, 1 attempt",
        "get: idempotent",
    ):
        assert setting in text


def test_pybreaker_and_backoff_load_when_they_are_needed():
    code = (
        "import sys, resilient_client, resilient_client.policies\n"
        "from resilient_client import Timeout, Bulkhead, RetryBudget\n"
        "assert not {'pybreaker', 'backoff'} & set(sys.modules), 'too early'\n"
        "from resilient_client import standard\n"
        "standard(circuit_breaker=None)\n"
        "assert 'backoff' in sys.modules and 'pybreaker' not in sys.modules\n"
        "standard()\n"
        "assert 'pybreaker' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ------------------------------------------------------------------------------ shared by clients


async def test_a_budget_may_be_shared_by_clients_of_one_loop_only():
    budget = RetryBudget(ratio=0, reserve_per_second=0.1)

    def client():
        transport = ScriptedTransport([1], forever=True)
        return ClientProxy(transport, policies=standard(retry_budget=budget), telemetry=False)

    one, two, three = client(), client(), client()
    assert [await one.send("p"), await two.send("p")] == [1, 1]

    def elsewhere():
        with pytest.raises(ConfigurationError, match="RetryBudget belongs to another"):
            asyncio.run(three.send("p"))

    await asyncio.to_thread(elsewhere)


def test_every_default_has_its_reason_beside_it():
    source = Path(defaults.__file__).read_text("utf-8")
    names = [name for name in vars(defaults) if name.isupper()]
    assert len(names) >= 10
    for name in names:
        line, after = source.split(f"\n{name}: Final = ")[1].split("\n")[:2]
        assert after.startswith('"""'), (name, line)
