from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kelpie.core import limits
from kelpie.core.errors import InputError, InvalidFieldError, LimitExceededError
from kelpie.infra.config import Desired, UnitSpec, YamlLoader
from kelpie.infra.yaml_nodes import YamlPlace, read_string

GOOD = """\
version: 1
units:
  - id: etc
    type: linux.dir
    path: etc
    mode: "0750"
  - id: motd
    type: linux.file
    path: etc/motd
    content: |
      hello
    mode: "644"
    depends_on: [etc]
  - id: old
    type: linux.file
    path: etc/old
    state: absent
"""


def load(text: str) -> Desired:
    return YamlLoader().load_text(text, name="site.yaml")


def refuse(text: str) -> InvalidFieldError:
    with pytest.raises(InvalidFieldError) as caught:
        load(text)
    return caught.value


def one_unit(**fields: object) -> str:
    base: dict[str, object] = {"id": "a", "type": "linux.file", "path": "a", "content": "x"}
    unit = {key: value for key, value in (base | fields).items() if value is not None}
    return yaml.safe_dump({"version": 1, "units": [unit]}, sort_keys=False)


def test_a_workspace_becomes_its_units() -> None:
    desired = load(GOOD)
    assert desired.source == "site.yaml"
    assert desired.units == (
        UnitSpec(unit_id="etc", type="linux.dir", path="etc", mode=0o750, line=3),
        UnitSpec(
            unit_id="motd",
            type="linux.file",
            path="etc/motd",
            content=b"hello\n",
            mode=0o644,
            depends_on=("etc",),
            line=7,
        ),
        UnitSpec(unit_id="old", type="linux.file", path="etc/old", is_present=False, line=14),
    )


def test_an_error_names_file_line_unit_and_field() -> None:
    error = refuse(GOOD.replace('"644"', "644"))
    assert error.message == (
        "units.motd.mode: must be a string, not int; quote it (site.yaml, line 12)"
    )
    assert error.fields == {
        "field": "units.motd.mode",
        "file": "site.yaml",
        "line": 12,
        "unit": "motd",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("- 1", "must be a mapping"),
        ("version: 2\nunits: []", "version: must be 1"),
        ("version: '1'\nunits: []", "version: must be 1"),
        ("units: []", "version: must be 1"),
        ("version: 1", "units: is missing"),
        ("version: 1\nunits: {}", "must be a list"),
        ("version: 1\nunits: []\nextra: 1", "'extra' is no known key"),
        ("version: 1\nversion: 1\nunits: []", "given twice"),
        ("version: 1\nunits: []\n---\nversion: 1", "is not YAML"),
        ("version: 1\nunits: [", "is not YAML"),
        ("version: 1\nunits: [\x00]", "is not YAML"),
        ("1: 1", "must be a string, not int"),
        ("version: 1\nunits: [a]", "units[0]: must be a mapping"),
        ("version: 1\nunits: &x []", "anchors and aliases are not accepted"),
        ("version: 1\nunits: *x", "anchors and aliases are not accepted"),
        ("<<: {version: 1}\nunits: []", "must be a string, not merge"),
        ("version: 1\nunits: []\n\ud800: 1", "is not UTF-8"),
        (one_unit(id=None), "units[0].id: is missing"),
        (one_unit(path=None), "units[0].path: is missing"),
        (one_unit(type=None), "units[0].type: is missing"),
        (one_unit(id="a b"), "units[0].id: 'a b' must be"),
        (one_unit(id="~"), "must be up to"),
        (one_unit(id="x" * 257), "must be up to 256"),
        (one_unit(type="linux.socket"), "must be one of linux.file, linux.dir"),
        (one_unit(state="gone"), "must be one of present, absent"),
        (one_unit(path="/etc/passwd"), "must be relative to the root"),
        (one_unit(path="../up"), "must not contain '..'"),
        (one_unit(path="a/./b"), "must not contain"),
        (one_unit(path="a/"), "must not contain"),
        (one_unit(path=""), "must not be empty"),
        (one_unit(path="a\nb"), "control characters"),
        (one_unit(path="x" * 256), "segment of more than 255 bytes"),
        (one_unit(path="x/" * 2100 + "x"), "the limit is 4,096 bytes"),
        (one_unit(mode="0888"), "three octal digits"),
        (one_unit(mode="4755"), "three octal digits"),
        (one_unit(mode=420), "must be a string, not int"),
        (one_unit(content=12), "must be a string, not int"),
        (one_unit(content=True), "must be a string, not bool"),
        (one_unit(content=["x"]), "must be a string, not seq"),
        (one_unit(content=b"x"), "must be a string, not binary"),
        (one_unit(content=None), "either content or source"),
        (one_unit(source="b"), "either content or source"),
        (one_unit(content=None, source="b"), "needs a workspace file on disk"),
        (one_unit(type="linux.dir"), "only a present file has it"),
        (one_unit(state="absent"), "only a present file has it"),
        (one_unit(state="absent", content=None, mode="0644"), "makes no sense"),
        (one_unit(depends_on="b"), "must be a list"),
        (one_unit(depends_on=[1]), "must be a string"),
        (one_unit(depends_on=["b"]), "there is no unit 'b'"),
        (one_unit(depends_on=["b", "b"]), "given twice"),
        (one_unit(depends_on=["a"]), "is part of a cycle: a -> a"),
        (one_unit(owner="root"), "'owner' is no known key"),
        ('version: 1\nunits: [{id: a, type: linux.file, path: "\\ud800"}]', "site.yaml"),
        ("version: 1\nunits: [!!python/object:os.system {id: a}]", "units[0].type: is missing"),
    ],
)
def test_bad_input_is_refused_with_its_place(text: str, said: str) -> None:
    error = refuse(text)
    assert said in error.message
    assert "site.yaml" in error.message
    assert error.code == "invalid_field"


