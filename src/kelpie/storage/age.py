"""Encryption of packages and backups with age: this node's identities, and whole files.

The identity file holds secret keys in age's own form, newest first, readable by its owner alone.
What is encrypted for the node is encrypted for the newest; every older one still decrypts. Losing
the file loses what only it decrypts: keep a copy of it elsewhere.

Source: age-encryption.org/v1.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyrage

from kelpie.core.errors import (
    ConflictError,
    CorruptionError,
    InvalidFieldError,
    NotFoundError,
)
from kelpie.core.limits import SECRET_BYTES_MAX
from kelpie.core.quoting import quote_text
from kelpie.storage.files import sync_directory, sync_file, temporary_file, typed_failures

IDENTITY_FILE: Final = "identity.age"
MAGIC: Final = b"age-encryption.org/v1\n"
RECIPIENTS_MAX: Final = 16  # a package is for few readers
_SYSTEM_ERROR: Final = re.compile(r"\(os error (\d+)\)$")


class Identities:
    """The identities in one file of a data directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        """Where they are kept."""
        return self._path

    def create(self) -> str:
        """Make the first identity, and return its recipient.

        Raises:
            ConflictError: There is one.
        """
        if self._path.exists():
            message = f"{self._path} exists; rotate adds an identity, and keeps the old ones"
            raise ConflictError(message, path=str(self._path))
        with typed_failures(self._path.parent):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        recipient = self._add([])
        assert self._path.stat().st_mode & 0o077 == 0, "nobody else reads it"
        return recipient

    def rotate(self) -> str:
        """Add an identity that is used from now on, keep the others, and return its recipient.

        Raises:
            NotFoundError: There is none yet.
            CorruptionError: The file cannot be read.
        """
        before = self.read()
        recipient = self._add(before)
        assert len(self.read()) == len(before) + 1, "no identity is lost"
        assert recipient not in {str(each.to_public()) for each in before}, "it is a new one"
        return recipient

    def read(self) -> list[pyrage.x25519.Identity]:
        """Return every identity, newest first.

        Raises:
            NotFoundError: There is none.
            CorruptionError: The file cannot be read.
        """
        try:
            text = self._path.read_bytes()[: 64 * SECRET_BYTES_MAX].decode()
        except FileNotFoundError:
            hint = "make one with kelpie secrets init"
            raise NotFoundError("identity", str(self._path), hint=hint) from None
        except UnicodeDecodeError:
            raise self._damaged() from None
        lines = [line.strip() for line in text.splitlines()]
        try:
            found = [
                pyrage.x25519.Identity.from_str(line)
                for line in lines
                if line and not line.startswith("#")
            ]
        except pyrage.IdentityError:
            raise self._damaged() from None
        if not found:
            raise self._damaged()
        return found

    def recipient(self) -> str:
        """Return the newest identity's public half, which others encrypt for."""
        return str(self.read()[0].to_public())

    def _add(self, older: Sequence[pyrage.x25519.Identity]) -> str:
        made = pyrage.x25519.Identity.generate()
        lines = [f"# public key: {each.to_public()}\n{each}\n" for each in (made, *older)]
        partial = self._path.with_name(f".{self._path.name}.partial")
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with temporary_file(partial) as file:
            file.write("".join(lines).encode())
            file.flush()
            sync_file(partial)
            partial.replace(self._path)
        sync_directory(self._path.parent)
        return str(made.to_public())

    def _damaged(self) -> CorruptionError:
        message = f"{self._path} is no file of age identities; put your copy of it back"
        return CorruptionError(message, path=str(self._path))


def is_encrypted(path: Path) -> bool:
    """Return whether a file begins as age's files do."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def encrypt_file(source: Path, target: Path, recipients: Sequence[str]) -> None:
    """Write ``source`` encrypted for everybody in ``recipients`` to the new file ``target``.

    Raises:
        InvalidFieldError: A recipient is none of age's.
        DiskFullError: No space.
    """
    assert not target.exists(), "nothing is written over"
    if not 0 < len(recipients) <= RECIPIENTS_MAX:
        raise InvalidFieldError("recipients", f"name 1 to {RECIPIENTS_MAX}")
    readers: list[pyrage.x25519.Recipient] = []
    for text in recipients:
        try:
            readers.append(pyrage.x25519.Recipient.from_str(text))
        except pyrage.RecipientError:
            problem = f"{quote_text(text)} is no recipient (age1…); see secrets show-recipient"
            raise InvalidFieldError("recipients", problem) from None
    with typed_failures(target.parent):
        try:
            pyrage.encrypt_file(str(source), str(target), readers)
        except (pyrage.EncryptError, OSError) as error:
            raise _system_error(error) or OSError(errno.EIO, str(error)) from error
    assert is_encrypted(target), "what is written is age's"


def decrypt_file(source: Path, target: Path, identities: Identities) -> None:
    """Write what the encrypted ``source`` holds to the new file ``target``.

    Raises:
        NotFoundError: This node has no identity.
        CorruptionError: None of its identities decrypts it, or it is damaged.
        DiskFullError: No space.
    """
    assert not target.exists(), "nothing is written over"
    keys = identities.read()
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with typed_failures(target.parent):
        try:
            pyrage.decrypt_file(str(source), str(target), keys)
        except (pyrage.DecryptError, OSError) as error:
            # A file that is damaged further on is an error of the system without a number.
            failure = _system_error(error)
            if failure is not None:
                raise failure from error
            found = f"{source} is not encrypted for an identity in {identities.path}, or damaged"
            raise CorruptionError(f"{found} ({error})", path=str(source)) from error
    assert target.exists(), "what was decrypted is there"


def _system_error(error: Exception) -> OSError | None:
    """Return what the system said, which pyrage hands on as words alone; None if it did not."""
    found = _SYSTEM_ERROR.search(str(error))
    return None if found is None else OSError(int(found[1]), os.strerror(int(found[1])))
