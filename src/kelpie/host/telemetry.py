"""Logs, metrics and spans of the host: records on stderr, one metrics registry, OpenTelemetry.

Owns its registry (never the library's global one) and, when an exporter is asked for, its tracer
provider. Never raises into a caller and never writes a control character to a terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, TextIO

from opentelemetry import trace
from opentelemetry.context import attach, detach
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from kelpie.core.errors import UnavailableError
from kelpie.host.metrics import Metrics
from kelpie.ports.clock import Clock
from kelpie.ports.telemetry import Attribute, Level

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Format = Literal["json", "console"]

_RANKS: Final[dict[Level, int]] = {"debug": 0, "info": 1, "warning": 2, "error": 3}
_SCOPE: Final = "kelpie"
_UNTRACED: Final = nullcontext()  # keeps nothing, so one serves all
_propagator: Final = TraceContextTextMapPropagator()
_EXPORT_TIMEOUT_SECONDS: Final = 5  # an absent collector must not hold a shutdown for long


class HostTelemetry:
    """Implements the telemetry port.

    Args:
        level: The least severe level that is written.
        style: ``json`` writes one object a line, ``console`` one readable line.
        clock: Stamps the records.
        output: Where records go; the process's stderr when absent.
        traces_endpoint: OTLP over HTTP endpoint that spans are exported to; empty for none. Needs
            the extra ``kelpie-runtime[otel]``.

    Raises:
        UnavailableError: An endpoint was given and the extra is not installed.
    """

    def __init__(
        self,
        *,
        level: Level,
        style: Format,
        clock: Clock,
        output: TextIO | None = None,
        traces_endpoint: str = "",
    ) -> None:
        self._rank = _RANKS[level]
        self._write = _json_line if style == "json" else _console_line
        self._clock = clock
        self._output = sys.stderr if output is None else output
        self._metrics = Metrics()
        self._provider = _exporting_provider(traces_endpoint) if traces_endpoint else None
        provider = self._provider or trace.get_tracer_provider()
        self._tracer = provider.get_tracer(_SCOPE)

    def log(self, level: Level, event: str, **fields: Attribute | None) -> None:
        """Write one structured record if ``level`` is severe enough."""
        if _RANKS[level] < self._rank:
            return
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            fields["trace_id"] = f"{context.trace_id:032x}"
            fields["span_id"] = f"{context.span_id:016x}"
        stamp = datetime.fromtimestamp(self._clock.now_ms() / 1_000, UTC)
        line = self._write(stamp.isoformat(timespec="milliseconds"), level, event, fields)
        with suppress(OSError, ValueError):  # a closed or full stderr is nobody's failure
            self._output.write(line + "\n")
            self._output.flush()

    def span(self, name: str, **attributes: Attribute) -> AbstractContextManager[None]:
        """Trace the enclosed work as one span; an exception marks it failed and passes on.

        Costs next to nothing while nobody exports spans.
        """
        if self._provider is None and isinstance(
            trace.get_tracer_provider(), trace.ProxyTracerProvider
        ):
            return _UNTRACED
        return self._traced(name, attributes)

    @contextmanager
    def _traced(self, name: str, attributes: dict[str, Attribute]) -> Generator[None]:
        with self._tracer.start_as_current_span(name, attributes=attributes):
            yield

    def traceparent(self) -> str:
        """Return the running span's W3C traceparent, for another node; empty without a span."""
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return ""
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def within(self, traceparent: str) -> AbstractContextManager[None]:
        """Make spans of the enclosed work children of another node's span.

        Whatever is no traceparent is passed over.
        """
        return _remote_parent(traceparent) if traceparent else _UNTRACED

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Add ``amount`` (>= 0) to a counter."""
        self._report(self._metrics.count(name, amount, labels), name)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add ``value`` to a histogram."""
        self._report(self._metrics.observe(name, value, labels), name)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._report(self._metrics.gauge(name, value, labels), name)

    def metrics_text(self) -> str:
        """Return every metric in the Prometheus text format, the process's own included."""
        return self._metrics.text()

    def close(self) -> None:
        """Flush and stop the span exporter, if there is one; may block for some seconds."""
        if self._provider is not None:
            self._provider.shutdown()

    def _report(self, problem: str, name: str) -> None:
        if problem:
            self.log("warning", "telemetry.metric_refused", metric=name, problem=problem)


@contextmanager
def _remote_parent(traceparent: str) -> Generator[None]:
    token = attach(_propagator.extract({"traceparent": traceparent}))
    try:
        yield
    finally:
        detach(token)


def _json_line(stamp: str, level: str, event: str, fields: dict[str, Attribute | None]) -> str:
    return json.dumps({"time": stamp, "level": level, "event": event, **fields})


def _console_line(stamp: str, level: str, event: str, fields: dict[str, Attribute | None]) -> str:
    # JSON's escapes keep a field's control characters from the terminal.
    tail = "".join(f" {name}={json.dumps(value)}" for name, value in fields.items())
    return f"{stamp} {level.upper():7} {json.dumps(event)[1:-1]}{tail}"


def _exporting_provider(endpoint: str) -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        message = "exporting spans needs `pip install 'kelpie-runtime[otel]'`"
        raise UnavailableError(message) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "kelpie"}))
    target = f"{endpoint.rstrip('/')}/v1/traces"
    exporter = OTLPSpanExporter(endpoint=target, timeout=_EXPORT_TIMEOUT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
