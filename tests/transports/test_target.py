"""What a URL says once it is taken apart."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import pytest

from resilient_client import ClientProxy, ConfigurationError, Server
from resilient_client.transports._base import Target


@pytest.mark.parametrize(
    ("url", "bound"),
    [
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:7"),
        ("tcp://localhost", "tcp://localhost:7"),
        ("tcp://[::1]:0", "tcp://[::1]:7"),
        ("tcp://[::1]", "tcp://[::1]:7"),
        ("http://user:secret@host:0/base/", "http://host:7/base"),
    ],
)
def test_a_server_shows_the_port_it_has_got_and_no_secret(url: str, bound: str) -> None:
    assert Target(url).bound(7) == bound


def test_an_address_has_the_brackets_of_ipv6_and_a_port_of_its_own_or_the_default() -> None:
    assert Target("kafka://broker:9").address(1) == "broker:9"
    assert Target("kafka://[::1]").address(1) == "[::1]:1"


def test_user_and_password_become_an_authorization_header() -> None:
    assert Target("http://a%40b:c@host").authorization == "Basic YUBiOmM="
    assert Target("http://host").authorization is None


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("memory://bus/x", "path"),
        ("tcp://127.0.0.1:1/api", "path"),
        ("nats://127.0.0.1:1/subject", "path"),
        ("mqtt://127.0.0.1:1/topic", "path"),
        ("kafka://127.0.0.1:1/topic", "path"),
        ("grpc://127.0.0.1:1/pkg.Service", "path"),
        ("http://127.0.0.1:1/api#part", "fragment"),
        ("redis://127.0.0.1:1/0#part", "fragment"),
    ],
)
def test_a_part_of_a_url_that_would_do_nothing_is_refused_at_both_ends(url: str, part: str) -> None:
    ends: tuple[Callable[[str], object], ...] = (ClientProxy, Server)
    for end in ends:
        with pytest.raises(ConfigurationError, match=f"no use for a {part}"):
            end(url)


@pytest.mark.parametrize("scheme", ["memory", "tcp", "nats", "mqtt", "kafka", "grpc"])
def test_a_slash_behind_the_host_is_no_path(scheme: str) -> None:
    assert ClientProxy(f"{scheme}://127.0.0.1:1/").status == "idle"


@pytest.mark.parametrize(
    ("url", "instead"),
    [("tcps", "write tcp:// and give tls="), ("natss", "and give tls="), ("memorys", "memory://")],
)
def test_an_s_that_would_not_mean_tls_is_refused_at_both_ends(url: str, instead: str) -> None:
    ends: tuple[Callable[[str], object], ...] = (ClientProxy, Server)
    for end in ends:
        with pytest.raises(ConfigurationError, match="would not mean TLS") as caught:
            end(f"{url}://127.0.0.1:1")
        assert instead in caught.value.hint


@pytest.mark.parametrize(
    ("scheme", "ends"),
    [
        ("memory", (ClientProxy, Server)),
        ("tcp", (Server,)),
        ("http", (Server,)),
        ("grpc", (Server,)),
    ],
)
def test_a_password_that_nobody_would_check_is_refused(
    scheme: str, ends: tuple[Callable[[str], object], ...]
) -> None:
    for end in ends:
        for login in ("user:secret", "user", ":secret"):
            with pytest.raises(ConfigurationError, match="no use for a user") as caught:
                end(f"{scheme}://{login}@127.0.0.1:1")
            assert "secret" not in str(caught.value)


def test_a_client_on_tcp_says_that_it_does_not_send_a_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = ClientProxy("tcp://user:secret@127.0.0.1:1")
    assert "is not sent" in caplog.text
    assert "secret" not in caplog.text + repr(client)


@pytest.mark.parametrize("url", ["tcp://h:abc", "tcp://h:99999", "tcp://::1:80", "tcp://h: 80"])
def test_a_port_that_is_none_is_told_as_such_where_no_password_is_in_the_url(url: str) -> None:
    with pytest.raises(ConfigurationError, match="no usable host and port") as caught:
        ClientProxy(url)
    assert "port" in caught.value.hint
    with pytest.raises(ConfigurationError) as caught:
        ClientProxy(url.replace("//", "//user:pass/word@"))
    assert "%2F" in caught.value.hint
    assert "pass" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EADDRINUSE, "address already in use"), "another process"),
        (OSError(errno.EADDRNOTAVAIL, "cannot assign requested address"), "of this machine"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "of this machine"),
        (PermissionError(errno.EACCES, "Permission denied"), "below 1024"),
    ],
)
def test_an_address_that_cannot_be_bound_says_what_to_take_instead(
    error: OSError, said: str
) -> None:
    assert said in Target("tcp://host:80").cannot_be_bound(error).hint


def test_tls_on_a_server_at_http_is_refused_at_once() -> None:
    for url, options in (("http://h:1", {"tls": True}), ("http://h:1?tls=true", {})):
        with pytest.raises(ConfigurationError, match="means nothing to http://"):
            Server(url, **options)


@pytest.mark.parametrize("end", [ClientProxy, Server])
@pytest.mark.parametrize(
    "url",
    [
        "redis://user/a:s3cret@host",
        "amqp://user/a:s3cret@host?queue=q",
        "nats://tok/s3cret@host",
        "http://user/a:s3cret@host",
    ],
)
def test_a_slash_that_cuts_a_login_off_is_refused_without_showing_it(
    end: Callable[[str], object], url: str
) -> None:
    with pytest.raises(ConfigurationError, match="%2F") as caught:
        end(url)
    assert "s3cret" not in f"{caught.value} {caught.value!r}"


def test_a_base_path_may_hold_an_at_sign() -> None:
    assert "/@me" in repr(ClientProxy("http://host/@me"))
