"""Care: notes are written, backed up, restored elsewhere by a newer program, and damaged at rest.

What was acknowledged before a backup is in it. A damaged backup restores nothing. The restored
store is held until somebody releases it, and a program that knows a newer state brings every note
up to date. Damage of a store at rest is found, by a refusal or by a check; no note is served wrong.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from kelpie.actors.api.definition import Actor
from kelpie.actors.api.method import command, query
from kelpie.actors.api.upcast import Fields, State, upcast
from kelpie.app.opened import App
from kelpie.core.digests import Digest
from kelpie.core.errors import CorruptionError, KelpieError, StoreError
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.sim.client import insist
from kelpie.sim.clock import SimulatedClock
from kelpie.sim.disk import DiskImage, damage, damage_backup
from kelpie.sim.host import SimulatedHost
from kelpie.sim.loop import SimulatedCrash, attempt
from kelpie.sim.rng import SimulatedRng
from kelpie.sim.scenarios.heal import settle
from kelpie.sim.world import SimulatedWorld
from kelpie.storage.blobs import BlobStore
from kelpie.storage.sqlite.backup import restore_store
from kelpie.storage.sqlite.store import SqliteStore

NOTES: Final = 6
BLOBS: Final = 3
BLOB_BYTES_MAX: Final = 20_000
BACKUPS_MAX: Final = 60
ATTEMPTS_MAX: Final = 300
LOOK_EVERY_S: Final = 0.05
REST_S: Final = 0.5


class PlainNote(State):
    """A note as the older program stores it."""

    text: str = ""


class SimNote(Actor[PlainNote]):
    """Holds one text."""

    actor_type = "sim-note"

    @command
    def write(self, text: str) -> str:
        """Replace the text."""
        assert text, "a note says something"
        self.state.text = text
        assert self.state.text == text
        return self.state.text


class TitledNote(State):
    """A note as the newer program stores it."""

    schema_version = 2

    title: str = ""
    body: str = ""

    @upcast(from_version=1)
    @staticmethod
    def give_title(old: Fields) -> Fields:
        """Take the first word for the title."""
        return {"title": old["text"].split(" ", 1)[0], "body": old["text"]}


class SimNewNote(Actor[TitledNote]):
    """Holds one text below a title."""

    actor_type = "sim-note"

    @query
    def show(self) -> tuple[str, str]:
        """Return title and text."""
        return self.state.title, self.state.body


class CareScenario:
    """One machine that is backed up, and one that its backup is restored on."""

    name = "care"

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._blobs: dict[Digest, bytes] = {}

    async def run(self, world: SimulatedWorld) -> None:
        """Write, back up, restore, damage, heal, compare."""
        first = world.add_host("n1", actors=(SimNote,))
        await world.unleash()
        await self._write(world, first)
        await self._keep_blobs(world, first)
        second = world.add_host("n2", actors=(SimNewNote,))
        await _restore(world, first, second)
        await self._damage(world, second)
        keeper = world.spawn("care:keeper", _keep(world, second))
        await _release(world, second)
        await self._compare(second)
        keeper.cancel()
        await settle(world)
        await self._compare(second)
        for host in (first, second):
            blobs: BlobStore = host.service.node.store.blobs
            for digest, data in self._blobs.items():
                assert blobs.get(digest) == data, f"{host.name} lost {digest}"

    async def _keep_blobs(self, world: SimulatedWorld, host: SimulatedHost) -> None:
        """Keep some blobs, compacting the store after each."""
        rng = world.stream("blobs")
        for _ in range(BLOBS):
            data = rng.randbytes(rng.randrange(1, BLOB_BYTES_MAX))
            await _until_done(world, host, partial(self._keep_blob, host, data))
            await _until_done(world, host, partial(_compact, host))

    async def _keep_blob(self, host: SimulatedHost, data: bytes) -> bool:
        blobs: BlobStore = host.service.node.store.blobs
        digest = blobs.put_bytes(data)
        assert blobs.get(digest) == data
        self._blobs[digest] = data
        return True

    async def _write(self, world: SimulatedWorld, host: SimulatedHost) -> None:
        rng = world.stream("notes")
        for number in range(NOTES):
            name, text = f"k{number}", f"title-{number} and {rng.randrange(1_000_000)}"
            target = f"/v1/actors/sim-note/{name}/write"
            answer = await insist(host, "POST", target, {"text": text}, key=f"write-{number}")
            assert answer.status == 200, answer.body
            self._texts[name] = text

    async def _compare(self, host: SimulatedHost) -> None:
        for name, text in self._texts.items():
            target = f"/v1/actors/sim-note/{name}/show"
            answer = await insist(host, "POST", target, {}, key=f"show-{name}")
            assert answer.status == 200, answer.body
            assert answer.json()["result"] == [text.split(" ", 1)[0], text], name

    async def _damage(self, world: SimulatedWorld, host: SimulatedHost) -> None:
        """Let damage befall a copy of the machine's files, and see how a store takes it."""
        place = world.directory / "damaged"
        shutil.copytree(host.directory, place)
        image = DiskImage.capture(place)
        damage(image, world.plan)
        if not image.notes:
            return
        image.put(place)
        path = place / host.settings().store.path.relative_to(host.directory)
        with world.plan.calm():
            served = await attempt(self._judge(path, host))
        assert not isinstance(served, Exception) or isinstance(served, StoreError), repr(served)
        world.sometimes("damage at rest was refused", isinstance(served, Exception))

    async def _judge(self, path: Path, host: SimulatedHost) -> None:
        """Return if every note is as it was, or a check finds why it is not.

        Raises:
            StoreError: The store refused to serve what is damaged.
            AssertionError: A note is served wrong, or missing and no check says why.
        """
        clock, rng = SimulatedClock(host.clock), SimulatedRng("damaged")
        store = await SqliteStore.open(path, clock=clock, rng=rng)
        try:
            missing = [name for name in self._texts if not await self._serves(store, name)]
            if missing:
                assert not (await store.check()).is_sound, f"{missing} are gone unnoticed"
        finally:
            store.abandon()

    async def _serves(self, store: SqliteStore, name: str) -> bool:
        stored = await store.load(ActorId(TENANT_DEFAULT, SimNote.actor_type, name))
        if stored is None:
            return False
        assert msgspec.msgpack.decode(stored.state)["text"] == self._texts[name], "served wrong"
        return True


