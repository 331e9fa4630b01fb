"""A backup's directory as one file, and back: a tar archive, which age encrypts.

Takes out of an archive what a backup holds, and nothing else, whatever the archive says.
"""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path
from typing import Final

from kelpie.core.errors import CorruptionError
from kelpie.core.quoting import quote_text
from kelpie.storage.files import typed_failures

_NAMES: Final = re.compile(
    r"backup/(?:store\.db|manifest\.json|blobs(?:/[0-9a-f]{2}(?:/[0-9a-f]{64})?)?)\Z"
)


def pack_backup(backup: Path, target: Path) -> None:
    """Write a backup's directory to the new file ``target``.

    Raises:
        DiskFullError: No space.
    """
    assert not target.exists(), "nothing is written over"
    with (
        typed_failures(target.parent),
        tarfile.open(target, "x", format=tarfile.PAX_FORMAT) as file,
    ):
        for path in sorted(backup.rglob("*")):
            name = f"backup/{path.relative_to(backup)}"
            if _NAMES.match(name):
                file.add(path, name, recursive=False)
    assert target.exists(), "the archive is there"


def unpack_backup(archive: Path, folder: Path) -> Path:
    """Make the backup's directory of an archive below ``folder``, and return it.

    Raises:
        CorruptionError: It is no archive of a backup.
        DiskFullError: No space.
    """
    made = folder / "backup"
    made.mkdir(mode=0o700)
    try:
        with typed_failures(folder), tarfile.open(archive, "r:") as file:
            for member in file:
                _take_out(file, member, folder)
    except tarfile.TarError as error:
        message = f"the archive of the backup is damaged ({error}); use another backup"
        raise CorruptionError(message, backup=str(archive)) from error
    assert made.is_dir(), "a backup is a directory"
    return made


def _take_out(file: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write one member below ``folder``: the name decides where, and must be a backup's."""
    if not _NAMES.match(member.name) or not (member.isreg() or member.isdir()):
        message = f"the archive holds {quote_text(member.name)}, which no backup does"
        raise CorruptionError(message, member=member.name[:200])
    path = folder / member.name
    if member.isdir():
        path.mkdir(mode=0o700)
        return
    source = file.extractfile(member)
    assert source is not None, "a file has content"
    with source, path.open("xb") as target:
        shutil.copyfileobj(source, target)
