"""Rules about documents: links lead somewhere, and what a document names exists."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from tests.tidy.tree import Offence, relative

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

FENCE = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1[ \t]*$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
HEADING = re.compile(r"^#{1,6} +(.+?)\s*#*$", re.MULTILINE)
# A path in code style counts as naming a file if it starts at one of these.
TOP_FOLDERS = ("src", "tests", "docs", "demo", "bench", "requirements", "changes", ".ci")
NAMED_PATH = re.compile(rf"(?:{'|'.join(map(re.escape, TOP_FOLDERS))})/[\w./*-]*")
NAMED_ROUTE = re.compile(r"\b(GET|POST|PUT|PATCH|DELETE) (/[\w{}/.:-]*)")
NAMED_COMMAND = re.compile(
    r"(?:^|[\s$`(])(?<!from )(kelpie|\./dev)((?: +[a-z][a-z-]*)*)", re.MULTILINE
)
ADR_NAME = re.compile(r"^(\d{4})-[a-z0-9-]+\.md$")


class Document(NamedTuple):
    """A Markdown file. `code` is its code, inline and fenced, `prose` the rest."""

    path: Path
    text: str
    prose: str
    code: str


def read_document(path: Path) -> Document:
    """Splits a Markdown file into prose and code."""
    text = path.read_text(encoding="utf-8")
    fenced = [match.group() for match in FENCE.finditer(text)]
    without_fences = FENCE.sub("", text)
    inline = [match.group(2).strip() for match in INLINE_CODE.finditer(without_fences)]
    prose = INLINE_CODE.sub("", without_fences)
    return Document(path, text, prose, "\n".join([*inline, *fenced]))


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return plain.replace(" ", "-")


def find_dead_links(documents: Iterable[Document]) -> Iterator[Offence]:
    """Relative links to a file or heading that is not there."""
    for document in documents:
        for match in LINK.finditer(document.prose):
            address = match.group(1)
            if re.match(r"[a-z][a-z0-9+.-]*:", address):
                continue
            file_name, _, anchor = address.partition("#")
            target = (document.path.parent / file_name) if file_name else document.path
            where = f"{relative(document.path)}:{address}"
            if not target.exists():
                yield Offence(where, "leads nowhere")
            elif anchor and target.suffix == ".md" and anchor not in anchors_of(target):
                yield Offence(where, "no such heading")


def anchors_of(path: Path) -> set[str]:
    """Every anchor of a Markdown file."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    return {slug(match.group(1)) for match in HEADING.finditer(text)}


def find_missing_paths(documents: Iterable[Document], *, root: Path) -> Iterator[Offence]:
    """Paths of the checkout that a document names in code style and that do not exist."""
    for document in documents:
        for match in NAMED_PATH.finditer(document.code):
            start = match.start()
            if start and re.match(r"[\w./<{-]", document.code[start - 1]):
                continue
            name = match.group().rstrip(".-")
            is_pattern = document.code[match.end() : match.end() + 1] in {"<", "{"}
            found = (root / name).exists() or ("*" in name and any(root.glob(name)))
            if not found and not is_pattern and "NNNN" not in name:
                yield Offence(f"{relative(document.path)}:{name}", "names a missing path")


def find_missing_commands(
    documents: Iterable[Document], *, is_command: Callable[[str, list[str]], bool]
) -> Iterator[Offence]:
    """Commands in code style whose words `is_command(program, words)` does not know."""
    for document in documents:
        for match in NAMED_COMMAND.finditer(document.code):
            program, words = match.group(1), match.group(2).split()
            if words and not is_command(program, words):
                name = " ".join([program, *words])
                yield Offence(f"{relative(document.path)}:{name}", "names a missing command")


def normalize_route(method: str, path: str) -> str:
    """A route with its parameters' names and its closing slash taken out."""
    return f"{method} {re.sub(r'{[^}]*}', '{}', path).rstrip('/') or '/'}"


def find_missing_routes(documents: Iterable[Document], *, routes: set[str]) -> Iterator[Offence]:
    """Routes in code style, such as `GET /v1/agents/{agent_id}`, that are not in `routes`."""
    for document in documents:
        for match in NAMED_ROUTE.finditer(document.code):
            if normalize_route(*match.groups()) not in routes:
                yield Offence(f"{relative(document.path)}:{match.group()}", "names a missing route")


def find_bad_adr_names(paths: Iterable[Path]) -> Iterator[Offence]:
    """Decision records whose number is taken or whose name does not follow the pattern."""
    taken: dict[str, str] = {}
    for path in sorted(paths):
        match = ADR_NAME.match(path.name)
        if match is None:
            yield Offence(relative(path), "is not called NNNN-title.md")
        elif match.group(1) in taken:
            yield Offence(relative(path), f"has the number of {taken[match.group(1)]}")
        else:
            taken[match.group(1)] = path.name
