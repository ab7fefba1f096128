"""gRPC peers that nobody here wrote, in Go: gRPC's own interoperability pair, and grpcurl."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .process import Peer, PeerError

PROGRAMS = {  # name of the program -> the Go package it is built from
    "client": "google.golang.org/grpc/interop/client@v1.76.0",
    "server": "google.golang.org/grpc/interop/server@v1.76.0",
    "grpcurl": "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3",
}


def folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "resilient-client" / "go-grpc"


def go_missing() -> str | None:
    """Why these programs cannot be started here, or None."""
    lacking = [name for name in PROGRAMS if not (folder() / name).is_file()]
    return f"{', '.join(lacking)} (Go) not built in {folder()}" if lacking else None


def install_go() -> None:
    """Build what is not there yet."""
    if go_missing() is None:
        return
    go = shutil.which("go")
    if go is None:
        raise PeerError("Go 1.24 or newer is not installed")
    folder().mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "GOBIN": str(folder())}
    packages = [package for name, package in PROGRAMS.items() if not (folder() / name).is_file()]
    for package in packages:
        print(f"building {package}", flush=True)
        command = [go, "install", package]
        for last in (False, True):
            done = subprocess.run(command, env=environment, timeout=900, check=last)
            if done.returncode == 0:
                break


class GoServer(Peer):
    """The interoperability server: `grpc.testing.TestService`."""

    name = "go-grpc"

    def command(self) -> Sequence[str]:
        if (missing := go_missing()) is not None:
            raise PeerError(missing)
        return [str(folder() / "server"), f"-port={self.port}"]

    def answers(self) -> bool:
        with socket.socket() as sock:
            sock.settimeout(0.5)
            return sock.connect_ex((self.host, self.port)) == 0


async def run(program: str, *arguments: str) -> tuple[int, str]:
    """The exit code of one of them, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        str(folder() / program),
        *arguments,
        env=os.environ | ({"GRPC_GO_LOG_SEVERITY_LEVEL": "info"} if program == "client" else {}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 60)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace")
