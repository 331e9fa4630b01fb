"""Identities, encrypted files, and archives that somebody else made."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from kelpie.core.errors import (
    ConflictError,
    CorruptionError,
    InvalidFieldError,
    NotFoundError,
    StoreError,
)
from kelpie.storage.age import Identities, decrypt_file, encrypt_file, is_encrypted
from kelpie.storage.archive import pack_backup, unpack_backup

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.requirement("SECRETS-ROTATE")


def test_what_was_encrypted_before_a_rotation_is_still_read(tmp_path: Path) -> None:
    identities = Identities(tmp_path / "keys" / "identity.age")
    with pytest.raises(NotFoundError, match="secrets init"):
        identities.recipient()
    first = identities.create()
    with pytest.raises(ConflictError):
        identities.create()
    plain, secret = tmp_path / "plain", tmp_path / "secret"
    plain.write_bytes(b"words" * 1_000)
    encrypt_file(plain, secret, [first])
    assert is_encrypted(secret)
    assert not is_encrypted(plain)
    second = identities.rotate()
    assert identities.recipient() == second != first
    decrypt_file(secret, tmp_path / "again", identities)
    assert (tmp_path / "again").read_bytes() == plain.read_bytes()
    assert (tmp_path / "again").stat().st_mode & 0o077 == 0


def test_a_stranger_and_a_damaged_file_read_nothing(tmp_path: Path) -> None:
    mine, theirs = (Identities(tmp_path / name / "identity.age") for name in ("a", "b"))
    recipient = mine.create()
    theirs.create()
    plain, secret = tmp_path / "plain", tmp_path / "secret"
    plain.write_bytes(b"words" * 1_000)
    encrypt_file(plain, secret, [recipient])
    with pytest.raises(CorruptionError, match="not encrypted for"):
        decrypt_file(secret, tmp_path / "x", theirs)
    whole = secret.read_bytes()
    secret.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptionError):
        decrypt_file(secret, tmp_path / "y", mine)
    for wrong in ([], ["me"], [recipient] * 17):
        with pytest.raises(InvalidFieldError):
            encrypt_file(plain, tmp_path / "z", wrong)
    mine.path.write_text("AGE-SECRET-KEY-1NONSENSE\n", encoding="utf-8")
    with pytest.raises(CorruptionError, match="identities"):
        mine.rotate()


def test_a_backup_comes_out_of_its_archive_and_nothing_else_does(tmp_path: Path) -> None:
    backup = tmp_path / "source"
    name = "ab" * 32
    (backup / "blobs" / "ab").mkdir(parents=True)
    (backup / "blobs" / "incoming").mkdir()
    (backup / "blobs" / "ab" / name).write_bytes(b"blob")
    (backup / "store.db").write_bytes(b"rows")
    pack_backup(backup, tmp_path / "archive")
    (tmp_path / "out").mkdir()
    made = unpack_backup(tmp_path / "archive", tmp_path / "out")
    assert (made / "store.db").read_bytes() == b"rows"
    assert (made / "blobs" / "ab" / name).read_bytes() == b"blob"
    assert not (made / "blobs" / "incoming").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../escaped", tarfile.REGTYPE),
        ("/etc/escaped", tarfile.REGTYPE),
        ("backup/../escaped", tarfile.REGTYPE),
        ("backup/blobs", tarfile.SYMTYPE),
        ("backup/store.db", tarfile.LNKTYPE),
        ("backup/store.db", tarfile.FIFOTYPE),
        ("backup/other", tarfile.REGTYPE),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    with tarfile.open(tmp_path / "archive", "x") as file:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        file.addfile(member, io.BytesIO())
    (tmp_path / "out").mkdir()
    with pytest.raises(CorruptionError, match="no backup does"):
        unpack_backup(tmp_path / "archive", tmp_path / "out")
    assert not (tmp_path / "escaped").exists()
    (tmp_path / "noise").write_bytes(b"noise" * 1_000)
    (tmp_path / "other").mkdir()
    with pytest.raises(CorruptionError, match="damaged"):
        unpack_backup(tmp_path / "noise", tmp_path / "other")


@pytest.mark.parametrize("content", [b"", b"# public key: lost\n\n", b"\xff\xfe"])
def test_a_file_without_a_readable_identity_is_named_and_never_written_over(
    tmp_path: Path, content: bytes
) -> None:
    identities = Identities(tmp_path / "identity.age")
    identities.create()
    identities.path.write_bytes(content)
    for ask in (identities.recipient, identities.rotate):
        with pytest.raises(CorruptionError, match="put your copy of it back"):
            ask()
    with pytest.raises(ConflictError):
        identities.create()
    assert identities.path.read_bytes() == content


def test_a_package_that_vanished_is_the_disks_failure_and_not_a_damaged_package(
    tmp_path: Path,
) -> None:
    identities = Identities(tmp_path / "identity.age")
    recipient = identities.create()
    with pytest.raises(StoreError, match="No such file") as caught:
        decrypt_file(tmp_path / "gone", tmp_path / "x", identities)
    assert not isinstance(caught.value, CorruptionError)
    with pytest.raises(StoreError, match="No such file"):
        encrypt_file(tmp_path / "gone", tmp_path / "y", [recipient])
