"""A real RabbitMQ: a node of its own beside any other, with its own epmd."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .certificates import certificates
from .process import EndedError, Peer, PeerError, end, exchange, free_port, spawn

PROGRAMS = Path("/usr/lib/rabbitmq/bin")  # Debian's wrappers in /usr/sbin would write to /var/log
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
METHOD_FRAME = b"\x01"


def rabbitmq_program(name: str) -> str | None:
    beside = PROGRAMS / name
    return str(beside) if beside.exists() else shutil.which(name)


def _server_user() -> str | None:
    """Debian's package wants its files owned by `rabbitmq` when root starts the server."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("rabbitmq").pw_name
    except KeyError:
        return None


class RabbitMQ(Peer):
    """``rabbitmq-server`` on a plain port and, with ``tls=True``, on a TLS port as well.

    The default user is guest/guest, or ``user``/``password``. ``users`` are further users and their
    passwords; those named in ``limited`` may read and write nothing. The first start takes 7-12 s.
    """

    name = "rabbitmq"
    ready_within = 150.0

    def __init__(
        self,
        *,
        user: str = "guest",
        password: str = "guest",
        users: Mapping[str, str] | None = None,
        limited: Sequence[str] = (),
        tls: bool = False,
        client_certificates: bool = False,
        options: Sequence[str] = (),
        plugins: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.login = user
        self.password = password
        self.users = dict(users or {})
        self.limited = limited
        self.tls = tls
        self.client_certificates = client_certificates
        self.options = options
        self.plugins = plugins
        self.tls_port = 0
        self.epmd_port = 0
        self.distribution_port = 0
        self.run_as = _server_user()
        self._epmd: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        login = "" if self.login == "guest" else f"{self.login}:{self.password}@"
        return f"amqp://{login}{self.host}:{self.port}"

    @property
    def tls_url(self) -> str:
        login = "" if self.login == "guest" else f"{self.login}:{self.password}@"
        return f"amqps://{login}{self.host}:{self.tls_port}"

    @property
    def node(self) -> str:
        return f"t{self.port}@localhost"

    def prepare(self) -> None:
        self.epmd_port = free_port()
        self.distribution_port = free_port()
        lines = [
            f"listeners.tcp.1 = {self.host}:{self.port}",
            f"default_user = {self.login}",
            f"default_pass = {self.password}",
            "disk_free_limit.absolute = 50MB",
            "collect_statistics_interval = 60000",
        ]
        if self.tls:
            self.tls_port = free_port()
            files = certificates()
            lines += [
                f"listeners.ssl.1 = {self.host}:{self.tls_port}",
                f"ssl_options.cacertfile = {files.authority}",
                f"ssl_options.certfile = {files.server}",
                f"ssl_options.keyfile = {files.server_key}",
                "ssl_options.verify = verify_peer",
                f"ssl_options.fail_if_no_peer_cert = {str(self.client_certificates).lower()}",
            ]
        if self.users:
            (self.folder / "definitions.json").write_text(json.dumps(self._definitions()))
            lines.append(f"load_definitions = {self.folder / 'definitions.json'}")
        (self.folder / "rabbit.conf").write_text("\n".join([*lines, *self.options]) + "\n")
        (self.folder / "enabled_plugins").write_text(f"[{','.join(self.plugins)}].\n")
        if self.run_as is not None:
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, self.run_as, self.run_as)

    def _definitions(self) -> dict[str, object]:
        # Definitions switch the default user off, so it is among them.
        everybody = {self.login: self.password, **self.users}
        return {
            "vhosts": [{"name": "/"}],
            "users": [
                {"name": name, "password": word, "tags": ["administrator"] * (name == self.login)}
                for name, word in everybody.items()
            ],
            "permissions": [
                {"user": name, "vhost": "/", "configure": may, "write": may, "read": may}
                for name in everybody
                for may in ["^$" if name in self.limited else ".*"]
            ],
        }

    def environment(self) -> Mapping[str, str]:
        return {
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbit.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": self.host,
            # Makes the script become the Erlang machine instead of minding it: one process id,
            # to be killed and frozen. `-noinput` below undoes the rest of what it means.
            "RABBITMQ_ALLOW_INPUT": "1",
        }

    def command(self) -> Sequence[str]:
        program = rabbitmq_program("rabbitmq-server")
        if program is None:
            raise PeerError("rabbitmq-server is not installed")
        return [program, "-noinput", "-start_epmd", "false"]

    def start(self) -> RabbitMQ:
        if self.running:
            return self
        if not self.port:
            self.port = free_port()
            self.prepare()
        if self._epmd is None or self._epmd.poll() is not None:
            program = shutil.which("epmd")
            if program is None:
                raise PeerError("epmd (Erlang) is not installed")
            self._epmd = spawn(
                [program, "-port", str(self.epmd_port), "-address", self.host], user=self.run_as
            )
        try:
            super().start()
        except EndedError:
            super().start()  # on a starved machine Erlang's network gives up after seven seconds
        return self

    def answers(self) -> bool:
        return exchange(self.host, self.port, PROTOCOL_HEADER, 1).startswith(METHOD_FRAME)

    def ctl(self, *arguments: str, timeout: float = 30.0) -> str:
        """Run ``rabbitmqctl`` against this node (1-3 s each) and return what it printed."""
        program = rabbitmq_program("rabbitmqctl")
        if program is None:
            raise PeerError("rabbitmqctl is not installed")
        done = subprocess.run(
            [program, "--quiet", "--node", self.node, *arguments],
            env={**os.environ, **self.environment()},
            user=self.run_as,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            raise PeerError(f"rabbitmqctl {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def settle(self) -> None:
        """Have on the disk what was declared, before a kill.

        Mnesia writes the end of a declaration up to two seconds after RabbitMQ has answered, and
        takes back, after a restart, what it finds without an end.
        """
        self.ctl("eval", "mnesia:sync_log().")

    def stop(self) -> None:
        if self._epmd is not None:
            end(self._epmd)
            self._epmd = None
        super().stop()
