"""Clients: every service a program calls, in one file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import backoff
import pytest

from resilient_client import (
    Bulkhead,
    CircuitBreaker,
    ClientProxy,
    Clients,
    ConfigurationError,
    ConnectError,
    Fallback,
    Retry,
    RetryBudget,
    SyncClientProxy,
    Timeout,
)
from resilient_client.clients import SyncClients
from tests.server_thread import Served, serving

SECRET = "hunter2-do-not-show"


@pytest.fixture(params=["tcp", "memory"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    url = "tcp://127.0.0.1:0" if request.param == "tcp" else "memory://clients"
    with serving(url) as server:
        yield server


def toml(path: Path, text: str) -> Clients:
    file = path / "clients.toml"
    file.write_text(text, "utf-8")
    return Clients.from_toml(file)


def one(**settings: Any) -> ClientProxy:
    return Clients.from_mapping({"S": {"url": "memory://s", "telemetry": False, **settings}})["S"]


def layer(client: ClientProxy, kind: type) -> Any:
    return next((policy for policy in client._policies if isinstance(policy, kind)), None)


# ------------------------------------------------------------------------------ what can be said


def test_a_file_says_everything_a_program_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIL_TOKEN", SECRET)
    monkeypatch.delenv("MATH_HOST", raising=False)
    clients = toml(
        tmp_path,
        """
        [defaults]
        telemetry = false
        timeout = 5
        retry = { attempts = 4 }

        [MATH_SERVICE]
        url = "tcp://${MATH_HOST:-127.0.0.1}:3001"
        attempt_timeout = 1.5
        retry = { wait = "constant", interval = 0.2, jitter = false }
        max_size = 1000

        [MAIL_SERVICE]
        url = ["tcp://10.0.0.1:1", "tcp://10.0.0.2:1"]
        name = "mail"
        timeout = 20
        headers = { authorization = "Bearer ${MAIL_TOKEN}", x-price = "5$$" }
        retry_budget = { ratio = 0.1, reserve_per_second = 1, window = 20 }
        circuit_breaker = { failure_rate = 0.3, minimum_calls = 10, open_for = 2.5 }
        bulkhead = { pending = 7 }

        [MAIL_SERVICE.patterns]
        send = { timeout = 30, idempotent = true }
        '{"cmd":"purge"}' = { attempts = 1 }
        """,
    )
    assert list(clients) == ["MATH_SERVICE", "MAIL_SERVICE"]
    assert len(clients) == 2
    assert "MATH_SERVICE" in clients
    assert "OTHER" not in clients
    math, mail = clients["MATH_SERVICE"], clients["MAIL_SERVICE"]
    assert math.name == "MATH_SERVICE"
    assert [t.endpoint for t in math._transports] == ["tcp://127.0.0.1:3001"]
    assert math._timeout == 5
    retry = layer(math, Retry)
    assert (retry.attempts, retry.wait, retry.jitter) == (4, backoff.constant, None)
    assert retry.arguments == {"interval": 0.2}
    assert [p.seconds for p in math._policies if isinstance(p, Timeout)] == [5, 1.5]
    assert math._transports[0]._max_size == 1000  # type: ignore[attr-defined]

    assert mail.name == "mail"
    assert mail._timeout == 20
    assert mail._headers == {"authorization": f"Bearer {SECRET}", "x-price": "5$"}
    assert layer(mail, Retry).attempts == 4
    assert repr(layer(mail, Retry).budget) == repr(RetryBudget(0.1, 1, 20))
    assert layer(mail, Bulkhead).pending == 7
    assert set(mail.circuit_breakers) == {"tcp://10.0.0.1:1", "tcp://10.0.0.2:1"}
    assert mail._patterns["send"].timeout == 30
    assert mail._patterns['{"cmd":"purge"}'].attempts == 1

    text = clients.explain()
    assert "client MATH_SERVICE" in text
    assert "client mail" in text
    assert SECRET not in text
    assert SECRET not in repr(clients)
    assert "MATH_SERVICE" in repr(clients)


def test_false_leaves_a_layer_out_and_true_is_its_default() -> None:
    bare = one(
        timeout=False,
        attempt_timeout=False,
        retry=False,
        retry_budget=False,
        circuit_breaker=False,
        bulkhead=False,
    )
    assert bare._policies == []
    full = one(retry=True, retry_budget=True, circuit_breaker=True, bulkhead=True)
    assert [type(p) for p in full._policies] == [type(p) for p in one()._policies]


def test_a_service_can_say_again_what_the_defaults_left_out() -> None:
    clients = Clients.from_mapping(
        {
            "defaults": {"telemetry": False, "retry": False, "headers": {"a": "1", "b": "1"}},
            "A": {"url": "memory://a"},
            "B": {"url": "memory://b", "retry": {"attempts": 7}, "headers": {"b": "2"}},
        }
    )
    assert layer(clients["A"], Retry) is None
    assert layer(clients["B"], Retry).attempts == 7
    assert clients["B"]._headers == {"a": "1", "b": "2"}


def test_what_comes_from_the_environment_becomes_the_kind_that_its_place_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "T": "1",
        "N": "5",
        "RATE": "0.25",
        "OFF": "false",
        "SIZE": "4096",
        "EMPTY": "",
    }.items():
        monkeypatch.setenv(name, value)
    client = one(
        timeout="${T}",
        attempt_timeout="${EMPTY:-0.5}",
        retry={"attempts": "${N}", "max_value": "${T}"},
        circuit_breaker={"failure_rate": "${RATE}", "window": "${N}0"},
        bulkhead="${OFF}",
        telemetry="${OFF}",
        max_size="${SIZE}",
    )
    assert client._timeout == 1
    assert layer(client, Retry).attempts == 5
    assert layer(client, Retry).arguments["max_value"] == 1
    assert layer(client, Bulkhead) is None
    assert client._telemetry is None
    assert client._transports[0]._max_size == 4096  # type: ignore[attr-defined]


def test_the_waits_have_names() -> None:
    assert layer(one(retry={"wait": "expo", "base": 3, "factor": 0.2}), Retry).arguments == {
        "factor": 0.2,
        "max_value": 2.0,
        "base": 3,
    }
    retry = layer(one(retry={"wait": "fibo", "max_value": 3, "jitter": "random_jitter"}), Retry)
    assert (retry.wait, retry.jitter) == (backoff.fibo, backoff.random_jitter)


def test_a_mapping_may_hold_objects() -> None:
    breaker, fallback = CircuitBreaker(), Fallback(0)
    client = one(circuit_breaker=breaker, fallback=fallback, retry=Retry(2))
    assert client.circuit_breaker is breaker
    assert layer(client, Fallback) is fallback
    assert layer(client, Retry).attempts == 2
    stack = [Timeout(3)]
    assert one(policies=stack)._policies == stack


def test_no_object_is_shared_between_two_services_or_the_sync_ones() -> None:
    clients = Clients.from_mapping(
        {
            "defaults": {"telemetry": False, "retry": {"attempts": 2}, "circuit_breaker": {}},
            "A": {"url": "memory://a"},
            "B": {"url": "memory://b"},
        }
    )
    sync = clients.sync()
    breakers = {id(client.circuit_breaker) for both in (clients, sync) for client in both.values()}
    assert len(breakers) == 4
    budgets = {
        id(layer(client, Retry).budget)
        for client in (*clients.values(), *(each._client for each in sync.values()))
    }
    assert len(budgets) == 4


# ----------------------------------------------------------------------------------- what cannot


@pytest.mark.parametrize(
    ("settings", "said", "hint"),
    [
        ({"timout": 3}, "'timout'", "'timeout'"),
        ({"max_sise": 3}, "'max_sise'", "'max_size'"),
        ({"frobnicate": 3}, "'frobnicate'", "there are"),
        ({"retry": {"atempts": 3}}, "retry has no setting 'atempts'", "'attempts'"),
        ({"retry": {"wait": "fibo", "factor": 3}}, "retry has no setting 'factor'", ""),
        ({"retry": {"wait": "exponential"}}, "retry.wait", "expo, fibo, constant"),
        ({"retry": {"jitter": "none"}}, "retry.jitter", "full_jitter"),
        ({"retry": {"attempts": 0}}, "attempts", ""),
        ({"retry": {"attempts": "many"}}, "retry.attempts must be int", ""),
        ({"retry": 3}, "retry must be a table", ""),
        ({"retry": "yes"}, "retry must be a table", ""),
        ({"bulkhead": {"pending": 1.5}}, "pending", ""),
        ({"circuit_breaker": {"failure": 0.5}}, "circuit_breaker has no", "'failure_rate'"),
        ({"circuit_breaker": {"failure_rate": 3}}, "failure_rate", ""),
        ({"retry_budget": {"ratio": -1}}, "ratio", ""),
        ({"timeout": 0}, "timeout", ""),
        ({"timeout": "soon"}, "timeout must be float", ""),
        ({"timeout": 1, "attempt_timeout": 2}, "attempt timeout", ""),
        ({"timeout": True}, "seconds", ""),
        ({"fallback": 3}, "fallback must be a policy", ""),
        ({"telemetry": "perhaps"}, "telemetry must be bool", ""),
        ({"max_size": "big"}, "max_size must be int", ""),
        ({"patterns": {"x": {"timout": 1}}}, "'timout'", ""),
        ({"headers": {"a": 3}}, "'a'", ""),
        ({"headers": 3}, "headers", ""),
        ({"policies": [], "timeout": 3}, "timeout", ""),
        ({"url": "nowhere"}, "not a URL", ""),
        ({"url": 3}, "url", ""),
        ({"url": [3]}, "url", ""),
        ({"url": []}, "URL", ""),
        ({"url": "carrier-pigeon://x"}, "carrier-pigeon", ""),
        ({"url": "memory://x?max_sise=3"}, "'max_sise'", "'max_size'"),
    ],
)
def test_a_mistake_is_refused_at_once_naming_service_and_key(
    settings: dict[str, Any], said: str, hint: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Clients.from_mapping(
            {"GOOD": {"url": "memory://x"}, "BAD_ONE": {"url": "memory://x", **settings}}
        )
    text = str(caught.value)
    assert text.startswith("service 'BAD_ONE': ")
    assert said in text
    assert hint in caught.value.hint


def test_how_clients_are_made_is_told() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Clients({"A": {"url": "memory://a"}})
    assert "Clients.from_mapping(" in caught.value.hint


def test_a_service_needs_a_url() -> None:
    with pytest.raises(ConfigurationError, match="service 'A': url is missing"):
        Clients.from_mapping({"A": {"timeout": 3}})


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'url' is not a table"):
        toml(tmp_path, 'url = "memory://x"')
    with pytest.raises(ConfigurationError, match="'defaults' is not a table"):
        toml(tmp_path, "defaults = 3")
    with pytest.raises(ConfigurationError, match="a mapping of names to settings, not a str"):
        Clients.from_mapping("clients.toml")  # type: ignore[arg-type]


def test_a_file_may_begin_with_the_mark_that_editors_on_windows_write(tmp_path: Path) -> None:
    file = tmp_path / "clients.toml"
    file.write_text('[A]\nurl = "memory://a"\n', "utf-8-sig")
    assert list(Clients.from_toml(file)) == ["A"]


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"clients\.toml is not TOML.*line 1"):
        toml(tmp_path, f"token = {SECRET}")
    with pytest.raises(FileNotFoundError):
        Clients.from_toml(tmp_path / "none.toml")


def test_an_unknown_service_is_a_key_error_that_lists_the_known() -> None:
    clients = Clients.from_mapping({"A": {"url": "memory://a"}, "B": {"url": "memory://b"}})
    with pytest.raises(ConfigurationError, match="no service is called 'C'") as caught:
        clients["C"]
    assert isinstance(caught.value, KeyError)
    assert "A, B" in str(caught.value)
    assert clients.get("C") is None
    with pytest.raises(KeyError):
        clients.sync()["C"]


# ------------------------------------------------------------------------------- the environment


def test_a_missing_variable_is_named_with_the_service_and_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ConfigurationError, match=r"'A': headers\.token .*NOT_SET") as caught:
        Clients.from_mapping({"A": {"url": "memory://a", "headers": {"token": "x${NOT_SET}"}}})
    assert "${NOT_SET:-" in caught.value.hint
    with pytest.raises(ConfigurationError, match=r"'A': url .*NOT_SET"):
        Clients.from_mapping({"A": {"url": ["${NOT_SET}"]}})


@pytest.mark.parametrize("text", ["${", "${}", "${1X}", "${A-b}", "${A:-b", "a${A B}"])
def test_a_reference_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"headers\.token holds a"):
        Clients.from_mapping({"A": {"url": "memory://a", "headers": {"token": text}}})


def test_what_a_reference_gives_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "${TWO}$$")
    assert one(headers={"a": "${ONE}$$$x"})._headers == {"a": "${TWO}$$$$x"}


@pytest.mark.parametrize("make", [list, tuple])
def test_pairs_of_patterns_and_settings_take_what_the_environment_says(
    make: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATIENCE", "2.5")
    said = {"timeout": "${PATIENCE}", "idempotent": "true", "attempts": "4"}
    pairs = make([make([{"cmd": "sum"}, said]), make(["count", {"timeout": 1}])])
    client = Clients.from_mapping({"A": {"url": "memory://a", "patterns": pairs}})["A"]
    total = client._patterns['{"cmd":"sum"}']
    assert (total.timeout, total.idempotent, total.attempts) == (2.5, True, 4)
    assert client._patterns["count"].timeout == 1
    for wrong in ([["sum"]], [["sum", 5]], ["sum"], [5]):
        with pytest.raises(ConfigurationError, match="service 'A'"):
            Clients.from_mapping({"A": {"url": "memory://a", "patterns": wrong}})


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "${SECRET}"},
        {"url": "tcp://user:${SECRET}"},
        {"url": "user:${SECRET}@host"},
        {"url": "tcp://user:${SECRET}/x@host:1"},
        {"timeout": "${SECRET}"},
        {"retry": {"attempts": "${SECRET}"}},
        {"retry": {"wait": "${SECRET}"}},
        {"retry": "${SECRET}"},
        {"telemetry": "${SECRET}"},
        {"max_size": "${SECRET}"},
        {"headers": {"a": "${SECRET}\n"}},
        {"circuit_breaker": {"window": "${SECRET}"}},
        {"fallback": "${SECRET}"},
        {"patterns": {"x": {"timeout": "${SECRET}"}}},
        {"patterns": "${SECRET}"},
    ],
)
def test_no_error_shows_a_value_of_the_environment(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    with pytest.raises(ConfigurationError) as caught:
        Clients.from_mapping({"A": {"url": "memory://a", **settings}})
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error} {error!r} {getattr(error, 'hint', '')}"
        error = error.__cause__


# ------------------------------------------------------------------------------------ their life


async def test_leaving_that_is_cancelled_at_once_closes_all_nevertheless(served: Served) -> None:
    clients = Clients.from_mapping({"MATH": {"url": served.url, "telemetry": False}})
    assert await clients["MATH"].send("sum", [1, 2], returns=int) == 3
    closing = asyncio.ensure_future(clients.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert clients["MATH"].status == "closed"


async def test_calls_go_through_and_leaving_the_block_closes_all(served: Served) -> None:
    async with Clients.from_mapping(
        {
            "defaults": {"telemetry": False},
            "MATH": {"url": served.url},
            "ECHO": {"url": served.url},
            "DOWN": {"url": "tcp://127.0.0.1:1", "timeout": 0.5, "attempt_timeout": 0.2},
        }
    ) as clients:
        assert [client.status for client in clients.values()] == ["idle"] * 3
        assert await clients["MATH"].send("sum", [1, 2], returns=int) == 3
        assert [client.status for client in clients.values()] == ["connected", "idle", "idle"]
        with pytest.raises(ConnectError):
            await clients["DOWN"].send("sum", [])
        with pytest.raises(ConnectError):
            await clients.connect()
        assert clients["ECHO"].status == "connected"
    assert [client.status for client in clients.values()] == ["closed"] * 3
    await clients.aclose()


def test_the_sync_side_has_the_same_services(served: Served) -> None:
    clients = Clients.from_mapping(
        {
            "defaults": {"telemetry": False},
            "MATH": {"url": served.url},
            "ECHO": {"url": served.url},
        }
    )
    with clients.sync() as sync:
        assert isinstance(sync, SyncClients)
        assert isinstance(sync["MATH"], SyncClientProxy)
        assert list(sync) == list(clients)
        sync.connect()
        assert sync["MATH"].send("sum", [1, 2], returns=int) == 3
        assert sync["ECHO"].send("echo", "x") == "x"
        assert sync.explain() == clients.explain()
    assert [client.status for client in sync.values()] == ["closed"] * 2
    assert [client.status for client in clients.values()] == ["idle"] * 2
    sync.close()


def test_the_headers_of_a_file_travel(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    clients = Clients.from_mapping(
        {"S": {"url": served.url, "telemetry": False, "headers": {"Token": "${SECRET}"}}}
    )
    with clients.sync() as sync:
        sync["S"].send("sum", [1])
    assert served.contexts[0].headers["token"] == SECRET
