from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from kelpie.core.digests import digest_bytes
from kelpie.core.errors import InvalidFieldError, LimitExceededError, NotFoundError
from kelpie.sandbox.workspace import ABSENT, DIRECTORY_DIGEST, Workspace

if TYPE_CHECKING:
    from pathlib import Path


def test_states_tell_files_directories_links_and_absence_apart(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    (tmp_path / "f").chmod(0o640)
    (tmp_path / "l").symlink_to("f")
    workspace = Workspace(tmp_path)
    assert workspace.state("f") == ("file", digest_bytes(b"abc"), 0o640, 3)
    assert workspace.state(".").kind == "directory"
    assert workspace.state(".").digest == DIRECTORY_DIGEST
    assert workspace.state("l").kind == "link"
    assert workspace.state("l").digest not in {"", digest_bytes(b"f")}
    assert workspace.state("none") == ABSENT
    assert workspace.state("no/where") == ABSENT


def test_reading_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    assert Workspace(tmp_path).read("f", bytes_max=5) == b"12345"
    with pytest.raises(LimitExceededError, match="5 bytes, the limit is 4"):
        Workspace(tmp_path).read("f", bytes_max=4)


@pytest.mark.parametrize("path", ["../f", "/etc/passwd", "way/f", "link", ".", "pipe", "sock"])
def test_nothing_but_regular_files_beneath_the_root_can_be_read(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "f").write_bytes(b"secret")
    (root / "way").symlink_to(tmp_path)
    (root / "link").symlink_to(tmp_path / "f")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "sock"))
        with pytest.raises(InvalidFieldError):
            Workspace(root).read(path)


def test_what_does_not_exist_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="file 'x'"):
        Workspace(tmp_path).read("x")
    with pytest.raises(NotFoundError, match="directory 'x'"):
        Workspace(tmp_path).list("x")
    with pytest.raises(NotFoundError, match="workspace"):
        Workspace(tmp_path / "gone").state("x")


def test_a_listing_names_links_without_entering_them(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"abc")
    (tmp_path / "l").symlink_to("/")
    flat = Workspace(tmp_path).list()
    assert [(entry.path, entry.kind) for entry in flat.entries] == [
        ("d", "directory"),
        ("l", "link"),
    ]
    deep = Workspace(tmp_path).list(recursive=True)
    assert [entry.path for entry in deep.entries] == ["d", "d/f", "l"]
    assert deep.entries[1].size_bytes == 3
    assert not deep.cut


def test_a_listing_is_bounded_and_says_so(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).touch()
    listing = Workspace(tmp_path).list(entries_max=3)
    assert len(listing.entries) == 3
    assert listing.cut
    assert not Workspace(tmp_path).list(entries_max=5).cut


def test_a_listing_through_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to("/")
    with pytest.raises(InvalidFieldError, match="link"):
        Workspace(tmp_path).list("l")
