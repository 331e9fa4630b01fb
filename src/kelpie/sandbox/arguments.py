"""The order for one jail: bubblewrap's options, the launcher's part, and the request's checks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kelpie.core.errors import InvalidFieldError, LimitExceededError
from kelpie.core.limits import (
    ARGUMENTS_BYTES_MAX,
    ARGUMENTS_MAX,
    MIB,
    SANDBOX_TIMEOUT_MS_MAX,
)
from kelpie.core.quoting import quote_text
from kelpie.sandbox.cgroups import PROCESSES_OF_JAIL, Controllers
from kelpie.sandbox.orphans import MARK_VARIABLE
from kelpie.sandbox.paths import parse_path
from kelpie.sandbox.protocol import Bounds, CommandRequest

WORKSPACE: Final = "/workspace"
FIRST_ID: Final = 0x7100_0000
"""First of 65,536 host ids that a root Kelpie's jails run as: outside what systemd, distributions
and container engines hand out. Source: systemd, "Users, Groups, UIDs and GIDs on systemd"."""

_STAGE: Final = "/tmp"  # noqa: S108  # where the launcher gathers workspace and scratch
_MEMORY_FILES_BYTES: Final = 64 * MIB  # what /dev/shm, and /tmp without a scratch, may hold
_OPEN_FILES_MAX: Final = 1_024
_ENVIRONMENT_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",  # noqa: S108  # inside the jail
    "TMPDIR": "/tmp",  # noqa: S108  # inside the jail
    "LANG": "C.UTF-8",
    "USER": "root",
}
_HOST_FILES: Final = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
_USERS: Final = b"root:x:0:0:jail:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUPS: Final = b"root:x:0:\nnogroup:x:65534:\n"
_LINKS_TO_USR: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# Inside its own ids a root Kelpie's jail may read and write whatever lies in the workspace, as
# the agent's owner could. The kernel grants none of it over the host's own ids.
_FILE_CAPABILITIES: Final = ("CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_CHOWN")
_NAMESPACES: Final = ("ipc", "pid", "net", "uts", "cgroup")  # user and mount are the launcher's


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptors:
    """Open files that bubblewrap reads, by number: the same in this process and there."""

    options: int
    seccomp: int
    users: int
    groups: int
    status: int


def check_request(request: CommandRequest) -> None:
    """Refuse a request that no jail could carry out as asked.

    Raises:
        InvalidFieldError: A field is malformed.
        LimitExceededError: A field is too large.
    """
    if not request.argv or not request.argv[0]:
        raise InvalidFieldError("argv", "must name a program")
    words = (*request.argv, *request.environment.values())
    if any("\0" in word for word in words):
        raise InvalidFieldError("argv", "and environment must not contain NUL")
    _require_bound("argv", len(request.argv), ARGUMENTS_MAX, "words")
    size = sum(len(word.encode(errors="surrogateescape")) + 1 for word in words)
    _require_bound("argv", size, ARGUMENTS_BYTES_MAX, "bytes")
    _require_bound("timeout_ms", request.bounds.timeout_ms, SANDBOX_TIMEOUT_MS_MAX, "ms")
    for name in request.environment:
        if not _ENVIRONMENT_NAME.match(name):
            raise InvalidFieldError("environment", f"{quote_text(name)} is no variable name")
    for name in ("memory_bytes", "processes", "output_bytes", "timeout_ms", "scratch_bytes"):
        if getattr(request.bounds, name) <= 0:
            raise InvalidFieldError(f"bounds.{name}", "must be positive")
    parse_path(request.directory, field="directory")


def _require_bound(field: str, actual: int, limit: int, unit: str) -> None:
    if actual > limit:
        raise LimitExceededError(field, actual=actual, limit=limit, unit=unit)


def make_launch(
    request: CommandRequest,
    *,
    bwrap: str,
    mark: str,
    scratch: Path | None,
    is_root: bool,
    parent: int,
    controllers: Controllers,
    process_files: tuple[str, ...],
    descriptors: Descriptors,
) -> dict[str, Any]:
    """Return the launcher's order; only the mark and the command stand on the command line."""
    argv = [bwrap, "--setenv", MARK_VARIABLE, mark, "--args", str(descriptors.options), "--"]
    return {
        "parent": parent,
        "status": descriptors.status,
        "workspace": str(request.workspace.resolve()),
        "scratch": str(scratch) if scratch else "",
        "first_id": FIRST_ID if is_root else 0,
        "cgroups": process_files,
        "limits": _rlimits(request.bounds, controllers),
        "argv": [*argv, *request.argv],
    }


def _rlimits(bounds: Bounds, controllers: Controllers) -> dict[str, int]:
    limits = {
        "CORE": 0,
        "NOFILE": _OPEN_FILES_MAX,
        "FSIZE": bounds.scratch_bytes,
        # One above the watched bound, so that reaching it can be told from staying within.
        "NPROC": bounds.processes + PROCESSES_OF_JAIL + 1,
    }
    if controllers.memory is None:
        limits["DATA"] = bounds.memory_bytes
    return limits


def make_options(request: CommandRequest, *, is_root: bool, descriptors: Descriptors) -> bytes:
    """Return bubblewrap's options, NUL-separated: what the jail is made of."""
    options = ["--die-with-parent", "--cap-drop", "ALL", "--clearenv"]
    options += [f"--unshare-{name}" for name in _NAMESPACES]
    for capability in _FILE_CAPABILITIES if is_root else ():
        options += ["--cap-add", capability]
    for name, value in (_ENVIRONMENT | request.environment).items():
        options += ["--setenv", name, value]
    options += ["--hostname", "jail", "--json-status-fd", str(descriptors.status)]
    options += ["--seccomp", str(descriptors.seccomp), *_system_mounts(descriptors)]
    small = str(_MEMORY_FILES_BYTES)
    if request.access == "overlay":
        options += ["--bind", f"{_STAGE}/merged", WORKSPACE]
        options += ["--bind", f"{_STAGE}/scratch/tmp", "/tmp"]  # noqa: S108  # inside the jail
    else:
        options += ["--ro-bind", f"{_STAGE}/lower", WORKSPACE]
        options += ["--size", small, "--tmpfs", "/tmp"]  # noqa: S108  # inside the jail
    directory = "/".join((WORKSPACE, *parse_path(request.directory)))
    options += ["--remount-ro", "/", "--chdir", directory]
    return b"\0".join(option.encode(errors="surrogateescape") for option in options) + b"\0"


def _system_mounts(descriptors: Descriptors) -> list[str]:
    options = ["--ro-bind", "/usr", "/usr"]
    for name in _LINKS_TO_USR:
        path = Path("/", name)
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), f"/{name}"]
        elif path.is_dir():
            options += ["--ro-bind", f"/{name}", f"/{name}"]
    for file in _HOST_FILES:
        options += ["--ro-bind-try", file, file]
    options += ["--ro-bind-data", str(descriptors.users), "/etc/passwd"]
    options += ["--ro-bind-data", str(descriptors.groups), "/etc/group"]
    # A device directory that is read-only, and memory files of a bounded size.
    options += ["--proc", "/proc", "--dev", "/dev"]
    options += ["--size", str(_MEMORY_FILES_BYTES), "--tmpfs", "/dev/shm"]  # noqa: S108
    options += ["--remount-ro", "/dev"]
    return options


def user_files() -> tuple[bytes, bytes]:
    """Return the jail's own ``/etc/passwd`` and ``/etc/group``."""
    return _USERS, _GROUPS
