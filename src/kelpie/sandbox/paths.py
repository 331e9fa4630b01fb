"""Paths beneath one root, resolved component by component without following a link.

Every access starts at the root's descriptor and opens one directory at a time with
``O_NOFOLLOW``, so that neither ``..`` nor a link planted at any moment leads outside.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kelpie.core.errors import InvalidFieldError, LimitExceededError, NotFoundError
from kelpie.core.limits import PATH_BYTES_MAX
from kelpie.core.quoting import quote_text

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME_BYTES_MAX: Final = 255  # what Linux's file systems hold


def parse_path(path: str, *, field: str = "path") -> tuple[str, ...]:
    """Return the components of a path beneath a root; ``.`` is the root itself, no component.

    Raises:
        InvalidFieldError: It is absolute, climbs, is not UTF-8 or contains NUL.
        LimitExceededError: It or one of its names is too long.
    """
    shown = quote_text(path)
    if "\0" in path:
        raise InvalidFieldError(field, f"{shown} contains NUL")
    if path.startswith("/"):
        raise InvalidFieldError(field, f"{shown} is absolute; name it relative to the workspace")
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise InvalidFieldError(field, f"{shown} is not valid UTF-8") from None
    if size > PATH_BYTES_MAX:
        raise LimitExceededError(field, actual=size, limit=PATH_BYTES_MAX, unit="bytes")
    parts = tuple(part for part in path.split("/") if part not in {"", "."})
    if ".." in parts:
        raise InvalidFieldError(field, f"{shown} climbs out with '..'")
    longest = max((len(part.encode()) for part in parts), default=0)
    if longest > _NAME_BYTES_MAX:
        raise LimitExceededError(field, actual=longest, limit=_NAME_BYTES_MAX, unit="bytes")
    return parts


class BlockedPathError(InvalidFieldError):
    """A directory on the way to a path is a link or a file."""


class Root:
    """A directory held open; everything beneath it is reached through its descriptor.

    Raises:
        NotFoundError: The directory does not exist.
        InvalidFieldError: It is no directory, or this process may not open it.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundError("workspace", str(path)) from None
        except OSError as error:
            raise InvalidFieldError("workspace", f"{path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    @contextmanager
    def directory(
        self, parts: tuple[str, ...], *, create_mode: int | None = None
    ) -> Generator[int]:
        """Yield a descriptor of the directory ``parts``; with ``create_mode`` make what is missing.

        Raises:
            FileNotFoundError: A component does not exist.
            BlockedPathError: A component is a link or no directory.
        """
        descriptor = os.dup(self._descriptor)
        try:
            for index, part in enumerate(parts):
                following = _step(descriptor, parts[: index + 1], part, create_mode)
                os.close(descriptor)
                descriptor = following
            yield descriptor
        finally:
            os.close(descriptor)


def _step(descriptor: int, parts: tuple[str, ...], name: str, create_mode: int | None) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=descriptor)
    except FileNotFoundError:
        if create_mode is None:
            raise
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            shown = quote_text("/".join(parts))
            problem = f"{shown} is a link or a file, and a path may not lead through it"
            raise BlockedPathError("path", problem) from None
        raise
    os.mkdir(name, create_mode, dir_fd=descriptor)  # pathlib has no dir_fd
    created = os.open(name, _DIRECTORY, dir_fd=descriptor)
    adopt_owner(created, os.fstat(descriptor))
    return created


def adopt_owner(descriptor: int, model: os.stat_result) -> None:
    """As root, give an open file the owner of ``model``: a workspace stays its user's."""
    if os.geteuid() == 0:
        os.fchown(descriptor, model.st_uid, model.st_gid)
