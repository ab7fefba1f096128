"""A real Redis."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence

from .certificates import certificates
from .process import Peer, PeerError


class Redis(Peer):
    """``redis-server`` with an append-only file, so that streams and keys survive ``restart()``.

    ``password`` alone is ``requirepass``; with ``user`` it is an ACL user that may do everything.
    ``acl`` adds lines of a Redis ACL file, such as ``user limited on >secret ~* &orders* +@all``.
    ``client_certificates`` refuses TLS clients without one.
    """

    name = "redis"

    def __init__(
        self,
        *,
        user: str | None = None,
        password: str | None = None,
        acl: Sequence[str] = (),
        tls: bool = False,
        client_certificates: bool = False,
        persistent: bool = True,
        options: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.login = user
        self.password = password
        self.acl = acl
        self.tls = tls
        self.client_certificates = client_certificates
        self.persistent = persistent
        self.options = options

    @property
    def url(self) -> str:
        login = f"{self.login or ''}:{self.password}@" if self.password else ""
        return f"redis{'s' if self.tls else ''}://{login}{self.host}:{self.port}"

    def prepare(self) -> None:
        lines = [
            f"bind {self.host}",
            f"dir {self.folder}",
            f"{'tls-port' if self.tls else 'port'} {self.port}",
            "save ''",
            f"appendonly {'yes' if self.persistent else 'no'}",
            "daemonize no",
        ]
        if self.tls:
            files = certificates()
            lines += [
                "port 0",
                f"tls-cert-file {files.server}",
                f"tls-key-file {files.server_key}",
                f"tls-ca-cert-file {files.authority}",
                f"tls-auth-clients {'yes' if self.client_certificates else 'no'}",
            ]
        if self.login:
            lines += ["user default off", f"user {self.login} on >{self.password} ~* &* +@all"]
        elif self.password:
            lines.append(f"requirepass {self.password}")
        (self.folder / "redis.conf").write_text("\n".join([*lines, *self.acl, *self.options]))

    def command(self) -> Sequence[str]:
        program = shutil.which("redis-server")
        if program is None:
            raise PeerError("redis-server is not installed")
        return [program, "redis.conf"]

    def answers(self) -> bool:
        with socket.create_connection((self.host, self.port), 1.0) as plain:
            connection = plain
            if self.tls:
                context = certificates().client_context(with_certificate=True)
                connection = context.wrap_socket(plain, server_hostname="localhost")
            with connection:
                connection.sendall(b"PING\r\n")
                answer = connection.recv(100)
        return answer.startswith((b"+PONG", b"-NOAUTH"))  # not -LOADING
