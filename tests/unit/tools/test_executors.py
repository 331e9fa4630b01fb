"""The hands of the file and command tools, over a scripted sandbox and scripted files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kelpie.core import limits
from kelpie.core.digests import digest_bytes
from kelpie.core.errors import ConflictError, KelpieError, SandboxError
from kelpie.effects.model import DiffCard, FileDiff, Outcome, Preparation
from kelpie.sandbox.protocol import (
    CommandRequest,
    CommandResult,
    FileChange,
    OutputSink,
    TierReport,
)
from kelpie.tools.apply_executor import FilesApplyExecutor
from kelpie.tools.command_executor import CommandExecutor
from kelpie.tools.read_executor import FilesReadExecutor
from kelpie.tools.workspace import Applied, Standing
from tests.unit.tools.orders import ACTOR, StoppedClock, make_order, make_record

ROOT = "/srv/work"
CHANGE = FileChange(path="a", kind="file", before="", after="sha256:x", mode=0o644)


def ran(stdout: bytes = b"", **fields: Any) -> CommandResult:
    """Return the result of a command that printed ``stdout``."""
    plain = CommandResult(0, stdout, b"", False, "", 1, ())
    return plain._replace(**fields)


class ScriptedSandbox:
    """Returns one result and remembers what it was asked."""

    tier = "scripted"

    def __init__(self, result: CommandResult) -> None:
        self.result = result
        self.requests: list[CommandRequest] = []

    async def run(self, request: CommandRequest, sink: OutputSink | None = None) -> CommandResult:
        self.requests.append(request)
        if sink is not None:
            await sink("stdout", self.result.stdout)
        return self.result

    async def probe(self) -> TierReport:
        return TierReport("scripted", True, "")

    async def reap_orphans(self) -> int:
        return 0


class ScriptedFiles:
    """Says where a change set stands and pretends nothing else."""

    def __init__(
        self,
        standing: Standing = "pending",
        applied: Applied | None = None,
        error: KelpieError | None = None,
    ) -> None:
        self.standing = standing
        self.applied = applied or Applied(("a",), (), {})
        self.error = error
        self.calls: list[tuple[str, tuple[FileChange, ...]]] = []

    async def resolve_write(self, root: Path, path: str, content: bytes) -> FileChange:
        after = digest_bytes(content)
        return FileChange(path=path, kind="file", before="sha256:old", after=after, mode=0o644)

    async def diff(self, root: Path, changes: Sequence[FileChange]) -> tuple[FileDiff, ...]:
        return tuple(FileDiff(path=c.path, change="update", diff="+x") for c in changes)

    async def apply(self, root: Path, changes: Sequence[FileChange]) -> Applied:
        self.calls.append(("apply", tuple(changes)))
        if self.error is not None:
            raise self.error
        return self.applied

    async def reconcile(self, root: Path, changes: Sequence[FileChange]) -> Standing:
        self.calls.append(("reconcile", tuple(changes)))
        if self.error is not None:
            raise self.error
        return self.standing


def is_root(root: str) -> bool:
    return root == ROOT


def reader(result: CommandResult) -> tuple[FilesReadExecutor, ScriptedSandbox]:
    sandbox = ScriptedSandbox(result)
    return FilesReadExecutor(sandbox=sandbox, allowed=is_root), sandbox


def commander(result: CommandResult, now_ms: int = 0) -> tuple[CommandExecutor, ScriptedSandbox]:
    sandbox = ScriptedSandbox(result)
    clock = StoppedClock(now_ms)
    return CommandExecutor(sandbox=sandbox, allowed=is_root, clock=clock), sandbox


def applier(files: ScriptedFiles) -> FilesApplyExecutor:
    return FilesApplyExecutor(files=files, allowed=is_root)


async def read(result: CommandResult, **args: Any) -> Outcome:
    """Carry out one read."""
    executor, _ = reader(result)
    order = make_order("files.read", {"root": ROOT, "path": ".", **args})
    assert executor.promise(order.record.args) == "repeatable"
    assert await executor.reconcile(order) is None
    return await executor.execute(order)


# --- files.read ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "argv"),
    [
        ({"mode": "read", "path": "-n"}, ("cat", "--", "./-n")),
        (
            {"mode": "list", "depth": 2},
            ("find", "./", "-mindepth", "1", "-maxdepth", "2", "-printf", "%y\\t%s\\t%P\\0"),
        ),
        (
            {"mode": "search", "text": "--x"},
            ("grep", "-rnIF", "--max-count=100", "-e", "--x", "--", "."),
        ),
    ],
)
async def test_a_read_is_one_plain_program_on_a_read_only_workspace(
    args: dict[str, Any], argv: tuple[str, ...]
) -> None:
    executor, sandbox = reader(ran(b"text"))
    await executor.execute(make_order("files.read", {"root": ROOT, "path": ".", **args}))
    (request,) = sandbox.requests
    assert request.argv == argv
    assert (request.access, request.workspace, request.directory) == ("read", Path(ROOT), ".")


async def test_a_file_is_read_whole_or_by_lines() -> None:
    text = b"one\ntwo\nthree\n"
    whole = await read(ran(text), mode="read", path="a")
    assert whole.result == {"text": "one\ntwo\nthree\n", "cut": False}
    part = await read(ran(text), mode="read", path="a", first_line=2, lines_max=1)
    assert part.result == {"text": "two\n", "cut": True}
    rest = await read(ran(text), mode="read", path="a", first_line=2)
    assert rest.result == {"text": "two\nthree\n", "cut": False}


async def test_a_binary_file_is_named_not_shown() -> None:
    outcome = await read(ran(b"\0\1\2"), mode="read", path="a")
    assert outcome.result["text"] == "(a binary file; 3 bytes were read)"


async def test_invalid_text_and_long_text_are_shown_as_far_as_they_go() -> None:
    assert (await read(ran(b"\xff"), mode="read", path="a")).result["text"] == "\ufffd"
    long = await read(ran(b"x" * 100_000), mode="read", path="a")
    assert long.result["cut"] is True
    assert "100,000 bytes are shown" in long.result["text"]
    cut = await read(ran(b"x", output_cut=True, stopped_by="output"), mode="read", path="a")
    assert cut.result == {"text": "x", "cut": True}


async def test_a_listing_is_sorted_and_marks_directories() -> None:
    output = b"f\t12\tb.txt\0d\t4096\ta\0f\t1\tnew\nline\0"
    outcome = await read(ran(output), mode="list")
    assert outcome.result["text"] == "a/\nb.txt\t12 bytes\nnew\nline\t1 bytes"
    assert (await read(ran(), mode="list")).result["text"] == "(empty)"


async def test_a_search_that_finds_nothing_is_no_failure() -> None:
    outcome = await read(ran(exit_status=1), mode="search", text="needle")
    assert (outcome.status, outcome.result) == ("done", {"text": "(nothing found)", "cut": False})


async def test_matches_are_sorted_by_path() -> None:
    outcome = await read(ran(b"./b:1:x\n./a:9:x\n./a:10:x\n"), mode="search", text="x")
    assert outcome.result["text"] == "a:9:x\na:10:x\nb:1:x"


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (ran(exit_status=1, stderr=b"cat: a: No such file or directory\n"), "No such file"),
        (ran(exit_status=2), "exit status 2"),
        (ran(exit_status=-9, stopped_by="timeout"), "timeout"),
    ],
)
async def test_a_read_that_fails_says_why(result: CommandResult, error: str) -> None:
    outcome = await read(result, mode="read", path="a")
    assert (outcome.status, outcome.code) == ("failed", "read_failed")
    assert error in outcome.error


@pytest.mark.parametrize(
    "args",
    [
        {"mode": "read", "root": "/etc"},
        {"mode": "read", "root": 3},
        {"mode": "write"},
        {"mode": "read", "path": "../x"},
        {"mode": "read", "first_line": "x"},
        {"mode": "list", "depth": 0},
        {"mode": "list", "depth": True},
        {"mode": "search", "text": ""},
        {"mode": "search", "text": "a\0"},
    ],
)
async def test_a_malformed_read_fails_before_anything_runs(args: dict[str, Any]) -> None:
    executor, sandbox = reader(ran())
    full = {"root": ROOT, "path": ".", **args}
    executed = await executor.execute(make_order("files.read", full))
    prepared = await executor.prepare(ACTOR, make_record("files.read", full))
    for outcome in (executed, prepared):
        assert isinstance(outcome, Outcome)
        assert (outcome.status, outcome.sent) == ("failed", False)
    assert sandbox.requests == []


async def test_a_read_is_described_by_its_path() -> None:
    executor, _ = reader(ran())
    record = make_record("files.read", {"root": ROOT, "path": "a", "mode": "read"})
    prepared = await executor.prepare(ACTOR, record)
    assert isinstance(prepared, Preparation)
    assert prepared.facts == {"paths": ["a"]}
    assert "read-only" in prepared.card.where


# --- command.run --------------------------------------------------------------------------------

COMMAND = {"root": ROOT, "argv": ["make", "all"], "timeout_ms": 5_000, "directory": "sub"}


async def test_a_red_command_runs_on_a_scratch_layer_and_reports_its_changes() -> None:
    executor, sandbox = commander(ran(b"ok", changes=(CHANGE,)))
    chunks: list[tuple[str, bytes]] = []

    async def keep(kind: str, body: bytes) -> None:
        chunks.append((kind, body))

    outcome = await executor.execute(make_order("command.run", COMMAND, stream=keep))
    assert outcome.status == "done"
    assert outcome.result == {
        "exit_status": 0,
        "stdout": "ok",
        "stderr": "",
        "output_cut": False,
        "stopped_by": "",
        "changes": [msgspec.to_builtins(CHANGE)],
    }
    (request,) = sandbox.requests
    assert (request.access, request.directory, request.argv) == ("overlay", "sub", ("make", "all"))
    assert request.bounds.timeout_ms == 5_000
    assert chunks == [("stdout", b"ok")]


async def test_a_green_command_sees_a_read_only_workspace() -> None:
    executor, sandbox = commander(ran())
    await executor.execute(make_order("command.run", COMMAND, color="green"))
    assert sandbox.requests[0].access == "read"


async def test_a_long_chunk_is_streamed_in_rows() -> None:
    executor, _ = commander(ran(b"x" * (limits.STREAM_ROW_BYTES_MAX + 1)))
    sizes: list[int] = []

    async def keep(kind: str, body: bytes) -> None:
        sizes.append(len(body))

    outcome = await executor.execute(make_order("command.run", COMMAND, stream=keep))
    assert sizes == [limits.STREAM_ROW_BYTES_MAX, 1]
    assert outcome.result["output_cut"] is False


async def test_too_many_changes_are_discarded_and_said_so() -> None:
    many = tuple(CHANGE for _ in range(limits.WORKSPACE_ENTRIES_MAX + 1))
    executor, _ = commander(ran(b"printed", changes=many))
    outcome = await executor.execute(make_order("command.run", COMMAND))
    assert (outcome.status, outcome.code) == ("failed", "limit_exceeded")
    assert (outcome.result["changes"], outcome.result["stdout"]) == ([], "printed")


async def test_paths_that_no_change_can_carry_are_named_up_to_a_bound() -> None:
    names = tuple(f"pipe-{number}" for number in range(30))
    executor, _ = commander(ran(left_out=names))
    outcome = await executor.execute(make_order("command.run", COMMAND))
    assert outcome.result["left_out"] == list(names[:20])
    assert outcome.result["left_out_count"] == 30


async def test_the_card_of_a_landing_names_what_does_not_land() -> None:
    args = WRITE | {"left_out": ["pipe", "socket"], "left_out_count": 7}
    prepared = await applier(ScriptedFiles()).prepare(ACTOR, make_record("files.apply", args))
    assert isinstance(prepared, Preparation)
    assert prepared.card.left_out == ("pipe", "socket")
    assert prepared.card.left_out_count == 7
    wrong = await applier(ScriptedFiles()).prepare(
        ACTOR, make_record("files.apply", WRITE | {"left_out": 1})
    )
    assert isinstance(wrong, Outcome)
    assert (wrong.status, wrong.code) == ("failed", "invalid_field")


async def test_a_command_whose_time_is_over_does_not_begin() -> None:
    executor, sandbox = commander(ran(), now_ms=10**15)
    outcome = await executor.execute(make_order("command.run", COMMAND))
    assert (outcome.status, outcome.sent) == ("failed", False)
    assert sandbox.requests == []


def test_only_a_command_declared_idempotent_may_run_again() -> None:
    executor, _ = commander(ran())
    assert executor.promise(COMMAND) == "once"
    assert executor.promise({**COMMAND, "idempotent": True}) == "repeatable"
    assert executor.promise({**COMMAND, "idempotent": "yes"}) == "once"


async def test_what_a_command_came_to_cannot_be_read_back() -> None:
    executor, _ = commander(ran())
    outcome = await executor.reconcile(make_order("command.run", COMMAND))
    assert outcome is not None
    assert outcome.status == "unknown"


async def test_the_card_of_a_command_says_what_where_and_how_to_undo() -> None:
    executor, sandbox = commander(ran())
    record = make_record("command.run", {**COMMAND, "idempotent": True})
    prepared = await executor.prepare(ACTOR, record)
    assert isinstance(prepared, Preparation)
    card: DiffCard = prepared.card
    assert card.argv == ("make", "all")
    assert card.where == "scripted sandbox, /srv/work at sub, no network"
    assert card.undo.startswith("discard")
    assert card.title == "Run make, declared idempotent"
    assert prepared.facts["argv"] == ["make", "all"]
    assert sandbox.requests == []


@pytest.mark.parametrize(
    "args",
    [
        {"root": "/etc"},
        {"argv": []},
        {"argv": [""]},
        {"argv": "make"},
        {"timeout_ms": 0},
        {"timeout_ms": 10**9},
        {"directory": "/"},
    ],
)
async def test_a_malformed_command_fails_before_anything_runs(args: dict[str, Any]) -> None:
    executor, sandbox = commander(ran())
    full = {**COMMAND, **args}
    executed = await executor.execute(make_order("command.run", full))
    prepared = await executor.prepare(ACTOR, make_record("command.run", full))
    for outcome in (executed, prepared):
        assert isinstance(outcome, Outcome)
        assert (outcome.status, outcome.sent) == ("failed", False)
    assert sandbox.requests == []


# --- files.apply --------------------------------------------------------------------------------

WRITE = {"root": ROOT, "write": {"path": "a", "content": "new"}}
LANDING = {
    "root": ROOT,
    "changes": [msgspec.to_builtins(CHANGE)],
    "from_command": ["make", "all"],
}


async def prepared_order(files: ScriptedFiles, args: dict[str, Any] | None = None) -> Any:
    """Return an order for a change set that was prepared and approved."""
    record = make_record("files.apply", args or LANDING)
    preparation = await applier(files).prepare(ACTOR, record)
    assert isinstance(preparation, Preparation)
    files.calls.clear()
    return make_order("files.apply", record.args, preparation=preparation)


async def test_a_write_is_resolved_to_a_change_with_a_diff() -> None:
    prepared = await applier(ScriptedFiles()).prepare(ACTOR, make_record("files.apply", WRITE))
    assert isinstance(prepared, Preparation)
    assert prepared.card.title == "Write a"
    assert prepared.card.files[0].diff == "+x"
    assert "put back the former content of 1 path," in prepared.card.undo
    assert prepared.resolved["changes"][0]["after"] == digest_bytes(b"new")
    assert prepared.facts == {"paths": ["a"], "changes": 1}
    assert prepared.target


async def test_the_landing_of_a_command_names_the_command() -> None:
    prepared = await applier(ScriptedFiles()).prepare(ACTOR, make_record("files.apply", LANDING))
    assert isinstance(prepared, Preparation)
    assert prepared.card.title == "Land 1 changed path of: make all"
    assert prepared.card.undo == "remove 1 created path"


async def test_exactly_the_prepared_change_set_is_applied() -> None:
    files = ScriptedFiles()
    order = await prepared_order(files)
    outcome = await applier(files).execute(order)
    assert (outcome.status, outcome.result) == ("done", {"applied": ["a"], "before": {}})
    assert files.calls == [("apply", (CHANGE,))]
    assert applier(files).promise(LANDING) == "reconcilable"


@pytest.mark.parametrize(
    ("applied", "status"),
    [(Applied((), ("a",), {}), "voided"), (Applied(("b",), ("a",), {}), "failed")],
)
async def test_a_path_that_moved_voids_the_effect_unless_something_was_written(
    applied: Applied, status: str
) -> None:
    files = ScriptedFiles(applied=applied)
    outcome = await applier(files).execute(await prepared_order(files))
    assert (outcome.status, outcome.code) == (status, "target_changed")
    assert "changed meanwhile: a" in outcome.error


async def test_an_interrupted_application_is_read_back() -> None:
    files = ScriptedFiles()
    order = await prepared_order(files, WRITE)
    assert await applier(files).reconcile(order) is None
    files.standing = "applied"
    done = await applier(files).reconcile(order)
    assert done is not None
    assert done.result == {"applied": ["a"], "before": {"a": "sha256:old"}}
    files.standing = "moved"
    moved = await applier(files).reconcile(order)
    assert moved is not None
    assert (moved.status, moved.code) == ("failed", "target_changed")
    files.error = ConflictError("gone")
    failed = await applier(files).reconcile(order)
    assert failed is not None
    assert (failed.status, failed.error) == ("failed", "gone")


async def test_a_target_that_moved_before_the_question_is_not_asked_about() -> None:
    files = ScriptedFiles(standing="moved")
    outcome = await applier(files).prepare(ACTOR, make_record("files.apply", LANDING))
    assert isinstance(outcome, Outcome)
    assert (outcome.status, outcome.code) == ("failed", "target_changed")


async def test_a_workspace_that_cannot_be_written_raises_and_nothing_is_called_done() -> None:
    files = ScriptedFiles()
    order = await prepared_order(files)
    files.error = SandboxError("read-only")
    with pytest.raises(SandboxError):
        await applier(files).execute(order)


async def test_an_order_without_preparation_or_root_touches_nothing() -> None:
    files = ScriptedFiles()
    bare = await applier(files).execute(make_order("files.apply", LANDING))
    assert (bare.status, bare.sent) == ("failed", False)
    assert "nothing was approved" in bare.error
    assert files.calls == []


@pytest.mark.parametrize(
    "args",
    [
        {"root": "/etc", "changes": [msgspec.to_builtins(CHANGE)]},
        {"root": ROOT},
        {"root": ROOT, "changes": []},
        {"root": ROOT, "changes": [{"path": "a"}]},
        {"root": ROOT, "changes": [msgspec.to_builtins(CHANGE)] * 2},
        {"root": ROOT, "changes": [msgspec.to_builtins(CHANGE)] * 20_001},
        {"root": ROOT, "write": "a"},
        {"root": ROOT, "write": {"path": "a"}},
        {"root": ROOT, "write": {"path": "a", "content": "x" * (8 * 1024 * 1024 + 1)}},
    ],
)
async def test_a_malformed_change_set_fails_before_anything_is_touched(
    args: dict[str, Any],
) -> None:
    files = ScriptedFiles()
    outcome = await applier(files).prepare(ACTOR, make_record("files.apply", args))
    assert isinstance(outcome, Outcome)
    assert (outcome.status, outcome.sent) == ("failed", False)
    assert files.calls == []
