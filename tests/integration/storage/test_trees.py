"""Directories as lists, and what no list may do to the directory it is built in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.core.digests import Digest, digest_bytes
from kelpie.core.errors import CorruptionError, InvalidFieldError, KelpieError, LimitExceededError
from kelpie.core.limits import BLOB_BYTES_MAX, WORKSPACE_ENTRIES_MAX
from kelpie.storage.trees import TreeEntry, build_tree, check_entries, list_tree

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.requirement("TELEPORT-HOSTILE")


def file_entry(path: str) -> TreeEntry:
    return TreeEntry(path=path, kind="file", mode=0o644, digest=digest_bytes(b""))


def directory(path: str) -> TreeEntry:
    return TreeEntry(path=path, kind="directory", mode=0o755)


def test_a_built_directory_is_like_the_listed_one(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "é.txt").write_bytes(b"text")
    (source / "a.sh").write_bytes(b"#!/bin/sh")
    (source / "a.sh").chmod(0o755)
    (source / "a" / "b").chmod(0o500)
    (source / "out").symlink_to("../../etc")
    os.mkfifo(source / "pipe")
    listing = list_tree(source)
    assert listing.left_out == ("pipe",)
    assert [entry.path for entry in listing.entries] == ["a", "a/b", "a/b/é.txt", "a.sh", "out"]
    check_entries(listing.entries)
    staged = {digest_bytes(data): data for data in (b"text", b"#!/bin/sh")}

    def content(digest: Digest) -> Path:
        path = tmp_path / digest[7:]
        path.write_bytes(staged[digest])
        return path

    target.mkdir()
    build_tree(listing.entries, target, content)
    assert list_tree(target).entries == listing.entries
    assert str((target / "out").readlink()) == "../../etc"


@pytest.mark.parametrize(
    "paths",
    [
        ["../up"],
        ["/abs"],
        ["a/../b"],
        ["."],
        [""],
        ["a//b"],
        ["no/parent"],
        ["twice", "twice"],
        ["nul\0"],
        ["x" * 5_000],
    ],
)
def test_a_listing_that_leaves_its_directory_is_refused(paths: list[str]) -> None:
    with pytest.raises(CorruptionError, match="cannot be built"):
        check_entries([file_entry(path) for path in paths])


def test_nothing_is_built_through_a_link_or_a_file() -> None:
    link = TreeEntry(path="way", kind="link", target="/etc")
    for first in (link, file_entry("way")):
        with pytest.raises(CorruptionError):
            check_entries([first, file_entry("way/passwd")])
    with pytest.raises(CorruptionError):
        check_entries([TreeEntry(path="empty", kind="link", target="")])
    with pytest.raises(LimitExceededError):
        check_entries([directory(f"d{n}") for n in range(WORKSPACE_ENTRIES_MAX + 1)])


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff")).write_bytes(b"")
    with pytest.raises(InvalidFieldError, match="not UTF-8"):
        list_tree(tmp_path)


@given(
    st.lists(
        st.builds(
            TreeEntry,
            path=st.text(alphabet="ab./\0", max_size=6),
            kind=st.sampled_from(["directory", "file", "link"]),
            digest=st.just(digest_bytes(b"")),
            target=st.text(alphabet="ab./", max_size=4),
        ),
        max_size=6,
    )
)
def test_whatever_passes_the_check_stays_below_its_directory(entries: list[TreeEntry]) -> None:
    try:
        check_entries(entries)
    except KelpieError:
        return
    for entry in entries:
        parts = entry.path.split("/")
        assert parts
        assert not {"", ".", ".."} & set(parts)


def test_a_directory_with_too_many_names_is_not_listed(tmp_path: Path) -> None:
    for number in range(WORKSPACE_ENTRIES_MAX):
        (tmp_path / f"{number}").symlink_to("x")
    assert len(list_tree(tmp_path).entries) == WORKSPACE_ENTRIES_MAX
    (tmp_path / "one more").symlink_to("x")
    with pytest.raises(LimitExceededError) as caught:
        list_tree(tmp_path)
    assert caught.value.fields["actual"] == WORKSPACE_ENTRIES_MAX + 1


def test_a_file_that_no_blob_can_hold_is_named_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(BLOB_BYTES_MAX + 1)
    with pytest.raises(LimitExceededError, match="large"):
        list_tree(tmp_path)
    (tmp_path / "large").unlink()
    assert [entry.path for entry in list_tree(tmp_path).entries] == ["small"]


def test_a_directory_that_cannot_be_read_is_no_empty_one(tmp_path: Path) -> None:
    assert list_tree(tmp_path).entries == ()
    with pytest.raises(FileNotFoundError):
        list_tree(tmp_path / "missing")
