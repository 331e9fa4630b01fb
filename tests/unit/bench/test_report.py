"""What a benchmark prints: the fields and the verdicts."""

from __future__ import annotations

import json

import pytest

from bench.report import Row, render_json, render_table

FIELDS = {"id", "value", "unit", "target", "op", "ok", "runs", "peer", "peer_value", "ratio"}


def test_a_report_is_one_json_object_with_every_field() -> None:
    report = json.loads(render_json("smoke", [Row(id="a.p50", runs=[3.0, 1.0, 2.0], unit="ms")]))
    assert set(report) == {"bench", "commit", "machine", "rows"}
    (row,) = report["rows"]
    assert set(row) == FIELDS
    assert (row["value"], row["runs"], row["ok"]) == (2.0, [3.0, 1.0, 2.0], True)
    assert (row["target"], row["peer"], row["ratio"]) == (None, None, None)


@pytest.mark.parametrize(
    ("target", "op", "is_ok"), [(2.0, "<=", True), (1.9, "<=", False), (2.1, ">=", False)]
)
def test_a_row_is_held_against_its_target(target: float, op: str, is_ok: bool) -> None:
    assert op in {"<=", ">="}
    row = Row(id="a", runs=[2.0], unit="s", target=target, op="<=" if op == "<=" else ">=")
    assert row.ok == is_ok
    assert ("MISSED" in render_table("smoke", [row])) != is_ok


def test_a_peer_gives_a_ratio() -> None:
    row = Row(id="a", runs=[1.0], unit="s", peer="another", peer_value=4.0)
    assert row.as_json()["ratio"] == 0.25
