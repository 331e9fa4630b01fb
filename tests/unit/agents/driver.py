"""Drives the agent machine turn by turn, as the gate would, and keeps what its commands wrote."""

from __future__ import annotations

from typing import Any

import msgspec

from kelpie.actors.commands import (
    Command,
    Delete,
    DeleteKv,
    Emit,
    Message,
    PutKv,
    PutListItem,
    Reply,
)
from kelpie.actors.machine import Turn
from kelpie.agents.invariants import check_invariants
from kelpie.agents.machine import AgentMachine
from kelpie.agents.model import (
    AgentConfig,
    AgentState,
    CancelRun,
    CreateAgent,
    InputMessage,
    Run,
    StartRun,
    TranscriptMessage,
)
from kelpie.core.ids import ActorId, Tenant
from kelpie.effects.messages import CancelEffect, EffectApproved, EffectSettled, EffectWaiting
from kelpie.effects.model import DiffCard, Effect, EffectRecord, Outcome
from kelpie.llm.model import FinishReason, ModelAnswer, ToolCall, Usage
from kelpie.memory.blocks import Block
from kelpie.storage.records import EffectState
from kelpie.tools.builtin import builtin_registry

ACTOR = ActorId(Tenant("default"), "agent", "agent-1")
TOOLS = builtin_registry()
BLOCKS = (Block(id="block-1", label="human", value="Name: Ada"),)
CONFIG = AgentConfig(
    name="Ada's helper", model="scripted/one", tools=TOOLS.names, workspace="/srv/work"
)


def answer(
    text: str = "", *calls: ToolCall, finish: FinishReason = "stop", tokens: int = 10
) -> ModelAnswer:
    """Return a model's answer that cost ``tokens`` both ways together."""
    usage = Usage(prompt_tokens=tokens - 1, completion_tokens=1)
    return ModelAnswer(text=text, tool_calls=calls, finish=finish, usage=usage)


def tool_call(name: str, call_id: str = "call-1", /, **arguments: Any) -> ToolCall:
    """Return a call with these arguments."""
    text = msgspec.json.encode(arguments).decode()
    return ToolCall(id=call_id, name=name, arguments=text)


