"""The tables of the reference pages say what the code says.

A failing test shows the table that belongs between the page's marks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click
import pytest

from kelpie.cli import root
from kelpie.cli.errors import EXIT_STATUSES
from kelpie.core.errors import STATUS
from kelpie.llm.providers import MODELS, PROVIDERS
from kelpie.settings.schema import CLIENT_VARIABLES, PROVIDER_SETTINGS, SETTINGS, Setting
from tests.unit.cli.test_main import list_leaves

PAGES = Path(__file__).parents[3] / "docs" / "reference"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _settings(settings: Sequence[Setting]) -> str:
    rows = [
        [
            f"`{setting.key}`",
            setting.kind.name,
            setting.default,
            f"`{setting.variable}`",
            setting.meaning,
        ]
        for setting in settings
    ]
    return _table(["key", "kind", "default", "variable", "meaning"], rows)


def _known() -> str:
    rows = [
        [
            name,
            known.wire,
            f"`{known.key_variable}`",
            f"`{known.base_url_variable}`",
            f"`{known.base_url}`" if known.base_url else "must be set",
        ]
        for name, known in PROVIDERS.items()
    ]
    return _table(["provider", "wire", "key", "address", "default address"], rows)


def _usage(words: tuple[str, ...], command: click.Command) -> list[str]:
    context = click.Context(command)
    arguments = " ".join(command.collect_usage_pieces(context)[1:])
    options = [
        parameter.opts[0]
        for parameter in command.params
        if isinstance(parameter, click.Option)
        and parameter.name not in {"config", "data_dir", "url", "as_json", "help"}
    ]
    listed = ", ".join(f"`{option}`" for option in options)
    line = (command.help or "").splitlines()[0]
    return [f"`kelpie {' '.join(words)} {arguments}`".replace(" `", "`"), line, listed]


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "settings.md": {
        "settings": lambda: _settings(SETTINGS),
        "providers": lambda: _settings(PROVIDER_SETTINGS),
        "known": _known,
        "models": lambda: _table(
            ["provider", "model"], [[name, f"`{name}/{model}`"] for name, model in MODELS.items()]
        ),
        "variables": lambda: _table(
            ["variable", "meaning"],
            [[f"`{name}`", meaning] for name, meaning in CLIENT_VARIABLES.items()],
        ),
    },
    "cli.md": {
        "commands": lambda: _table(
            ["command", "what it does", "options"],
            [_usage(words, command) for words, command in list_leaves(root, ())],
        ),
        "statuses": lambda: _table(
            ["status", "meaning"], [[str(status), meaning] for status, meaning in EXIT_STATUSES]
        ),
    },
}


@pytest.mark.parametrize(
    ("page", "name"), [(page, name) for page, tables in TABLES.items() for name in tables]
)
def test_a_table_of_the_reference_is_what_the_code_says(page: str, name: str) -> None:
    text = (PAGES / page).read_text(encoding="utf-8")
    assert f"<!-- table: {name} -->\n\n{TABLES[page][name]()}\n" in text


def test_every_code_of_the_product_has_a_documented_exit_status() -> None:
    documented = {status for status, _ in EXIT_STATUSES}
    assert {status.exit for status in STATUS.values()} <= documented
