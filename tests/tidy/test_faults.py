"""The catalogue of faults, the places that inject them and the page about them are one."""

from __future__ import annotations

import re

from kelpie.sim.faults.catalogue import CATALOGUE, FaultKind
from tests.tidy.faults import find_foreign_sources, find_misplaced_faults
from tests.tidy.tree import ROOT, judge, parse_module, product_modules

PAGE = ROOT / "docs" / "reference" / "simulator-faults.md"
ROW = re.compile(r"^\| `([a-z_.]+)` \| ([^|]+) \| ([^|]+) \| ([^|]*) \|$", re.MULTILINE)
# Names of the design that Kelpie was compared with, then what it had forgotten.
REFERENCE = {
    *("WriteFail", "ReadFail", "Corruption", "Latency", "DiskFull"),
    *("BeforeWrite", "AfterWrite", "DuringTransaction"),
    *("Partition", "Delay", "PacketLoss", "MessageReorder", "ClockSkew", "ClockJump"),
    *("OutOfMemory", "CPUStarvation"),
    *("MCP ServerCrash", "MCP SlowStart", "MCP ToolTimeout", "MCP ToolFail"),
    *("LLM Timeout", "LLM Failure", "LLM RateLimited", "LLM AgentLoopPanic"),
    *("Sandbox BootFail", "Sandbox Crash", "Sandbox PauseFail", "Sandbox ResumeFail"),
    *("Sandbox ExecFail", "Sandbox ExecTimeout"),
    *("Snapshot CreateFail", "Snapshot Corruption", "Snapshot RestoreFail", "Snapshot TooLarge"),
    *("Teleport UploadFail", "Teleport DownloadFail", "Teleport Timeout"),
    *("Teleport ArchMismatch", "Teleport ImageMismatch"),
    *("ConcurrentAccessConflict", "DeadlockDetection", "DataRace", "PartialWrite"),
}


def page_row(kind: FaultKind) -> tuple[str, str, str, str]:
    """A fault as the page shows it."""
    places = {"product": "product", "world": "simulated port"}
    place = places.get(kind.place, f"due with {kind.due}")
    return kind.name, kind.text, place, kind.reference


def test_every_built_fault_is_injected_somewhere_and_nothing_else_is() -> None:
    kinds = CATALOGUE.values()
    judge("misplaced-fault", find_misplaced_faults(product_modules(), kinds))


def test_only_the_simulator_makes_faults_happen() -> None:
    judge("foreign-faults", find_foreign_sources(product_modules()))


def test_the_page_lists_the_catalogue_in_its_order() -> None:
    rows = [tuple(cell.strip() for cell in row) for row in ROW.findall(PAGE.read_text())]
    assert rows == [page_row(kind) for kind in CATALOGUE.values()]


def test_the_catalogue_holds_all_of_the_reference_design_and_what_it_missed() -> None:
    named = [kind.reference for kind in CATALOGUE.values() if kind.reference]
    assert set(named) == REFERENCE
    assert len(named) == len(set(named)), "one fault, one name"


def test_the_rules_about_faults_bite() -> None:
    code = (
        'fault("storage.gremlins")\nfault("time.clock_skew")\nfault("mcp.tool_fail")\nfault(name)'
    )
    store = parse_module(
        f"from kelpie.ports.faults import faults_from\n{code}", path="src/kelpie/storage/x.py"
    )
    found = {each.where for each in find_misplaced_faults([store], CATALOGUE.values())}
    prefix = "src/kelpie/storage/x.py:"
    assert {each for each in found if each.startswith(prefix)} == {
        f"{prefix}storage.gremlins",
        f"{prefix}time.clock_skew",
        f"{prefix}mcp.tool_fail",
        prefix,
    }
    assert "storage.write_fail" in found, "a built fault without a place"
    assert "mcp.tool_fail" not in found, "a due fault needs none"
    assert len(list(find_foreign_sources([store]))) == 1
