"""The lock beside the store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kelpie.core.errors import StoreHeldError
from kelpie.storage.holder import HolderLock, holder_path, read_holder

if TYPE_CHECKING:
    from pathlib import Path


def test_the_lock_says_who_holds_it_until_it_is_released(tmp_path: Path) -> None:
    store = tmp_path / "db"
    assert read_holder(store) is None
    lock = HolderLock.acquire(store, address="unix:/run/k")
    holder = read_holder(store)
    assert holder is not None
    assert (holder.pid, holder.address) == (os.getpid(), "unix:/run/k")
    with pytest.raises(StoreHeldError, match="ask it at unix:/run/k"):
        HolderLock.acquire(store)
    lock.release()
    lock.release()
    assert read_holder(store) is None
    HolderLock.acquire(store).release()


@pytest.mark.requirement("K-17")
def test_a_line_left_behind_by_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    store = tmp_path / "db"
    holder_path(store).write_text('{"pid": 1, "address": "gone"}')
    assert read_holder(store) is None
    HolderLock.acquire(store).release()


def test_a_holder_without_a_readable_line_still_holds(tmp_path: Path) -> None:
    store = tmp_path / "db"
    lock = HolderLock.acquire(store)
    holder_path(store).write_bytes(b"\xff")
    holder = read_holder(store)
    assert holder is not None
    assert holder.pid == 0
    with pytest.raises(StoreHeldError, match="another process"):
        HolderLock.acquire(store)
    lock.release()


def test_a_lock_in_a_missing_folder_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        HolderLock.acquire(tmp_path / "no" / "db")
