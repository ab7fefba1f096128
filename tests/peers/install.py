"""Install what the tests talk to: ``python -m tests.peers.install``. Quick when all is there.

Brokers come from Debian's packages (as root on Debian or its kin; elsewhere it says what is missing
and how to get it), Kafka from Maven and gRPC's interoperability programs from Go into the user's
cache, NestJS from npm into tests/interop/. The NATS server is a Python package among the test
dependencies. Nothing is started.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .brokers import BROKERS, missing
from .gogrpc import go_missing, install_go
from .kafka import VERSION, kafka_libraries, kafka_missing
from .nest import VERSIONS, install, nest_missing, typescript_missing
from .process import PeerError

PACKAGES = {  # what to look for -> Debian's package
    "redis-server": "redis-server",
    "rabbitmq-server": "rabbitmq-server",
    "mosquitto": "mosquitto",
    "java": "default-jre-headless",
    "mvn": "maven",
}
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>test</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies><dependency>
    <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version>
  </dependency></dependencies>
</project>
"""


def say(text: str) -> None:
    print(f"==== {text}", flush=True)


def install_packages() -> None:
    wanted = [
        package for program, package in PACKAGES.items() if not shutil.which(program, path=PATH)
    ]
    if not wanted:
        return
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        say(
            f"SKIPPED: {', '.join(wanted)}. Only root on Debian or Ubuntu gets them installed here."
        )
        say(f"  Debian, Ubuntu: sudo apt-get install {' '.join(wanted)}")
        say("  macOS: brew install redis rabbitmq mosquitto openjdk maven")
        return
    say(f"installing Debian packages: {' '.join(wanted)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = [apt, "install", "-y", "-q", "--no-install-recommends", *wanted]
    for last in (False, True):
        update = [apt, "update", "-q"]
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                update, env=environment, stdout=output, stderr=output, check=False, timeout=300
            )
            if done.returncode == 0:
                done = subprocess.run(
                    command, env=environment, stdout=output, stderr=output, check=False, timeout=900
                )
            if done.returncode == 0:
                return
            output.seek(0)
            text = output.read().decode(errors="replace")[-3000:]
        say(f"apt-get failed{'' if last else ', once more'}:\n{text}")


def install_kafka() -> None:
    why_not = kafka_missing()
    maven = shutil.which("mvn")
    if why_not is None:
        return
    if maven is None or shutil.which("java") is None:
        say(f"SKIPPED: Kafka ({why_not}). It needs Java 17 or newer and Maven.")
        return
    libraries = kafka_libraries()
    say(f"fetching Kafka {VERSION} with Maven into {libraries}")
    libraries.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=libraries.parent) as folder:
        (Path(folder) / "pom.xml").write_text(POM)
        command = [maven, "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=libs"]
        for last in (False, True):
            done = subprocess.run(command, cwd=folder, timeout=900, check=last)
            if done.returncode == 0:
                break
        shutil.rmtree(libraries, ignore_errors=True)
        (Path(folder) / "libs").rename(libraries)  # whole or not at all


def install_go_programs() -> None:
    if go_missing() is None:
        return
    if shutil.which("go") is None:
        say("SKIPPED: gRPC's own interoperability programs. They need Go 1.24 or newer.")
        return
    install_go()


def main() -> int:
    """Install what can be; the exit code is 1 in CI when something is still missing."""
    failures = []
    for step in (install_packages, install_kafka, install, install_go_programs):
        try:
            step()
        except (PeerError, OSError, subprocess.SubprocessError) as error:
            say(f"FAILED: {error}")
            failures.append(error)
    lacking = [f"{name}: {reason}" for name in BROKERS if (reason := missing(name))]
    nests = [*map(nest_missing, VERSIONS), typescript_missing()]
    lacking += dict.fromkeys(reason for reason in nests if reason is not None)
    for reason in lacking:
        say(f"MISSING: {reason}; its tests will be {'failed' if in_ci() else 'skipped'}")
    return int(in_ci() and bool(lacking or failures))


def in_ci() -> bool:
    return os.environ.get("CI") == "true"


if __name__ == "__main__":
    sys.exit(main())
