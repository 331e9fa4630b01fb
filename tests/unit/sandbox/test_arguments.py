from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.core.errors import InputError, InvalidFieldError, LimitExceededError
from kelpie.sandbox.arguments import Descriptors, check_request, make_launch, make_options
from kelpie.sandbox.cgroups import Controllers, GroupPlace
from kelpie.sandbox.paths import parse_path
from kelpie.sandbox.protocol import Bounds, CommandRequest

NUMBERS = Descriptors(options=3, seccomp=4, users=5, groups=6, status=7)
NONE = Controllers(memory=None, pids=None)


def make_request(**fields: Any) -> CommandRequest:
    given_fields = {"argv": ("true",), "workspace": Path("/w"), "access": "read", **fields}
    return CommandRequest(**given_fields)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"argv": ()}, "argv"),
        ({"argv": ("",)}, "argv"),
        ({"argv": ("a\0b",)}, "argv"),
        ({"environment": {"A=B": "x"}}, "environment"),
        ({"environment": {"": "x"}}, "environment"),
        ({"directory": "/etc"}, "directory"),
        ({"directory": ".."}, "directory"),
        ({"bounds": Bounds(processes=0)}, "bounds.processes"),
    ],
)
def test_a_malformed_request_names_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        check_request(make_request(**fields))
    assert caught.value.fields["field"] == field


@pytest.mark.parametrize(
    "fields",
    [
        {"argv": ("x",) * 1_025},
        {"argv": ("x" * 200_000,)},
        {"environment": {"A": "x" * 200_000}},
        {"bounds": Bounds(timeout_ms=600_001)},
    ],
)
def test_a_request_that_is_too_large_names_the_limit(fields: dict[str, Any]) -> None:
    with pytest.raises(LimitExceededError) as caught:
        check_request(make_request(**fields))
    assert caught.value.fields["limit"]


def test_values_of_the_environment_stay_off_the_command_line() -> None:
    request = make_request(environment={"TOKEN": "hunter2"})
    order = make_launch(
        request, bwrap="/usr/bin/bwrap", mark="m", scratch=None, is_root=False, parent=1,
        controllers=NONE, process_files=(), descriptors=NUMBERS,
    )  # fmt: skip
    assert "hunter2" not in " ".join(order["argv"])
    assert b"hunter2" in make_options(request, is_root=False, descriptors=NUMBERS)


def test_a_user_is_given_no_capability_and_no_network() -> None:
    words = make_options(make_request(), is_root=False, descriptors=NUMBERS).split(b"\0")
    assert b"--cap-add" not in words
    for name in (b"net", b"pid", b"ipc", b"uts", b"cgroup"):
        assert b"--unshare-" + name in words
    assert b"--share-net" not in words


@pytest.mark.parametrize("group", [None, GroupPlace(2, Path("/sys/fs/cgroup"))])
def test_memory_without_a_control_group_is_bound_by_an_rlimit(group: GroupPlace | None) -> None:
    order = make_launch(
        make_request(), bwrap="b", mark="m", scratch=None, is_root=True, parent=1,
        controllers=Controllers(memory=group, pids=None), process_files=(), descriptors=NUMBERS,
    )  # fmt: skip
    assert ("DATA" in order["limits"]) == (group is None)
    assert order["limits"]["NPROC"] > 128
    assert order["first_id"] > 2**30


@given(st.text(max_size=80))
def test_a_parsed_path_never_leaves_its_root(text: str) -> None:
    try:
        parts = parse_path(text)
    except InputError:
        return
    assert ".." not in parts
    assert not any("/" in part or "\0" in part or not part for part in parts)


def test_equal_paths_parse_alike() -> None:
    assert parse_path("a//b/./c/") == parse_path("a/b/c") == ("a", "b", "c")
    assert parse_path(".") == parse_path("") == ()


def test_long_paths_are_refused() -> None:
    for path in ("x" * 256, "x/" * 2_049):
        with pytest.raises(LimitExceededError):
            parse_path(path)
