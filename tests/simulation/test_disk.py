"""Disk images after a crash: legal ones keep what was acknowledged, damage is found and named."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from kelpie.core.errors import CorruptionError, KelpieError, StoreError
from kelpie.ports.faults import faults_from
from kelpie.sim.disk import DiskImage, misdirect, read_log, rot, take_crash_image
from kelpie.sim.faults.plan import FaultPlan, FaultRule, NoFaults
from kelpie.storage.records import AuditAppend, EventAppend, KvPut
from tests.contract.store.world import Hand, SeededRng, SqliteEngine

if TYPE_CHECKING:
    from kelpie.storage.sqlite.store import SqliteStore

SEEDS = 8
TURNS = 12
DEATHS = (
    "crash.before_write",
    "crash.during_transaction",
    "crash.during_commit",
    "crash.after_write",
    "crash.while_opening",
)


_openings = itertools.count(1)


def engine_at(root: Path) -> SqliteEngine:
    """Return an engine whose sessions have names of their own."""
    engine = SqliteEngine(root)
    engine.rng = SeededRng(next(_openings))
    return engine


class DeadProcess(BaseException):
    """The simulated process died."""


class Life(NamedTuple):
    """What came of one life: the image it left, and which turns its client saw acknowledged."""

    image: DiskImage
    acknowledged: int
    attempted: int
    died_of: str


class Machine:
    """A machine whose process dies at a fault point and leaves an image of its disk."""

    def __init__(self, root: Path, plan: FaultPlan, *, is_power_lost: bool) -> None:
        self.root = root
        self.engine = engine_at(root)
        self.plan = plan
        self.is_power_lost = is_power_lost
        self.image: DiskImage | None = None
        self.died_of = ""

    def die(self, name: str) -> None:
        if self.image is None:
            self.died_of = name
            self.image = take_crash_image(
                self.root, self.plan, during=name, is_power_lost=self.is_power_lost
            )
            self.plan.heal()
        raise DeadProcess(name)


def rules_for(death: str) -> list[FaultRule]:
    torn = ("storage.torn_write", "storage.lost_unsynced", "storage.rename_unsynced")
    rules = [FaultRule(name=name, rate=0.6, count_max=9) for name in torn]
    rate = 0.7 if death == "crash.while_opening" else 0.15
    return [*rules, FaultRule(name=death, rate=rate, count_max=1)]


async def write_turns(store: SqliteStore, first: int) -> tuple[int, int]:
    """Write turns until the process dies; return how many were acknowledged and attempted."""
    hand = Hand(store)
    hand.version = first
    for number in range(first + 1, first + TURNS + 1):
        try:
            await hand.turn(
                state=b"%d" % number,
                events=(EventAppend("turn", b"%d" % number + bytes(3_000)),),
                kv=(KvPut(f"key-{number:03}", b"%d" % number),),
                audit=(AuditAppend("turn", "p", b"%d" % number),),
            )
        except (KelpieError, DeadProcess):
            return number - 1, number
    return first + TURNS, first + TURNS


async def live(machine: Machine, first: int) -> Life:
    """Open the store and write until the process dies, or until it has written enough."""
    acknowledged = attempted = first
    store = None
    try:
        store = await machine.engine.open()
        acknowledged, attempted = await write_turns(store, first)
    except DeadProcess:
        pass
    image = machine.image or take_crash_image(
        machine.root, machine.plan, is_power_lost=machine.is_power_lost
    )
    if store is not None:
        store.abandon()
    return Life(image, acknowledged, attempted, machine.died_of)


async def read_back(root: Path) -> int:
    """Return which turn the store is at; every table must agree, whole turns only."""
    async with engine_at(root).opened() as store:
        hand = Hand(store)
        stored = await store.load(hand.actor)
        if stored is None:
            return 0
        turn = int(stored.state)
        assert stored.version == turn
        events = await store.events(hand.actor, 0, 1000)
        assert [int(event.body.rstrip(b"\0")) for event in events] == list(range(1, turn + 1))
        pairs = await store.kv_range(hand.actor, "key-", "key.", limit=1000)
        assert [int(value) for _, value in pairs] == list(range(1, turn + 1))
        report = await store.check()
        assert report.is_sound, report.problems
    return turn


@pytest.mark.requirement("CRASH-ANY-STEP", "STORE-ATOMIC", "STORE-DURABLE")
@pytest.mark.parametrize("is_power_lost", [False, True])
@pytest.mark.parametrize("death", DEATHS)
async def test_a_legal_image_holds_whole_turns_and_every_acknowledged_one(
    tmp_path: Path, death: str, is_power_lost: bool
) -> None:
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        root = tmp_path / str(seed)
        root.mkdir()
        first = 0
        for number in range(3):
            plan = FaultPlan(rules_for(death), seed=seed * 100 + number, now_ns=lambda: 0)
            machine = Machine(root, plan, is_power_lost=is_power_lost)
            plan._die = machine.die
            with faults_from(plan):
                life = await live(machine, first)
            life.image.put(root)
            turn = await read_back(root)
            assert life.acknowledged <= turn <= life.attempted, (seed, number, life.image.notes)
            seen[life.died_of] += 1
            seen["lost"] += turn < life.attempted
            seen["torn"] += any("torn" in note for note in life.image.notes)
            first = turn
    assert seen[death] >= SEEDS, "the process hardly ever died"
    if death == "crash.during_commit":
        assert 0 < seen["lost"] < seen[death], "a commit in progress may be lost or kept"
        assert bool(seen["torn"]) == is_power_lost


async def test_a_checkpoint_that_is_cut_off_loses_nothing(tmp_path: Path) -> None:
    torn = 0
    for seed in range(SEEDS):
        root = tmp_path / str(seed)
        root.mkdir()
        plan = FaultPlan(
            [FaultRule(name="crash.during_checkpoint", rate=1.0, count_max=1)],
            seed=seed,
            now_ns=lambda: 0,
        )
        machine = Machine(root, plan, is_power_lost=True)
        plan._die = machine.die
        store = await machine.engine.open()
        acknowledged, _ = await write_turns(store, 0)
        with faults_from(plan), pytest.raises(DeadProcess):
            await store.compact()
        store.abandon()
        assert machine.image is not None
        torn += len(machine.image.notes) > 1
        machine.image.put(root)
        assert await read_back(root) == acknowledged == TURNS
    assert torn > SEEDS // 2, "hardly any checkpoint was torn"


async def test_a_blob_whose_name_was_not_synced_is_there_whole_or_not_at_all(
    tmp_path: Path,
) -> None:
    outcomes: Counter[bool] = Counter()
    for seed in range(SEEDS):
        root = tmp_path / str(seed)
        root.mkdir()
        rules = [
            FaultRule(name="crash.before_directory_sync", rate=1.0, count_max=1),
            FaultRule(name="storage.rename_unsynced", rate=0.5, count_max=1),
            FaultRule(name="storage.lost_unsynced", rate=0.5, count_max=1),
        ]
        plan = FaultPlan(rules, seed=seed, now_ns=lambda: 0)
        machine = Machine(root, plan, is_power_lost=True)
        plan._die = machine.die
        store = await machine.engine.open()
        kept = store.blobs.put_bytes(b"synced before")
        with faults_from(plan), pytest.raises(DeadProcess):
            store.blobs.put_bytes(b"not synced")
        store.abandon()
        assert machine.image is not None
        machine.image.put(root)
        async with machine.engine.opened() as again:
            assert again.blobs.get(kept) == b"synced before"
            found = list(again.blobs.digests())
            assert all(again.blobs.get(each) for each in found)
            outcomes[len(found) == 2] += 1
    assert set(outcomes) == {True, False}


def test_an_image_puts_back_files_links_modes_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o750)
    (tmp_path / "a/file").write_bytes(b"one")
    (tmp_path / "a/link").symlink_to("file")
    (tmp_path / "script").write_bytes(b"#!")
    (tmp_path / "script").chmod(0o700)
    image = DiskImage.capture(tmp_path)
    (tmp_path / "a/file").write_bytes(b"two")
    (tmp_path / "a/link").unlink()
    (tmp_path / "script").unlink()
    (tmp_path / "script").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "new/file").write_bytes(b"new")
    image.put(tmp_path)
    assert DiskImage.capture(tmp_path).entries.keys() == image.entries.keys()
    assert (tmp_path / "a/file").read_bytes() == b"one"
    assert (tmp_path / "a/link").readlink() == Path("file")
    assert (tmp_path / "script").stat().st_mode & 0o777 == 0o700


async def filled(root: Path) -> tuple[DiskImage, dict[str, bytes]]:
    """Return the image of a store in good order, and what can be read from it."""
    engine = engine_at(root)
    async with engine.opened() as store:
        await write_turns(store, 0)
        store.blobs.put_bytes(b"a blob" * 300)
    return DiskImage.capture(root), await read_all(root)


async def read_all(root: Path) -> dict[str, bytes]:
    """Return everything that the store serves of its one actor; raises what it refuses with."""
    async with engine_at(root).opened() as store:
        hand = Hand(store)
        stored = await store.load(hand.actor)
        assert stored is not None, "the actor is gone"
        served = {"state": stored.state, "version": b"%d" % stored.version}
        for event in await store.events(hand.actor, 0, 1000):
            served[f"event {event.sequence}"] = event.body
        served.update(await store.kv_range(hand.actor, "key-", "key.", limit=1000))
        for digest in store.blobs.digests():
            served[digest] = store.blobs.get(digest)
    return served


async def is_sound(root: Path) -> bool:
    async with engine_at(root).opened() as store:
        return (await store.check()).is_sound


def damage_plan(seed: int) -> FaultPlan:
    rules = [
        FaultRule(name=name, rate=1.0, count_max=1)
        for name in ("storage.bit_rot", "storage.misdirected_write")
    ]
    plan = FaultPlan(rules, seed=seed, now_ns=lambda: 0)
    assert plan.fires("storage.bit_rot")
    assert plan.fires("storage.misdirected_write")
    return plan


@pytest.mark.requirement("STORE-CORRUPTION")
@pytest.mark.parametrize("suffix", [".db", "blobs"])
@pytest.mark.deadline(60)
async def test_a_flipped_bit_is_found_or_changes_nothing_that_is_served(
    tmp_path: Path, suffix: str
) -> None:
    image, good = await filled(tmp_path)
    results: Counter[str] = Counter()
    for seed in range(60):
        broken = DiskImage(dict(image.entries))
        names = [name for name in broken.files() if suffix in name and broken.read(name)]
        note = rot(broken, damage_plan(seed), suffix=names[0] if suffix == "blobs" else suffix)
        broken.put(tmp_path)
        results[await judge(tmp_path, good, note)] += 1
    image.put(tmp_path)
    assert results["refused"] > 0
    if suffix == "blobs":
        assert results == {"refused": 60}


@pytest.mark.deadline(60)
async def test_a_misdirected_page_is_found_or_changes_nothing_that_is_served(
    tmp_path: Path,
) -> None:
    image, good = await filled(tmp_path)
    results: Counter[str] = Counter()
    for seed in range(50):
        broken = DiskImage(dict(image.entries))
        note = misdirect(broken, damage_plan(seed))
        broken.put(tmp_path)
        results[await judge(tmp_path, good, note)] += 1
    assert results["refused"] > 5


async def judge(root: Path, good: dict[str, bytes], note: str) -> str:
    """Return how the store took its damage: refused, reported by a check, or untouched by it."""
    try:
        served = await read_all(root)
    except StoreError:
        return "refused"
    except AssertionError:
        served = {}
    if served == good:
        return "same"
    assert not await is_sound(root), f"{note}: served {served.keys() ^ good.keys()} unnoticed"
    bodies = {name: value for name, value in served.items() if name != "version"}
    assert all(good.get(name) == value for name, value in bodies.items()), note
    return "reported"


async def crashed(root: Path) -> DiskImage:
    """Return the image of a process that was killed after all its turns."""
    store = await engine_at(root).open()
    await write_turns(store, 0)
    image = take_crash_image(root, NoFaults())
    store.abandon()
    return image


@pytest.mark.requirement("STORE-LOG-DAMAGE")
@pytest.mark.deadline(60)
async def test_a_flipped_bit_in_the_log_never_costs_a_commit_that_another_follows(
    tmp_path: Path,
) -> None:
    image = await crashed(tmp_path)
    name = "store/kelpie.db-wal"
    log = read_log(image.read(name))
    ends = [log.end_of(frame) for frame in log.frames if frame.is_commit]
    results: Counter[str] = Counter()
    for seed in range(60):
        broken = DiskImage(dict(image.entries))
        note = rot(broken, damage_plan(seed), suffix="-wal")
        place = int(note.split("byte ")[1].split()[0])
        broken.put(tmp_path)
        is_last = place >= ends[-2]
        try:
            turn = await read_back(tmp_path)
        except CorruptionError:
            results["refused"] += 1
            continue
        # What is not refused lost nothing, or the last commit, which looks like one cut off.
        assert turn >= TURNS - is_last, f"{note}: {TURNS - turn} turns are gone in silence"
        results["last" if turn < TURNS else "whole"] += 1
    assert results["refused"] > 40
    for place in range(32):
        broken = DiskImage(dict(image.entries))
        data = bytearray(image.read(name))
        data[place] ^= 1
        broken.write(name, bytes(data), f"byte {place} of the log's header")
        broken.put(tmp_path)
        with pytest.raises(CorruptionError):
            await engine_at(tmp_path).open()


async def test_the_log_says_which_frames_are_synced(tmp_path: Path) -> None:
    store = await engine_at(tmp_path).open()
    await write_turns(store, 0)
    data = DiskImage.capture(tmp_path).read("store/kelpie.db-wal")
    store.abandon()
    log = read_log(data)
    assert sum(frame.is_commit for frame in log.frames) >= TURNS
    assert log.frames[-1].is_commit
    assert log.synced_bytes(in_commit=False) == log.end_of(log.frames[-1])
    assert log.synced_bytes(in_commit=True) < log.synced_bytes(in_commit=False)
    assert read_log(b"").frames == ()
