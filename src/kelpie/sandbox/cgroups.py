"""Control groups of version 1 and 2: where they can be made, and one group per jail.

Owns the groups named ``kelpie-<mark>-…`` and no other. What cannot be bounded here is bounded by
the launcher's rlimits and the watcher; `Controllers.describe` says which is which.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from kelpie.sandbox.protocol import Bounds

PREFIX: Final = "kelpie-"
PROCESSES_OF_JAIL: Final = 3  # the launcher, bubblewrap, and its first process inside
_LIMIT_FILES: Final = {
    ("memory", 1): "memory.limit_in_bytes",
    ("memory", 2): "memory.max",
    ("pids", 1): "pids.max",
    ("pids", 2): "pids.max",
}


class GroupPlace(NamedTuple):
    """A directory in which groups with one controller can be made."""

    version: int
    parent: Path


class _Mount(NamedTuple):
    version: int
    controllers: frozenset[str]
    root: str
    point: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Controllers:
    """What this process may bound with control groups."""

    memory: GroupPlace | None
    pids: GroupPlace | None

    def describe(self) -> str:
        """Return what enforces memory and processes here, for people."""
        memory = "rlimit per process and a watcher over their sum"
        pids = "rlimit and a watcher"
        if self.memory:
            memory = f"cgroup v{self.memory.version}"
        if self.pids:
            pids = f"cgroup v{self.pids.version} and rlimit"
        return f"memory by {memory}; processes by {pids}"

    def places(self) -> tuple[GroupPlace, ...]:
        """Return the distinct places."""
        found = (self.memory, self.pids)
        return tuple(dict.fromkeys(place for place in found if place is not None))


def find_controllers(mark: str, *, proc: Path = Path("/proc/self")) -> Controllers:
    """Return where groups can be made, by making one and removing it again."""
    try:
        mounts = tuple(_read_mounts(proc / "mountinfo"))
        memberships = (proc / "cgroup").read_text().splitlines()
    except OSError:
        return Controllers(memory=None, pids=None)
    found = {name: _find_place(name, mounts, memberships, mark) for name in ("memory", "pids")}
    return Controllers(memory=found["memory"], pids=found["pids"])


def _read_mounts(path: Path) -> Iterator[_Mount]:
    """Yield the mounted hierarchies. Source: proc_pid_mountinfo(5)."""
    for line in path.read_text().splitlines():
        head, _, tail = line.partition(" - ")
        fields, (kind, _, options) = head.split(), tail.split()[:3]
        if kind == "cgroup2":
            yield _Mount(2, frozenset(), fields[3], Path(fields[4]))
        elif kind == "cgroup":
            yield _Mount(1, frozenset(options.split(",")), fields[3], Path(fields[4]))


def _find_place(
    name: str, mounts: tuple[_Mount, ...], memberships: list[str], mark: str
) -> GroupPlace | None:
    for mount in mounts:
        if mount.version == 1 and name not in mount.controllers:
            continue
        own = _own_directory(mount, name, memberships)
        for parent in (own, *own.parents):
            if _can_bound(name, mount.version, parent, mark):
                return GroupPlace(mount.version, parent)
            if parent == mount.point:
                break
    return None


def _own_directory(mount: _Mount, name: str, memberships: list[str]) -> Path:
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        matches = not controllers if mount.version == 2 else name in controllers.split(",")
        if matches and path.startswith(mount.root):
            return mount.point / path[len(mount.root) :].lstrip("/")
    return mount.point


def _can_bound(name: str, version: int, parent: Path, mark: str) -> bool:
    trial = parent / f"{PREFIX}{mark}-trial-{os.getpid()}"
    limit = trial / _LIMIT_FILES[name, version]
    try:
        trial.mkdir()
    except OSError:
        return False
    try:
        if version == 2 and not limit.exists():
            with (parent / "cgroup.subtree_control").open("r+") as control:
                control.write(f"+{name}")
        return os.access(limit, os.W_OK)
    except OSError:
        return False
    finally:
        with suppress(OSError):
            trial.rmdir()


class Group:
    """The control groups of one jail."""

    def __init__(self, controllers: Controllers, name: str) -> None:
        self._memory = controllers.memory
        self._pids = controllers.pids
        self._name = name
        self._paths = tuple(place.parent / name for place in controllers.places())

    @property
    def process_files(self) -> tuple[str, ...]:
        """The files a process writes 0 to in order to join."""
        return tuple(str(path / "cgroup.procs") for path in self._paths)

    def create(self, bounds: Bounds) -> None:
        """Make the groups and set their limits.

        Raises:
            OSError: The kernel refused.
        """
        for path in self._paths:
            path.mkdir()
        if self._memory:
            _limit_memory(self._memory, self._name, bounds.memory_bytes)
        if self._pids:
            limit = bounds.processes + PROCESSES_OF_JAIL
            (self._pids.parent / self._name / "pids.max").write_text(str(limit))

    def exceeded(self) -> str:
        """Return the bound that the jail has run into: ``memory``, ``processes`` or empty."""
        if self._memory:
            name = "memory.events" if self._memory.version == 2 else "memory.oom_control"
            if _counter(self._memory.parent / self._name / name, "oom_kill"):
                return "memory"
        if self._pids and _counter(self._pids.parent / self._name / "pids.events", "max"):
            return "processes"
        return ""

    def remove(self) -> bool:
        """Remove the groups; return false while a process is still in one."""
        removed = [_remove(path) for path in self._paths]
        return all(removed)


def _limit_memory(place: GroupPlace, name: str, limit: int) -> None:
    path = place.parent / name
    if place.version == 2:
        (path / "memory.max").write_text(str(limit))
        with suppress(OSError):  # since Linux 4.19; without it the watcher ends the others
            (path / "memory.oom.group").write_text("1")
        swap = path / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")
        return
    (path / "memory.limit_in_bytes").write_text(str(limit))
    (path / "memory.swappiness").write_text("0")
    with suppress(OSError):  # absent or refused where the kernel does not account swap
        (path / "memory.memsw.limit_in_bytes").write_text(str(limit))


def _counter(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)


def _remove(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def find_leftovers(controllers: Controllers, mark: str) -> dict[Path, tuple[int, ...]]:
    """Return the groups that carry ``mark`` and the processes still in each."""
    found: dict[Path, tuple[int, ...]] = {}
    for place in controllers.places():
        for path in sorted(place.parent.glob(f"{PREFIX}{mark}-*")):
            with suppress(OSError):
                text = (path / "cgroup.procs").read_text()
                found[path] = tuple(int(line) for line in text.split())
    return found


def remove_leftover(path: Path) -> bool:
    """Remove a group of an earlier session; return false while it is not empty."""
    assert path.name.startswith(PREFIX), "only groups of ours are ever removed"
    return _remove(path)
