"""Who answers a fork: the shipped executors over nothing real.

Model calls run through the shipped executor with a provider that says what it was given; reads and
commands through theirs in a simulated sandbox; files land in an empty directory of the fork's own,
whatever root an effect names. The whole fork lives in a sealed loop of virtual time.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from kelpie.agents.model_executor import KIND as MODEL_KIND
from kelpie.agents.model_executor import ModelExecutor
from kelpie.app.wiring import kinds_of
from kelpie.core.errors import KelpieError, ModelError
from kelpie.core.ids import ActorId
from kelpie.effects.executor import Executor, Order
from kelpie.effects.model import EffectRecord, FileDiff, Outcome, Preparation
from kelpie.effects.rules import EffectKind
from kelpie.infra.executor import PlanExecutor
from kelpie.llm.model import Delta, ModelAnswer, ModelRequest, ToolCall
from kelpie.sandbox.protocol import CommandRequest, CommandResult, FileChange, OutputSink
from kelpie.sim.faults.catalogue import CATALOGUE
from kelpie.sim.faults.plan import NoFaults
from kelpie.sim.model import NO_SUCH_TOOL
from kelpie.sim.sandbox import SimulatedSandbox
from kelpie.storage.blobs import BlobStore
from kelpie.tools.apply_executor import FilesApplyExecutor
from kelpie.tools.command_executor import CommandExecutor
from kelpie.tools.local_files import LocalFiles, LocalTarget
from kelpie.tools.read_executor import FilesReadExecutor
from kelpie.tools.registry import ToolRegistry
from kelpie.tools.workspace import Applied, Standing

T = TypeVar("T")

REFUSALS: Final = {
    "model.timeout": ModelError("timeout", "the model did not answer in time"),
    "model.failure": ModelError("server", "the provider answered 500", status=500),
    "model.rate_limited": ModelError("rate_limited", "the provider answered 429", status=429),
    "model.garbage": ModelError("malformed", "the answer is not JSON"),
    "model.cut_answer": ModelError("malformed", "the answer ends without its end"),
}
"""What the shipped providers make of a model's fault, once they have tried again in vain."""
SPOILT: Final = frozenset({"model.empty_answer", "model.unknown_tool", "model.bad_arguments"})
MODEL_FAULTS: Final = frozenset(REFUSALS) | SPOILT
SANDBOX_FAULTS: Final = frozenset(
    {
        "sandbox.boot_fail",
        "sandbox.crash",
        "sandbox.exec_fail",
        "sandbox.exec_timeout",
        "sandbox.output_flood",
        "sandbox.harvest_fail",
    }
)
SANDBOX_KINDS: Final = frozenset({"command.run", "files.read"})


@dataclass(slots=True)
class ForkClock:
    """The clock of a fork: it stands still within a turn, and its sleep is virtual."""

    at_ms: int

    def now_ms(self) -> int:
        """Return the fork's wall time."""
        return self.at_ms

    def boot_ns(self) -> int:
        """Return the same on the clock that never goes back."""
        return self.at_ms * 1_000_000

    async def sleep(self, seconds: float) -> None:
        """Wait in virtual time."""
        await asyncio.sleep(seconds)


class OneFault(NoFaults):
    """Lets the fault of this name happen at every occasion, and no other."""

    def __init__(self, name: str) -> None:
        self._name = name

    def fires(self, name: str) -> bool:
        """Return whether it is that fault."""
        assert name in CATALOGUE, f"{name} is not in the catalogue of faults"
        return name == self._name


class Conversation:
    """The ordered map of the run's agent: what was there, and what the fork's turns wrote."""

    def __init__(self, rows: dict[str, bytes]) -> None:
        self.rows = dict(rows)

    async def kv_get(self, actor: ActorId, key: str) -> bytes | None:
        """Return a value; there is one actor."""
        del actor
        return self.rows.get(key)

    async def kv_range(
        self, actor: ActorId, start: str, end: str, *, limit: int, descending: bool = False
    ) -> list[tuple[str, bytes]]:
        """Return pairs with start <= key < end, in order."""
        del actor
        keys = sorted((key for key in self.rows if start <= key < end), reverse=descending)
        return [(key, self.rows[key]) for key in keys[:limit]]


class _Provider:
    """Says one answer, or fails in one way."""

    def __init__(self, said: ModelAnswer | ModelError) -> None:
        self._said = said

    async def stream(self, request: ModelRequest) -> AsyncIterator[Delta | ModelAnswer]:
        """Yield the answer whole."""
        assert request.messages, "a model is asked something"
        if isinstance(self._said, ModelError):
            raise self._said
        yield self._said

    async def list_models(self) -> list[str]:
        """Return nothing: nobody asks in a fork."""
        return []


class _Elsewhere(SimulatedSandbox):
    """A simulated sandbox that sees the fork's directory whatever workspace is asked for."""

    place: Path

    async def run(self, request: CommandRequest, sink: OutputSink | None = None) -> CommandResult:
        """Run one simulated command over the fork's directory."""
        return await super().run(dataclasses.replace(request, workspace=self.place), sink)