async def _restore(world: SimulatedWorld, source: SimulatedHost, target: SimulatedHost) -> None:
    """Back ``source`` up until there is a whole backup, and make the store of ``target`` of it."""
    for number in range(BACKUPS_MAX):
        folder = world.directory / f"backup-{number}"
        if not await _inside(world, source, partial(_back_up, source, folder)):
            await asyncio.sleep(REST_S)
            continue
        note = damage_backup(folder, world.plan)
        path = target.settings().store.path
        clock, rng = SimulatedClock(target.clock), SimulatedRng(f"{world.seed}:restore:{number}")
        try:
            with world.plan.calm():
                restore_store(folder, path, clock=clock, rng=rng)
        except CorruptionError:
            assert note, "a whole backup was refused"
            world.sometimes("a damaged backup was refused")
            continue
        assert not note, f"a damaged backup was restored: {note}"
        return
    raise AssertionError("no backup succeeds")


async def _back_up(host: SimulatedHost, folder: Path) -> bool:
    app: App = host.service
    await app.node.store.backup(folder)
    return True


async def _release(world: SimulatedWorld, host: SimulatedHost) -> None:
    """End the held state of a restored store."""
    await _until_done(world, host, partial(_let_go, host))


async def _until_done(
    world: SimulatedWorld, host: SimulatedHost, work: Callable[[], Coroutine[Any, Any, bool]]
) -> None:
    """Do ``work`` within the machine's program, again until it succeeds."""
    for _ in range(ATTEMPTS_MAX):
        if await _inside(world, host, work):
            return
        await asyncio.sleep(REST_S)
    raise AssertionError(f"{host.name}: this never succeeds: {work}")


async def _compact(host: SimulatedHost) -> bool:
    app: App = host.service
    await app.node.store.compact()
    return True


async def _let_go(host: SimulatedHost) -> bool:
    app: App = host.service
    await app.node.release()
    return not app.node.store.held


async def _inside(
    world: SimulatedWorld, host: SimulatedHost, work: Callable[[], Coroutine[Any, Any, bool]]
) -> bool:
    """Return what ``work`` returns within the machine's program; False if it fails or dies."""
    incarnation = host.incarnation
    if incarnation is None or not host.is_serving:
        return False
    task = world.loop.create_task(attempt(work()), context=incarnation.context())
    while not task.done() and not incarnation.dead:  # noqa: ASYNC110  the dead set no event
        await asyncio.sleep(LOOK_EVERY_S)
    died = not task.done() or task.cancelled() or isinstance(task.exception(), SimulatedCrash)
    outcome = False if died else task.result()
    assert not isinstance(outcome, Exception) or isinstance(outcome, KelpieError), repr(outcome)
    return outcome is True


async def _keep(world: SimulatedWorld, host: SimulatedHost) -> None:
    """Keep a program running that no watchdog knows."""
    while True:
        if host.has_failed:
            host.crash()
        if host.incarnation is None:
            await world.chaos.revive(host)
        await asyncio.sleep(REST_S)
