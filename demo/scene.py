"""What the demonstration is about: a scene, read from JSON.

Everything that could be otherwise is here: names, contents, words, commands, the script of the
model. Checked when it is read, so that a scene with a mistake does not begin.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a scene knows all its fields."""


class Reading(_Part, frozen=True, kw_only=True):
    """The first request: what is asked, which file is read, and a text that it holds.

    ``link`` is the name of a link that leads out of the workspace, which is tried as well.
    """

    prompt: str
    path: str
    holds: str
    link: str


class Rewrite(_Part, frozen=True, kw_only=True):
    """A file and the content it shall have."""

    path: str
    content: str


class Once(_Part, frozen=True, kw_only=True):
    """A command that nobody may repeat, and the file it would leave."""

    argv: list[str]
    leaves: str


class Again(_Part, frozen=True, kw_only=True):
    """A command that is declared idempotent, and the content it gives a file."""

    argv: list[str]
    path: str
    content: str


class PlanScene(_Part, frozen=True, kw_only=True):
    """A workspace of directories that all hold the same pages.

    ``page`` is a page's content, with ``{directory}`` and ``{page}``; ``existing`` is what lies
    in the root before; ``absent`` are the files that shall go.
    """

    directories: list[str]
    pages: list[str]
    page: str
    existing: dict[str, str]
    absent: list[str]

    def content_of(self, directory: str, page: str) -> str:
        """Return the content of one page."""
        return self.page.format(directory=directory, page=page)

    def units(self) -> list[dict[str, str]]:
        """Return the units as a workspace file lists them."""
        units: list[dict[str, str]] = []
        for directory in self.directories:
            units.append({"id": f"dir-{directory}", "type": "linux.dir", "path": directory})
            units += [
                {
                    "id": f"page-{directory}-{page}",
                    "type": "linux.file",
                    "path": f"{directory}/{page}",
                    "content": self.content_of(directory, page),
                }
                for page in self.pages
            ]
        units += [
            {"id": f"no-{index}", "type": "linux.file", "path": path, "state": "absent"}
            for index, path in enumerate(self.absent)
        ]
        return units

    def after(self) -> dict[str, str]:
        """Return the files that the root shall hold in the end."""
        kept = {path: text for path, text in self.existing.items() if path not in self.absent}
        pages = {
            f"{directory}/{page}": self.content_of(directory, page)
            for directory in self.directories
            for page in self.pages
        }
        return kept | pages


class Scene(_Part, frozen=True, kw_only=True):
    """The whole scene; ``script`` is for the scripted model alone."""

    agent: str
    persona: str
    files: dict[str, str]
    reading: Reading
    task: str
    rewrite: Rewrite
    once: Once
    again: Again
    plan: PlanScene
    script: dict[str, Any]

    def files_after(self) -> dict[str, str]:
        """Return the agent's workspace as the cards promise it."""
        promised = {each.path: each.content for each in (self.rewrite, self.again)}
        return self.files | promised


def load_scene(path: Path) -> Scene:
    """Return the scene of a JSON file.

    Raises:
        ValueError: The file is no scene; the message says where.
        OSError: It cannot be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Scene)
    except msgspec.DecodeError as error:
        message = f"{path}: {error}"
        raise ValueError(message) from error


def read_tree(root: Path) -> dict[str, str]:
    """Return every file beneath a root with its content; links are not followed."""
    return {
        str(path.relative_to(root)): path.read_text()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def write_tree(root: Path, files: dict[str, str]) -> None:
    """Write files beneath a root that does not exist yet."""
    root.mkdir()
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
