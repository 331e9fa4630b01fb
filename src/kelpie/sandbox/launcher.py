"""Builds one jail's user, mount and pid namespaces, then runs bubblewrap in them.

A program of its own, run as ``python -I -S launcher.py FD`` with the order marshalled in ``FD``
(a file in memory that Kelpie wrote), so that nothing of Kelpie's process is copied into a jail.
Imports little of the standard library: `json` and `signal` alone would cost 10 ms a command.

Why it exists: bubblewrap before 0.11 mounts no overlay, and never an identity-mapped one. As root
the jail is a range of unprivileged host ids; the workspace is mounted with its owners shifted into
that range, so that files of root with mode 0600 stay readable inside although the process has no
right on the host. As an ordinary user the range is that one user.

Never runs the command outside bubblewrap: any failure exits with ``SETUP_FAILED`` and says why.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import resource
import sys
from typing import Any, Final, NoReturn

SETUP_FAILED: Final = 125  # as env(1) uses it: the tool failed, not the command
MARK: Final = "kelpie-launcher: "

_NEWNS: Final = 0x00020000
_NEWUSER: Final = 0x10000000
_NEWPID: Final = 0x20000000
_MS_NOSUID: Final = 0x2
_MS_NODEV: Final = 0x4
_MS_REC_PRIVATE: Final = 0x4000 | 0x40000
_OPEN_TREE_CLONE: Final = 0x1
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_AT_FDCWD: Final = -100
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
_MOUNT_ATTR_IDMAP: Final = 0x00100000
_PR_SET_PDEATHSIG: Final = 1
_SIGKILL: Final = 9
_SIGPIPE: Final = 13
_SIGXFSZ: Final = 25
# These five have the same number on every architecture.
_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_MOUNT_SETATTR: Final = 442
_STAGE: Final = "/tmp"  # noqa: S108  # covered by a fresh mount nobody else sees
_IDS: Final = 65_536

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class SetupError(Exception):
    """A step of the set-up failed."""


def main(descriptor: int) -> NoReturn:
    """Read the order, build the namespaces, start bubblewrap and end as it does."""
    with os.fdopen(descriptor, "rb") as file:
        order: dict[str, Any] = marshal.load(file)  # noqa: S302  # Kelpie's own, through memory
    try:
        for path in order["cgroups"]:
            _write(path, "0")
        _enter(order)
        _limit(order)
        _bind_life(order["parent"])
        os._exit(_supervise(order))
    except (SetupError, OSError, KeyError) as error:
        sys.stderr.write(f"{MARK}{error}\n")
        sys.stderr.flush()
    os._exit(SETUP_FAILED)


def _supervise(order: dict[str, Any]) -> int:
    """Run bubblewrap as the first process of a pid namespace and return its exit status.

    Bubblewrap ties its own children to its life only after their set-up: for some milliseconds a
    kill of Kelpie would orphan them. In this namespace they cannot outlive the first process.
    """
    _call("create a pid namespace", _libc.unshare, _NEWPID)
    alive_read, alive_write = os.pipe()
    child = os.fork()  # noqa: TID251  # this program is not Kelpie's process
    if child == 0:
        os.close(alive_write)
        _become(order, alive_read)
    os.write(order["status"], b'{"first-pid": %d}\n' % child)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) & 0xFF


def _become(order: dict[str, Any], alive: int) -> NoReturn:
    """Become bubblewrap, unless the parent died before this process was bound to its life."""
    try:
        _call("bind to the launcher's life", _libc.prctl, _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        os.set_blocking(alive, False)
        try:
            os.read(alive, 1)
        except BlockingIOError:  # it still holds the other end
            for number in (_SIGPIPE, _SIGXFSZ):
                _libc.signal(number, None)  # the default: Python ignores them, and that is kept
            os.execve(order["argv"][0], order["argv"], {})  # noqa: S606  # that is the point
    except (SetupError, OSError) as error:
        sys.stderr.write(f"{MARK}{error}\n")
        sys.stderr.flush()
    os._exit(SETUP_FAILED)


def _enter(order: dict[str, Any]) -> None:
    """Enter the jail's user and mount namespaces with the workspace at its stage."""
    overlay: str = order["scratch"]
    if order["first_id"]:
        _call("unshare the mounts", _libc.unshare, _NEWNS)
        namespace = _mapped_namespace(order["first_id"])
        _stage(order, namespace)
        _call("enter the user namespace", _libc.setns, namespace, _NEWUSER)
        _call("unshare the jail's mounts", _libc.unshare, _NEWNS)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    else:
        user, group = os.getuid(), os.getgid()
        _call("create a user namespace", _libc.unshare, _NEWUSER | _NEWNS)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {user} 1")
        _write("/proc/self/gid_map", f"0 {group} 1")
        _stage(order, None)
    if overlay:
        options = (
            f"lowerdir={_STAGE}/lower,upperdir={_STAGE}/scratch/upper,"
            f"workdir={_STAGE}/scratch/work,userxattr"
        )
        _mount("overlay", f"{_STAGE}/merged", "overlay", 0, options)
    # Bubblewrap makes no further user namespace, and nothing inside shall.
    _write("/proc/sys/user/max_user_namespaces", "0")


