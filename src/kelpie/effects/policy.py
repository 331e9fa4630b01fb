"""The first policy: a table of effect kinds, argument rules, and deny wins.

A kind's nature is fixed in `NATURES`; rules can only make an effect redder. The one way to
green for a command is a bare read-only program whose every option is harmless, and such a command
then runs on a workspace that is mounted read-only, so that no wording can turn a write green.
Whatever is not known is red.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, cast

from kelpie.core.digests import digest_value
from kelpie.core.errors import InvalidFieldError
from kelpie.effects.model import Color, EffectRecord, Verdict

Nature = Literal["read", "model", "change", "command"]

NATURES: Final[Mapping[str, Nature]] = {
    "model.generate": "model",
    "files.read": "read",
    "files.apply": "change",
    "plan.apply": "change",
    "command.run": "command",
}

_REVISION: Final = 1
"""Grows when the rules below change their meaning, so that old approvals are asked again."""

_READERS: Final[Mapping[str, re.Pattern[str] | None]] = {
    # Programs that only read, and the options that would make them more than readers.
    "basename": None,
    "cat": None,
    "cmp": None,
    "cut": None,
    "df": None,
    "diff": None,
    "dirname": None,
    "du": None,
    "egrep": None,
    "fgrep": None,
    "find": re.compile(r"-(exec|execdir|ok|okdir|delete|fprint|fprint0|fprintf|fls)\Z"),
    "grep": None,
    "head": None,
    "ls": None,
    "md5sum": None,
    "nl": None,
    "pwd": None,
    "readlink": None,
    "realpath": None,
    "sha1sum": None,
    "sha256sum": None,
    "stat": None,
    "tail": None,
    "true": None,
    "wc": None,
}
_PROGRAM_DIRECTORIES: Final = ("", "/bin", "/usr/bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A configured rule; every given part must match. It can redden or deny, never free.

    ``kind``, ``tool``, ``path`` and ``program`` are shell-style patterns; empty matches anything.
    ``path`` is matched against each path that the effect touches, relative to its root.
    """

    verdict: Literal["red", "deny"]
    reason: str
    kind: str = ""
    tool: str = ""
    path: str = ""
    program: str = ""

    def __post_init__(self) -> None:
        if not (self.kind or self.tool or self.path or self.program):
            problem = "needs at least one of kind, tool, path, program"
            raise InvalidFieldError("policy.rule", problem)

    def matches(self, record: EffectRecord) -> bool:
        """Return whether every given part matches ``record``."""
        return (
            _fits(self.kind, (record.kind,))
            and _fits(self.tool, (record.tool,))
            and _fits(self.program, (_program(record.args),))
            and _fits(self.path, touched_paths(record))
        )


def _fits(pattern: str, values: Sequence[str]) -> bool:
    return not pattern or any(fnmatchcase(value, pattern) for value in values)


def touched_paths(record: EffectRecord) -> tuple[str, ...]:
    """Return the paths an effect names or would change, as far as it is prepared."""
    found: list[str] = []
    path = record.args.get("path")
    if isinstance(path, str):
        found.append(path)
    write: Any = record.args.get("write")
    if isinstance(write, dict):
        found.append(str(cast("dict[str, Any]", write).get("path", "")))
    facts = record.preparation.facts if record.preparation else {}
    prepared = facts.get("paths", ())
    found.extend(str(path) for path in prepared)
    return tuple(found)


def _program(args: Mapping[str, Any]) -> str:
    argv = args.get("argv")
    if isinstance(argv, list | tuple) and argv and isinstance(argv[0], str):
        return argv[0].rpartition("/")[2]
    return ""


def command_is_read_only(argv: Sequence[str]) -> bool:
    """Return whether ``argv`` is a known reader, called by its system name, with safe options."""
    if not argv:
        return False
    directory, _, name = argv[0].rpartition("/")
    if directory not in _PROGRAM_DIRECTORIES or name not in _READERS:
        return False
    forbidden = _READERS[name]
    return forbidden is None or not any(forbidden.match(word) for word in argv[1:])


@dataclass(frozen=True, slots=True)
class Policy:
    """Classifies effects. Pure: the same record and rules give the same verdict.

    Attributes:
        rules: Configured rules, all of them evaluated; deny wins over red.
        version: Digest of everything that can change a verdict.
    """

    rules: tuple[Rule, ...] = ()
    version: str = field(init=False)

    def __post_init__(self) -> None:
        natures = dict(NATURES)
        parts = [_REVISION, natures, sorted(_READERS), [asdict(rule) for rule in self.rules]]
        object.__setattr__(self, "version", str(digest_value(parts)))

    def classify(self, record: EffectRecord, now_ms: int) -> Verdict:
        """Return the verdict on ``record`` as it stands."""
        color, reasons = self._base(record)
        for rule in self.rules:
            if rule.matches(record):
                reasons.append(rule.reason)
                color = "deny" if "deny" in (color, rule.verdict) else "red"
        assert color == "green" or reasons, "a red or denied effect says why"
        return Verdict(color=color, reasons=tuple(reasons), policy=self.version, at_ms=now_ms)

    def _base(self, record: EffectRecord) -> tuple[Color, list[str]]:
        match NATURES.get(record.kind):
            case "read":
                return "green", []
            case "model":
                return "green", []
            case "change":
                return "red", ["It changes files."]
            case "command":
                return self._command(record)
            case _:
                return "red", [f"The effect kind {record.kind!r} is unknown to the policy."]

    def _command(self, record: EffectRecord) -> tuple[Color, list[str]]:
        argv = record.args.get("argv")
        words = [word for word in argv if isinstance(word, str)] if argv else []
        if len(words) == len(argv or ()) and command_is_read_only(words):
            return "green", []
        name = _program(record.args)
        return "red", [f"It runs {name!r}, which is not on the list of read-only programs."]
