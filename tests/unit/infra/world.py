"""A target that is a dictionary, and small builders for infra tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kelpie.actors.commands import Command, Emit, Send
from kelpie.actors.machine import Turn
from kelpie.core.digests import Digest, digest_bytes
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.effects.model import EffectRecord, FileDiff, Outcome
from kelpie.infra.config import Desired, UnitSpec
from kelpie.infra.discover import discover
from kelpie.infra.plan import ABSENT, DIRECTORY_DIGEST, AppliedUnit, Plan, list_paths, make_plan
from kelpie.sandbox.protocol import FileChange, FileState
from kelpie.storage.records import EffectState

ROOT = "/srv/site"
PLAN_ID = "plan-1"
PLAN_ACTOR = ActorId(TENANT_DEFAULT, "plan", PLAN_ID)


def file_state(content: str, mode: int = 0o644) -> FileState:
    data = content.encode()
    return FileState("file", digest_bytes(data), mode, len(data))


def directory_state(mode: int = 0o755) -> FileState:
    return FileState("directory", DIRECTORY_DIGEST, mode, 0)


LINK = FileState("link", digest_bytes(b"/etc"), 0o777, 4)


def a_file(
    unit_id: str,
    path: str,
    content: str = "hello\n",
    *,
    mode: int | None = None,
    depends_on: tuple[str, ...] = (),
) -> UnitSpec:
    return UnitSpec(
        unit_id=unit_id,
        type="linux.file",
        path=path,
        content=content.encode(),
        mode=mode,
        depends_on=depends_on,
    )


def a_directory(
    unit_id: str, path: str, *, mode: int | None = None, depends_on: tuple[str, ...] = ()
) -> UnitSpec:
    return UnitSpec(unit_id=unit_id, type="linux.dir", path=path, mode=mode, depends_on=depends_on)


def gone(unit: UnitSpec) -> UnitSpec:
    return UnitSpec(
        unit_id=unit.unit_id,
        type=unit.type,
        path=unit.path,
        is_present=False,
        depends_on=unit.depends_on,
    )


def desire(*units: UnitSpec) -> Desired:
    return Desired(source="site.yaml", units=units)


def applied(*units: UnitSpec) -> dict[str, AppliedUnit]:
    return {
        unit.path: AppliedUnit(
            unit_id=unit.unit_id,
            type=unit.type,
            path=unit.path,
            digest=digest_bytes(unit.content or b""),
        )
        for unit in units
    }


@dataclass
class FileMap:
    """A target in memory that refuses what a real one would refuse."""

    states: dict[str, FileState] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    diff_text: str = "+line\n"

    async def state(self, path: str) -> FileState:
        return self.states.get(path, ABSENT)

    async def put_blob(self, data: bytes) -> Digest:
        digest = digest_bytes(data)
        self.blobs[digest] = data
        return digest

    async def diff(self, changes: Sequence[FileChange]) -> tuple[FileDiff, ...]:
        return tuple(
            FileDiff(path=change.path, change="update", diff=self.diff_text) for change in changes
        )

    async def look(self, desired: Desired, previous: dict[str, AppliedUnit]) -> Plan:
        actual = await discover(self, list_paths(desired, previous))
        return make_plan(desired=desired, actual=actual, previous=previous, root=ROOT)

    def apply(self, change: FileChange) -> None:
        before = self.states.get(change.path, ABSENT)
        assert before.digest == change.before, "the target moved"
        parent, _, _ = change.path.rpartition("/")
        assert not parent or self.states[parent].kind == "directory", "no directory to write into"
        below = [path for path in self.states if path.startswith(f"{change.path}/")]
        if not change.after:
            assert not below, "a directory is removed empty"
            del self.states[change.path]
        elif change.kind == "directory":
            self.states[change.path] = directory_state(change.mode)
        else:
            size = len(self.blobs.get(change.after, b""))
            self.states[change.path] = FileState("file", change.after, change.mode, size)


def turn(actor: ActorId = PLAN_ACTOR, now_ms: int = 1_000) -> Turn:
    return Turn(actor=actor, now_ms=now_ms, seed=b"0123456789abcdef", principal="system")


def record(ref: str, state: EffectState, *, error: str = "", note: str = "") -> EffectRecord:
    outcome = Outcome(status="failed", error=error) if error else None
    return EffectRecord(
        effect_id=f"effect-{ref}",
        kind="files.apply",
        ref=ref,
        args={},
        state=state,
        promise="reconcilable",
        timeout_ms=1_000,
        outcome=outcome,
        note=note,
        created_ms=1,
        updated_ms=1,
    )


def events(commands: Iterable[Command]) -> list[str]:
    return [command.kind for command in commands if isinstance(command, Emit)]


def sent(commands: Iterable[Command]) -> list[Send]:
    return [command for command in commands if isinstance(command, Send)]
