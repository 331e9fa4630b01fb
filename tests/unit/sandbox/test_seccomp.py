from __future__ import annotations

import errno
import struct

import pytest

from kelpie.core.errors import UnavailableError
from kelpie.sandbox.seccomp import build_filter

ALLOW = 0x7FFF0000
KILL = 0x80000000
X86_64 = 0xC000003E
AARCH64 = 0xC00000B7


def judge(code: bytes, number: int, *arguments: int, machine: int = X86_64) -> int:
    """Runs the filter as the kernel would and returns its verdict."""
    padded = (*arguments, *([0] * (6 - len(arguments))))
    data = struct.pack("=IIQ6Q", number, machine, 0, *padded)
    program = list(struct.iter_unpack("=HBBI", code))
    accumulator = position = 0
    while True:
        opcode, then, otherwise, value = program[position]
        position += 1
        match opcode:
            case 0x20:
                accumulator = struct.unpack_from("=I", data, value)[0]
            case 0x15:
                position += then if accumulator == value else otherwise
            case 0x35:
                position += then if accumulator >= value else otherwise
            case 0x45:
                position += then if accumulator & value else otherwise
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(opcode)


def refusal(number: int) -> int:
    return 0x50000 | number


@pytest.fixture
def x86() -> bytes:
    return build_filter("x86_64")


@pytest.mark.parametrize("number", [0, 1, 2, 9, 57, 59, 61, 231, 257, 318, 334])
def test_ordinary_calls_pass(x86: bytes, number: int) -> None:
    assert judge(x86, number) == ALLOW


@pytest.mark.parametrize(
    "number", [165, 101, 250, 321, 298, 246, 313, 323, 272, 308, 425, 428, 442]
)
def test_dangerous_calls_are_refused(x86: bytes, number: int) -> None:
    assert judge(x86, number) == refusal(errno.EPERM)


@pytest.mark.parametrize("number", [40, 117, 219, 280, 241, 104, 273, 282, 97, 268, 425, 428, 442])
def test_dangerous_calls_are_refused_on_arm(number: int) -> None:
    code = build_filter("aarch64")
    assert judge(code, number, machine=AARCH64) == refusal(errno.EPERM)
    assert judge(code, 63, machine=AARCH64) == ALLOW


def test_a_foreign_architecture_is_killed(x86: bytes) -> None:
    assert judge(x86, 0, machine=0x40000003) == KILL
    assert judge(x86, 0x40000000 + 1) == KILL


@pytest.mark.parametrize("bit", [17, 25, 26, 27, 28, 29, 30])
def test_clone_makes_processes_but_no_namespaces(x86: bytes, bit: int) -> None:
    assert judge(x86, 56, 0x11) == ALLOW
    assert judge(x86, 56, 0x3D0F00) == ALLOW
    assert judge(x86, 56, 0x11 | 1 << bit) == refusal(errno.EPERM)


def test_clone3_asks_the_library_to_fall_back(x86: bytes) -> None:
    assert judge(x86, 435) == refusal(errno.ENOSYS)


def test_only_terminal_injection_is_refused_of_ioctl(x86: bytes) -> None:
    assert judge(x86, 16, 0, 0x5412) == refusal(errno.EPERM)
    assert judge(x86, 16, 0, 0xFFFF_FFFF_0000_5412) == refusal(errno.EPERM)
    assert judge(x86, 16, 0, 0x541C) == refusal(errno.EPERM)
    assert judge(x86, 16, 0, 0x5401) == ALLOW


@pytest.mark.parametrize("family", [1, 2, 10, 16])
def test_sockets_of_the_jails_own_network_pass(x86: bytes, family: int) -> None:
    assert judge(x86, 41, family) == ALLOW


@pytest.mark.parametrize("family", [0, 17, 38, 40, 44])
def test_other_socket_families_are_refused(x86: bytes, family: int) -> None:
    assert judge(x86, 41, family) == refusal(errno.EAFNOSUPPORT)


def test_an_unknown_machine_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match="riscv64"):
        build_filter("riscv64")
