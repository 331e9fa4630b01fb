"""The agent actor's machine: which message does what.

Owns the entry, the codec and the answers to queries; what a run does lives in `loop`. Must never
read a clock, draw a random number or do I/O. The gate wraps it (`kelpie.effects.gate`).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from kelpie.actors.commands import Message
from kelpie.actors.machine import Decision, Turn
from kelpie.agents import care, loop, requests
from kelpie.agents.draft import Draft
from kelpie.agents.invariants import check_invariants
from kelpie.agents.model import (
    ACTOR_TYPE,
    AgentConfig,
    AgentState,
    CancelRun,
    CreateAgent,
    DeleteAgent,
    Run,
    ShowAgent,
    ShowRun,
    StartRun,
    UpdateAgent,
    UpdateBlock,
)
from kelpie.core import limits
from kelpie.core.errors import InvalidFieldError, NotFoundError, StoreVersionError
from kelpie.core.ids import ActorId
from kelpie.effects.messages import EffectApproved, EffectSettled, EffectWaiting
from kelpie.storage.records import StoredActor
from kelpie.tools.registry import ToolRegistry

_SCHEMA_VERSION: Final = 1


class AgentMachine:
    """The `Machine` of ``agent`` actors; ``tools`` are all the process offers."""

    __slots__ = ("_decoder", "_tools")

    def __init__(self, tools: ToolRegistry) -> None:
        self._tools = tools
        self._decoder = msgspec.msgpack.Decoder(AgentState)

    @property
    def type_name(self) -> str:
        """The ``type`` segment of agents' ids."""
        return ACTOR_TYPE

    @property
    def schema_version(self) -> int:
        """The version of the encoded state."""
        return _SCHEMA_VERSION

    @property
    def message_type(self) -> Any:
        """The union of all messages that ``decide`` or ``query`` accepts."""
        return (
            CreateAgent
            | UpdateAgent
            | DeleteAgent
            | UpdateBlock
            | StartRun
            | CancelRun
            | ShowAgent
            | ShowRun
            | EffectWaiting
            | EffectApproved
            | EffectSettled
        )

    def create(self, actor: ActorId) -> AgentState:
        """Return the state of an agent that was never created."""
        return AgentState(agent_id=actor.key, config=AgentConfig(name=""))

    def load(self, stored: StoredActor) -> AgentState:
        """Decode a stored state.

        Raises:
            StoreVersionError: Another schema version than this program's.
        """
        if stored.schema_version != _SCHEMA_VERSION:
            raise StoreVersionError(
                f"{stored.actor} has state version {stored.schema_version}, this program reads "
                f"{_SCHEMA_VERSION}; run the program that wrote it",
                version=stored.schema_version,
            )
        return self._decoder.decode(stored.state)

    def dump(self, state: AgentState) -> bytes:
        """Encode a state."""
        return msgspec.msgpack.encode(state)

    def decide(self, state: AgentState, message: Message, turn: Turn) -> Decision[AgentState]:
        """Return what follows from ``message``.

        Raises:
            NotFoundError: The agent, run or block does not exist.
            InputError: The message is refused; nothing changes.
            OverloadedError: Too many runs are queued.
        """
        draft = Draft(state, turn, self._tools)
        if isinstance(message, EffectWaiting | EffectApproved | EffectSettled):
            if not state.config.name:
                return Decision(state=state)
            _hear(draft, message)
        else:
            _obey(draft, message)
        loop.start_next(draft)
        check_invariants(draft.state)
        return Decision(state=draft.state, commands=tuple(draft.commands))

    def query(self, state: AgentState, query: Message) -> AgentState | Run:
        """Answer `ShowAgent` or `ShowRun`.

        Raises:
            NotFoundError: The agent or run does not exist.
            InvalidFieldError: The message is no query.
        """
        care.require_created(state)
        match query:
            case ShowAgent():
                return state
            case ShowRun(run_id=run_id):
                found = requests.find_run(state, run_id)
                if found is None:
                    raise NotFoundError("run", run_id[: limits.NAME_CHARS_MAX])
                return found
            case _:
                raise InvalidFieldError("query", f"{type(query).__name__} is not a query")


def _obey(draft: Draft, message: Message) -> None:
    """Carry out a command of a caller."""
    if not isinstance(message, CreateAgent):
        care.require_created(draft.state)
    match message:
        case CreateAgent():
            care.create_agent(draft, message)
        case UpdateAgent():
            care.update_agent(draft, message)
        case UpdateBlock():
            care.update_block(draft, message)
        case DeleteAgent():
            care.delete_agent(draft)
        case StartRun():
            requests.start_run(draft, message)
        case CancelRun():
            requests.cancel_run(draft, message)
        case _:
            raise InvalidFieldError("message", f"{type(message).__name__} is not a command")


def _hear(draft: Draft, message: EffectWaiting | EffectApproved | EffectSettled) -> None:
    """Take the gate's word about an effect."""
    match message:
        case EffectWaiting():
            loop.note_waiting(draft, message)
        case EffectApproved():
            loop.note_approved(draft, message)
        case EffectSettled():
            loop.settle_effect(draft, message)
