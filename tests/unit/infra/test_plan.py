from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from kelpie.core import limits
from kelpie.core.digests import digest_bytes
from kelpie.core.errors import ConflictError, InputError, InvalidFieldError, LimitExceededError
from kelpie.infra.config import Desired, UnitSpec, check_units
from kelpie.infra.paths import list_ancestors
from kelpie.infra.plan import (
    ABSENT,
    DIRECTORY_DIGEST,
    AppliedUnit,
    Plan,
    check_plan,
    digest_plan,
    list_paths,
    make_plan,
)
from kelpie.sandbox.protocol import FileChange, FileState
from tests.unit.infra.world import (
    LINK,
    ROOT,
    FileMap,
    a_directory,
    a_file,
    applied,
    desire,
    directory_state,
    file_state,
    gone,
)

Facts = dict[str, FileState]


def plan(
    desired: Desired, facts: Facts | None = None, previous: dict[str, AppliedUnit] | None = None
) -> Plan:
    known = facts or {}
    actual = {path: known.get(path, ABSENT) for path in list_paths(desired, previous or {})}
    return make_plan(desired=desired, actual=actual, previous=previous or {}, root=ROOT)


def rows(made: Plan) -> list[tuple[str, str]]:
    return [(unit.unit_id, unit.action) for unit in made.units]


ETC = a_directory("etc", "etc")
MOTD = a_file("motd", "etc/motd")
HELLO = digest_bytes(b"hello\n")


@pytest.mark.parametrize(
    ("unit", "state", "action", "change"),
    [
        (
            a_file("u", "p"),
            ABSENT,
            "create",
            FileChange(path="p", kind="file", before="", after=HELLO, mode=0o644),
        ),
        (a_file("u", "p"), file_state("hello\n", 0o600), "none", None),
        (
            a_file("u", "p"),
            file_state("old", 0o600),
            "update",
            FileChange(path="p", kind="file", before=digest_bytes(b"old"), after=HELLO, mode=0o600),
        ),
        (
            a_file("u", "p", mode=0o640),
            file_state("hello\n"),
            "update",
            FileChange(path="p", kind="file", before=HELLO, after=HELLO, mode=0o640),
        ),
        (
            gone(a_file("u", "p")),
            file_state("hello\n"),
            "delete",
            FileChange(path="p", kind="file", before=HELLO, after="", mode=0),
        ),
        (gone(a_file("u", "p")), ABSENT, "none", None),
        (
            a_directory("u", "p"),
            ABSENT,
            "create",
            FileChange(path="p", kind="directory", before="", after=DIRECTORY_DIGEST, mode=0o755),
        ),
        (a_directory("u", "p"), directory_state(0o700), "none", None),
        (
            a_directory("u", "p", mode=0o700),
            directory_state(),
            "update",
            FileChange(
                path="p",
                kind="directory",
                before=DIRECTORY_DIGEST,
                after=DIRECTORY_DIGEST,
                mode=0o700,
            ),
        ),
        (
            gone(a_directory("u", "p")),
            directory_state(),
            "delete",
            FileChange(path="p", kind="directory", before=DIRECTORY_DIGEST, after="", mode=0),
        ),
    ],
)
def test_facts_in_change_out(
    unit: UnitSpec, state: FileState, action: str, change: FileChange | None
) -> None:
    made = plan(desire(unit), {"p": state})
    assert [(each.action, each.change) for each in made.units] == [(action, change)]
    assert made.has_changes == (change is not None)
    assert made.count_actions() == {
        name: int(name == action) for name in ("create", "update", "delete", "none")
    }


@pytest.mark.parametrize(
    ("unit", "facts", "said"),
    [
        (a_file("u", "p"), {"p": directory_state()}, "'p' is a directory on the target"),
        (a_file("u", "p"), {"p": LINK}, "'p' is a link on the target"),
        (a_directory("u", "p"), {"p": file_state("x")}, "'p' is a file on the target"),
        (gone(a_file("u", "p")), {"p": directory_state()}, "'p' is a directory on the target"),
        (a_file("u", "d/p"), {}, "'d' does not exist on the target; add a linux.dir unit"),
        (a_file("u", "d/p"), {"d": LINK}, "'d' is a link on the target"),
        (gone(a_file("u", "d/p")), {"d": LINK}, "'d' is a link on the target"),
        (a_file("u", "d/e/p"), {"d": file_state("x")}, "'d/e' does not exist"),
    ],
)
def test_what_is_in_the_way_is_a_conflict_and_never_replaced(
    unit: UnitSpec, facts: Facts, said: str
) -> None:
    with pytest.raises(ConflictError) as caught:
        plan(desire(unit), facts)
    assert said in caught.value.message
    assert caught.value.fields["unit"] == "u"


