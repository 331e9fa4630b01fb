"""Untrusted text, tables and cards cannot mislead a reader."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.app.card import render_card
from kelpie.app.text import break_lines, clip, display_width, safe_line, safe_text
from kelpie.cli.output import Terminal
from tests.unit.cli.answers import EFFECT


def _plain(text: str, style: str) -> str:
    return text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\rb", "a\\x0db"),
        ("\x9b1m", "\\x9b1m"),
        ("a\u202eb", "a\\u202eb"),
        ("a\u2028b", "a\\u2028b"),
        ("\U000e0041", "\\U000e0041"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("grüße 漢字\n\tok", "grüße 漢字\n\tok"),
    ],
)
def test_what_could_move_the_cursor_or_hide_is_escaped(text: str, shown: str) -> None:
    assert safe_text(text) == shown


@given(text=st.text(max_size=60), width=st.integers(2, 20))
def test_breaking_loses_nothing_and_keeps_the_width(text: str, width: int) -> None:
    line = safe_line(text)
    pieces = list(break_lines(line, width))
    assert "".join(pieces) == line
    assert all(display_width(piece) <= width for piece in pieces)


@given(text=st.text(max_size=60), width=st.integers(2, 20))
def test_clipping_keeps_the_width(text: str, width: int) -> None:
    assert display_width(clip(safe_line(text), width)) <= max(width, 3)


def test_a_clipped_text_says_so() -> None:
    assert clip("abcdef", 4) == "abc…"
    assert clip("漢字漢字", 5) == "漢字…"


def _card(width: int, **card: object) -> list[str]:
    effect = EFFECT | {"card": EFFECT["card"] | card}
    return render_card(effect, width=width, now_ms=3_999_999_940_000, paint=_plain)


def test_a_card_shows_what_why_where_undo_and_expiry() -> None:
    lines = _card(100)
    assert lines[0] == "| Rewrite notes.txt"
    assert lines[1] == "| approval effect-1"
    assert lines[2] == "| runs     sh -c 'echo hi'"
    assert lines[3] == "| why      it writes a file"
    assert lines[4] == "| where    bubblewrap, no network"
    assert lines[5] == "| undo     write the old text back"
    assert lines[6].endswith("in 1 min 0 s; then it counts as denied")
    assert lines[-5:] == [
        "| --- notes.txt",
        "| +++ notes.txt",
        "| @@ -1 +1 @@",
        "| -old",
        "| +new",
    ]


def test_a_card_past_its_time_says_that_it_counts_as_denied() -> None:
    lines = render_card(EFFECT, width=80, now_ms=4_000_000_000_001, paint=_plain)
    assert any("which has passed; it counts as denied" in line for line in lines)


@given(
    title=st.text(max_size=80),
    argument=st.text(max_size=80),
    diff=st.text(max_size=200),
    width=st.integers(30, 90),
)
def test_no_card_can_forge_a_line_or_leave_its_frame(
    title: str, argument: str, diff: str, width: int
) -> None:
    files = [{"path": title, "change": "update", "diff": diff, "lines_hidden": 7}]
    for line in _card(width, title=title, argv=[argument], files=files, request=diff):
        assert line.startswith("|")
        assert line == safe_line(line)
        assert display_width(line) <= width


def test_a_narrow_card_keeps_every_character_of_the_argv() -> None:
    argument = "x" * 100
    text = "".join(line.removeprefix("| ").strip() for line in _card(30, argv=[argument]))
    assert argument in text.removeprefix("runs").replace("runs     ", "")


def test_binary_files_and_hidden_lines_are_named() -> None:
    files = [{"path": "b", "change": "create", "binary": True, "after": "sha256:x"}]
    assert "| binary, absent -> sha256:x" in _card(80, files=files)
    files = [{"path": "b", "change": "update", "diff": "+a\n", "lines_hidden": 3}]
    assert any("3 more lines of diff" in line for line in _card(80, files=files))


def _terminal(monkeypatch: pytest.MonkeyPatch, *, width: int, **environment: str) -> Terminal:
    monkeypatch.setenv("COLUMNS", str(width))
    return Terminal(as_json=False, environment=environment, is_terminal=lambda _: True)


def test_colour_is_for_terminals_without_no_color(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _terminal(monkeypatch, width=80).style("x", "red") == "\x1b[31mx\x1b[0m"
    assert _terminal(monkeypatch, width=80, NO_COLOR="1").style("x", "red") == "x"
    assert _terminal(monkeypatch, width=80, TERM="dumb").style("x", "red") == "x"
    unseen = Terminal(as_json=False, environment={}, is_terminal=lambda _: False)
    assert unseen.style("x", "red") == "x"


def test_a_table_clips_its_last_column_and_turns_into_blocks_when_narrow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [["one", "first " * 9], ["three", "x\ny"]]
    _terminal(monkeypatch, width=40, NO_COLOR="1").table(["ID", "WHAT"], rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ID     WHAT"
    assert lines[1].endswith("…")
    assert len(lines[1]) == 40
    assert lines[2] == "three  x\\ny"
    wide = [["i" * 30, "what"], ["j" * 30, "else"]]
    _terminal(monkeypatch, width=34, NO_COLOR="1").table(["ID", "WHAT"], wide)
    text = capsys.readouterr().out
    assert text == f"ID    {'i' * 30}\nWHAT  what\n\nID    {'j' * 30}\nWHAT  else\n"


def test_a_card_names_what_will_not_land() -> None:
    lines = _card(100, left_out=["a\npipe", "socket"], left_out_count=5)
    start = next(index for index, line in enumerate(lines) if line.startswith("| discards"))
    assert lines[start : start + 4] == [
        "| discards a\\npipe",
        "|          socket",
        "|          and 3 more",
        "|          (pipes, sockets, devices, names that are not text: no change can carry them)",
    ]
    assert not any("discards" in line for line in _card(100))


def test_a_file_that_would_not_change_is_said_to_stay() -> None:
    file = {"path": "a", "change": "update", "diff": "", "before": "sha256:1", "after": "sha256:1"}
    assert _card(80, files=[file])[-2:] == ["| update a", "| it stays as it is"]
    changed = file | {"after": "sha256:2"}
    assert _card(80, files=[changed])[-1] == "| update a"


def test_a_table_in_a_pipe_is_whole_although_errors_are_looked_at(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal = Terminal(
        as_json=False, environment={}, is_terminal=lambda stream: stream is sys.stderr
    )
    long = "x" * 300
    terminal.table(["A", "B"], [["1", long]])
    assert long in capsys.readouterr().out
    assert terminal.width_of(2) < len(long)
