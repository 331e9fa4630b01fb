"""Health and metrics."""

from __future__ import annotations

from typing import Final

from kelpie.server.http import Response, json_response
from kelpie.server.operations import Call, Nothing
from kelpie.server.ops.responses import HealthOut

METRICS_MEDIA: Final = "text/plain; version=0.0.4; charset=utf-8"


async def show_health(call: Call[Nothing, Nothing]) -> Response:
    """Say that the server answers; while it drains, the gate has said otherwise before."""
    return json_response(HealthOut(status="ok", version=call.deps.version))


async def show_metrics(call: Call[Nothing, Nothing]) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(body=call.deps.metrics_text().encode(), media=METRICS_MEDIA.encode())