def test_directories_come_before_what_is_in_them_and_go_after() -> None:
    deep = a_directory("a-deep", "etc/deep")
    assert rows(plan(desire(MOTD, deep, ETC))) == [
        ("etc", "create"),
        ("a-deep", "create"),
        ("motd", "create"),
    ]
    facts = {"etc": directory_state(), "etc/deep": directory_state(), "etc/motd": file_state("x")}
    assert rows(plan(desire(gone(ETC), gone(deep), gone(MOTD)), facts)) == [
        ("a-deep", "delete"),
        ("motd", "delete"),
        ("etc", "delete"),
    ]


def test_the_plan_is_the_same_whatever_the_order_of_the_units() -> None:
    units = (ETC, MOTD, a_file("other", "other", depends_on=("motd",)))
    assert plan(desire(*units)).digest == plan(desire(*reversed(units))).digest


def test_a_dependency_orders_units_and_a_deletion_turns_it_round() -> None:
    one = a_file("one", "1", depends_on=("two",))
    two = a_file("two", "2")
    assert rows(plan(desire(one, two))) == [("two", "create"), ("one", "create")]
    facts = {"1": file_state("x"), "2": file_state("x")}
    made = plan(desire(gone(one), gone(two)), facts)
    assert rows(made) == [("one", "delete"), ("two", "delete")]
    made = plan(desire(gone(one), two), facts)
    assert rows(made) == [("two", "update"), ("one", "delete")]


def test_a_directory_may_wait_for_a_file_in_it_to_go() -> None:
    tidy = a_directory("etc", "etc", mode=0o500, depends_on=("motd",))
    facts = {"etc": directory_state(), "etc/motd": file_state("x")}
    assert rows(plan(desire(tidy, gone(MOTD)), facts)) == [("motd", "delete"), ("etc", "update")]


def test_what_an_earlier_plan_wrote_and_nobody_names_is_deleted() -> None:
    facts = {"etc": directory_state(), "etc/motd": file_state("changed since")}
    made = plan(desire(), facts, applied(ETC, MOTD))
    assert rows(made) == [("motd", "delete"), ("etc", "delete")]
    assert not any(unit.is_declared for unit in made.units)
    assert made.forgets == ()


def test_a_unit_that_moves_deletes_its_old_path_under_an_id_of_its_own() -> None:
    facts = {"old": file_state("hello\n"), "older": file_state("hello\n")}
    previous = applied(a_file("motd", "old")) | applied(a_file("motd", "older"))
    made = plan(desire(a_file("motd", "new")), facts, previous)
    assert rows(made) == [("motd", "create"), ("motd~2", "delete"), ("motd~3", "delete")]


@pytest.mark.parametrize(
    ("units", "facts"),
    [
        ((), {}),
        ((), {"etc": directory_state(), "etc/motd": directory_state()}),
        ((), {"etc": LINK, "etc/motd": file_state("x")}),
        ((gone(MOTD),), {"etc": directory_state()}),
        (
            (a_file("new", "etc/motd/deeper/x"), a_directory("d", "etc/motd/deeper")),
            {"etc": directory_state(), "etc/motd": directory_state()},
        ),
    ],
)
def test_what_is_not_ours_any_more_is_forgotten_and_not_deleted(
    units: tuple[UnitSpec, ...], facts: Facts
) -> None:
    made = plan(desire(*units), facts, applied(MOTD))
    assert made.forgets == ("etc/motd",)
    assert "delete" not in dict(rows(made)).values()


def test_a_directory_that_still_holds_a_wanted_file_is_forgotten() -> None:
    facts = {"etc": directory_state(), "etc/motd": file_state("hello\n")}
    made = plan(desire(MOTD), facts, applied(ETC, MOTD))
    assert rows(made) == [("motd", "none")]
    assert made.forgets == ("etc",)


def test_a_relative_root_is_refused() -> None:
    for root in ("srv", "/srv/../etc", "/srv/", "/a\nb", "//srv", "", "/" + "x" * 5_000):
        with pytest.raises(InvalidFieldError, match="root"):
            make_plan(desired=desire(), actual={}, previous={}, root=root)


