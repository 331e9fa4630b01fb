"""Whether what was packed on one machine can go on on another. Pure.

An architecture must be the same. Of an image's version ``MAJOR.MINOR.PATCH-PRERELEASE`` MAJOR and
MINOR must be the same, another PATCH is a warning, and a prerelease is ignored. An empty name says
that nothing depends on it.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from kelpie.core.quoting import quote_text

Verdict = Literal["same", "warn", "refuse"]

_VERSION: Final = re.compile(r"(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?(?:[-+.a-z].*)?\Z", re.ASCII)
_ALIASES: Final = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}


def compare_architectures(packed: str, here: str) -> Verdict:
    """Return what two machines' names say: the same processor, or not."""
    if not packed:
        return "same"
    return "same" if _processor(packed) == _processor(here) else "refuse"


def _processor(name: str) -> str:
    lower = name.lower()
    return _ALIASES.get(lower, lower)


def compare_images(packed: str, here: str) -> Verdict:
    """Return what two images' versions say; what cannot be read as a version must be equal."""
    if not packed or packed == here:
        return "same"
    ours, theirs = _VERSION.match(here), _VERSION.match(packed)
    if ours is None or theirs is None or ours.group(1, 2) != theirs.group(1, 2):
        return "refuse"
    return "same" if (ours.group(3) or "0") == (theirs.group(3) or "0") else "warn"


def describe_difference(what: str, packed: str, here: str) -> str:
    """Return a sentence about a difference, for people."""
    return f"the package has {what} {quote_text(packed)}, this node has {quote_text(here)}"
