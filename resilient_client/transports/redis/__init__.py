"""redis:// and rediss:// - Nest's packets over publish and subscribe, durable events on Streams.

The protocol (RESP2) is spoken over a socket of our own, parsed by hiredis: a few functions in
`_connection`, several times faster than a whole client library around them. Pub/sub stores nothing
and gives every server every message; `stream=` is for events that must not get lost.
"""

from __future__ import annotations

from resilient_client.transports.redis.client import ClientTransport
from resilient_client.transports.redis.server import ServerListener

__all__ = ["ClientTransport", "ServerListener"]
