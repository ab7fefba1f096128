from __future__ import annotations

import asyncio
from math import inf, nan

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilient_client.errors import ConfigurationError
from resilient_client.policies.retry_budget import _STEPS, RetryBudget

steps = st.lists(
    st.tuples(
        st.floats(0, 15) | st.sampled_from([0, 0.1, 0.0999, 1, 10]),  # seconds until then
        st.integers(0, 30),  # calls
        st.integers(0, 30),  # asked repeats
        st.integers(0, 5),  # of which so many are brought back
    ),
    max_size=25,
)


@given(
    steps=steps,
    ratio=st.floats(0, 2) | st.sampled_from([0, 0.1, 0.2, 0.29]),
    reserve=st.floats(0, 5) | st.sampled_from([0, 0.1, 1]),
    window=st.floats(0.01, 20) | st.just(10),
)
@example(  # a call that is as old as the window, to the last bit
    steps=[(0.9921875, 1, 0, 0), (0.9921875, 0, 1, 0)], ratio=1.0, reserve=0.0, window=0.9921875
)
def test_it_never_grants_more_than_its_bound_in_the_window_until_now(steps, ratio, reserve, window):
    budget = RetryBudget(ratio, reserve, window)
    now = 0.0
    calls: list[float] = []
    repeats: list[float] = []
    for seconds, new_calls, asked, returned in steps:
        now += seconds
        for _ in range(new_calls):
            budget.deposit(now)
            calls.append(now)
        granted = [w for w in (budget.withdraw(now) for _ in range(asked)) if w is not None]
        repeats += [now] * len(granted)
        counted = [sum(now - window < each <= now for each in times) for times in (calls, repeats)]
        # what was granted before may outlive the calls that it was granted for
        assert not granted or counted[1] <= ratio * counted[0] + reserve * window + 1e-6
        for withdrawal in granted[:returned]:
            withdrawal.give_back()
            repeats.pop()


@given(steps=steps, ratio=st.floats(0, 2), reserve=st.floats(0, 5))
def test_it_grants_what_its_bound_allows_but_for_one_step_of_the_window(steps, ratio, reserve):
    """What is refused would have passed the bound with a window a step shorter or longer."""
    window, step = 10.0, 10.0 / _STEPS
    budget = RetryBudget(ratio, reserve, window)
    now = 0.0
    calls: list[float] = []
    repeats: list[float] = []
    for seconds, new_calls, asked, _ in steps:
        now += seconds
        for _ in range(new_calls):
            budget.deposit(now)
            calls.append(now)
        for _ in range(asked):
            if budget.withdraw(now) is not None:
                repeats.append(now)
                continue
            counted_calls = sum(now - window + step < each for each in calls)
            counted_repeats = sum(now - window - step < each for each in repeats)
            assert counted_repeats + 1 > ratio * counted_calls + reserve * window - 1e-6


@given(steps=steps)
def test_it_remembers_a_bounded_number_of_things(steps):
    budget = RetryBudget(ratio=1, reserve_per_second=1)
    now = 0.0
    for seconds, new_calls, asked, _ in steps * 5:
        now += seconds / 50
        for _ in range(new_calls):
            budget.deposit(now)
        for _ in range(asked):
            budget.withdraw(now)
    assert len(budget._calls) <= _STEPS + 1
    assert len(budget._withdrawals) <= _STEPS + 1


def granted(budget: RetryBudget, now: float, most: int = 1000) -> int:
    return sum(budget.withdraw(now) is not None for _ in range(most))


def test_calls_alone_make_it_remember_no_more():
    budget = RetryBudget(1.0, 0, 10)
    for second in range(10 * _STEPS):
        budget.deposit(second)
        assert len(budget._calls) <= _STEPS + 1
    assert sum(budget.withdraw(second) is not None for _ in range(20)) == 10


def test_it_starts_with_one_windows_reserve():
    budget = RetryBudget()
    assert granted(budget, 5.0) == 100
    assert granted(budget, 14.9) == 0
    assert granted(budget, 15.0) == 100


def test_calls_add_their_share_for_one_window():
    budget = RetryBudget(reserve_per_second=0)
    for _ in range(100):
        budget.deposit(3.0)
    assert granted(budget, 3.0) == 20
    assert granted(budget, 12.9) == 0
    for _ in range(5):
        budget.deposit(20.0)
    assert granted(budget, 20.0) == 1
    assert granted(budget, 40.0) == 0


def test_nothing_at_all_is_allowed():
    budget = RetryBudget(ratio=0, reserve_per_second=0)
    for _ in range(1000):
        budget.deposit(1.0)
    assert granted(budget, 1.0) == 0


def test_shares_that_floats_cannot_hold_are_not_lost():
    budget = RetryBudget(ratio=0.29, reserve_per_second=0)
    for _ in range(100):
        budget.deposit(1.0)
    assert granted(budget, 1.0) == 29


def test_what_is_brought_back_can_be_granted_again():
    budget = RetryBudget(ratio=0, reserve_per_second=0.1)
    withdrawal = budget.withdraw(1.0)
    assert withdrawal is not None
    assert budget.withdraw(1.0) is None
    withdrawal.give_back()
    assert budget.withdraw(1.0) is not None


def test_what_is_brought_back_after_its_window_changes_nothing():
    budget = RetryBudget(ratio=0, reserve_per_second=0.1)
    withdrawal = budget.withdraw(1.0)
    assert withdrawal is not None
    assert budget.withdraw(20.0) is not None
    withdrawal.give_back()
    assert budget.withdraw(20.0) is None


async def test_it_belongs_to_one_loop_until_that_has_closed():
    budget = RetryBudget()
    other = asyncio.new_event_loop()
    budget.bind(other)
    budget.bind(other)
    with pytest.raises(ConfigurationError, match="another event loop"):
        budget.bind(asyncio.get_running_loop())
    other.close()
    budget.bind(asyncio.get_running_loop())


@pytest.mark.parametrize(
    "given",
    [
        {"ratio": -0.1},
        {"ratio": inf},
        {"ratio": True},
        {"ratio": "20%"},
        {"reserve_per_second": -1},
        {"reserve_per_second": nan},
        {"window": 0},
        {"window": inf},
        {"window": -1},
    ],
)
def test_settings_that_cannot_work_are_refused(given):
    with pytest.raises(ConfigurationError, match=next(iter(given))):
        RetryBudget(**given)
