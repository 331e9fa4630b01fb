"""What the workers beside the engine share: the store, the runtime, and the world around both."""

from __future__ import annotations

from dataclasses import dataclass

from kelpie.actors.engine import Engine
from kelpie.actors.supervisor import Supervisor
from kelpie.ports.clock import Clock
from kelpie.ports.telemetry import Telemetry
from kelpie.storage.protocol import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class PumpDeps:
    """The collaborators of the pumps, of submitted calls and of pauses."""

    store: Store
    runtime: Engine
    clock: Clock
    telemetry: Telemetry
    supervisor: Supervisor
