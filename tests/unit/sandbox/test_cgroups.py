"""Finding and filling control groups, over directories that look like the kernel's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kelpie.sandbox.cgroups import Controllers, Group, GroupPlace, find_controllers, find_leftovers
from kelpie.sandbox.protocol import Bounds

if TYPE_CHECKING:
    from pathlib import Path


def test_a_host_without_control_groups_is_bounded_by_rlimits(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text("22 1 0:20 / /proc rw - proc proc rw\n")
    (tmp_path / "cgroup").write_text("0::/user.slice\n")
    found = find_controllers("mark", proc=tmp_path)
    assert found == Controllers(memory=None, pids=None)
    assert found.describe() == (
        "memory by rlimit per process and a watcher over their sum; "
        "processes by rlimit and a watcher"
    )


def test_a_host_whose_groups_cannot_bound_is_not_trusted(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    (groups / "slice").mkdir(parents=True)
    (tmp_path / "mountinfo").write_text(f"30 1 0:26 / {groups} rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "cgroup").write_text("0::/slice\n")
    assert find_controllers("mark", proc=tmp_path).places() == ()
    assert sorted(path.name for path in groups.rglob("*")) == ["slice"]


def test_a_missing_proc_is_no_failure(tmp_path: Path) -> None:
    assert find_controllers("mark", proc=tmp_path / "none").places() == ()


def make_group(parent: Path, version: int, name: str) -> Group:
    place = GroupPlace(version, parent)
    return Group(Controllers(memory=place, pids=place), name)


def test_limits_are_written_where_version_2_expects_them(tmp_path: Path) -> None:
    group = make_group(tmp_path, 2, "kelpie-m-1")
    group.create(Bounds(memory_bytes=1_000, processes=10))
    files = {path.name: path.read_text() for path in (tmp_path / "kelpie-m-1").iterdir()}
    assert files == {"memory.max": "1000", "memory.oom.group": "1", "pids.max": "13"}
    assert group.process_files == (str(tmp_path / "kelpie-m-1" / "cgroup.procs"),)


def test_limits_are_written_where_version_1_expects_them(tmp_path: Path) -> None:
    make_group(tmp_path, 1, "kelpie-m-1").create(Bounds(memory_bytes=1_000, processes=10))
    files = {path.name: path.read_text() for path in (tmp_path / "kelpie-m-1").iterdir()}
    assert files["memory.limit_in_bytes"] == "1000"
    assert files["memory.memsw.limit_in_bytes"] == "1000"
    assert files["pids.max"] == "13"


def test_the_bound_that_was_hit_is_named(tmp_path: Path) -> None:
    for version, events in ((1, "memory.oom_control"), (2, "memory.events")):
        group = make_group(tmp_path, version, f"kelpie-m-{version}")
        group.create(Bounds())
        home = tmp_path / f"kelpie-m-{version}"
        (home / events).write_text("low 0\noom_kill 0\n")
        (home / "pids.events").write_text("max 0\n")
        assert group.exceeded() == ""
        (home / "pids.events").write_text("max 3\n")
        assert group.exceeded() == "processes"
        (home / events).write_text("low 0\noom_kill 2\n")
        assert group.exceeded() == "memory"


def test_only_groups_with_the_own_mark_are_leftovers(tmp_path: Path) -> None:
    place = GroupPlace(2, tmp_path)
    for name in ("kelpie-mine-1", "kelpie-other-1", "system.slice"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").write_text("12\n13\n")
    found = find_leftovers(Controllers(memory=place, pids=place), "mine")
    assert found == {tmp_path / "kelpie-mine-1": (12, 13)}
