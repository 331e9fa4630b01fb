"""Rules about words: unfinished work, boasts, reports, secrets, and places on one machine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.tidy.tree import Offence, relative

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

# What no text of the tree may say. The list is written so that it does not find itself.
FORBIDDEN = (
    r"(?-i:\bTO[D]O\b)",
    r"(?-i:\bFIXM[E]\b)",
    r"(?-i:\bXX[X]\b)",
    r"(?-i:\bHAC[K]\b)",
    r"(?-i:\bWI[P]\b)",
    r"(?-i:\bTB[D]\b)",
    r"\bnot (yet |currently )?implement[e]d\b",
    r"\bto be implement[e]d\b",
    r"\bcoming soo[n]\b",
    r"\bin a (real|production) (implementation|system|version)[,.]?",
    r"\bfor now[,.]",
    r"\bsimplified (version|implementation)\b",
    r"\bproduction[- ]read[y]\b",
    r"\benterprise[- ]grad[e]\b",
    r"\bworld[- ]clas[s]\b",
    r"\bblazing(ly)?\b",
    r"\bstate[- ]of[- ]the[- ]ar[t]\b",
    r"\bsuccessfully (implemented|completed|added|migrated)\b",
    r"\ball tests (are )?pass(ing|ed)?\b",
    r"\bfully (implemented|functional|operational)\b",
    r"\bphase \d+ (is )?(complete|done)\b",
    r"\bstatus: *(complete|done|in progress)\b",
    r"\bas (requested|discussed)\b",
    "[\N{WHITE HEAVY CHECK MARK}\N{PARTY POPPER}\N{ROCKET}\N{SPARKLES}]",
)
# What Python code may not say.
FORBIDDEN_IN_CODE = (
    r"\bNotImplemente[d]Error\b",
    r"\bmock\.patch\b",
    r"\bmonkeypatch\.setattr\b",
    r"\bassert True\b",
    r"\bpytest\.(skip|importorskip)\(",
    r"\bmark\.(skip|xfail)\b",
    r"# type: ignore(?!\[)",
    r"# noqa(?!: )",
)
ANY_FORBIDDEN = re.compile("|".join(FORBIDDEN), re.IGNORECASE)
ANY_FORBIDDEN_IN_CODE = re.compile("|".join(FORBIDDEN_IN_CODE))
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----|AGE-SECRET-KEY-1[A-Z0-9]{20}")
DOWNLOAD_ADDRESS = re.compile(r"https?://|git\+|--(extra-)?index-url|--find-links")
# Exceptions that need a reason on the allow-list: banned APIs, and catching every error.
LINT_EXCEPTION = re.compile(r"# noqa:[^#\n]*?\b(TID251|BLE001)\b")
# Licence texts are quoted as they are, and the rules quote what they look for.
EXEMPT = {"LICENSE", "tests/tidy/words.py", "tests/tidy/test_rules_bite.py"}


def read_text(path: Path) -> str | None:
    """The file's text, or None if it is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def find_matches(path: Path, pattern: re.Pattern[str]) -> Iterator[Offence]:
    """Every place of a file where `pattern` matches."""
    if relative(path) in EXEMPT:
        return
    text = read_text(path) or ""
    for match in pattern.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Offence(f"{relative(path)}:{match.group()}", f"line {line}")


def find_forbidden_words(files: Iterable[Path]) -> Iterator[Offence]:
    """Unfinished work, status reports and boasts anywhere; evasions in code."""
    for path in files:
        yield from find_matches(path, ANY_FORBIDDEN)
        if path.suffix == ".py":
            yield from find_matches(path, ANY_FORBIDDEN_IN_CODE)


def find_private_keys(files: Iterable[Path]) -> Iterator[Offence]:
    """Private keys."""
    for path in files:
        yield from find_matches(path, PRIVATE_KEY)


def find_download_addresses(files: Iterable[Path]) -> Iterator[Offence]:
    """Pins that name where they were downloaded from."""
    for path in files:
        if relative(path).startswith("requirements/"):
            yield from find_matches(path, DOWNLOAD_ADDRESS)


def find_places(files: Iterable[Path], *, folders: Iterable[str]) -> Iterator[Offence]:
    """Names of folders that exist only on the machine this runs on."""
    pattern = re.compile("|".join(re.escape(folder) for folder in folders))
    for path in files:
        yield from find_matches(path, pattern)


def find_lint_exceptions(files: Iterable[Path]) -> Iterator[Offence]:
    """Lines of the product that use a banned API or catch every error, by file and rule."""
    for path in files:
        if relative(path).startswith("src/"):
            for offence in find_matches(path, LINT_EXCEPTION):
                yield Offence(f"{relative(path)}:{offence.where[-len('TID251') :]}", offence.what)
