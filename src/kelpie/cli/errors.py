"""Errors on a terminal: what happened, why, and the next command; and the exit status they mean.

`CommandError` is what the server answered, or what a command found by itself. With ``--json`` the
same goes to stderr as one JSON object.
"""

from __future__ import annotations

import errno
import json
import sys
import traceback
from collections.abc import Mapping
from typing import Any, Final, cast

import click

from kelpie.app.text import safe_line, safe_text
from kelpie.cli import INTERNAL_STATUS, USAGE_STATUS
from kelpie.core.errors import STATUS, KelpieError

EXIT_STATUSES: Final[tuple[tuple[int, str], ...]] = (
    (0, "Done. `plan`: nothing would change."),
    (1, "A check said no: `doctor`, `store check`, `audit verify`, `sim`, `debug`."),
    (2, "`plan`: something would change. Elsewhere: the input or a setting is wrong."),
    (3, "Something waits for a person: `messages send`, `apply --no-wait`."),
    (4, "It does not exist."),
    (5, "It is not in a state that allows this, or was decided before."),
    (6, "The API key is missing or wrong, or this may only be done on the server's machine."),
    (7, "The gate denied it, a person did, or a plan failed."),
    (64, "The command line is wrong. `plan`: its input or a setting is wrong."),
    (69, "Something that is needed is missing or does not answer: a server, a model, a tool."),
    (70, "A defect; stderr has the details."),
    (73, "The store is held by another process, or by a restore, or is newer than this program."),
    (74, "The store or the disk failed."),
    (75, "Busy, or too slow; try again. `serve`: stopped, but a handler would not end."),
    (78, "Python runs with -O, which removes assertions."),
    (130, "Interrupted with Ctrl-C."),
    (141, "The reader of stdout has left."),
)
"""Every exit status with its meaning, as ``docs/reference/cli.md`` lists them."""

EVERYWHERE: Final = ("--json", "--url", "--data-dir", "--config")
"""The options that commands have in common."""

_NEXT_STEPS: Final[Mapping[str, str]] = {
    "already_decided": "kelpie approvals list",
    "cursor_ahead": "kelpie events tail",
    "cursor_expired": "kelpie events tail",
    "disk_full": "kelpie doctor",
    "invalid_setting": "kelpie config show --origin",
    "local_only": "on the server's machine, the same command without --url",
    "model_failed": "kelpie doctor",
    "pending_approval": "kelpie approvals list",
    "run_failed": "kelpie doctor",
    "sandbox_failed": "kelpie doctor",
    "store_corrupt": "kelpie store check",
    "store_failed": "kelpie doctor",
    "store_held": "kelpie store stats",
    "store_log_missing": "kelpie store accept-loss",
    "unauthorized": "KELPIE_API_KEY=... kelpie agents list",
}
_NEXT_BY_KIND: Final[Mapping[str, str]] = {
    "actor": "kelpie actors list",
    "actor type": "kelpie serve APP",
    "agent": "kelpie agents list",
    "approval": "kelpie approvals list",
    "dead letter": "kelpie actors dead-letters",
    "effect": "kelpie effects list",
    "method": "kelpie actors types",
    "plan": "kelpie plan FILE",
}


class CommandError(Exception):
    """A command cannot do what it was asked.

    Attributes:
        code: The stable code, as in `kelpie.core.errors`, or the edge's own.
        message: What happened, and why.
        fields: Structured details.
        status: The exit status.
        next_step: A command to run next; empty for none.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        fields: Mapping[str, Any] | None = None,
        status: int | None = None,
        http_status: int = 0,
        next_step: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fields = dict(fields or {})
        self.status = exit_status(code, http_status) if status is None else status
        self.next_step = next_step or next_step_for(code, self.fields)

    @classmethod
    def of(cls, error: KelpieError) -> CommandError:
        """Return a typed error of the product as a command's."""
        return cls(error.code, error.message, fields=error.fields)


def exit_status(code: str, http_status: int = 0) -> int:
    """Return the exit status of an error code; unknown codes go by their HTTP status."""
    if code in STATUS:
        return STATUS[code].exit
    by_http = {401: 6, 403: 6, 404: 4, 409: 5, 429: 75, 502: 69, 503: 75, 504: 75}
    if http_status in by_http:
        return by_http[http_status]
    return 2 if 400 <= http_status < 500 else INTERNAL_STATUS


def next_step_for(code: str, fields: Mapping[str, Any]) -> str:
    """Return the command that helps after an error of this code; empty for none."""
    if code == "not_found":
        return _NEXT_BY_KIND.get(str(fields.get("kind", "")), "")
    if code == "store_held" and fields.get("restored"):
        return "kelpie store release"
    if code == "store_held" and fields.get("pid") and not fields.get("address"):
        return f"ps -p {fields['pid']}"
    return _NEXT_STEPS.get(code, "")


def bare_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error inside groups of one, or the group itself."""
    members = group.exceptions
    if len(members) > 1:
        return group
    only = next(iter(members))
    if isinstance(only, BaseExceptionGroup):
        return bare_error(cast("BaseExceptionGroup[BaseException]", only))
    return only


def report(error: Exception, *, as_json: bool) -> int:
    """Print an error to stderr and return the exit status that it means."""
    match error:
        case click.ClickException():
            return _report_usage(error, as_json=as_json)
        case CommandError():
            known = error
        case KelpieError():
            known = CommandError.of(error)
        case OSError():
            known = _of_system(error)
        case _:
            traceback.print_exception(error)
            known = CommandError("internal", f"{type(error).__name__}: {error}")
    _print(known, as_json=as_json)
    return known.status


def _of_system(error: OSError) -> CommandError:
    place = f"{error.filename}: " if error.filename else ""
    message = f"{place}{error.strerror or error}"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return CommandError("disk_full", f"{message}; free some space where the store lies")
    if error.errno in {errno.EEXIST, errno.ENOTDIR}:
        message = f"{message}; a directory is needed there"
    return CommandError("io_failed", message, status=74)


def _report_usage(error: click.ClickException, *, as_json: bool) -> int:
    error = _with_place(error)
    if as_json:
        context = error.ctx if isinstance(error, click.UsageError) else None
        step = f"{context.command_path if context else 'kelpie'} --help"
        message = error.format_message()
        _print(CommandError("usage", message, status=USAGE_STATUS, next_step=step), as_json=True)
    else:
        error.show()
    return USAGE_STATUS


def _with_place(error: click.ClickException) -> click.ClickException:
    """Return the error; one about an option that stands before its command says where it goes."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return error
    if error.option_name not in EVERYWHERE or not isinstance(error.ctx.command, click.Group):
        return error
    place = f"{error.ctx.command_path} COMMAND {error.option_name}"
    return click.UsageError(f"{error.option_name} follows the command: {place}", error.ctx)


def _print(error: CommandError, *, as_json: bool) -> None:
    if as_json:
        value = {
            "error": {
                "code": error.code,
                "message": error.message,
                "fields": error.fields,
                "exit_status": error.status,
                "next": error.next_step,
            }
        }
        print(json.dumps(value), file=sys.stderr)
        return
    print(f"kelpie: {safe_text(error.message)}", file=sys.stderr)
    if error.next_step:
        print(f"  next: {safe_line(error.next_step)}", file=sys.stderr)