class _FilesElsewhere:
    """`LocalFiles` over the fork's directory, whatever root is asked for."""

    def __init__(self, blobs: BlobStore, place: Path) -> None:
        self._files = LocalFiles(blobs)
        self._place = place

    async def resolve_write(self, root: Path, path: str, content: bytes) -> FileChange:
        """Return the change that gives ``path`` this content."""
        del root
        return await self._files.resolve_write(self._place, path, content)

    async def diff(self, root: Path, changes: Sequence[FileChange]) -> tuple[FileDiff, ...]:
        """Return the differences that ``changes`` would make."""
        del root
        return await self._files.diff(self._place, changes)

    async def apply(self, root: Path, changes: Sequence[FileChange]) -> Applied:
        """Bring every path to its ``after``."""
        del root
        return await self._files.apply(self._place, changes)

    async def reconcile(self, root: Path, changes: Sequence[FileChange]) -> Standing:
        """Return where the paths stand."""
        del root
        return await self._files.reconcile(self._place, changes)


class Hands:
    """The executors of a fork.

    Attributes:
        conversation: What model calls are built from.
        clock: The fork's.
    """

    def __init__(self, directory: Path, rows: dict[str, bytes], tools: ToolRegistry) -> None:
        self.conversation = Conversation(rows)
        self.clock = ForkClock(0)
        self._tools = tools
        self._blobs = BlobStore(directory / "blobs")
        self._place = directory / "workspace"
        self._place.mkdir()

    def kinds(self) -> dict[str, EffectKind]:
        """Return what the gate must know of each kind, as the shipped executors say."""
        return kinds_of(tuple(self._executors(ModelError("unreachable", "nobody"), "").values()))

    async def prepare(self, actor: ActorId, record: EffectRecord) -> Preparation | Outcome:
        """Describe an effect as its executor does."""
        executor = self._executors(ModelError("unreachable", "nobody"), "")[record.kind]
        return await _contain(executor.prepare(actor, record), sent=False)

    async def ask(
        self, actor: ActorId, record: EffectRecord, said: ModelAnswer | ModelError
    ) -> Outcome:
        """Carry out a model call whose provider says ``said``."""
        assert record.kind == MODEL_KIND, "only a model is asked"
        executor = self._executors(said, "")[MODEL_KIND]
        return await _contain(executor.execute(_order(actor, record)), sent=True)

    async def execute(self, actor: ActorId, record: EffectRecord, fault: str) -> Outcome:
        """Carry out any other effect, with a fault of the sandbox or none."""
        executor = self._executors(ModelError("unreachable", "nobody"), fault)[record.kind]
        return await _contain(executor.execute(_order(actor, record)), sent=True)

    def _executors(self, said: ModelAnswer | ModelError, fault: str) -> dict[str, Executor]:
        sandbox = _Elsewhere({}, self._blobs, [], OneFault(fault) if fault else None)
        sandbox.place = self._place
        local = LocalFiles(self._blobs)
        executors: tuple[Executor, ...] = (
            ModelExecutor(
                store=self.conversation,
                tools=self._tools,
                resolve=lambda _: _Provider(said),
                clock=self.clock,
            ),
            FilesReadExecutor(sandbox=sandbox, allowed=_any_root),
            FilesApplyExecutor(files=_FilesElsewhere(self._blobs, self._place), allowed=_any_root),
            CommandExecutor(sandbox=sandbox, allowed=_any_root, clock=self.clock),
            PlanExecutor(open_target=lambda _: LocalTarget(self._place, local)),
        )
        return {each.kind: each for each in executors}


def spoil(answer: ModelAnswer, fault: str) -> ModelAnswer | ModelError:
    """Return what a fault of the model makes of an answer."""
    if fault in REFUSALS:
        return REFUSALS[fault]
    assert fault in SPOILT, f"{fault} is no fault of a model"
    if fault == "model.empty_answer":
        return msgspec.structs.replace(answer, text="", tool_calls=())
    if fault == "model.unknown_tool":
        call = ToolCall(id="call_1", name=NO_SUCH_TOOL, arguments="{}")
        return msgspec.structs.replace(answer, tool_calls=(call,), finish="tool_calls")
    cut = tuple(
        msgspec.structs.replace(call, arguments=call.arguments[: len(call.arguments) // 2])
        for call in answer.tool_calls
    )
    return msgspec.structs.replace(answer, tool_calls=cut)


def _any_root(root: str) -> bool:
    """Allow every root: none of them is ever looked at."""
    return bool(root)


def _order(actor: ActorId, record: EffectRecord) -> Order:
    async def forget(kind: str, body: bytes) -> None:
        assert kind or body, "a chunk is something"

    return Order(
        actor=actor,
        record=record,
        attempt=record.attempt,
        not_after_ms=record.due_ms,
        stream=forget,
    )


async def _contain(work: Awaitable[T], *, sent: bool) -> T | Outcome:
    """Return what an executor returns; what it raises fails the effect alone."""
    try:
        return await work
    except KelpieError as error:
        return Outcome(status="failed", error=error.message, code=error.code, sent=sent)
