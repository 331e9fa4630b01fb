"""The words of an agent: configuration, runs, transcript, and the messages its actor accepts.

An agent is the actor ``<tenant>/agent/<agent id>``. Its state is small: transcript messages are
rows of the actor's ordered map under ``message/<sequence, 12 digits>`` and never change.
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar, Final, Literal

import msgspec

from kelpie.actors.commands import Message
from kelpie.core import limits
from kelpie.core.ids import derive_uuid
from kelpie.llm.model import ToolCall, Usage
from kelpie.memory.blocks import Block

ACTOR_TYPE: Final = "agent"
COLLECTION: Final = "agents"
RUNS_COLLECTION: Final = "runs"
"""One row per run, owned by its agent, without a body: how a run id finds its agent."""

StopReason = Literal[
    "end_turn",
    "error",
    "llm_api_error",
    "invalid_llm_response",
    "invalid_tool_call",
    "max_steps",
    "max_tokens_exceeded",
    "cancelled",
    "requires_approval",
]
RunStatus = Literal["queued", "running", "waiting", "completed", "failed", "cancelled"]


def message_key(sequence: int) -> str:
    """Return the ordered-map key of a transcript message."""
    return f"message/{sequence:012d}"


def prompt_key(digest: str) -> str:
    """Return the ordered-map key of a system text."""
    return f"prompt/{digest}"


def answer_id(effect_id: str, attempt: int) -> str:
    """Return the id of the message that an attempt of a model call answers with.

    Known before the answer is: what streams carries the id under which it will be stored.
    """
    seed = hashlib.blake2b(effect_id.encode(), digest_size=16).digest()
    return f"message-{derive_uuid(seed, attempt)}"


def run_key(run_id: str) -> str:
    """Return the ordered-map key of a finished run."""
    return f"run/{run_id}"


def start_key(run_id: str) -> str:
    """Return the ordered-map key of the state before a run, kept while the run is remembered."""
    return f"start/{run_id}"


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a person configures about one agent.

    ``model`` is a handle ``<provider>/<name>``. ``workspace`` is an absolute directory, the only
    part of the host its tools see; empty for none. ``extra`` keeps client fields that the product
    stores and returns without acting on them.
    """

    name: str
    agent_type: str = "letta_v1_agent"
    system: str = ""
    model: str = ""
    model_settings: dict[str, Any] = {}
    context_window: int = 128_000
    description: str = ""
    metadata: dict[str, Any] = {}
    tags: tuple[str, ...] = ()
    timezone: str = "UTC"
    tools: tuple[str, ...] = ()
    workspace: str = ""
    steps_max: int = limits.STEPS_PER_RUN_MAX
    tokens_max: int = limits.TOKENS_PER_RUN_MAX
    extra: dict[str, Any] = {}


class TranscriptMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable message of the conversation. ``sequence`` counts from 1 per agent.

    Role ``tool`` answers the call ``tool_call_id``; ``status`` says how that went.
    """

    id: str
    sequence: int
    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    status: Literal["", "success", "error"] = ""
    reasoning: str = ""
    run_id: str = ""
    step_id: str = ""
    otid: str = ""
    sender_id: str = ""
    at_ms: int


class OpenCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call of the current step that has no return yet.

    ``phase`` counts the effects of the call that have settled; ``effect_ref`` is the open one's.
    ``context`` is the tool's own note between two effects. A ``settled`` call keeps its ``result``
    until all calls of its step have one: returns enter the transcript in the order of the calls.
    """

    call: ToolCall
    phase: int = 0
    effect_ref: str = ""
    effect_id: str = ""
    waiting: bool = False
    context: dict[str, Any] = {}
    settled: bool = False
    ok: bool = True
    result: str = ""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """The work in answer to one request; kept under ``run/<run id>`` once it has finished.

    ``repairs`` counts steps whose answer was garbage; ``tool_returns`` counts returns written;
    ``usage`` is the sum over its steps, ``step_usage`` that of the step in progress.
    """

    run_id: str
    status: RunStatus
    stop_reason: StopReason | Literal[""] = ""
    error: str = ""
    steps: int = 0
    steps_max: int
    repairs: int = 0
    tool_returns: int = 0
    usage: Usage = Usage()
    step_usage: Usage = Usage()
    step_id: str = ""
    model_ref: str = ""
    open_calls: tuple[OpenCall, ...] = ()
    created_ms: int
    finished_ms: int = 0
    background: bool = False


class QueuedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A request that arrived while another run was active; its messages join when it starts."""

    run: Run
    messages: tuple[TranscriptMessage, ...]


class AgentState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an agent's actor keeps in memory.

    ``window`` lists the transcript sequences that are in context, ascending; ``exchanges`` those
    of them at which a run began, the only places where the window may be cut. ``context_tokens``
    is what the last model call read and wrote. ``prompt`` is the digest of the system text stored
    under ``prompt/<digest>``. ``recent_runs`` are ids of finished runs, oldest first. An agent
    without a name was never created.
    """

    agent_id: str
    config: AgentConfig
    blocks: tuple[Block, ...] = ()
    window: tuple[int, ...] = ()
    exchanges: tuple[int, ...] = ()
    context_tokens: int = 0
    next_sequence: int = 1
    run: Run | None = None
    queue: tuple[QueuedRun, ...] = ()
    last_run: Run | None = None
    recent_runs: tuple[str, ...] = ()
    prompt: str = ""
    created_ms: int = 0
    updated_ms: int = 0


# --- commands and queries -----------------------------------------------------------------------


class CreateAgent(Message, frozen=True, tag="agent.create"):
    """Create the agent; replies with its `AgentState`."""

    config: AgentConfig
    blocks: tuple[Block, ...] = ()
    reply_type: ClassVar[Any] = AgentState


class UpdateAgent(Message, frozen=True, tag="agent.update"):
    """Replace fields of the `AgentConfig`; replies with the `AgentState`."""

    changes: dict[str, Any]
    reply_type: ClassVar[Any] = AgentState


class DeleteAgent(Message, frozen=True, tag="agent.delete"):
    """Delete the agent; an active run is cancelled first. Replies with None."""


class UpdateBlock(Message, frozen=True, tag="agent.block"):
    """Change a block by label; replies with the `Block`.

    ``changes`` may hold ``label``, ``value``, ``limit``, ``description``, ``read_only``,
    ``metadata`` and ``tags``.
    """

    label: str
    changes: dict[str, Any]
    reply_type: ClassVar[Any] = Block


class InputMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message a caller sends."""

    role: Literal["user", "system", "assistant"] = "user"
    content: str | list[dict[str, Any]] = ""
    name: str = ""
    otid: str = ""
    sender_id: str = ""


class StartRun(Message, frozen=True, tag="agent.run"):
    """Begin a run with these messages, or queue it; replies with the `Run`.

    ``run_id`` is chosen by the caller, so that a repeated request names the same run.
    """

    run_id: str
    messages: tuple[InputMessage, ...]
    steps_max: int = 0
    background: bool = False
    reply_type: ClassVar[Any] = Run


class CancelRun(Message, frozen=True, tag="agent.cancel"):
    """Cancel a run, active or queued; replies with the `Run`."""

    run_id: str
    reply_type: ClassVar[Any] = Run


class ShowAgent(Message, frozen=True, tag="agent.show"):
    """Query: the `AgentState`."""

    reply_type: ClassVar[Any] = AgentState


class ShowRun(Message, frozen=True, tag="agent.show_run"):
    """Query: a `Run` by id, active, queued or last."""

    run_id: str
    reply_type: ClassVar[Any] = Run


# --- events (`Emit.kind` and body) --------------------------------------------------------------
# run.started   {run_id}                      run.finished {run: Run}
# message       TranscriptMessage             run.waiting  {run_id, effect_id, call: ToolCall|None}
# step.started  {run_id, step_id, ref}        run.resumed  {run_id, effect_id}
# step.finished {run_id, step_id, usage}      context.trimmed {dropped, first}
# effect.late   {effect_id, ref, state}       effect.<state> (by the gate, see effects.gate)
