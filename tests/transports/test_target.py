"""What a URL says once it is taken apart."""

from __future__ import annotations

import pytest

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
