"""Kelpie: durable, contained and accountable AI agents.

The public names are looked up when they are first used: importing the package costs nothing and
has no side effect.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kelpie.actors.api.context import Context
    from kelpie.actors.api.definition import Actor
    from kelpie.actors.api.gateway import Event
    from kelpie.actors.api.handle import CallHandle
    from kelpie.actors.api.method import command, outcome, query, reminder
    from kelpie.actors.api.reference import ref
    from kelpie.actors.api.settled import Settled
    from kelpie.actors.api.upcast import State, upcast
    from kelpie.app.embed import Runtime
    from kelpie.app.remote import Remote, connect
    from kelpie.app.remote_desks import ApprovalInfo, CallInfo, RunInfo
    from kelpie.core.errors import KelpieError

__all__ = [
    "Actor",
    "ApprovalInfo",
    "CallHandle",
    "CallInfo",
    "Context",
    "Event",
    "KelpieError",
    "Remote",
    "RunInfo",
    "Runtime",
    "Settled",
    "State",
    "__version__",
    "command",
    "connect",
    "outcome",
    "query",
    "ref",
    "reminder",
    "upcast",
]

_HOMES = {
    "Actor": "kelpie.actors.api.definition",
    "ApprovalInfo": "kelpie.app.remote_desks",
    "CallHandle": "kelpie.actors.api.handle",
    "CallInfo": "kelpie.app.remote_desks",
    "Context": "kelpie.actors.api.context",
    "Event": "kelpie.actors.api.gateway",
    "KelpieError": "kelpie.core.errors",
    "Remote": "kelpie.app.remote",
    "RunInfo": "kelpie.app.remote_desks",
    "Runtime": "kelpie.app.embed",
    "Settled": "kelpie.actors.api.settled",
    "State": "kelpie.actors.api.upcast",
    "command": "kelpie.actors.api.method",
    "connect": "kelpie.app.remote",
    "outcome": "kelpie.actors.api.method",
    "query": "kelpie.actors.api.method",
    "ref": "kelpie.actors.api.reference",
    "reminder": "kelpie.actors.api.method",
    "upcast": "kelpie.actors.api.upcast",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'kelpie' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
