"""What log records can say about the work they were written in."""

from __future__ import annotations

import logging
from typing import Any

from resilient_client.context import correlation_id


class CorrelationFilter(logging.Filter):
    """Adds `correlation_id`, `trace_id`, `span_id` and `trace_flags` to every record.

    Attach it to handlers, not to loggers: a logger's filters do not see what its children log. With
    a `QueueHandler`, to that one: the listener's thread has another context. Fields are lower-case
    hex as OpenTelemetry names them for logs, and empty where there is nothing to say; none of them
    replaces one that the record already has.

    ```python
    handler.addFilter(CorrelationFilter())
    handler.setFormatter(logging.Formatter("%(message)s [%(correlation_id)s %(trace_id)s]"))
    ```
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; every record passes."""
        from resilient_client.telemetry._otel import log_fields

        own: dict[str, Any] = record.__dict__
        own.setdefault("correlation_id", correlation_id.get() or "")
        trace_id, span_id, flags = log_fields()
        own.setdefault("trace_id", trace_id)
        own.setdefault("span_id", span_id)
        own.setdefault("trace_flags", flags)
        return True
