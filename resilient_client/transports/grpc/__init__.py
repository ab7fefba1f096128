"""grpc:// and grpcs:// - any gRPC service, called and offered by the same names as everything else.

A pattern such as `"interop.Math/Sum"` is a method of a `.proto`; its data and answers are mappings
with NestJS's field names. Every other pattern travels between two ends of this package by a small
service of their own (`_patterns`), so that changing the URL is enough.
"""

from __future__ import annotations

from resilient_client.transports.grpc.client import ClientTransport
from resilient_client.transports.grpc.server import ServerListener

__all__ = ["ClientTransport", "ServerListener"]
