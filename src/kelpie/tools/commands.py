"""The tool that runs a command.

Pure. A call has up to two effects: ``command.run`` on a scratch layer, and, when that changed
files, ``files.apply``: the landing, with a Diff Card of its own. Without the second yes the
changes are discarded.
"""

from __future__ import annotations

import shlex
from typing import Any, Final

from kelpie.core.digests import Digest, digest_value
from kelpie.core.errors import InvalidFieldError, LimitExceededError
from kelpie.core.limits import (
    ARGUMENTS_BYTES_MAX,
    ARGUMENTS_MAX,
    EXECUTOR_MARGIN_MS,
    SANDBOX_START_TIMEOUT_MS,
    SANDBOX_TIMEOUT_MS,
    SANDBOX_TIMEOUT_MS_MAX,
    TOOL_RETURN_BYTES_MAX,
)
from kelpie.tools.answers import count_of, cut_text, explain_failure, require_path
from kelpie.tools.files import FILES_TIMEOUT_MS
from kelpie.tools.model import Settlement, ToolContext, ToolReturn, Wish

_PATHS_SHOWN: Final = 20
_OVERHEAD_MS: Final = SANDBOX_START_TIMEOUT_MS + 2 * EXECUTOR_MARGIN_MS
_SUMMARY_CHARS_MAX: Final = 200


class CommandTool:
    """``run_command``: one program with its arguments, no shell."""

    __slots__ = ("definition", "description", "name", "parameters")

    def __init__(self) -> None:
        self.name = "run_command"
        self.description = (
            "Run a program in a sandbox over the workspace, without network. A person approves "
            "the command first. Files it changes are kept apart until a person approves the "
            "changes too. Say `idempotent` only if running it twice is the same as once."
        )
        seconds = SANDBOX_TIMEOUT_MS_MAX // 1_000
        self.parameters: dict[str, Any] = {
            "type": "object",
            "properties": {
                "argv": {
                    "type": "array",
                    "items": {"type": "string"},
                    "minItems": 1,
                    "maxItems": ARGUMENTS_MAX,
                    "description": "The program and its arguments; no shell reads them.",
                },
                "directory": {"type": "string", "description": "Where, relative to the workspace."},
                "timeout_s": {"type": "integer", "minimum": 1, "maximum": seconds},
                "idempotent": {"type": "boolean"},
            },
            "required": ["argv"],
            "additionalProperties": False,
        }
        self.definition: Digest = digest_value([self.name, self.description, self.parameters])

    def begin(self, arguments: dict[str, Any], context: ToolContext) -> Wish:
        """Wish for the command.

        Raises:
            InputError: ``argv`` is too long or names nothing, or there is no workspace.
        """
        argv: list[str] = arguments["argv"]
        _check_argv(argv)
        timeout_ms = arguments.get("timeout_s", SANDBOX_TIMEOUT_MS // 1_000) * 1_000
        args = {
            "root": context.require_workspace(),
            "argv": argv,
            "timeout_ms": timeout_ms,
            "idempotent": bool(arguments.get("idempotent", False)),
            "directory": require_path(arguments, "directory"),
        }
        return Wish(
            kind="command.run",
            args=args,
            timeout_ms=timeout_ms + _OVERHEAD_MS,
            summary=f"run {shlex.join(argv)}"[:_SUMMARY_CHARS_MAX],
            note={"root": args["root"]},
        )

    def settle(self, arguments: dict[str, Any], settlement: Settlement) -> ToolReturn | Wish:
        """Tell how the command ended, or wish for the landing of what it changed."""
        assert settlement.phase in {0, 1}, "a command has at most two effects"
        if settlement.phase == 1:
            return _settle_landing(settlement)
        record = settlement.record
        if record.state != "done" or record.outcome is None:
            return _with_output(explain_failure(record, "the command"), record.outcome)
        result = record.outcome.result
        report = _report(result)
        changes: list[dict[str, Any]] = result.get("changes") or []
        if result.get("stopped_by"):
            text = "Its changes, if any, are discarded: it was stopped."
            return ToolReturn(text=cut_text(f"{text}\n{report}"), ok=False)
        if not changes:
            return ToolReturn(text=cut_text(report), ok=result.get("exit_status") == 0)
        argv: list[str] = arguments["argv"]
        args = {"root": settlement.note["root"], "changes": changes, "from_command": argv}
        if result.get("left_out"):
            args |= {name: result[name] for name in ("left_out", "left_out_count")}
        summary = f"land {count_of(len(changes), 'changed path')} of {shlex.join(argv)}"
        return Wish(
            kind="files.apply",
            args=args,
            timeout_ms=FILES_TIMEOUT_MS,
            summary=summary[:_SUMMARY_CHARS_MAX],
            note={
                "report": cut_text(report, TOOL_RETURN_BYTES_MAX // 2),
                "ok": result.get("exit_status") == 0,
                "paths": [str(change.get("path", "")) for change in changes[:_PATHS_SHOWN]],
                "paths_count": len(changes),
            },
        )


def _settle_landing(settlement: Settlement) -> ToolReturn:
    note, record = settlement.note, settlement.record
    hidden = note["paths_count"] - len(note["paths"])
    paths = ", ".join(note["paths"]) + (f" and {hidden:,} more" if hidden else "")
    if record.state == "done":
        text = f"{note['report']}\nIts changes landed in the workspace: {paths}"
        return ToolReturn(text=cut_text(text), ok=note["ok"])
    failure = explain_failure(record, "the landing of its changes")
    fate = "may or may not have landed" if record.state == "unknown" else "were discarded"
    text = f"The command ran, but its changes {fate} ({paths}).\n{failure.text}\n{note['report']}"
    return ToolReturn(text=cut_text(text), ok=False)


def _with_output(failure: ToolReturn, outcome: Any) -> ToolReturn:
    """Add what a failed command printed, if its outcome says so."""
    if outcome is None or "exit_status" not in outcome.result:
        return failure
    return ToolReturn(text=cut_text(f"{failure.text}\n{_report(outcome.result)}"), ok=False)


def _report(result: dict[str, Any]) -> str:
    lines = [f"exit status {result.get('exit_status')}"]
    if result.get("stopped_by"):
        lines.append(f"stopped by its bound: {result['stopped_by']}")
    for stream in ("stdout", "stderr"):
        text = str(result.get(stream, ""))
        if text:
            lines.append(f"{stream}:\n{cut_text(text, TOOL_RETURN_BYTES_MAX // 5)}")
    if left_out := result.get("left_out"):
        hidden = result.get("left_out_count", 0) - len(left_out)
        more = f" and {hidden:,} more" if hidden > 0 else ""
        lines.append(f"discarded, since no change can carry them: {', '.join(left_out)}{more}")
    if result.get("output_cut"):
        lines.append("[the output was longer than its bound and was cut]")
    return "\n".join(lines)


def _check_argv(argv: list[str]) -> None:
    if not argv[0]:
        raise InvalidFieldError("argv", "must begin with the program's name")
    if any("\0" in part for part in argv):
        raise InvalidFieldError("argv", "must not hold NUL characters")
    size = sum(len(part.encode()) + 1 for part in argv)
    if size > ARGUMENTS_BYTES_MAX:
        raise LimitExceededError("argv", actual=size, limit=ARGUMENTS_BYTES_MAX, unit="bytes")
