"""Which directories effects may touch: said when one is named, and again before each effect.

Must never let an agent reach what Kelpie itself keeps: who reads the store reads every
conversation, and who can write it, or speak on its socket, can answer the questions meant for a
person. Invariant: an allowed directory is absolute, without links on the way to it, inside the
configured roots, and neither holds nor lies in the data directory or the store.
"""

from __future__ import annotations

from pathlib import Path

from kelpie.core.errors import InvalidFieldError
from kelpie.core.quoting import quote_text
from kelpie.settings import Settings
from kelpie.storage.blobs import blobs_path


def require_workspace(settings: Settings, directory: str, *, local: bool) -> str:
    """Return the directory, absolute and with links resolved, if effects may touch it.

    Without configured roots only a ``local`` caller may name a directory: one who came through the
    Unix socket, and so is the user that Kelpie runs as. Anybody else could have files read and
    changed that the system does not let them touch.

    Raises:
        InvalidFieldError: It is not absolute or no directory, lies outside the allowed roots, or
            shares files with Kelpie's own.
    """
    if not local and not settings.workspaces.roots:
        raise InvalidFieldError(
            "workspace",
            f"{quote_text(directory)} cannot be named over the network before workspaces.roots "
            "allows it; set KELPIE_WORKSPACES_ROOTS, or come through the Unix socket",
        )
    path = Path(directory)
    if "\0" in directory or not path.is_absolute():
        raise InvalidFieldError("workspace", f"{quote_text(directory)} must be an absolute path")
    resolved = path.resolve()
    if not resolved.is_dir():
        raise InvalidFieldError("workspace", f"{quote_text(directory)} is not a directory")
    if not settings.workspaces.allows(resolved):
        roots = ", ".join(str(root) for root in settings.workspaces.roots)
        problem = f"{quote_text(directory)} lies outside the allowed roots ({roots})"
        raise InvalidFieldError("workspace", problem)
    if _meets_store(settings, resolved):
        raise InvalidFieldError(
            "workspace",
            f"{quote_text(directory)} holds or lies in Kelpie's own data ({settings.data_dir}), "
            "which no agent may reach; choose a directory beside it",
        )
    return str(resolved)


def is_workspace(settings: Settings, root: str) -> bool:
    """Return whether effects may touch ``root`` as it is now.

    A root was resolved when it was named; one that leads through a link today was moved since.
    """
    path = Path(root)
    return (
        path.resolve() == path
        and settings.workspaces.allows(path)
        and not _meets_store(settings, path)
    )


def _meets_store(settings: Settings, directory: Path) -> bool:
    store = settings.store.path.resolve()
    own = (settings.data_dir.resolve(), store, blobs_path(store))
    return any(directory.is_relative_to(each) or each.is_relative_to(directory) for each in own)
