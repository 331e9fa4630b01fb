"""The hands of ``files.read``: list, read and search inside the sandbox, read-only.

The workspace is mounted read-only and nothing else is visible, so a path that leaves it finds
nothing. Output is bounded; a cut is always reported.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from kelpie.core import limits
from kelpie.core.errors import InvalidFieldError, KelpieError
from kelpie.core.ids import ActorId
from kelpie.effects.executor import Order
from kelpie.effects.model import DiffCard, EffectRecord, Outcome, Preparation, Promise
from kelpie.sandbox.protocol import Bounds, CommandRequest, CommandResult, Sandbox
from kelpie.tools.answers import cut_text, require_path
from kelpie.tools.workspace import Allowed, require_root

KIND: Final = "files.read"
_TEXT_BYTES_MAX: Final = limits.TOOL_RETURN_BYTES_MAX
_MATCHES_PER_FILE_MAX: Final = 100
_STOPPED: Final = "it was stopped by its bound on"


class _Reading(NamedTuple):
    """How one mode reads: the command, its output bound, and exit statuses that are no failure."""

    argv: tuple[str, ...]
    output_bytes: int
    fine: tuple[int, ...] = (0,)


class FilesReadExecutor:
    """The `Executor` of reads; ``allowed`` says which roots are workspaces."""

    __slots__ = ("_allowed", "_sandbox", "concurrency_max")

    def __init__(
        self,
        *,
        sandbox: Sandbox,
        allowed: Allowed,
        concurrency_max: int = limits.FILES_CONCURRENT_MAX,
    ) -> None:
        assert concurrency_max > 0, "an executor runs something"
        self._sandbox = sandbox
        self._allowed = allowed
        self.concurrency_max = concurrency_max

    @property
    def kind(self) -> str:
        """The effect kind it runs."""
        return KIND

    def promise(self, args: dict[str, Any]) -> Promise:
        """Return ``repeatable``: reading changes nothing."""
        assert args is not None, "arguments are a mapping"
        return "repeatable"

    async def prepare(self, actor: ActorId, record: EffectRecord) -> Preparation | Outcome:
        """Describe the read."""
        try:
            require_root(record.args, self._allowed)
            path = require_path(record.args)
            plan_reading(record.args)
        except KelpieError as error:
            return Outcome(status="failed", error=error.message, code=error.code, sent=False)
        card = DiffCard(
            title=f"{record.args['mode']} {path}",
            where=f"{self._sandbox.tier} sandbox of {actor.key}, workspace read-only, no network",
            undo="nothing to undo",
        )
        return Preparation(card=card, facts={"paths": [path]})

    async def execute(self, order: Order) -> Outcome:
        """Read, and return ``{"text", "cut"}``.

        Raises:
            SandboxError: The sandbox could not be set up.
            UnavailableError: The sandbox does not work on this host.
        """
        args = order.record.args
        try:
            root = require_root(args, self._allowed)
            reading = plan_reading(args)
        except KelpieError as error:
            return Outcome(status="failed", error=error.message, code=error.code, sent=False)
        request = CommandRequest(
            argv=reading.argv,
            workspace=root,
            access="read",
            bounds=Bounds(output_bytes=reading.output_bytes),
        )
        result = await self._sandbox.run(request)
        cut = result.output_cut
        if not cut and (result.stopped_by or result.exit_status not in reading.fine):
            return Outcome(status="failed", error=_explain(result), code="read_failed")
        text, hidden = _shape(args, result.stdout)
        return Outcome(status="done", result={"text": text, "cut": cut or hidden})

    async def reconcile(self, order: Order) -> Outcome | None:
        """Return None: a read leaves no trace."""
        assert order.record.kind == KIND, "an order of another kind"
        return None


def plan_reading(args: dict[str, Any]) -> _Reading:
    """Return how to carry out a read's arguments.

    Raises:
        InputError: The mode is unknown, or an argument is missing or malformed.
    """
    named = require_path(args)
    path = "." if named == "." else f"./{named}"
    argv: tuple[str, ...]
    match args.get("mode"):
        case "read":
            _require_count(args, "first_line", 1)
            _require_count(args, "lines_max", 1)
            return _Reading(("cat", "--", path), limits.WORKSPACE_FILE_BYTES_MAX)
        case "list":
            depth = str(_require_count(args, "depth", 1))
            form = "%y\\t%s\\t%P\\0"
            argv = ("find", f"{path}/", "-mindepth", "1", "-maxdepth", depth, "-printf", form)
            return _Reading(argv, limits.SANDBOX_OUTPUT_BYTES_MAX)
        case "search":
            text = args.get("text")
            if not isinstance(text, str) or not text or "\0" in text:
                raise InvalidFieldError("text", "must be the text to find")
            most = f"--max-count={_MATCHES_PER_FILE_MAX}"
            argv = ("grep", "-rnIF", most, "-e", text, "--", path)
            return _Reading(argv, limits.SANDBOX_OUTPUT_BYTES_MAX, (0, 1))
        case other:
            raise InvalidFieldError("mode", f"{other!r} must be read, list or search")


def _require_count(args: dict[str, Any], field: str, default: int) -> int:
    value = args.get(field, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidFieldError(field, f"{value!r} must be a positive integer")
    return value


def _shape(args: dict[str, Any], output: bytes) -> tuple[str, bool]:
    """Return the text of a read and whether some of it is left out."""
    if args["mode"] == "list":
        text = _render_listing(output)
    elif args["mode"] == "search":
        text = _render_matches(output.decode(errors="replace"))
    elif args["mode"] == "read" and b"\0" in output:
        text = f"(a binary file; {len(output):,} bytes were read)"
    else:
        text = output.decode(errors="replace")
    hidden = False
    if args["mode"] == "read" and ("first_line" in args or "lines_max" in args):
        lines = text.splitlines(keepends=True)
        first = args.get("first_line", 1) - 1
        end = first + args.get("lines_max", len(lines))
        hidden = end < len(lines)
        text = "".join(lines[first:end])
    shown = cut_text(text, _TEXT_BYTES_MAX)
    return shown, hidden or shown != text


def _render_listing(output: bytes) -> str:
    """Return one line per entry, sorted by path; directories end with a slash."""
    rows: list[tuple[str, str]] = []
    for entry in output.split(b"\0"):
        kind, _, rest = entry.decode(errors="replace").partition("\t")
        size, _, path = rest.partition("\t")
        if path:
            rows.append((path, f"{path}/" if kind == "d" else f"{path}\t{size} bytes"))
    return "\n".join(line for _, line in sorted(rows)) or "(empty)"


def _render_matches(text: str) -> str:
    """Return matching lines by path, and as they stand within each file."""
    lines = [line.removeprefix("./") for line in text.splitlines()]
    return "\n".join(sorted(lines, key=lambda line: line.partition(":")[0])) or "(nothing found)"


def _explain(result: CommandResult) -> str:
    if result.stopped_by:
        return f"{_STOPPED} {result.stopped_by}"
    text = result.stderr.decode(errors="replace").strip()
    return text[: limits.ERROR_TEXT_CHARS_MAX] or f"exit status {result.exit_status}"
