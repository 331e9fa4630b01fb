"""Good code type-checks, wrong code does not: with mypy and with pyright."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tidy.tree import ROOT

HEAD = """\
from __future__ import annotations

from kelpie import (
    Actor, ApprovalInfo, CallHandle, Remote, RunInfo, Runtime, State, command, query, ref, reminder
)


class Tally(State):
    total: int = 0


class Counter(Actor[Tally]):
    @command
    def add(self, amount: int) -> int:
        self.state.total += amount
        return self.state.total

    @query
    def total(self) -> int:
        return self.state.total

    @reminder
    def tick(self, label: str) -> None:
        self.state.total += len(label)

    @command
    async def pull(self, other: str, *, times: int = 1) -> str:
        taken = await ref(Counter, other).add(-times)
        again = await self.ctx.call(ref(Counter, other).add, taken)
        self.ctx.send(ref(Counter, other).add, again)
        self.ctx.remind("later", self.ctx.now_ms + 1, self.tick, "x")
        return str(taken)


async def main(runtime: Runtime, remote: Remote, question: ApprovalInfo) -> None:
    counter = runtime.ref(Counter, "a")
    distant = remote.ref(Counter, "a")
"""
GOOD = [
    "added: int = await counter.add(2)",
    "pulled: str = await counter.pull('b', times=2)",
    "total: int = await counter.total()",
    "handle: CallHandle[int] = await counter.add.submit(2)",
    "later: int = await (await counter.add.submit(amount=2)).result(timeout_s=5)",
    "found: str = await counter.pull.handle('call-1').result()",
    "far: CallHandle[str] = await distant.pull.submit('b', times=2)",
    "await (await distant.add.submit(1)).cancel()",
    "state: str = await (await distant.add.submit(1)).status()",
    "run: RunInfo = await remote.runs.start('agent-1', 'hello')",
    "question = await remote.approvals.approve(question, reason=question.card_text())",
    "async for event in runtime.follow(counter): print(event.read(str))",
]
BAD = [
    "await counter.add('2')",
    "await counter.add()",
    "await counter.add(2, 3)",
    "wrong: str = await counter.add(2)",
    "await counter.subtract(1)",
    "await counter.pull('b', 2)",
    "await counter.pull(other=1)",
    "number: int = await counter.pull('b')",
    "counter.ctx.send(counter.add, 'x')",
    "await counter.ctx.call(counter.add, amount='x')",
    "counter.ctx.remind('later', 1, counter.tick, 5)",
    "await counter.add.submit('2')",
    "await counter.add.submit()",
    "await counter.pull.submit('b', 2)",
    "unlike: CallHandle[str] = await counter.add.submit(2)",
    "text: str = await (await counter.add.submit(2)).result()",
    "text2: str = await counter.add.handle('call-1').result()",
    "await distant.add.submit('2')",
    "await distant.add(None)",
    "afar: CallHandle[str] = await distant.add.submit(2)",
    "await remote.runs.start(5, 'hello')",
    "await remote.approvals.approve('effect-1')",
    "await remote.calls.find(state='running-late')",
    "counter.state.totl",
    "runtime.ref(Tally, 'a')",
]


def bad_lines(directory: Path, lines: list[str]) -> dict[str, set[int]]:
    """Which of `lines`, each in the body of an async function, each checker refuses."""
    source = HEAD + "".join(f"    {line}\n" for line in lines)
    path = directory / "sample.py"
    path.write_text(source, encoding="utf-8")
    first = HEAD.count("\n") + 1
    mypy = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--output", "json", "--cache-dir"),
            *(str(directory / "cache"), "--config-file", "", str(path)),
        ],
        cwd=ROOT,
        env={"MYPYPATH": str(ROOT / "src"), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    found = [json.loads(line) for line in mypy.stdout.splitlines()]
    found_mypy = [each for each in found if each["file"].endswith(path.name)]
    (directory / "pyrightconfig.json").write_text(
        json.dumps({"extraPaths": [str(ROOT / "src")], "typeCheckingMode": "standard"})
    )
    pyright = subprocess.run(
        [
            *(sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath"),
            *(sys.executable, "--project", str(directory)),
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    found_pyright = [
        each["range"]["start"]["line"] + 1
        for each in json.loads(pyright.stdout)["generalDiagnostics"]
        if each["severity"] == "error"
    ]
    numbers = {
        "mypy": {each["line"] for each in found_mypy if each["severity"] == "error"},
        "pyright": set(found_pyright),
    }
    return {name: {line - first for line in found} for name, found in numbers.items()}


@pytest.mark.requirement("ACTOR-API-TYPED")
@pytest.mark.timeout(180)
def test_right_calls_type_check_and_each_wrong_one_is_refused(tmp_path: Path) -> None:
    lines = [*GOOD, *BAD]
    refused = bad_lines(tmp_path, lines)
    for checker, numbers in refused.items():
        missed = [line for index, line in enumerate(lines) if index not in numbers and line in BAD]
        wrong = [index for index in numbers if index < len(GOOD)]
        assert not missed, f"{checker} lets wrong code pass: {missed}"
        assert not wrong, f"{checker} refuses right code: {[lines[i] for i in wrong if i >= 0]}"
