"""What a pump works with: the store it reads, the runtime it feeds, and the world around both."""

from __future__ import annotations

from dataclasses import dataclass

from kelpie.actors.engine import Engine
from kelpie.actors.supervisor import Supervisor
from kelpie.ports.clock import Clock
from kelpie.ports.telemetry import Telemetry
from kelpie.storage.protocol import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class PumpDeps:
    """The collaborators of the outbox pump and the reminder pump."""

    store: Store
    runtime: Engine
    clock: Clock
    telemetry: Telemetry
    supervisor: Supervisor
