"""kafka:// - Nest's Kafka transport through aiokafka.

Topics are routes, values are payloads, everything else stands in record headers. Requests are
answered on one partition of the reply topic that the client reads without a consumer group; servers
are members of a consumer group and commit what they have finished.
"""

from resilient_client.transports.kafka.client import ClientTransport as ClientTransport
from resilient_client.transports.kafka.server import ServerListener as ServerListener
