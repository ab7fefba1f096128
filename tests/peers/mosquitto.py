"""A real MQTT broker: Mosquitto."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence

from .certificates import certificates
from .process import Peer, PeerError

CONNECT = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x0a\x00\x05ready"  # MQTT 3.1.1, clean session
CONNACK = 0x20


def mosquitto_program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


class Mosquitto(Peer):
    """``mosquitto`` that keeps retained messages and sessions on disk.

    ``users`` maps names to passwords; without it everybody may come in. ``acl`` is the text of an
    ACL file. With ``client_certificates`` the certificate's common name is the user name.
    Sessions are written at each change, so that they survive ``kill()``.
    """

    name = "mosquitto"

    def __init__(
        self,
        *,
        users: Mapping[str, str] | None = None,
        acl: str | None = None,
        tls: bool = False,
        client_certificates: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.users = dict(users or {})
        self.acl = acl
        self.tls = tls
        self.client_certificates = client_certificates
        self.options = options

    @property
    def url(self) -> str:
        login = "".join(f"{user}:{word}@" for user, word in list(self.users.items())[:1])
        return f"mqtt{'s' if self.tls else ''}://{login}{self.host}:{self.port}"

    def prepare(self) -> None:
        lines = [
            f"listener {self.port} {self.host}",
            f"allow_anonymous {str(not self.users and not self.client_certificates).lower()}",
            "set_tcp_nodelay true",
            "persistence true",
            f"persistence_location {self.folder}/",
            "autosave_interval 1",
            "autosave_on_changes true",
            "max_queued_messages 0",
            "user root",
            "log_dest stdout",
        ]
        if self.users:
            passwords = self.folder / "passwords"
            passwords.write_text("".join(f"{user}:{word}\n" for user, word in self.users.items()))
            program = mosquitto_program("mosquitto_passwd")
            if program is None:
                raise PeerError("mosquitto_passwd is not installed")
            subprocess.run([program, "-U", str(passwords)], check=True, timeout=10)
            lines.append(f"password_file {passwords}")
        if self.acl is not None:
            (self.folder / "acl").write_text(self.acl)
            lines.append(f"acl_file {self.folder / 'acl'}")
        if self.tls:
            files = certificates()
            lines += [
                f"cafile {files.authority}",
                f"certfile {files.server}",
                f"keyfile {files.server_key}",
            ]
        if self.client_certificates:
            lines += ["require_certificate true", "use_identity_as_username true"]
        (self.folder / "mosquitto.conf").write_text("\n".join([*lines, *self.options]) + "\n")

    def command(self) -> Sequence[str]:
        program = mosquitto_program("mosquitto")
        if program is None:
            raise PeerError("mosquitto is not installed")
        return [program, "-c", "mosquitto.conf"]

    def answers(self) -> bool:
        with socket.create_connection((self.host, self.port), 1.0) as plain:
            connection = plain
            if self.tls:
                context = certificates().client_context(with_certificate=True)
                connection = context.wrap_socket(plain, server_hostname="localhost")
            with connection:
                connection.sendall(CONNECT)
                return connection.recv(4)[:1] == bytes([CONNACK])
