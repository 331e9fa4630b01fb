"""What a machine's disk holds after a crash: one of the images that the sync discipline allows.

The store runs on real files, so that at the instant of a simulated crash they hold everything that
was written. What of it survives depends on how the process died and on what was synced:

- A killed process loses nothing that it wrote, wherever it was.
- Without power, whatever was not synced may be there, be missing, or be torn by sectors.

Kelpie's store uses a write-ahead log with ``synchronous = FULL``: COMMIT returns when the log is
synced up to its commit frame, and a reader sees a transaction only after that. So the frames up to
the last commit frame are synced, except while COMMIT itself runs (``crash.during_commit``): then
those of the last transaction are not. A checkpoint syncs the log, then writes the file, then syncs
it: while it runs (``crash.during_checkpoint``) any page of the file that the log holds may be torn.
A rename is durable when its directory was synced (``crash.before_directory_sync``).

Beside these legal images there is damage, which no discipline prevents: flipped bits and pages
written to the place of others. Damage must be found and named; it may cost data.

A virtual file system below SQLite could do the same at every write. It would need another driver
than the one that ships (the standard library's has no hook), and test other code than that.

Invariants: an image is taken before a dead process is unwound; a legal image never lacks what was
synced.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from kelpie.sim.faults.plan import Faults

SECTOR_BYTES: Final = 512
HEADER_BYTES: Final = 32
FRAME_HEADER_BYTES: Final = 24
LOG_MAGIC: Final = (0x377F0682, 0x377F0683)
DATABASE_MAGIC: Final = b"SQLite format 3\0"
COMMIT_DEATH: Final = "crash.during_commit"
CHECKPOINT_DEATH: Final = "crash.during_checkpoint"
RENAME_DEATH: Final = "crash.before_directory_sync"


class SavedFile(NamedTuple):
    """One file, directory or link: its mode as the system has it, and a file's or link's bytes."""

    mode: int
    data: bytes


class Frame(NamedTuple):
    """One frame of a log: where it begins, its page, and whether it ends a transaction."""

    offset: int
    page: int
    is_commit: bool


class Log(NamedTuple):
    """The live part of a write-ahead log; frames of earlier generations are left out."""

    page_bytes: int
    frames: tuple[Frame, ...]

    def end_of(self, frame: Frame) -> int:
        """Return the offset behind ``frame``."""
        return frame.offset + FRAME_HEADER_BYTES + self.page_bytes

    def synced_bytes(self, *, in_commit: bool) -> int:
        """Return how much of the log is synced for certain; ``in_commit`` while COMMIT runs."""
        ends = [self.end_of(frame) for frame in self.frames if frame.is_commit]
        if in_commit and ends:
            ends.pop()
        return ends[-1] if ends else HEADER_BYTES


def read_log(data: bytes) -> Log:
    """Return the live frames of an undamaged log: those that carry the header's salts.

    Source: sqlite.org, "WAL-mode File Format".
    """
    if len(data) < HEADER_BYTES or int.from_bytes(data[:4]) not in LOG_MAGIC:
        return Log(4096, ())
    page_bytes = int.from_bytes(data[8:12])
    salts = data[16:24]
    frames: list[Frame] = []
    step = FRAME_HEADER_BYTES + page_bytes
    for offset in range(HEADER_BYTES, len(data) - step + 1, step):
        if data[offset + 8 : offset + 16] != salts:
            break
        page = int.from_bytes(data[offset : offset + 4])
        frames.append(Frame(offset, page, is_commit=any(data[offset + 4 : offset + 8])))
    return Log(page_bytes, tuple(frames))


class DiskImage:
    """What lies below one directory, kept in memory.

    Attributes:
        entries: By path relative to the directory, parents before what is in them.
        notes: What was done to it, in words.
    """

    def __init__(self, entries: dict[str, SavedFile]) -> None:
        self.entries = entries
        self.notes: list[str] = []

    @classmethod
    def capture(cls, root: Path) -> DiskImage:
        """Return everything below ``root`` as it is now."""
        entries = {str(path.relative_to(root)): _read_entry(path) for path in _walk(root)}
        return cls(entries)

    def put(self, root: Path) -> None:
        """Let ``root`` hold exactly this image; what is as it should be is left alone."""
        self.check_invariants()
        for path in sorted(_walk(root), reverse=True):
            wanted = self.entries.get(str(path.relative_to(root)))
            found = _read_entry(path)
            if wanted is not None and wanted == found:
                continue
            if stat.S_ISDIR(found.mode):
                if wanted is None or not stat.S_ISDIR(wanted.mode):
                    shutil.rmtree(path)
            else:
                path.unlink()
        for name, entry in self.entries.items():
            _write_entry(root / name, entry)

    def files(self, suffix: str = "") -> list[str]:
        """Return the paths of regular files that end with ``suffix``, sorted."""
        return sorted(
            name
            for name, entry in self.entries.items()
            if stat.S_ISREG(entry.mode) and name.endswith(suffix)
        )

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        return self.entries[name].data

    def write(self, name: str, data: bytes, note: str) -> None:
        """Replace a file's content, and say why."""
        assert note, "whatever is done to an image has a name"
        assert stat.S_ISREG(self.entries[name].mode), f"{name} is no file"
        self.entries[name] = self.entries[name]._replace(data=data)
        self.notes.append(note)

    def remove(self, name: str, note: str) -> None:
        """Remove a file, and say why."""
        assert note, "whatever is done to an image has a name"
        assert stat.S_ISREG(self.entries[name].mode), f"{name} is no file"
        del self.entries[name]
        self.notes.append(note)

    def check_invariants(self) -> None:
        """Assert that every entry lies in a directory of the image."""
        for name in self.entries:
            parent = str(Path(name).parent)
            assert parent == "." or stat.S_ISDIR(self.entries[parent].mode), f"{name} hangs in air"


