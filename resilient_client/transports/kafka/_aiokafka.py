"""The one module that imports aiokafka: what the others need of it they take from here."""

from __future__ import annotations

from aiokafka import AIOKafkaConsumer as AIOKafkaConsumer
from aiokafka import AIOKafkaProducer as AIOKafkaProducer
from aiokafka import ConsumerRebalanceListener as ConsumerRebalanceListener
from aiokafka import TopicPartition as TopicPartition
from aiokafka import errors as errors
from aiokafka.conn import CloseReason as CloseReason
from aiokafka.conn import create_conn as create_conn
from aiokafka.partitioner import murmur2 as murmur2
from aiokafka.protocol.admin import CreateTopicsRequest as CreateTopicsRequest
from aiokafka.protocol.admin import DescribeConfigsRequest as DescribeConfigsRequest
from aiokafka.protocol.fetch import FetchRequest as FetchRequest
from aiokafka.protocol.metadata import MetadataRequest as MetadataRequest
from aiokafka.protocol.offset import OffsetRequest as OffsetRequest
