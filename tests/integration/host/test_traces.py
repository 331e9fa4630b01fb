from __future__ import annotations

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from opentelemetry import trace

from kelpie.host.clock import HostClock
from kelpie.host.telemetry import HostTelemetry


class Collector(BaseHTTPRequestHandler):
    """Answers one export and keeps its path."""

    paths: tuple[str, ...] = ()

    def do_POST(self) -> None:
        Collector.paths = (*Collector.paths, self.path)
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base names it
        """Keep the test's output clean."""


def test_spans_are_exported_and_named_in_the_records() -> None:
    output = io.StringIO()
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        telemetry = HostTelemetry(
            level="info",
            style="json",
            clock=HostClock(),
            output=output,
            traces_endpoint=f"http://127.0.0.1:{server.server_port}",
        )
        with telemetry.span("turn", actor="a"):
            telemetry.log("info", "inside")
            context = trace.get_current_span().get_span_context()
        telemetry.log("info", "outside")
        telemetry.close()
        thread.join(10)
    assert Collector.paths == ("/v1/traces",)
    inside, outside = map(json.loads, output.getvalue().splitlines())
    assert inside["trace_id"] == f"{context.trace_id:032x}"
    assert "trace_id" not in outside