def _mapped_namespace(first_id: int) -> int:
    """Return a user namespace whose ids 0 to 65,535 are the unprivileged range of the host."""
    ready_read, ready_write = os.pipe()
    hold_read, hold_write = os.pipe()
    child = os.fork()  # noqa: TID251  # this program is not Kelpie's process
    if child == 0:
        os.close(hold_write)
        failed = _libc.unshare(_NEWUSER)
        os.write(ready_write, b"n" if failed else b"y")
        os.read(hold_read, 1)  # until the parent is done, or dead
        os._exit(0)
    os.close(hold_read)
    try:
        if os.read(ready_read, 1) != b"y":
            raise SetupError("cannot create a user namespace")
        for kind in ("uid_map", "gid_map"):
            _write(f"/proc/{child}/{kind}", f"0 {first_id} {_IDS}")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(hold_write)
        os.waitpid(child, 0)
        os.close(ready_read)
        os.close(ready_write)


def _stage(order: dict[str, Any], namespace: int | None) -> None:
    """Gather workspace and scratch beneath one directory that the jail's ids can traverse.

    Their real parents may be closed to those ids (mode 0700).
    """
    _mount("none", "/", "", _MS_REC_PRIVATE, "")
    workspace = _open_tree(order["workspace"])
    scratch = _open_tree(order["scratch"]) if order["scratch"] else None
    if namespace is not None:
        _map_ids(workspace, namespace)
    _mount("tmpfs", _STAGE, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=64k")
    for name, tree in (("lower", workspace), ("scratch", scratch), ("merged", None)):
        place = f"{_STAGE}/{name}"
        os.mkdir(place, 0o755)  # noqa: PTH102  # pathlib would double the start-up time
        if tree is not None:
            _syscall(
                f"mount {name}", _MOVE_MOUNT, tree, b"", _AT_FDCWD, place.encode(),
                _MOVE_MOUNT_F_EMPTY_PATH,
            )  # fmt: skip
            os.close(tree)


def _open_tree(path: str) -> int:
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    return _syscall(f"open {path}", _OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)


def _map_ids(tree: int, namespace: int) -> None:
    attributes = _MountAttr(_MOUNT_ATTR_IDMAP, 0, 0, namespace)
    _syscall(
        "map the workspace's owners (needs Linux 5.19 and a file system that can)",
        _MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes),
        ctypes.sizeof(attributes),
    )  # fmt: skip


def _limit(order: dict[str, Any]) -> None:
    for name, value in order["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _bind_life(parent: int) -> None:
    """Die with Kelpie. Set here again because changing ids clears it."""
    _call("bind to the parent's life", _libc.prctl, _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SetupError("the parent died before its jail started")


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    _call(
        f"mount {kind or 'private'} on {target}", _libc.mount, source.encode(), target.encode(),
        kind.encode(), ctypes.c_ulong(flags), options.encode(),
    )  # fmt: skip


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:  # noqa: PTH123  # start-up time, as above
        file.write(text)


def _syscall(what: str, *arguments: Any) -> int:
    return _call(what, _libc.syscall, *arguments)


def _call(what: str, function: Any, *arguments: Any) -> int:
    result: int = function(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise SetupError(f"cannot {what}: {os.strerror(number)}")
    return result


if __name__ == "__main__":
    main(int(sys.argv[1]))
