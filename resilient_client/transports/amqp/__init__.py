"""amqp:// and amqps:// - Nest's packets through a queue of RabbitMQ, or its topic exchange.

AMQP 0-9-1 is spoken by a small protocol of our own over pamqp's codec: what passes with every
message is packed and read here, everything else by the codec.
"""

from __future__ import annotations

from resilient_client.transports.amqp.client import ClientTransport
from resilient_client.transports.amqp.server import ServerListener

__all__ = ["ClientTransport", "ServerListener"]