def test_too_many_units_and_too_large_plans_are_refused() -> None:
    leftovers = applied(*(a_file(f"old{n}", f"old{n}") for n in range(limits.PLAN_UNITS_MAX)))
    facts = dict.fromkeys(leftovers, file_state("x"))
    with pytest.raises(LimitExceededError, match=r"1,001 units"):
        plan(desire(MOTD), facts | {"etc": directory_state()}, leftovers)
    long = "/".join(["x" * 250] * 8)
    units = [a_file(f"u{n}", f"{long}/{n}") for n in range(500)]
    here = dict.fromkeys(list_paths(desire(units[0]), {})[:-1], directory_state())
    with pytest.raises(LimitExceededError, match="plan is"):
        plan(desire(*units), here)


def test_a_plan_survives_encoding_and_its_digest_covers_everything() -> None:
    made = plan(desire(ETC, MOTD))
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Plan)
    assert decoded == made
    check_plan(decoded)
    moved = msgspec.structs.replace(made, root="/srv/other")
    with pytest.raises(InvalidFieldError, match="does not match"):
        check_plan(moved)


@pytest.mark.parametrize("break_it", ["order", "twice", "path", "action"])
def test_a_plan_that_make_plan_would_not_make_is_refused(break_it: str) -> None:
    made = plan(desire(ETC, MOTD))
    etc, motd = made.units
    broken = {
        "order": (motd, etc),
        "twice": (etc, etc),
        "path": (etc, msgspec.structs.replace(motd, path="elsewhere")),
        "action": (etc, msgspec.structs.replace(motd, action="none")),
    }[break_it]
    changed = msgspec.structs.replace(made, units=broken)
    changed = msgspec.structs.replace(changed, digest=digest_plan(changed))
    with pytest.raises(InvalidFieldError, match="plan again"):
        check_plan(changed)


# --- properties ---------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
MODES = st.sampled_from([None, 0o600, 0o755])


@st.composite
def workspaces(draw: st.DrawFn) -> Desired:
    """A workspace whose directories are units of their own; few of them contradict themselves."""
    paths = draw(st.lists(PATHS, max_size=6, unique=True))
    inner = {ancestor for path in paths for ancestor in list_ancestors(path)}
    units: dict[str, UnitSpec] = {}
    for path in sorted(inner | set(paths)):
        unit_id = "u-" + path.replace("/", "-")
        unit = a_directory(unit_id, path, mode=draw(MODES))
        if path not in inner:
            content = draw(st.sampled_from(["", "x", "y"]))
            unit = draw(st.sampled_from([unit, a_file(unit_id, path, content, mode=unit.mode)]))
            unit = draw(st.sampled_from([unit, unit, gone(unit)]))
        names = draw(st.sets(st.sampled_from(sorted(units)), max_size=2)) if units else set()
        units[unit_id] = replace(unit, depends_on=tuple(sorted(names)))
    return desire(*(units[name] for name in draw(st.permutations(sorted(units)))))


def remember(previous: dict[str, AppliedUnit], made: Plan) -> dict[str, AppliedUnit]:
    kept = {path: unit for path, unit in previous.items() if path not in made.forgets}
    for unit in made.units:
        if unit.action == "delete":
            kept.pop(unit.path, None)
        elif unit.change is not None:
            kept[unit.path] = AppliedUnit(
                unit_id=unit.unit_id, type=unit.type, path=unit.path, digest=unit.change.after
            )
    return kept


@settings(deadline=None)
@given(st.lists(workspaces(), min_size=1, max_size=4))
def test_a_plan_that_was_applied_leaves_nothing_to_plan(history: list[Desired]) -> None:
    asyncio.run(live_through(history))


async def live_through(history: list[Desired]) -> None:
    target = FileMap()
    previous: dict[str, AppliedUnit] = {}
    for desired in history:
        try:
            check_units(desired.units, desired.source)
            made = await target.look(desired, previous)
        except InputError as error:
            event(f"refused: {error.code}")
            continue
        for action, count in made.count_actions().items():
            event(f"{action}: {min(count, 2)}")
        for unit in made.units:
            if unit.change is not None:
                target.apply(unit.change)
        previous = remember(previous, made)
        again = await target.look(desired, previous)
        assert not again.has_changes
        assert again.forgets == ()
        for spec in desired.units:
            assert (spec.path in target.states) == spec.is_present
