"""Request/reply and events over real brokers, next to the bare client library and to Nest 12.

`python -m benchmarks.brokers [SCHEME ..] [--seconds S] [--rounds N]`. It starts the broker itself;
all of ours and of the bare library runs on uvloop. The contestants take turns and each is judged by
its best round: read the ratios, which are to the bare library.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks._contest import Rates, best_of, measure, show
from tests.peers.brokers import BROKERS

PEERS = Path(__file__).with_name("peers")


class Place(NamedTuple):
    """A broker and what both ends of ours and of Nest must agree on."""

    broker: str
    library: str
    query: str
    nest: dict[str, Any]
    events: str = "emit:64"
    options: Mapping[str, Any] = MappingProxyType({})
    also: Mapping[str, str] = MappingProxyType({})  # further contestants of ours, by their query


PLACES = {
    "redis": Place("redis", "redis-py", "", {"transport": "redis"}),
    "nats": Place("nats", "nats-py", "", {"transport": "nats"}),
    "amqp": Place(
        "rabbitmq",
        "aio-pika",
        "?queue=bench.ours&durable=false",
        {"transport": "rmq", "queue": "bench.nest"},
    ),
    "mqtt": Place(
        "mosquitto",
        "aiomqtt",
        "?qos=1",
        {"transport": "mqtt"},
        # the tests' broker writes its file at every change
        options={"options": ["autosave_on_changes false", "autosave_interval 1800"]},
        also={"ours, all defaults, qos=0": "?qos=0"},  # as Nest
    ),
    # topics of one partition, like those of the bare library
    "kafka": Place("kafka", "aiokafka", "?partitions=1", {"transport": "kafka"}, "emit:1000"),
}


async def _bare_topics(url: str) -> None:
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    admin = AIOKafkaAdminClient(bootstrap_servers=url.partition("://")[2])
    await admin.start()
    names = ("bare.sum", "bare.sum.reply", "bare.event")
    await admin.create_topics([NewTopic(name, 1, 1) for name in names])
    await admin.close()


def _race(scheme: str, seconds: float, rounds: int) -> None:
    place = PLACES[scheme]
    broker = BROKERS[place.broker](**place.options)
    broker.start()
    try:
        if scheme == "kafka":
            asyncio.run(_bare_topics(broker.url))
        whats = ["64", "1", place.events]
        ours = [sys.executable, "-m", "benchmarks.peers.ours"]
        bare = [sys.executable, "-m", "benchmarks.peers.bare", scheme]
        nest = json.dumps({"url": broker.url, **place.nest})

        def run_ours(stack: str, query: str = place.query) -> Rates:
            return measure(
                [*ours, "server", "uvloop", broker.url + query],
                lambda url: [*ours, "client", "uvloop", url, stack, str(seconds), *whats],
            )

        def run_bare() -> Rates:
            return measure(
                [*bare, "server", broker.url],
                lambda url: [*bare, "client", url, str(seconds), *whats],
            )

        def run_nest() -> Rates:
            return measure(
                ["node", str(PEERS / "nest_server.mjs"), nest],
                lambda _: ["node", str(PEERS / "nest_client.mjs"), nest, str(seconds), *whats],
            )

        library = f"bare {place.library}"
        best = best_of(
            rounds,
            {
                library: run_bare,
                "ours, all defaults": lambda: run_ours("full"),
                "ours, policies=()": lambda: run_ours("bare"),
                **{name: partial(run_ours, "full", query) for name, query in place.also.items()},
                "nest 12": run_nest,
            },
        )
    finally:
        broker.stop()
    show(f"{scheme}, a second (ratio to bare {place.library})", best, whats, library)
    for name in ("ours, all defaults", *place.also):
        ratios = ((what, best[name][what] / best["nest 12"][what]) for what in whats)
        print(f"{name}, to nest: " + ", ".join(f"{ratio:.2f} at {what}" for what, ratio in ratios))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scheme", nargs="*", default=list(PLACES))
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    for scheme in given.scheme:
        _race(scheme, given.seconds, given.rounds)
        print(flush=True)


if __name__ == "__main__":
    main()
