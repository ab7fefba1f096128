"""Who is let in at nats://, what happens to who is not, and TLS."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import signal
import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from resilient_client import ClientProxy, ConfigurationError, ResilientClientError, Server, standard
from tests.calls import outcome
from tests.peers.certificates import certificates
from tests.peers.nats import Nats, _nkey, make_nkey
from tests.peers.script import scripted_peer
from tests.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

SECRET = "s3cret-of-the-test"


def url_of(broker: Nats, login: str = "") -> str:
    return f"nats://{login}127.0.0.1:{broker.port}"


async def works(url: str, **options: Any) -> None:
    server = Server(url, telemetry=False, grace=0.1, **options)
    server.message_pattern("echo")(lambda payload: payload)
    async with server, ClientProxy(url, policies=(), telemetry=False, **options) as client:
        assert await client.send("echo", 1) == 1
        assert SECRET not in client.explain()
        assert SECRET not in client.status
        assert SECRET not in server.addresses[0]


async def refused(url: str, match: str, **options: Any) -> None:
    """Both ends say so at once, dial once, and show no secret."""
    news: list[Any] = []
    client = ClientProxy(
        url, policies=standard(), telemetry=False, observers=[news.append], **options
    )
    started = time.monotonic()
    with pytest.raises(ConfigurationError, match=match) as caught:
        await client.send("echo", 1)
    assert time.monotonic() - started < 3
    assert not caught.value.sent
    dialled = client._transports[0].numbers()["connection.attempts"]  # type: ignore[attr-defined]
    assert dialled == 1
    await asyncio.sleep(0.3)
    again = client._transports[0].numbers()["connection.attempts"]  # type: ignore[attr-defined]
    assert again == dialled
    assert client.status == "idle"
    text = f"{caught.value!s} {caught.value!r} {news} {client.explain()} {client!r}"
    cause: BaseException | None = caught.value
    while cause is not None:
        text += f"{cause!s} {cause!r}"
        cause = cause.__cause__ or cause.__context__
    assert SECRET not in text
    await client.aclose()
    server = Server(url, telemetry=False, **options)
    with pytest.raises(ConfigurationError, match=match):
        await server.start()


async def test_user_and_password(new_broker: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    broker = new_broker(Nats, user="alice", password=f"{SECRET}/@")
    await works(url_of(broker, f"alice:{SECRET}%2F%40@"))
    await refused(url_of(broker, f"alice:{SECRET}@"), "refused the credentials")
    await refused(url_of(broker), "refused the credentials")
    assert SECRET not in caplog.text


async def test_token(new_broker: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    broker = new_broker(Nats, token=SECRET)
    await works(url_of(broker), token=SECRET)
    await works(url_of(broker, f"{SECRET}@"))
    await works(f"{url_of(broker)}?token={SECRET}")
    await refused(url_of(broker), "refused the credentials", token=f"{SECRET}x")
    assert SECRET not in caplog.text


async def test_nkey_as_seed_and_as_file(new_broker: Any, tmp_path: Path) -> None:
    broker = new_broker(Nats, nkey=True)
    file = tmp_path / "user.nk"
    file.write_text(f"{broker.seed}\n")
    await works(url_of(broker), nkey=broker.seed)
    await works(url_of(broker), nkey=str(file))
    _, stranger = make_nkey()
    await refused(url_of(broker), "refused the credentials", nkey=stranger)
    await refused(url_of(broker), "cannot be read", nkey=str(tmp_path / SECRET))
    await refused(url_of(broker), "begins with SU", nkey=f"SU{SECRET}")


class Key:
    """An nkey of any kind that signs JWTs."""

    def __init__(self, kind: int) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._key = Ed25519PrivateKey.generate()
        self.public = _nkey(bytes([kind << 3]) + self._key.public_key().public_bytes_raw())
        head = bytes([18 << 3 | (kind << 3) >> 5, (kind << 3 & 31) << 3])
        self.seed = _nkey(head + self._key.private_bytes_raw())

    def sign(self, subject: str, claims: dict[str, Any], name: str = "test") -> str:
        body = {"iat": int(time.time()), "iss": self.public, "sub": subject, "name": name}
        body["nats"] = {"version": 2, **claims}
        body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode()
        parts = [
            base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=")
            for each in ({"typ": "JWT", "alg": "ed25519-nkey"}, body)
        ]
        text = b".".join(parts)
        return (text + b"." + base64.urlsafe_b64encode(self._key.sign(text)).rstrip(b"=")).decode()


async def test_credentials_of_an_operators_account(new_broker: Any, tmp_path: Path) -> None:
    operator, account, user, stranger = Key(14), Key(0), Key(20), Key(20)
    unlimited = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1}
    unlimited |= {"wildcards": True, "conn": -1, "leaf": -1}  # type: ignore[dict-item]
    broker = new_broker(
        Nats,
        jetstream=False,
        options=[
            f"operator: {operator.sign(operator.public, {'type': 'operator'})}",
            "resolver: MEMORY",
            "resolver_preload: {",
            f"  {account.public}: "
            + operator.sign(account.public, {"type": "account", "limits": unlimited}),
            "}",
        ],
    )
    limits = {"type": "user", "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}}
    jwt = account.sign(user.public, limits)

    def creds(seed: str) -> str:
        file = tmp_path / f"{seed[-6:]}.creds"
        file.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
        return str(file)

    await works(url_of(broker), credentials=creds(user.seed))
    await refused(url_of(broker), "refused the credentials", credentials=creds(stranger.seed))
    await refused(url_of(broker), "cannot be read", credentials=str(tmp_path / "none"))
    empty = tmp_path / "empty.creds"
    empty.write_text(f"nothing {SECRET}")
    await refused(url_of(broker), "no user JWT", credentials=str(empty))


def test_one_way_to_be_admitted_is_enough() -> None:
    with pytest.raises(ConfigurationError, match="token= and nkey="):
        ClientProxy("nats://127.0.0.1", token="t", nkey="SUX")


# ---- permissions ----

LIMITED = """
authorization {{
  users: [
    {{ user: "admin", password: "admin" }}
    {{ user: "limited", password: "{password}", permissions: {{
        publish: ["allowed.>"{publish}], subscribe: [{subscribe}] }} }}
  ]
}}
"""


def limited_broker(new_broker: Any, subscribe: str, publish: str = "") -> Nats:
    text = LIMITED.format(password=SECRET, subscribe=subscribe, publish=publish)
    broker: Nats = new_broker(Nats, options=[text])
    return broker


async def test_a_subject_that_may_not_be_published_to_is_told_at_once(new_broker: Any) -> None:
    broker = limited_broker(new_broker, '"_INBOX.>"')
    news: list[Any] = []
    server = Server(url_of(broker, "admin:admin@"), telemetry=False, grace=0.1)
    server.message_pattern("allowed.Echo")(lambda payload: payload)
    server.message_pattern("Forbidden.echo")(lambda payload: payload)
    client = ClientProxy(
        url_of(broker, f"limited:{SECRET}@"), telemetry=False, observers=[news.append]
    )
    async with server, client:
        assert await client.send("allowed.Echo", 1) == 1
        for call in (
            client.send("Forbidden.echo", 1, timeout=20),
            anext(aiter(client.stream("Forbidden.echo", 1))),
        ):
            started = time.monotonic()
            with pytest.raises(ConfigurationError, match="permissions violation") as caught:
                await call
            assert not caught.value.sent
            assert time.monotonic() - started < 2
        await client.emit("Forbidden.event", 1)  # "written" is all that is known of it
        await asyncio.sleep(0.2)
        assert any("permissions violation" in getattr(each, "reason", "") for each in news)
        assert await client.send("allowed.Echo", 2) == 2
        assert client.status == "connected"
        # nobody may tell the server that a caller has left: harmless
        call = asyncio.ensure_future(client.send("allowed.Echo", 1))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        assert await client.send("allowed.Echo", 3) == 3


async def test_an_inbox_or_a_pattern_that_may_not_be_subscribed_to_is_fatal(
    new_broker: Any,
) -> None:
    broker = limited_broker(new_broker, '"mine.>"', ', "_INBOX.>"')
    url = url_of(broker, f"limited:{SECRET}@")
    client = ClientProxy(url, telemetry=False)
    with pytest.raises(ConfigurationError, match=r"subscription to .*_inbox"):
        await client.send("allowed.echo", 1)
    await client.aclose()
    server = Server(url, telemetry=False, grace=0.1)
    server.message_pattern("theirs")(lambda payload: payload)
    with pytest.raises(ConfigurationError, match="subscription to"):
        await server.start()


async def test_a_subscription_that_is_withdrawn_ends_both_ends_with_that_error(
    new_broker: Any,
) -> None:
    broker = limited_broker(new_broker, '"allowed.>", "_INBOX.>", "resilient_client.>"', ', ">"')
    url = url_of(broker, f"limited:{SECRET}@")
    config = broker.folder / "nats.conf"
    before = config.read_text()

    def reload(text: str) -> None:
        assert broker.process is not None
        config.write_text(text)
        broker.process.send_signal(signal.SIGHUP)

    server = Server(url, telemetry=False, grace=0.1)
    server.message_pattern("allowed.echo")(lambda payload: payload)
    client = ClientProxy(url, policies=(), telemetry=False)
    async with client:
        serving = asyncio.ensure_future(server.serve())
        await eventually(lambda: server._listeners[0]._link.current)  # type: ignore[attr-defined]
        assert await client.send("allowed.echo", 1) == 1
        reload(before.replace('"allowed.>", "_INBOX.>"', '"_INBOX.>"'))
        with pytest.raises(ConfigurationError, match="permissions violation"):
            await asyncio.wait_for(serving, 10)
        reload(before.replace('"_INBOX.>", ', ""))
        await eventually(lambda: client.status == "idle")
        with pytest.raises(ConfigurationError, match="permissions violation"):
            await client.send("allowed.echo", 1, timeout=20)
        reload(before)
        while client.status != "connected":  # until the broker has read it
            with suppress(ConfigurationError):
                await client.connect()
        async with server:
            assert await client.send("allowed.echo", 1) == 1


async def test_the_inbox_can_have_another_prefix_and_cancels_are_optional(new_broker: Any) -> None:
    broker = limited_broker(new_broker, '"mine.>", "resilient_client.ping"', ', "mine.>"')
    url = url_of(broker, f"limited:{SECRET}@")
    server = Server(url, telemetry=False, grace=0.1)
    server.message_pattern("mine.echo")(lambda payload: payload)
    async with server:
        async with ClientProxy(
            url, policies=(), telemetry=False, inbox_prefix="mine.inbox"
        ) as client:
            assert await client.send("mine.echo", 1) == 1


async def test_a_user_without_permission_for_jetstreams_api(new_broker: Any) -> None:
    broker = limited_broker(new_broker, '"_INBOX.>"')
    client = ClientProxy(url_of(broker, f"limited:{SECRET}@"), telemetry=False, stream="events")
    started = time.monotonic()
    with pytest.raises(ConfigurationError, match="permissions violation") as caught:
        await client.emit("allowed.event", 1)
    assert not caught.value.sent
    assert time.monotonic() - started < 2
    await client.aclose()


# ---- TLS ----


async def test_tls_is_spoken_and_a_stranger_is_refused(new_broker: Any) -> None:
    files = certificates()
    broker = new_broker(Nats, tls=True, token=SECRET)
    await works(url_of(broker), tls=files.client_context(), token=SECRET)
    server = Server(url_of(broker), tls=files.client_context(), token=SECRET, telemetry=False)
    server.message_pattern("echo")(lambda payload: payload)
    async with (
        server,
        ClientProxy(
            url_of(broker), policies=(), tls=files.client_context(), token=SECRET, telemetry=False
        ) as client,
    ):
        assert await client.send("echo", "x" * 500_000) == "x" * 500_000
    other = ssl.create_default_context(cafile=str(files.other_authority))
    await refused(url_of(broker), "is not trusted", tls=other, token=SECRET)
    await refused(url_of(broker), "is not trusted", token=SECRET)  # the server asks for TLS


async def test_mutual_tls_wants_the_clients_certificate(new_broker: Any) -> None:
    files = certificates()
    broker = new_broker(Nats, tls=True, client_certificates=True)
    await works(url_of(broker), tls=files.client_context(with_certificate=True))
    await refused(url_of(broker), "TLS handshake", tls=files.client_context())


async def test_credentials_are_not_sent_in_the_clear_where_tls_was_asked_for(
    new_broker: Any,
) -> None:
    seen = bytearray()

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","max_payload":1000,"headers":true}\r\n')
        while data := await reader.read(1000):
            seen.extend(data)

    async with scripted_peer(plain) as port:
        await refused(
            f"nats://127.0.0.1:{port}",
            "does not speak TLS",
            tls=certificates().client_context(),
            token=SECRET,
        )
    assert not seen
    broker = new_broker(Nats)
    with pytest.raises(ResilientClientError, match="does not speak TLS"):
        await works(url_of(broker), tls=True)


async def test_replies_that_may_not_be_published_are_told_once_not_each(
    new_broker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    broker = limited_broker(new_broker, '"allowed.>", "resilient_client.>", "_INBOX.>"')
    handled: list[int] = []
    server = Server(url_of(broker, f"limited:{SECRET}@"), telemetry=False)
    server.message_pattern("allowed.echo")(handled.append)
    client = ClientProxy(url_of(broker, "admin:admin@"), telemetry=False, policies=())
    async with server, client:
        async with asyncio.TaskGroup() as group:
            for n in range(20):
                group.create_task(outcome(client.send("allowed.echo", n, timeout=0.3)))
        await eventually(lambda: len(handled) == 20)
    told = [each for each in caplog.records if "violation for publish" in each.getMessage()]
    assert len(told) == 1
