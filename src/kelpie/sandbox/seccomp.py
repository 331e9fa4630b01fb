"""The system-call filter of a jail, as the bytes that ``bwrap --seccomp`` reads.

A deny list over a jail that already has no capability worth the name: it removes the calls that
make kernel attack surface (mounting, tracing, keys, BPF, new namespaces, io_uring), the terminal
injection of ``TIOCSTI``, and every socket family but Unix, IP and netlink (``AF_VSOCK`` reaches a
hypervisor straight through a network namespace). A foreign architecture is killed.
"""

from __future__ import annotations

import errno
import struct
from typing import Final, NamedTuple

from kelpie.core.errors import UnavailableError


class _Architecture(NamedTuple):
    audit: int
    clone: int
    ioctl: int
    socket: int
    denied: tuple[int, ...]


# In both tables from 424 on.
_COMMON: Final = (
    425, 426, 427,  # io_uring_setup, io_uring_enter, io_uring_register
    428, 429, 430, 431, 432, 433,  # open_tree, move_mount, fsopen, fsconfig, fsmount, fspick
    438, 440, 442, 443, 467,  # pidfd_getfd, process_madvise, mount_setattr, quotactl_fd,
    # open_tree_attr
)  # fmt: skip

_X86_64: Final = _Architecture(
    audit=0xC000003E,
    clone=56,
    ioctl=16,
    socket=41,
    denied=(
        165, 166, 155, 161,  # mount, umount2, pivot_root, chroot
        101, 310, 311, 312,  # ptrace, process_vm_readv, process_vm_writev, kcmp
        248, 249, 250,  # add_key, request_key, keyctl
        321, 298, 323,  # bpf, perf_event_open, userfaultfd
        246, 320, 169,  # kexec_load, kexec_file_load, reboot
        174, 175, 176, 177, 178, 313,  # create_, init_, delete_, get_syms, query_, finit_module
        272, 308,  # unshare, setns
        303, 304, 300,  # name_to_handle_at, open_by_handle_at, fanotify_init
        167, 168, 163, 179, 103, 212, 180,  # swapon, swapoff, acct, quotactl, syslog,
        # lookup_dcookie, nfsservctl
        164, 227, 305, 159, 170, 171,  # settimeofday, clock_settime, clock_adjtime, adjtimex,
        # sethostname, setdomainname
        256, 279,  # migrate_pages, move_pages
        172, 173, 154, 153, 156, 134, 136, 139,  # iopl, ioperm, modify_ldt, vhangup, _sysctl,
        # uselib, ustat, sysfs
        *_COMMON,
    ),
)  # fmt: skip

_AARCH64: Final = _Architecture(
    audit=0xC00000B7,
    clone=220,
    ioctl=29,
    socket=198,
    denied=(
        40, 39, 41, 51,  # mount, umount2, pivot_root, chroot
        117, 270, 271, 272,  # ptrace, process_vm_readv, process_vm_writev, kcmp
        217, 218, 219,  # add_key, request_key, keyctl
        280, 241, 282,  # bpf, perf_event_open, userfaultfd
        104, 294, 142,  # kexec_load, kexec_file_load, reboot
        105, 106, 273,  # init_module, delete_module, finit_module
        97, 268,  # unshare, setns
        264, 265, 262,  # name_to_handle_at, open_by_handle_at, fanotify_init
        224, 225, 89, 60, 116, 18, 42,  # swapon, swapoff, acct, quotactl, syslog,
        # lookup_dcookie, nfsservctl
        170, 112, 266, 171, 161, 162,  # settimeofday, clock_settime, clock_adjtime, adjtimex,
        # sethostname, setdomainname
        238, 239, 58,  # migrate_pages, move_pages, vhangup
        *_COMMON,
    ),
)  # fmt: skip

_ARCHITECTURES: Final = {"x86_64": _X86_64, "aarch64": _AARCH64}
_CLONE3: Final = 435
_X32_BIT: Final = 0x4000_0000
_NAMESPACE_FLAGS: Final = 0x7E02_0000  # NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C
_FAMILIES: Final = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK

# Source: linux/filter.h and linux/seccomp.h.
_LOAD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_AT_LEAST: Final = 0x35
_JUMP_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06
_KILL: Final = 0x8000_0000
_ALLOW: Final = 0x7FFF_0000
_ERRNO: Final = 0x0005_0000
_OFFSET_NUMBER: Final = 0
_OFFSET_ARCHITECTURE: Final = 4
_OFFSET_ARGUMENTS: Final = 16  # eight bytes each, the low half first


class _Filter:
    """Assembles instructions; jumps are relative and forward only."""

    def __init__(self) -> None:
        self._code = bytearray()

    def load(self, offset: int) -> None:
        self._code += struct.pack("=HBBI", _LOAD, 0, 0, offset)

    def load_argument(self, index: int) -> None:
        self.load(_OFFSET_ARGUMENTS + 8 * index)

    def jump(self, kind: int, value: int, *, then: int, otherwise: int) -> None:
        self._code += struct.pack("=HBBI", kind, then, otherwise, value)

    def give(self, verdict: int) -> None:
        self._code += struct.pack("=HBBI", _RETURN, 0, 0, verdict)

    def finish(self) -> bytes:
        return bytes(self._code)


def build_filter(machine: str) -> bytes:
    """Return the filter for ``machine`` (as ``os.uname().machine`` names it).

    Raises:
        UnavailableError: There is no table for this architecture.
    """
    table = _ARCHITECTURES.get(machine)
    if table is None:
        known = ", ".join(_ARCHITECTURES)
        raise UnavailableError(f"no system-call filter for {machine}; sandboxes need {known}")
    code = _Filter()
    code.load(_OFFSET_ARCHITECTURE)
    code.jump(_JUMP_EQUAL, table.audit, then=1, otherwise=0)
    code.give(_KILL)
    code.load(_OFFSET_NUMBER)
    code.jump(_JUMP_AT_LEAST, _X32_BIT, then=0, otherwise=1)
    code.give(_KILL)
    for number in table.denied:
        code.jump(_JUMP_EQUAL, number, then=0, otherwise=1)
        code.give(_ERRNO | errno.EPERM)
    # Its flags are behind a pointer; without it the C library falls back to clone.
    code.jump(_JUMP_EQUAL, _CLONE3, then=0, otherwise=1)
    code.give(_ERRNO | errno.ENOSYS)
    _check_arguments(code, table)
    code.give(_ALLOW)
    return code.finish()


def _check_arguments(code: _Filter, table: _Architecture) -> None:
    code.jump(_JUMP_EQUAL, table.clone, then=0, otherwise=4)
    code.load_argument(0)
    code.jump(_JUMP_ANY_BIT, _NAMESPACE_FLAGS, then=0, otherwise=1)
    code.give(_ERRNO | errno.EPERM)
    code.give(_ALLOW)
    code.jump(_JUMP_EQUAL, table.ioctl, then=0, otherwise=5)
    code.load_argument(1)
    code.jump(_JUMP_EQUAL, _TIOCSTI, then=1, otherwise=0)
    code.jump(_JUMP_EQUAL, _TIOCLINUX, then=0, otherwise=1)
    code.give(_ERRNO | errno.EPERM)
    code.give(_ALLOW)
    code.jump(_JUMP_EQUAL, table.socket, then=0, otherwise=len(_FAMILIES) + 3)
    code.load_argument(0)
    for index, family in enumerate(_FAMILIES):
        code.jump(_JUMP_EQUAL, family, then=len(_FAMILIES) - index, otherwise=0)
    code.give(_ERRNO | errno.EAFNOSUPPORT)
    code.give(_ALLOW)
