"""nats:// - Nest's packets on NATS; events kept by JetStream where a stream is named.

The subject is the pattern's route, the reply subject says where the answer goes, and metadata
travels in NATS headers. A server's `queue=` makes its replicas share the work.
"""

from resilient_client.transports.nats.client import ClientTransport
from resilient_client.transports.nats.server import ServerListener

__all__ = ["ClientTransport", "ServerListener"]
