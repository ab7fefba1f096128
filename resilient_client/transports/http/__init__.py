"""http:// and https:// - any REST service as a client, an ASGI application as a server.

A plain pattern is `POST {base}/{route}` with a JSON body; `"GET /users/{id}"` is that very request.
"""

from __future__ import annotations

from resilient_client.transports.http.asgi import asgi_app
from resilient_client.transports.http.client import ClientTransport
from resilient_client.transports.http.server import ServerListener

__all__ = ["ClientTransport", "ServerListener", "asgi_app"]