class Driver:
    """One agent: feeds messages, applies commands, remembers what is open."""

    def __init__(self, config: AgentConfig = CONFIG, blocks: tuple[Block, ...] = BLOCKS) -> None:
        self.machine = AgentMachine(TOOLS)
        self.state: AgentState = self.machine.create(ACTOR)
        self.turns = 0
        self.kv: dict[str, Any] = {}
        self.lists: list[PutListItem] = []
        self.events: list[Emit] = []
        self.open: dict[str, Effect] = {}
        self.cancelled: list[str] = []
        self.commands: tuple[Command, ...] = ()
        self.feed(CreateAgent(config=config, blocks=blocks))

    def feed(self, message: Message) -> Any:
        """Give the machine a message; returns its reply."""
        self.turns += 1
        turn = Turn(
            actor=ACTOR,
            now_ms=1_000 + self.turns,
            seed=self.turns.to_bytes(16, "big"),
            principal="test",
        )
        decision = self.machine.decide(self.state, message, turn)
        stored = self.machine.dump(decision.state)
        assert msgspec.msgpack.decode(stored, type=AgentState) == decision.state
        self.state = decision.state
        check_invariants(self.state)
        self.commands = decision.commands
        replies = [self._apply(command) for command in decision.commands]
        return next((reply for reply in replies if reply is not None), None)

    def _apply(self, command: Command) -> Any:
        match command:
            case PutKv(key=key, value=value):
                assert not key.startswith("message/") or key not in self.kv, "messages never change"
                self.kv[key] = value
            case PutListItem():
                self.lists.append(command)
            case Emit():
                msgspec.msgpack.encode(command.body)
                self.events.append(command)
            case Effect():
                assert command.ref not in self.open, "references are unique"
                msgspec.msgpack.encode(command.args)
                self.open[command.ref] = command
            case CancelEffect(ref=ref):
                assert ref in self.open, "only what is open is cancelled"
                del self.open[ref]
                self.cancelled.append(ref)
            case Reply(value=value):
                return value
            case Delete():
                self.kv.clear()
            case DeleteKv():
                raise AssertionError("an agent removes no row of its own")
        return None

    # --- requests -----------------------------------------------------------------------------

    def start(self, run_id: str = "run-1", text: str = "hello", steps_max: int = 0) -> Run:
        """Ask for a run."""
        messages = (InputMessage(content=text),)
        run: Run = self.feed(StartRun(run_id=run_id, messages=messages, steps_max=steps_max))
        return run

    def cancel(self, run_id: str = "run-1") -> Run:
        """Cancel a run."""
        run: Run = self.feed(CancelRun(run_id=run_id))
        return run

    # --- the gate's side ----------------------------------------------------------------------

    def refs(self, kind: str = "") -> list[str]:
        """Return the references of open effects, of one kind if given."""
        return [ref for ref, effect in self.open.items() if kind in {"", effect.kind}]

    def say(self, said: ModelAnswer) -> None:
        """Settle the open model call with an answer."""
        (ref,) = self.refs("model.generate")
        self.settle(ref, result=msgspec.to_builtins(said))

    def settle(
        self,
        ref: str,
        state: EffectState = "done",
        *,
        result: dict[str, Any] | None = None,
        error: str = "",
    ) -> None:
        """Settle an open effect."""
        effect = self.open.pop(ref)
        self.feed(settled(effect, state, result=result, error=error))

    def wait(self, ref: str) -> None:
        """Have an effect wait for a person."""
        card = DiffCard(title="?")
        self.feed(EffectWaiting(effect_id=f"effect:{ref}", ref=ref, card=card))

    def approve(self, ref: str) -> None:
        """Have a person approve an effect."""
        self.feed(EffectApproved(effect_id=f"effect:{ref}", ref=ref))

    # --- what came of it ----------------------------------------------------------------------

    @property
    def transcript(self) -> list[TranscriptMessage]:
        """All messages, in order."""
        return [self.kv[key] for key in sorted(self.kv) if key.startswith("message/")]

    @property
    def returns(self) -> list[TranscriptMessage]:
        """All tool returns, in order."""
        return [message for message in self.transcript if message.role == "tool"]

    @property
    def status(self) -> str:
        """The active run's status."""
        assert self.state.run is not None
        return self.state.run.status

    @property
    def window(self) -> list[int]:
        """The sequences in context."""
        return list(self.state.window)

    def kinds(self) -> list[str]:
        """Return the kinds of all events."""
        return [event.kind for event in self.events]

    def last(self) -> Run:
        """Return the run that ended last."""
        assert self.state.last_run is not None
        return self.state.last_run


def settled(
    effect: Effect,
    state: EffectState = "done",
    *,
    result: dict[str, Any] | None = None,
    error: str = "",
) -> EffectSettled:
    """Return the gate's word that an effect reached an end."""
    status: Any = state if state in {"done", "failed", "voided", "cancelled"} else "unknown"
    ran = state in {"done", "failed", "voided", "cancelled", "unknown"}
    record = EffectRecord(
        effect_id=f"effect:{effect.ref}",
        kind=effect.kind,
        ref=effect.ref,
        args=effect.args,
        state=state,
        promise="once",
        timeout_ms=effect.timeout_ms,
        outcome=Outcome(status=status, result=result or {}, error=error) if ran else None,
        note="" if ran else error,
        created_ms=0,
        updated_ms=0,
    )
    return EffectSettled(effect_id=record.effect_id, ref=effect.ref, record=record)


def check_pairs(transcript: list[TranscriptMessage], *, open_calls: int = 0) -> None:
    """Fail unless every tool call is followed by exactly its returns, in order."""
    expected: list[str] = []
    for message in transcript:
        if expected:
            assert message.role == "tool", "a call is answered before anything else is said"
            assert message.tool_call_id == expected.pop(0), "returns follow the order of the calls"
        else:
            assert message.role != "tool", "a return answers a call"
        expected.extend(call.id for call in message.tool_calls)
    assert len(expected) == open_calls, "only the step in progress has unanswered calls"
