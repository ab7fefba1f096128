"""Every service a program calls, in one file."""

import asyncio
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from resilient_client import Clients, Server

SERVICES = """
[defaults]
timeout = 5

[MATH_SERVICE]
url = "memory://${MATH_BUS:-math}"
retry = { attempts = 4, wait = "expo", max_value = 1.0 }
circuit_breaker = { failure_rate = 0.3 }
patterns = { sum = { idempotent = true } }

[MAIL_SERVICE]
url = "tcp://127.0.0.1:3001"
headers = { authorization = "Bearer ${MAIL_TOKEN}" }
retry = false
"""

server = Server("memory://math")


@server.message_pattern("sum")
async def add(numbers: list[int]) -> int:
    return sum(numbers)


async def main() -> None:
    os.environ["MAIL_TOKEN"] = "secret"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "clients.toml"
        file.write_text(SERVICES)
        clients = Clients.from_toml(file)  # everything is checked here; nothing is connected
    async with server, clients:
        print("sum:", await clients["MATH_SERVICE"].send("sum", [1, 2, 3], returns=int))
        print(clients.explain())


if __name__ == "__main__":
    asyncio.run(main())
