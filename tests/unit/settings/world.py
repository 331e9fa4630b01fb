"""A settings loader over a temporary home and project, with nothing from the real environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from kelpie.settings import Settings, load_settings


class ValuePlace(NamedTuple):
    """A home and a project directory."""

    home: Path
    project: Path

    def write_user(self, text: str) -> Path:
        return _write(self.home / ".config" / "kelpie" / "config.toml", text)

    def write_project(self, text: str) -> Path:
        return _write(self.project / "kelpie.toml", text)

    def load(
        self,
        environment: Mapping[str, str] | None = None,
        *,
        config: str | None = None,
        flags: Mapping[str, object] | None = None,
    ) -> Settings:
        return load_settings(
            environment=environment or {},
            cwd=self.project,
            home=self.home,
            config=config,
            flags=flags,
        )


def make_place(root: Path) -> ValuePlace:
    place = ValuePlace(root / "home", root / "project")
    for directory in place:
        directory.mkdir(parents=True)
    return place


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