def take_crash_image(
    root: Path, faults: Faults, *, during: str = "", is_power_lost: bool = False
) -> DiskImage:
    """Return a legal image of ``root`` for a process that has died just now.

    Args:
        root: The machine's files; nothing in it is changed.
        faults: Draws; ``storage.torn_write``, ``storage.lost_unsynced`` and
            ``storage.rename_unsynced`` decide what happens to what was not synced.
        during: The fault of group ``crash`` that it died of, if its place matters.
        is_power_lost: Whether the machine lost its power; otherwise only the process died.
    """
    image = DiskImage.capture(root)
    for name in image.files("-shm"):
        image.remove(name, f"{name} is made anew by whoever opens the store first")
    for name in image.files("-wal"):
        _cut_log(image, name, faults, in_commit=during == COMMIT_DEATH, torn=is_power_lost)
        if during == CHECKPOINT_DEATH:
            _tear_database(image, name, faults, torn=is_power_lost)
    # The process died as it renamed: the new name is there, or it is lost with the power.
    if during == RENAME_DEATH and not (is_power_lost and faults.fires("storage.rename_unsynced")):
        _finish_rename(image)
    if is_power_lost and faults.fires("storage.lost_unsynced"):
        _lose_unsynced(image, faults)
    image.check_invariants()
    return image


def _cut_log(image: DiskImage, name: str, faults: Faults, *, in_commit: bool, torn: bool) -> None:
    """Lose a part, or nothing, of what the log holds beyond the last sync."""
    data = image.read(name)
    log = read_log(data)
    if not log.frames:
        return
    synced = log.synced_bytes(in_commit=in_commit)
    end = log.end_of(log.frames[-1])
    if end <= synced:
        return
    if not in_commit:  # an open transaction that spilled: it counts for nothing, whole or torn
        image.write(name, data[:synced], f"{name}: an open transaction is gone")
        return
    # All of the transaction may be there, nothing of it, or a part: its outcome was never told.
    part = synced + faults.below(COMMIT_DEATH, end - synced + 1)
    kept = (synced, end, part)[faults.below(COMMIT_DEATH, 3)]
    if torn and faults.fires("storage.torn_write"):
        torn_data = _tear(data[:end], synced, faults, "storage.torn_write")
        image.write(name, torn_data, f"{name}: the commit in progress is torn")
    else:
        image.write(name, data[:kept], f"{name}: {end - kept} bytes of a commit are missing")


def _tear(data: bytes, start: int, faults: Faults, name: str) -> bytes:
    """Lose a drawn subset of the sectors from ``start`` on, at least one of them."""
    first = start // SECTOR_BYTES
    last = (len(data) - 1) // SECTOR_BYTES
    certain = first + faults.below(name, last - first + 1)
    torn = bytearray(data)
    for sector in range(first, last + 1):
        if sector == certain or faults.below(name, 2):
            begin = max(sector * SECTOR_BYTES, start)
            end = min((sector + 1) * SECTOR_BYTES, len(data))
            torn[begin:end] = bytes(end - begin)
    return bytes(torn)


def _tear_database(image: DiskImage, log_name: str, faults: Faults, *, torn: bool) -> None:
    """Leave pages that the log holds half written in the file, as a checkpoint that was cut."""
    name = log_name.removesuffix("-wal")
    log = read_log(image.read(log_name))
    data = bytearray(image.read(name))
    pages = sorted({frame.page for frame in log.frames})
    for page in pages:
        begin = (page - 1) * log.page_bytes
        if not torn or begin + log.page_bytes > len(data) or not faults.below(CHECKPOINT_DEATH, 2):
            continue
        # The first sector of the first page names the format; a sector is old or new, and old and
        # new agree there.
        keep = SECTOR_BYTES if page == 1 else 0
        cut = (
            keep
            + faults.below(CHECKPOINT_DEATH, log.page_bytes - keep) // SECTOR_BYTES * SECTOR_BYTES
        )
        data[begin + cut : begin + log.page_bytes] = bytes(log.page_bytes - cut)
    if bytes(data) != image.read(name):
        image.write(name, bytes(data), f"{name}: a checkpoint left torn pages")


