"""What of grpcio, its companions and protobuf is used here: the one module that imports them."""

from __future__ import annotations

from typing import Any

import grpc as grpc
from google.protobuf import descriptor as descriptor
from google.protobuf import descriptor_pb2 as descriptor_pb2
from google.protobuf import json_format as json_format
from google.protobuf import struct_pb2 as struct_pb2  # an error's details may be any of these
from google.protobuf import wrappers_pb2 as wrappers_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor_pool import DescriptorPool as DescriptorPool
from google.protobuf.message import DecodeError as DecodeError
from google.protobuf.message import EncodeError as EncodeError
from google.protobuf.message import Message as ProtobufMessage
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2 as error_details_pb2
from google.rpc import status_pb2 as status_pb2
from grpc import aio as aio
from grpc_health.v1 import health_pb2 as health_pb2
from grpc_health.v1._async import HealthServicer as HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server as add_health
from grpc_reflection.v1alpha import reflection_pb2 as reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer as ReflectionServicer

cygrpc: Any
server_module: Any
try:  # for `_accepting` only, and private
    from grpc._cython import cygrpc  # type: ignore[no-redef]
    from grpc.aio import _server as server_module
except ImportError:
    cygrpc = server_module = None

rpc_error: Any
try:  # for `_unary` only, and private
    from grpc.aio._call import _create_rpc_error as rpc_error
except ImportError:
    rpc_error = None

ERRORS = (grpc.RpcError, aio.BaseError)
"""All that a call can raise, besides a cancellation."""

__all__ = [
    "ERRORS",
    "AnyMessage",
    "DecodeError",
    "DescriptorPool",
    "EncodeError",
    "GetMessageClass",
    "HealthServicer",
    "ProtobufMessage",
    "ReflectionServicer",
    "add_health",
    "aio",
    "cygrpc",
    "descriptor",
    "descriptor_pb2",
    "error_details_pb2",
    "grpc",
    "health_pb2",
    "json_format",
    "reflection_pb2",
    "rpc_error",
    "server_module",
    "status_pb2",
    "struct_pb2",
    "wrappers_pb2",
]
