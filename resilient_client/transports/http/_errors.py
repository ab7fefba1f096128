"""What the exceptions of httpx, and of clients with its API, mean.

They are told apart by the names of their classes, so that httpx, httpx2 and whatever comes with the
same API need not be imported.
"""

from __future__ import annotations

import ssl
from typing import Any

from resilient_client.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    Overloaded,
    PayloadError,
    ProtocolError,
    RemoteError,
    ReplyTimeout,
    ResilientClientError,
)

# What each class of httpx's exceptions says about the request. A class of a newer version is taken
# for the nearest of its bases that is here; a test finds it.
NEVER_SENT: dict[str, type[ResilientClientError]] = {
    "ConnectError": ConnectError,
    "ConnectTimeout": ConnectError,
    "ProxyError": ConnectError,  # the proxy refused to connect
    "PoolTimeout": Overloaded,
    "UnsupportedProtocol": ConfigurationError,
    "InvalidURL": ConfigurationError,
    "LocalProtocolError": PayloadError,  # the request broke the rules and stayed here
    "CookieConflict": ConfigurationError,
    "RequestNotRead": PayloadError,
}
SENT: dict[str, type[ResilientClientError]] = {
    "ReadTimeout": ReplyTimeout,
    "WriteTimeout": ReplyTimeout,
    "TimeoutException": ReplyTimeout,
    "ReadError": ConnectionLost,
    "WriteError": ConnectionLost,
    "CloseError": ConnectionLost,
    "NetworkError": ConnectionLost,
    "RemoteProtocolError": ConnectionLost,  # most often a connection that was cut
    "ProtocolError": ProtocolError,
    "DecodingError": ProtocolError,
    "TooManyRedirects": ProtocolError,
    "TransportError": ConnectionLost,
    "RequestError": ConnectionLost,
    "HTTPStatusError": RemoteError,  # a hook of the user's called raise_for_status()
    "HTTPError": ConnectionLost,
    "StreamConsumed": ConnectionLost,
    "StreamClosed": ConnectionLost,
    "ResponseNotRead": ConnectionLost,
    "StreamError": ConnectionLost,
}
_BELOW = frozenset({"aiohttp", "h11", "h2", "httpcore", "httpcore2"})
"""Libraries whose exceptions sometimes come through as they are."""
_NOT_CONNECTED = frozenset({"ClientConnectorError", "ConnectionTimeoutError"})


def map_error(error: Exception) -> ResilientClientError | None:
    """Our error for one of a client's, None when it is not one of those at all."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if _untrusted(error):
        return ConfigurationError(
            f"the server's certificate is not trusted: {text}",
            hint="give an ssl.SSLContext that knows its authority",
        )
    if _maybe_sent(error):
        return ConnectionLost(text)
    for cls in type(error).__mro__:
        if cls.__module__ == "builtins":
            break
        if cls.__name__ in NEVER_SENT:
            return NEVER_SENT[cls.__name__](text, sent=False)
        if cls.__name__ == "HTTPStatusError":  # whose text shows the whole URL
            status = getattr(getattr(error, "response", None), "status_code", None)
            return RemoteError(f"{type(error).__name__}: {status}", status=status)
        if cls.__name__ in SENT:
            return SENT[cls.__name__](text, sent=True)
    if isinstance(error, RuntimeError) and "closed" in text:
        return ConnectError(str(error), hint="the client given as client= has been closed")
    below = type(error).__module__.partition(".")[0] in _BELOW
    return ConnectionLost(text) if below or isinstance(error, OSError) else None


def refused_by_hook(error: Exception) -> Any:
    """The response that a hook of the caller's did not let through, as raise_for_status() does."""
    if type(error).__name__ != "HTTPStatusError":
        return None
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    return response if isinstance(status, int) and not 200 <= status < 300 else None


def _maybe_sent(error: Exception) -> bool:
    """httpx-aiohttp says ConnectTimeout for all that goes wrong with a connection, old or new."""
    cause = error.__cause__
    return (
        cause is not None
        and type(cause).__module__.startswith("aiohttp")
        and not any(cls.__name__ in _NOT_CONNECTED for cls in type(cause).__mro__)
        and type(error).__name__ in ("ConnectError", "ConnectTimeout")
    )


def _untrusted(error: BaseException) -> bool:
    cause: BaseException | None = error
    for _ in range(10):
        if cause is None:
            return False
        if isinstance(cause, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
