"""The hands of ``command.run``: one command in a sandbox.

A green command sees the workspace read-only; any other runs on a scratch layer, whose changes are
reported and never reach the workspace from here. Without the sandbox there is no command.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from kelpie.core import limits
from kelpie.core.errors import InvalidFieldError, KelpieError
from kelpie.core.ids import ActorId
from kelpie.effects.executor import Order
from kelpie.effects.model import DiffCard, EffectRecord, Outcome, Preparation, Promise
from kelpie.ports.clock import Clock
from kelpie.sandbox.protocol import Access, Bounds, CommandRequest, CommandResult, Sandbox
from kelpie.tools.answers import cut_text, require_path
from kelpie.tools.workspace import Allowed, dump_changes, require_root

KIND: Final = "command.run"
_TEXT_BYTES_MAX: Final = limits.SANDBOX_OUTPUT_BYTES_MAX // 4
_CHANGES_BYTES_MAX: Final = limits.EFFECT_ARGS_BYTES_MAX // 2
_LEFT_OUT_SHOWN: Final = 20

assert 2 * _TEXT_BYTES_MAX + _CHANGES_BYTES_MAX < limits.EFFECT_RESULT_BYTES_MAX


class CommandExecutor:
    """The `Executor` of commands; ``allowed`` says which roots are workspaces."""

    __slots__ = ("_allowed", "_clock", "_sandbox", "concurrency_max")

    def __init__(
        self,
        *,
        sandbox: Sandbox,
        allowed: Allowed,
        clock: Clock,
        concurrency_max: int = limits.COMMANDS_CONCURRENT_MAX,
    ) -> None:
        assert concurrency_max > 0, "an executor runs something"
        self._sandbox = sandbox
        self._allowed = allowed
        self._clock = clock
        self.concurrency_max = concurrency_max

    @property
    def kind(self) -> str:
        """The effect kind it runs."""
        return KIND

    def promise(self, args: dict[str, Any]) -> Promise:
        """Return ``once``, or ``repeatable`` for a command that is declared idempotent."""
        return "repeatable" if args.get("idempotent") is True else "once"

    async def prepare(self, actor: ActorId, record: EffectRecord) -> Preparation | Outcome:
        """Describe the command; runs nothing."""
        try:
            request = self._plan(record, "overlay")
        except KelpieError as error:
            return Outcome(status="failed", error=error.message, code=error.code, sent=False)
        directory = request.directory
        where = f"{self._sandbox.tier} sandbox, {request.workspace} at {directory}, no network"
        again = ", declared idempotent" if self.promise(record.args) == "repeatable" else ""
        card = DiffCard(
            title=f"Run {request.argv[0]}{again}",
            argv=request.argv,
            where=where,
            undo="discard: its changes to files land only when they are approved as well",
        )
        facts = {"argv": list(request.argv), "directory": directory, "actor": actor.key}
        return Preparation(card=card, facts=facts)

    async def execute(self, order: Order) -> Outcome:
        """Run the command to its end, or to a bound, and say how it ended and what it changed.

        Raises:
            SandboxError: The sandbox could not be set up; nothing ran.
            UnavailableError: The sandbox does not work on this host; nothing ran.
        """
        if self._clock.now_ms() >= order.not_after_ms:
            error = "the command's time was over before it began"
            return Outcome(status="failed", error=error, code="deadline_exceeded", sent=False)
        verdict = order.record.verdict
        green = verdict is not None and verdict.color == "green"
        try:
            request = self._plan(order.record, "read" if green else "overlay")
        except KelpieError as error:
            return Outcome(status="failed", error=error.message, code=error.code, sent=False)

        async def print_chunk(stream: str, data: bytes) -> None:
            for start in range(0, len(data), limits.STREAM_ROW_BYTES_MAX):
                await order.stream(stream, data[start : start + limits.STREAM_ROW_BYTES_MAX])

        return _report(await self._sandbox.run(request, print_chunk))

    async def reconcile(self, order: Order) -> Outcome | None:
        """Return ``unknown``: what a command came to cannot be read back."""
        assert order.record.kind == KIND, "an order of another kind"
        return Outcome(status="unknown", error="a command's outcome cannot be read back")

    def _plan(self, record: EffectRecord, access: Access) -> CommandRequest:
        args = record.args
        root = require_root(args, self._allowed)
        try:
            argv = msgspec.convert(args.get("argv"), tuple[str, ...])
            timeout_ms = msgspec.convert(args.get("timeout_ms", limits.SANDBOX_TIMEOUT_MS), int)
        except msgspec.ValidationError as error:
            raise InvalidFieldError("argv or timeout_ms", str(error)) from error
        if not argv or not argv[0]:
            raise InvalidFieldError("argv", "must begin with the program's name")
        if not 0 < timeout_ms <= limits.SANDBOX_TIMEOUT_MS_MAX:
            problem = f"{timeout_ms} must be from 1 to {limits.SANDBOX_TIMEOUT_MS_MAX:,}"
            raise InvalidFieldError("timeout_ms", problem)
        return CommandRequest(
            argv=argv,
            workspace=root,
            access=access,
            directory=require_path(args, "directory"),
            bounds=Bounds(timeout_ms=timeout_ms),
        )


def _report(result: CommandResult) -> Outcome:
    """Return the outcome of a command that ended; too many changes to review make it a failure."""
    stdout = result.stdout.decode(errors="replace")
    stderr = result.stderr.decode(errors="replace")
    shown_out, shown_err = cut_text(stdout, _TEXT_BYTES_MAX), cut_text(stderr, _TEXT_BYTES_MAX)
    changes = dump_changes(result.changes)
    report: dict[str, Any] = {
        "exit_status": result.exit_status,
        "stdout": shown_out,
        "stderr": shown_err,
        "output_cut": result.output_cut or shown_out != stdout or shown_err != stderr,
        "stopped_by": result.stopped_by,
        "changes": changes,
    }
    if result.left_out:
        report["left_out"] = list(result.left_out[:_LEFT_OUT_SHOWN])
        report["left_out_count"] = len(result.left_out)
    size = len(msgspec.msgpack.encode(changes))
    if len(changes) > limits.WORKSPACE_ENTRIES_MAX or size > _CHANGES_BYTES_MAX:
        error = f"it changed {len(changes):,} paths, too many to review; they are discarded"
        report["changes"] = []
        return Outcome(status="failed", result=report, error=error, code="limit_exceeded")
    return Outcome(status="done", result=report)
