"""Documents and commands tell the truth about each other."""

from __future__ import annotations

from tests.tidy.documents import (
    find_bad_adr_names,
    find_dead_links,
    find_missing_commands,
    find_missing_paths,
    find_missing_routes,
    read_document,
)
from tests.tidy.surface import (
    commands,
    covered_surface,
    find_uncovered,
    find_unknown_covers,
    is_command,
    routes,
)
from tests.tidy.tree import ROOT, judge, modules_under, relative, tracked_files

# What a document of the past names may be gone by now.
HISTORY = ("CHANGELOG.md", "changes/")
DOCUMENTS = [
    read_document(path)
    for path in tracked_files()
    if path.suffix == ".md" and not relative(path).startswith(HISTORY)
]


def offered() -> set[str]:
    leaves = {name for name, is_group in commands().items() if not is_group}
    return leaves | routes()


def test_every_relative_link_leads_somewhere() -> None:
    judge("dead-link", find_dead_links(DOCUMENTS))


def test_every_path_a_document_names_exists() -> None:
    judge("missing-path", find_missing_paths(DOCUMENTS, root=ROOT))


def test_every_command_a_document_names_exists() -> None:
    judge("missing-command", find_missing_commands(DOCUMENTS, is_command=is_command))


def test_every_route_a_document_names_exists() -> None:
    judge("missing-route", find_missing_routes(DOCUMENTS, routes=set(routes())))


def test_decision_records_have_numbers_of_their_own() -> None:
    judge("adr-name", find_bad_adr_names((ROOT / "docs" / "adr").glob("*.md")))


def test_an_end_to_end_test_covers_every_command_and_route() -> None:
    covered = covered_surface(modules_under("tests/e2e/"))
    judge("uncovered-surface", find_uncovered(offered(), covered))


def test_no_test_claims_to_cover_what_is_not_offered() -> None:
    covered = covered_surface(modules_under("tests/"))
    judge("unknown-cover", find_unknown_covers(offered(), covered))
