"""Every rule finds a planted offence and lets its innocent neighbour pass."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest

from tests.requirements import Requirement
from tests.tidy.copies import find_clones, find_dead_code
from tests.tidy.documents import (
    Document,
    find_bad_adr_names,
    find_dead_links,
    find_missing_commands,
    find_missing_paths,
    find_missing_routes,
    read_document,
)
from tests.tidy.promises import (
    find_lost_defects,
    find_short_test_names,
    find_sleeps,
    find_tests_without_assertion,
    find_unkept_promises,
    find_unsimulated,
    requirement_marks,
)
from tests.tidy.shapes import (
    count_assertions,
    find_misplaced_libraries,
    find_protected_imports,
    find_shared_class_names,
    find_unchecked_changes,
    find_unimported,
)
from tests.tidy.sizes import (
    count_audit_lines,
    find_large_files,
    find_long_functions,
    find_long_modules,
)
from tests.tidy.surface import (
    covered_surface,
    find_uncovered,
    find_unknown_covers,
    walk_commands,
)
from tests.tidy.tree import ROOT, Offence, judge, parse_module
from tests.tidy.words import ANY_FORBIDDEN, ANY_FORBIDDEN_IN_CODE, LINT_EXCEPTION, PRIVATE_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.tidy.tree import Module

pytestmark = pytest.mark.requirement("TIDY-BITES")


def module(path: str, *lines: str) -> Module:
    return parse_module("\n".join([*lines, ""]), path=path)


def places(offences: Iterable[Offence]) -> list[str]:
    return [offence.where for offence in offences]


def names(offences: Iterable[Offence]) -> list[str]:
    return [offence.where.rpartition(":")[2].rpartition("/")[2] for offence in offences]


def document(folder: Path, text: str) -> Document:
    path = folder / "page.md"
    path.write_text(text)
    return read_document(path)


def test_a_long_function_is_found_and_its_docstring_is_not_counted() -> None:
    long = ["def long():", *["    pass"] * 70]
    short = ["def short():", '    """A', *["    line"] * 70, '    """', "    pass"]
    assert names(find_long_functions([module("src/kelpie/a.py", *long, *short)])) == ["long"]


def test_a_long_module_is_found_at_one_line_over_the_limit() -> None:
    offences = find_long_modules([module("a.py", *["0"] * 801), module("b.py", *["0"] * 800)])
    assert places(offences) == ["a.py"]


def test_a_large_file_is_found_at_one_byte_over_the_limit(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"0" * (256 * 1024 + 1))
    (tmp_path / "full").write_bytes(b"0" * (256 * 1024))
    assert names(find_large_files(sorted(tmp_path.iterdir()))) == ["large"]


def test_the_audit_counts_what_the_loop_reaches_and_nothing_else() -> None:
    modules = [
        module("src/kelpie/agents/loop.py", "from kelpie.effects.gate import decide"),
        module("src/kelpie/agents/idle.py", "0"),
        module("src/kelpie/effects/__init__.py", "0", "0"),
        module("src/kelpie/effects/gate.py", "import kelpie.core.ids", "0"),
        module("src/kelpie/core/ids.py", "0"),
    ]
    assert count_audit_lines(["kelpie.agents.loop"], modules) == 1 + 2 + 2


def test_a_module_without_a_user_is_found_and_a_lazily_named_one_is_not() -> None:
    modules = [
        module(
            "src/kelpie/cli/__init__.py",
            "COMMANDS = {'chat': 'chat:chat', 'serve': 'kelpie.cli.serve:serve'}",
            "load = lambda name: import_module(f'kelpie.cli.{name}')",
        ),
        module("src/kelpie/cli/chat.py", "from kelpie.core import ids"),
        module("src/kelpie/cli/serve.py", "0"),
        module("src/kelpie/core/__init__.py", "0"),
        module("src/kelpie/core/ids.py", "0"),
        module("src/kelpie/core/lost.py", "import kelpie.core.lost"),
        module("src/kelpie/sim/loop.py", "0"),
    ]
    users = [module("tests/test_sim.py", "import kelpie.sim.loop, kelpie.core.lost")]
    assert places(find_unimported(modules, users)) == ["src/kelpie/core/lost.py"]


def test_a_class_name_in_two_rooms_is_found_unless_one_is_the_edge() -> None:
    modules = [
        module("src/kelpie/llm/a.py", "class Message: pass", "class _Part: pass"),
        module("src/kelpie/actors/a.py", "class Message: pass", "class _Part: pass"),
        module("src/kelpie/memory/a.py", "class Block: pass"),
        module("src/kelpie/server/a.py", "class Block: pass"),
    ]
    assert places(find_shared_class_names(modules)) == ["Message"]


def test_a_library_outside_its_rooms_is_found() -> None:
    line = "from pydantic import BaseModel"
    modules = [module("src/kelpie/llm/a.py", line), module("src/kelpie/server/a.py", line)]
    offences = find_misplaced_libraries(modules)
    assert {offence.where.partition(":")[0] for offence in offences} == {"src/kelpie/llm/a.py"}


def test_a_world_is_imported_by_the_composition_root_alone() -> None:
    line = "from kelpie.host.clock import HostClock"
    modules = [
        module("src/kelpie/app.py", line),
        module("src/kelpie/host/process.py", line),
        module("src/kelpie/actors/runtime.py", line),
    ]
    offences = find_protected_imports(modules)
    assert {offence.where.partition(":")[0] for offence in offences} == {
        "src/kelpie/actors/runtime.py"
    }


def test_assertions_of_state_changers_are_counted_with_their_helpers() -> None:
    source = module(
        "src/kelpie/storage/a.py",
        "class Store:",
        "    def put(self, row):",
        "        assert row",
        "        self._rows.append(row)",
        "        self._check()",
        "    def _check(self):",
        "        assert self._rows",
        "    def read(self):",
        "        return self._rows[0]",
        "    def drop(self):",
        "        del self._rows[0]",
        "def erase(connection):",
        "    check_open(connection)",
        "    connection.execute('DELETE FROM rows')",
    )
    assert count_assertions(source) == {"erase": 1, "Store.put": 2, "Store.drop": 0}
    assert places(find_unchecked_changes([source], least=2)) == ["src/kelpie/storage/a.py"]
    assert places(find_unchecked_changes([source], least=1)) == []


def test_a_check_counts_however_it_fails_and_a_recorder_has_nothing_to_check() -> None:
    source = module(
        "src/kelpie/storage/a.py",
        "class Store:",
        "    def put(self, row):",
        "        self._require_open()",
        "        if not row:",
        "            raise AssertionError('an empty row')",
        "        self._rows.append(row)",
        "    def _require_open(self):",
        "        if self._closed:",
        "            raise StoreError('closed')",
        "class RecordedTelemetry:",
        "    def log(self, event):",
        "        self.logs.append(event)",
    )
    assert count_assertions(source) == {"Store.put": 2}


@pytest.mark.parametrize(
    "text",
    ["# TODO", "not yet implemented", "for now, a list", "Status: complete", "a HACK"],
)
def test_forbidden_words_are_found(text: str) -> None:
    assert ANY_FORBIDDEN.search(text)


@pytest.mark.parametrize(
    "text", ["todo.txt holds a list", "the method is implemented", "hackathon"]
)
def test_innocent_words_pass(text: str) -> None:
    assert not ANY_FORBIDDEN.search(text)


@pytest.mark.parametrize(
    "text",
    ["x = 1  # type: ignore", "x = 1  # noqa", "raise NotImplementedError", "pytest.skip()"],
)
def test_evasions_in_code_are_found(text: str) -> None:
    assert ANY_FORBIDDEN_IN_CODE.search(text)
    assert not ANY_FORBIDDEN_IN_CODE.search("x = 1  # type: ignore[attr-defined]")


def test_private_keys_and_lint_exceptions_are_found() -> None:
    assert PRIVATE_KEY.search("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert not PRIVATE_KEY.search("-----BEGIN CERTIFICATE-----")
    assert LINT_EXCEPTION.search("except Exception:  # noqa: BLE001")
    assert not LINT_EXCEPTION.search("import x  # noqa: F401")


def test_dead_links_and_headings_are_found(tmp_path: Path) -> None:
    text = "# One thing\n[a](#one-thing) [b](#two) [c](gone.md) [d](https://example.org) `[e](x)`"
    assert names(find_dead_links([document(tmp_path, text)])) == ["#two", "gone.md"]


def test_a_missing_path_in_code_style_is_found(tmp_path: Path) -> None:
    text = "`src/kelpie/gone.py`, `src/kelpie`, `tests/<suite>`, src/prose.py, `docs/adr/NNNN-t.md`"
    offences = list(find_missing_paths([document(tmp_path, text)], root=ROOT))
    assert [offence.where.partition(":")[2] for offence in offences] == ["src/kelpie/gone.py"]


def test_a_missing_command_is_found(tmp_path: Path) -> None:
    text = "`kelpie agents list NAME`\n```\n$ kelpie agents steal\n./dev dance\n```\nkelpie prose"
    known = {("kelpie", "agents", "list")}
    offences = find_missing_commands(
        [document(tmp_path, text)],
        is_command=lambda program, words: (program, *words) in known,
    )
    assert [offence.where.partition(":")[2] for offence in offences] == [
        "kelpie agents steal",
        "./dev dance",
    ]


def test_a_missing_route_is_found_whatever_its_parameter_is_called(tmp_path: Path) -> None:
    text = "`GET /v1/agents/{agent}` and `POST /v1/agents/`, not POST /prose"
    offences = find_missing_routes([document(tmp_path, text)], routes={"GET /v1/agents/{}"})
    assert [offence.where.partition(":")[2] for offence in offences] == ["POST /v1/agents/"]


def test_decision_records_with_one_number_are_found(tmp_path: Path) -> None:
    for name in ("0001-a.md", "0001-b.md", "0002-c.md", "three.md"):
        (tmp_path / name).touch()
    assert names(find_bad_adr_names(tmp_path.iterdir())) == ["0001-b.md", "three.md"]


def test_commands_are_found_below_groups_and_hidden_ones_are_not() -> None:
    main = click.Group("kelpie")
    agents = click.Group("agents")
    agents.add_command(click.Command("list"))
    main.add_command(agents)
    main.add_command(click.Command("secret", hidden=True))
    assert dict(walk_commands(main, "kelpie")) == {
        "kelpie agents": True,
        "kelpie agents list": False,
    }


def test_an_uncovered_command_and_an_unknown_cover_are_found() -> None:
    source = module(
        "tests/e2e/test_a.py",
        "@pytest.mark.covers('kelpie agents list', 'GET /v1/agents/{name}/')",
        "def test_a_thing_happens(): assert 1",
    )
    covered = covered_surface([source])
    surface = {"kelpie agents list", "kelpie serve"}
    assert places(find_uncovered(surface, covered)) == ["kelpie serve"]
    assert places(find_unknown_covers(surface, covered)) == [
        "tests/e2e/test_a.py:GET /v1/agents/{}"
    ]


def test_promises_and_tests_must_name_each_other() -> None:
    source = module("tests/a.py", "pytestmark = pytest.mark.requirement('A', 'B')")
    marks = requirement_marks([source])
    assert places(find_unkept_promises({"A", "C"}, marks)) == ["C", "B"]


def test_a_promise_on_a_critical_path_needs_a_test_in_the_simulator() -> None:
    promised = {
        name: Requirement(text=name, critical=True, path="calls") for name in ("A", "B")
    } | {"C": Requirement(text="C", critical=True)}
    plain = module("tests/a.py", "pytestmark = pytest.mark.requirement('A', 'B', 'C')")
    simulated = module(
        "tests/b.py",
        "from kelpie.sim.run import run",
        "pytestmark = pytest.mark.requirement('B')",
    )
    assert places(find_unsimulated(promised, [plain, simulated])) == ["A"]


def test_a_known_defect_without_a_test_or_a_reason_is_found() -> None:
    kept = {f"K-{number:02}" for number in range(1, 28)}
    assert places(find_lost_defects(kept)) == []
    assert places(find_lost_defects(kept - {"K-07"})) == ["K-07"]


def test_a_test_that_asserts_nothing_or_says_nothing_or_sleeps_is_found() -> None:
    source = module(
        "tests/a.py",
        "def test_one(): time.sleep(1)",
        "async def test_a_thing_happens():",
        "    await asyncio.sleep(0)",
        "    helper()",
        "def helper():",
        "    assert 1",
    )
    assert names(find_tests_without_assertion([source])) == ["a.py:test_one".partition(":")[2]]
    assert names(find_short_test_names([source])) == ["test_one"]
    virtual = module("tests/b.py", "import kelpie.sim.loop", "asyncio.sleep(9)")
    real = module("tests/c.py", "import kelpie.sim.loop", "time.sleep(9)")
    assert places(find_sleeps([source, virtual, real])) == ["tests/a.py", "tests/c.py"]


def test_ten_equal_lines_are_found_and_nine_are_not() -> None:
    body = [f"value_{number} = compute({number})" for number in range(12)]
    twice = [module("a.py", *body), module("b.py", "import a", "# a note", *body)]
    assert places(find_clones(twice)) == ["a.py~b.py"]
    almost = [module("a.py", *body[:9]), module("b.py", *body[:9])]
    assert places(find_clones(almost)) == []


def test_code_that_nothing_uses_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("def used(): pass\n\ndef lost(): pass\n\nused()\n")
    assert names(find_dead_code([path], judged=("",))) == ["lost"]


def test_an_offence_that_is_not_on_the_allow_list_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match="somewhere: something"):
        judge("a-rule-of-no-name", [Offence("somewhere", "something")])


def test_the_layers_contract_breaks_on_an_upward_import(tmp_path: Path) -> None:
    for room, text in {"core": "import kelpie.actors.a\n", "actors": ""}.items():
        folder = tmp_path / "kelpie" / room
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "a.py").write_text(text)
    (tmp_path / "kelpie" / "__init__.py").touch()
    done = subprocess.run(
        [f"{sys.prefix}/bin/lint-imports", "--no-cache", "--config", str(ROOT / "pyproject.toml")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "kelpie.core is not allowed to import kelpie.actors" in done.stdout
