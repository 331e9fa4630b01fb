"""One holder: the lock file beside a store that says which process owns it, and where it listens.

The lock is ``flock``, so the kernel lets go of it when the process dies, however it dies; the
file's content (pid and address, one line of JSON) is a hint for people and for the command line.
The file stays when the lock is released: removing it would let two processes lock two files.

Never decides what to do about a held store; it only names the holder.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

import msgspec

from kelpie.core.errors import StoreHeldError

_CONTENT_BYTES_MAX: Final = 8_192
_ATTEMPTS: Final = 100


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a store. ``address`` is where it can be asked; empty if it does not listen."""

    pid: int
    address: str = ""


def holder_path(store: Path) -> Path:
    """Return the lock file that belongs to the store file ``store``."""
    return store.with_name(store.name + ".holder")


class HolderLock:
    """The lock on a store, held until `release` or the end of the process.

    Not reentrant: a second lock on the same store fails in the same process too.
    """

    __slots__ = ("_descriptor", "_path", "_pid")

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._pid = os.getpid()

    @classmethod
    def acquire(cls, store: Path, *, address: str = "") -> HolderLock:
        """Take the lock of ``store`` at once, or fail; never waits.

        Raises:
            StoreHeldError: Another holder has it; the error names its pid and address.
        """
        path = holder_path(store)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for _attempt in range(_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Nobody's name: it is being written, or `read_holder` looks for an instant.
                if _read(path) is not None:
                    os.close(descriptor)
                    raise _held(store, _read(path)) from None
        else:
            os.close(descriptor)
            raise _held(store, None)
        content = msgspec.json.encode(Holder(pid=os.getpid(), address=address)) + b"\n"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
        return cls(path, descriptor)

    def release(self) -> None:
        """Let go of the store; harmless when done before."""
        if self._descriptor < 0:
            return
        assert os.getpid() == self._pid, "a forked child releases its parent's lock"
        os.ftruncate(self._descriptor, 0)
        assert os.fstat(self._descriptor).st_size == 0, "the holder's line outlives the lock"
        os.close(self._descriptor)
        self._descriptor = -1


def read_holder(store: Path) -> Holder | None:
    """Return who holds ``store`` right now, or None when nobody does.

    A holder that died left its line behind, so the lock itself is asked.
    """
    path = holder_path(store)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # A shared lock is enough to see an exclusive one, and two askers do not see each other.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(path) or Holder(pid=0)
    finally:
        os.close(descriptor)
    return None


def _read(path: Path) -> Holder | None:
    """Return the content of a lock file; None while its holder is still writing it."""
    with path.open("rb") as file:
        content = file.read(_CONTENT_BYTES_MAX)
    try:
        return msgspec.json.decode(content, type=Holder)
    except msgspec.DecodeError:
        return None


def _held(store: Path, holder: Holder | None) -> StoreHeldError:
    pid = holder.pid if holder else 0
    address = holder.address if holder else ""
    who = f"process {pid}" if pid else "another process"
    step = f"ask it at {address}" if address else "stop it first"
    return StoreHeldError(
        f"{store} is held by {who}; {step}", store=str(store), pid=pid, address=address
    )