def test_half_a_surrogate_pair_is_refused_whichever_parser_let_it_through() -> None:
    mark = yaml.Mark("site.yaml", 0, 0, 0, "", 0)
    node = yaml.ScalarNode("tag:yaml.org,2002:str", "\ud800", mark, mark)
    with pytest.raises(InvalidFieldError, match="half a surrogate pair"):
        read_string(node, "content", YamlPlace(file="site.yaml"))


def units(*rows: str) -> str:
    return "version: 1\nunits:\n" + "".join(f"  - {{{row}}}\n" for row in rows)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            ("id: a, type: linux.dir, path: x", "id: a, type: linux.dir, path: y"),
            "units.a.id: 'a' is taken by the unit 'a' on line 3 (site.yaml, line 4)",
        ),
        (
            ("id: a, type: linux.dir, path: x", "id: b, type: linux.dir, path: x"),
            "units.b.path: 'x' is taken by the unit 'a'",
        ),
        (
            (
                "id: a, type: linux.dir, path: x, depends_on: [b]",
                "id: b, type: linux.dir, path: y, depends_on: [a]",
            ),
            "is part of a cycle",
        ),
        (
            # The directory waits for the file in it, which waits for its directory.
            (
                "id: a, type: linux.dir, path: x, depends_on: [b]",
                "id: b, type: linux.file, path: x/y, content: z",
            ),
            "is part of a cycle",
        ),
        (
            (
                "id: a, type: linux.file, path: x, content: z",
                "id: b, type: linux.file, path: x/y, content: z",
            ),
            "lies below the file of the unit 'a'",
        ),
        (
            (
                "id: a, type: linux.dir, path: x, state: absent",
                "id: b, type: linux.dir, path: x/y/z",
            ),
            "lies in a directory that the unit 'a' removes",
        ),
    ],
)
def test_units_that_contradict_each_other_are_refused(rows: tuple[str, ...], said: str) -> None:
    assert said in refuse(units(*rows)).message


def test_deletions_may_depend_on_each_other_because_they_turn_round() -> None:
    desired = load(
        units(
            "id: a, type: linux.dir, path: x, state: absent",
            "id: b, type: linux.file, path: x/y, state: absent, depends_on: [a]",
        )
    )
    assert [unit.unit_id for unit in desired.units] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("#" * (limits.PLAN_CONFIG_BYTES_MAX + 1), limits.PLAN_CONFIG_BYTES_MAX),
        ("[" * 50_000, limits.PLAN_CONFIG_DEPTH_MAX),
        ("a: [" + "1," * limits.PLAN_CONFIG_NODES_MAX + "]", limits.PLAN_CONFIG_NODES_MAX),
        (units(*["id: a"] * (limits.PLAN_UNITS_MAX + 1)), limits.PLAN_UNITS_MAX),
    ],
)
def test_what_is_too_large_is_refused_with_the_limit(text: str, limit: int) -> None:
    with pytest.raises(LimitExceededError) as caught:
        load(text)
    assert caught.value.fields["limit"] == limit


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_workspace_or_a_typed_error(text: str) -> None:
    try:
        desired = load(text)
    except InputError:
        return
    assert isinstance(desired, Desired)


# --- files beside the workspace -----------------------------------------------------------------


def write_workspace(folder: Path, source: str) -> Path:
    path = folder / "site.yaml"
    path.write_text(one_unit(content=None, source=source))
    return path


def test_a_source_beside_the_workspace_becomes_the_content(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "motd").write_bytes(b"\x00\xff binary")
    desired = YamlLoader().load(write_workspace(tmp_path, "files/motd"))
    assert desired.units[0].content == b"\x00\xff binary"


def test_a_source_that_leads_out_through_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    home = tmp_path / "home"
    home.mkdir()
    (home / "link").symlink_to("../secret")
    with pytest.raises(InvalidFieldError, match="leads out of the workspace's folder"):
        YamlLoader().load(write_workspace(home, "link"))


def test_a_source_that_is_missing_a_folder_a_pipe_or_a_loop_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for source in ("missing", "folder", "pipe", "loop"):
        with pytest.raises(InvalidFieldError, match=r"units\.a\.source.*cannot be read"):
            YamlLoader().load(write_workspace(tmp_path, source))


def test_a_source_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(limits.WORKSPACE_FILE_BYTES_MAX + 1)
    with pytest.raises(LimitExceededError, match="8,388,609 bytes"):
        YamlLoader().load(write_workspace(tmp_path, "big"))


def test_contents_that_are_too_large_together_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(limits.WORKSPACE_FILE_BYTES_MAX)
    count = limits.PLAN_CONTENT_BYTES_MAX // limits.WORKSPACE_FILE_BYTES_MAX + 1
    rows = [f"id: u{n}, type: linux.file, path: p{n}, source: big" for n in range(count)]
    (tmp_path / "site.yaml").write_text(units(*rows))
    with pytest.raises(LimitExceededError, match=r"units\.content"):
        YamlLoader().load(tmp_path / "site.yaml")


def test_a_workspace_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.yaml"):
        with pytest.raises(InvalidFieldError, match="config: cannot be read"):
            YamlLoader().load(path)


def test_a_workspace_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_bytes(b"version: 1\n# \xff\n")
    with pytest.raises(InvalidFieldError, match="byte 13 is not UTF-8"):
        YamlLoader().load(tmp_path / "site.yaml")
