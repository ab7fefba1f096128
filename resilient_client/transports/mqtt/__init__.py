"""mqtt:// and mqtts:// - Nest's packets on topics, in MQTT 5 and 3.1.1.

The protocol is spoken here (`_codec`, `_connection`), not by a library: acknowledging an event
after its handler, knowing that nobody is subscribed, and failing at once what a lost connection
leaves behind need the protocol's own events.
"""

from resilient_client.transports.mqtt.client import ClientTransport
from resilient_client.transports.mqtt.server import ServerListener

__all__ = ["ClientTransport", "ServerListener"]
