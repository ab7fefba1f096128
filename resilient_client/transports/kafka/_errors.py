"""What aiokafka raises, and what of ours it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    PayloadError,
    ProtocolError,
    Throttled,
    redact,
)
from resilient_client.transports.kafka._aiokafka import errors as kafka

if TYPE_CHECKING:
    from resilient_client.errors import ResilientClientError

REFUSED = (
    kafka.AuthenticationFailedError,
    kafka.AuthenticationMethodNotSupported,
    kafka.SaslAuthenticationFailed,
    kafka.UnsupportedSaslMechanismError,
    kafka.IllegalSaslStateError,
    kafka.SecurityDisabled,
    kafka.DelegationTokenAuthDisabled,
    kafka.DelegationTokenNotFound,
    kafka.DelegationTokenOwnerMismatch,
    kafka.DelegationTokenRequestNotAllowed,
    kafka.DelegationTokenAuthorizationFailed,
    kafka.DelegationTokenExpired,
    kafka.InvalidPrincipalType,
    kafka.TopicAuthorizationFailedError,
    kafka.GroupAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.TransactionalIdAuthorizationFailed,
    kafka.InvalidTopicError,
    kafka.InvalidGroupIdError,
    kafka.InconsistentGroupProtocolError,
    kafka.InvalidSessionTimeoutError,
    kafka.InvalidPartitionsError,
    kafka.InvalidReplicationFactorError,
    kafka.InvalidReplicationAssignmentError,
    kafka.InvalidConfigurationError,
    kafka.InvalidRequiredAcksError,
    kafka.InvalidTransactionTimeout,
    kafka.PolicyViolationError,
    kafka.KafkaConfigurationError,
    kafka.UnsupportedCodecError,
    kafka.UnsupportedForMessageFormatError,
)
"""Trying again does not help: somebody must change a setting, a right or a credential."""

TOO_LARGE = (
    kafka.MessageSizeTooLargeError,
    kafka.RecordListTooLargeError,
    kafka.RecordTooLargeError,
    kafka.InvalidTimestampError,
    kafka.OffsetMetadataTooLargeError,
    kafka.InvalidCommitOffsetSizeError,
)
"""The broker does not take this record; nothing was stored."""

FOREIGN = (
    kafka.CorrelationIdError,
    kafka.CorruptRecordException,
    kafka.IncompatibleBrokerVersion,
    kafka.UnrecognizedBrokerVersion,
    kafka.UnsupportedVersionError,
    kafka.InvalidRequestError,
    kafka.InvalidFetchRequestError,
    kafka.KafkaProtocolError,
)
"""What is at the other end does not speak this protocol."""

NOT_STORED = (
    kafka.NotEnoughReplicasError,
    kafka.UnknownTopicOrPartitionError,
    kafka.NotLeaderForPartitionError,
    kafka.LeaderNotAvailableError,
    kafka.NodeNotReadyError,
    kafka.NoBrokersAvailable,
    kafka.BrokerNotAvailableError,
    kafka.ReplicaNotAvailableError,
    kafka.ProducerClosed,
    kafka.StaleMetadata,
    kafka.MetadataEmptyBrokerList,
    kafka.KafkaUnavailableError,
)
"""The record was certainly not stored; it may be later."""

SLOW_DOWN = (kafka.QuotaViolationError, kafka.TooManyInFlightRequests)

UNKNOWN = (
    kafka.KafkaConnectionError,
    kafka.KafkaTimeoutError,
    kafka.RequestTimedOutError,
    kafka.Cancelled,
    kafka.NotEnoughReplicasAfterAppendError,
    kafka.UnknownError,
    kafka.KafkaStorageError,
    kafka.LogDirNotFound,
    kafka.OffsetOutOfRangeError,
    kafka.NoOffsetForPartitionError,
    kafka.StaleControllerEpochError,
    kafka.StaleLeaderEpochCodeError,
    kafka.GroupLoadInProgressError,
    kafka.GroupCoordinatorNotAvailableError,
    kafka.NotCoordinatorForGroupError,
    kafka.IllegalGenerationError,
    kafka.UnknownMemberIdError,
    kafka.RebalanceInProgressError,
    kafka.CommitFailedError,
    kafka.MemberIdRequired,
    kafka.NonEmptyGroup,
    kafka.GroupIdNotFound,
    kafka.TopicAlreadyExistsError,
    kafka.NotControllerError,
    kafka.ReassignmentInProgress,
    kafka.OutOfOrderSequenceNumber,
    kafka.DuplicateSequenceNumber,
    kafka.InvalidProducerEpoch,
    kafka.InvalidProducerIdMapping,
    kafka.UnknownProducerId,
    kafka.ProducerFenced,
    kafka.InvalidTxnState,
    kafka.ConcurrentTransactions,
    kafka.TransactionCoordinatorFenced,
    kafka.OperationNotAttempted,
    kafka.FetchSessionIdNotFound,
    kafka.InvalidFetchSessionEpoch,
    kafka.ListenerNotFound,
    kafka.IllegalStateError,
    kafka.IllegalArgumentError,
    kafka.IllegalOperation,
    kafka.ConsumerStoppedError,
    kafka.NoError,
)
"""Whether a record was stored cannot be said."""

AWAY = (kafka.NodeNotReadyError, kafka.KafkaConnectionError, kafka.RequestTimedOutError)
"""One broker does not answer; another may."""

AIOKAFKA_ERRORS = (kafka.KafkaError, kafka.IllegalOperation, kafka.ConsumerStoppedError)
"""Catches all of them."""


def ours(error: BaseException, endpoint: str, *, sent: bool) -> ResilientClientError:
    """Our error for one of aiokafka's.

    Args:
        endpoint: for people.
        sent: whether a record was handed to the library before.
    """
    text = redact(f"{endpoint}: {_text(error)}")
    mapped: ResilientClientError
    if isinstance(error, REFUSED):
        mapped = ConfigurationError(text, hint=_hint(error))
    elif isinstance(error, TOO_LARGE):
        mapped = PayloadError(
            text, hint="send less, or raise max.message.bytes of the topic and max_size= here"
        )
    elif isinstance(error, NOT_STORED):
        mapped = ConnectError(text)
    elif isinstance(error, SLOW_DOWN):
        mapped = Throttled(text, sent=False)
    elif isinstance(error, FOREIGN):
        mapped = ProtocolError(text, sent=sent)
    elif sent:
        mapped = ConnectionLost(text)
    else:
        mapped = ConnectError(text)
    mapped.__cause__ = error
    return mapped


def _text(error: BaseException) -> str:
    """What the library says, without its numbers."""
    said = ", ".join(str(each) for each in error.args if isinstance(each, str) and each)
    return said or getattr(type(error), "description", "") or type(error).__name__


def _hint(error: BaseException) -> str:
    if isinstance(error, kafka.UnsupportedSaslMechanismError):
        return "choose one of the broker's with sasl="
    if isinstance(error, kafka.UnsupportedCodecError):
        return 'pip install "resilient-client[kafka]": it brings what reads compressed records'
    if isinstance(error, REFUSED[:13]):
        return "check the user, the password and sasl= (the mechanism)"
    if isinstance(error, kafka.InconsistentGroupProtocolError):
        return "another make of client is in this consumer group: give group= a name of its own"
    if isinstance(error, kafka.InvalidSessionTimeoutError):
        return "session_timeout= must be within the broker's group.min/max.session.timeout.ms"
    if isinstance(error, REFUSED[13:17]):
        return "the broker's access rules (ACLs) must allow this user to do that"
    return "the broker's settings and this client's do not go together"
