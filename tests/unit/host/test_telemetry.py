from __future__ import annotations

import io
import json

import pytest

from kelpie.host.telemetry import Format, HostTelemetry
from kelpie.ports.telemetry import Level


class FixedClock:
    def now_ms(self) -> int:
        return 1_700_000_000_123

    def boot_ns(self) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("telemetry never waits")


def make(level: Level = "info", style: Format = "json") -> tuple[HostTelemetry, io.StringIO]:
    output = io.StringIO()
    return HostTelemetry(level=level, style=style, clock=FixedClock(), output=output), output


def test_a_record_is_one_json_object_a_line() -> None:
    telemetry, output = make()
    telemetry.log("warning", "store.slow", took_ms=3, path="a\nb", ok=True, none=None)
    assert json.loads(output.getvalue()) == {
        "time": "2023-11-14T22:13:20.123+00:00", "level": "warning", "event": "store.slow",
        "took_ms": 3, "path": "a\nb", "ok": True, "none": None,
    }  # fmt: skip
    assert output.getvalue().count("\n") == 1


def test_less_severe_records_are_dropped() -> None:
    telemetry, output = make("warning")
    telemetry.log("info", "dropped")
    telemetry.log("error", "kept")
    assert "dropped" not in output.getvalue()
    assert "kept" in output.getvalue()


@pytest.mark.parametrize("style", ["json", "console"])
def test_no_control_character_reaches_the_terminal(style: Format) -> None:
    telemetry, output = make(style=style)
    telemetry.log("info", "a\x1b[2J", field="b\x1b\r\x9b\u202e")
    assert not set(output.getvalue()) & set("\x1b\r\x9b\u202e")


def test_a_closed_stderr_is_nobodys_failure() -> None:
    telemetry, output = make()
    output.close()
    telemetry.log("error", "unheard")
    assert output.closed


def test_metrics_appear_with_their_labels() -> None:
    telemetry, _ = make()
    telemetry.count("kelpie.effects", 2, state="done")
    telemetry.count("kelpie.effects", 1, state="done")
    telemetry.gauge("kelpie.actors.resident", 7)
    telemetry.observe("kelpie.turn.seconds", 0.002, type="agent")
    text = telemetry.metrics_text()
    assert 'kelpie_effects_total{state="done"} 3.0' in text
    assert "kelpie_actors_resident 7.0" in text
    assert 'kelpie_turn_seconds_bucket{le="0.0025",type="agent"} 1.0' in text
    assert "process_resident_memory_bytes" in text


def test_registries_are_not_shared() -> None:
    first, _ = make()
    second, _ = make()
    first.count("kelpie.only_here")
    assert "only_here" in first.metrics_text()
    assert "only_here" not in second.metrics_text()


def test_a_misused_metric_is_logged_and_never_raised() -> None:
    telemetry, output = make()
    telemetry.count("kelpie.things", 1, state="x")
    telemetry.count("kelpie.things", 1, other="x")
    telemetry.gauge("kelpie.things", 1, state="x")
    telemetry.count("kelpie.things", -1, state="x")
    telemetry.count("kelpie.reserved", 1, __name="x")
    problems = [json.loads(line)["problem"] for line in output.getvalue().splitlines()]
    assert problems[:3] == ["its labels are state", "it is a counter", "a counter never falls"]
    assert len(problems) == 4


def test_the_number_of_series_is_bounded() -> None:
    telemetry, output = make()
    for number in range(10_001):
        telemetry.count("kelpie.wild", 1, value=str(number))
    assert "10,000 series" in output.getvalue()


def test_a_span_passes_its_error_on() -> None:
    telemetry, _ = make()
    with pytest.raises(KeyError), telemetry.span("turn", actor="a"):
        raise KeyError("x")