def _finish_rename(image: DiskImage) -> None:
    """Give the blob that was being renamed its name, which its content says."""
    for name in [each for each in image.files() if "/incoming/" in each]:
        digest = hashlib.sha256(image.read(name)).hexdigest()
        final = str(Path(name).parents[1] / digest[:2] / digest)
        if str(Path(final).parent) in image.entries:
            image.entries[final] = image.entries.pop(name)
            image.notes.append(f"{final} has its name, unsynced")


def _lose_unsynced(image: DiskImage, faults: Faults) -> None:
    """Lose what nobody ever syncs: the holder's line, and files that have no name yet."""
    for name in image.files(".holder"):
        image.write(name, b"", f"{name} is empty: it was never synced")
    for name in [each for each in image.files() if "/incoming/" in each]:
        size = len(image.read(name))
        kept = image.read(name)[: faults.below("storage.lost_unsynced", size + 1)]
        image.write(name, kept, f"{len(kept)} of {size} bytes of an unnamed blob are left")


# --- damage -----------------------------------------------------------------------------------


def damage(image: DiskImage, faults: Faults) -> None:
    """Let the plan's damage befall an image at rest; its notes say what was done."""
    if faults.fires("storage.bit_rot"):
        rot(image, faults)
    if faults.fires("storage.misdirected_write"):
        misdirect(image, faults)


def damage_backup(folder: Path, faults: Faults) -> str:
    """Flip a bit of a backup's database if the plan says so; return what was done, or nothing."""
    if not faults.fires("snapshot.backup_damaged"):
        return ""
    path = folder / "store.db"
    data = bytearray(path.read_bytes())
    place = faults.below("snapshot.backup_damaged", len(data))
    data[place] ^= 1 << faults.below("snapshot.backup_damaged", 8)
    path.write_bytes(data)
    return f"{path.name}: a bit of byte {place} flipped"


def rot(image: DiskImage, faults: Faults, *, suffix: str = "") -> str:
    """Flip one drawn bit of a drawn file that is not empty; return what was done.

    ``storage.bit_rot`` must have fired.
    """
    names = [name for name in image.files(suffix) if image.read(name)]
    assert names, "nothing is there to rot"
    name = names[faults.below("storage.bit_rot", len(names))]
    data = bytearray(image.read(name))
    place = faults.below("storage.bit_rot", len(data))
    data[place] ^= 1 << faults.below("storage.bit_rot", 8)
    image.write(name, bytes(data), f"{name}: a bit of byte {place} flipped")
    return image.notes[-1]


def misdirect(image: DiskImage, faults: Faults, *, suffix: str = ".db") -> str:
    """Write a drawn page of a database over another one; return what was done.

    ``storage.misdirected_write`` must have fired. The first page is left alone: a store whose
    first page is another's does not open at all.
    """
    (name, *_) = [
        name for name in image.files(suffix) if image.read(name).startswith(DATABASE_MAGIC)
    ]
    data = bytearray(image.read(name))
    size = int.from_bytes(data[16:18])
    count = len(data) // size
    assert count > 2, "a page needs another's place"
    source = 1 + faults.below("storage.misdirected_write", count - 1)
    target = 1 + (source + faults.below("storage.misdirected_write", count - 2)) % (count - 1)
    assert source != target, "a page in its own place is no damage"
    data[target * size : (target + 1) * size] = data[source * size : (source + 1) * size]
    note = f"{name}: page {source + 1} was written to the place of page {target + 1}"
    image.write(name, bytes(data), note)
    return note


# --- files --------------------------------------------------------------------------------------


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted([*folders, *files]):
            yield Path(folder) / name


def _read_entry(path: Path) -> SavedFile:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return SavedFile(status.st_mode, os.fsencode(path.readlink()))
    data = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
    return SavedFile(status.st_mode, data)


def _write_entry(path: Path, entry: SavedFile) -> None:
    if path.is_symlink() or path.exists():
        return
    if stat.S_ISDIR(entry.mode):
        path.mkdir()
    elif stat.S_ISLNK(entry.mode):
        path.symlink_to(os.fsdecode(entry.data))
        return
    else:
        path.write_bytes(entry.data)
    path.chmod(stat.S_IMODE(entry.mode))
