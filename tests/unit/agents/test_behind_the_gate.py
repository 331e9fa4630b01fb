"""The agent behind the real gate: what the policy decides reaches the loop in the same turn."""

from __future__ import annotations

from typing import Any

import msgspec

from kelpie.actors.commands import Message
from kelpie.actors.machine import Turn
from kelpie.agents.machine import AgentMachine
from kelpie.agents.model import AgentState, CancelRun, CreateAgent, InputMessage, Run, StartRun
from kelpie.effects import messages as m
from kelpie.effects.gate import Gated, GatedState
from kelpie.effects.model import EffectRecord, Outcome
from kelpie.effects.policy import Policy, Rule
from kelpie.effects.rules import EffectKind, GateRules
from kelpie.llm.model import ModelAnswer
from tests.unit.agents.driver import ACTOR, BLOCKS, CONFIG, TOOLS, answer, tool_call

KINDS = {
    name: EffectKind(name=name, prepares=False, promise=lambda args: "once")
    for name in ("model.generate", "files.read", "files.apply", "command.run")
}


class Gate:
    """A gated agent, one turn after the other."""

    def __init__(self, *rules: Rule) -> None:
        self.machine = Gated(
            AgentMachine(TOOLS), GateRules(policy=Policy(rules=rules), kinds=KINDS)
        )
        self.state: GatedState[AgentState] = self.machine.create(ACTOR)
        self.turns = 0
        self.feed(CreateAgent(config=CONFIG, blocks=BLOCKS))
        self.feed(StartRun(run_id="run-1", messages=(InputMessage(content="go"),)))

    def feed(self, message: Message) -> None:
        self.turns += 1
        turn = Turn(
            actor=ACTOR, now_ms=self.turns, seed=self.turns.to_bytes(16, "big"), principal="ada"
        )
        self.state = self.machine.decide(self.state, message, turn).state

    def effect(self, kind: str) -> EffectRecord:
        (record,) = [each for each in self.state.effects.values() if each.kind == kind]
        return record

    def run(self, kind: str, result: dict[str, Any]) -> None:
        effect_id = self.effect(kind).effect_id
        self.feed(m.StartEffect(effect_id=effect_id, session="s"))
        done = Outcome(status="done", result=result)
        self.feed(m.EffectFinished(effect_id=effect_id, attempt=1, outcome=done))

    def say(self, said: ModelAnswer) -> None:
        self.run("model.generate", msgspec.to_builtins(said))

    @property
    def active(self) -> Run:
        run = self.state.inner.run
        assert run is not None
        return run

    @property
    def status(self) -> str:
        return self.active.status


def test_a_red_call_waits_is_approved_and_runs() -> None:
    agent = Gate()
    agent.say(answer("", tool_call("write_file", path="a", content="x")))
    assert agent.status == "waiting"
    waiting = agent.effect("files.apply")
    assert agent.active.open_calls[0].effect_id == waiting.effect_id
    agent.feed(m.ApproveEffect(effect_id=waiting.effect_id, digest=waiting.digest))
    assert agent.status == "running"
    agent.run("files.apply", {"applied": ["a"], "before": {}})
    agent.say(answer("written"))
    assert agent.state.inner.last_run is not None
    assert agent.state.inner.last_run.status == "completed"


def test_calls_that_the_policy_denies_return_within_the_turn() -> None:
    agent = Gate(Rule(verdict="deny", reason="never", tool="write_file"))
    calls = [tool_call("write_file", f"c{n}", path=f"f{n}", content="x") for n in range(32)]
    agent.say(answer("", *calls))
    assert agent.active.tool_returns == 32
    assert [record.kind for record in agent.state.effects.values()] == ["model.generate"]


def test_cancelling_voids_the_question_and_a_started_call_may_end_later() -> None:
    agent = Gate()
    agent.say(
        answer(
            "",
            tool_call("write_file", "1", path="a", content="x"),
            tool_call("read_file", "2", path="b"),
        )
    )
    read = agent.effect("files.read").effect_id
    agent.feed(m.StartEffect(effect_id=read, session="s"))
    agent.feed(CancelRun(run_id="run-1"))
    assert agent.state.inner.run is None
    assert [record.kind for record in agent.state.effects.values()] == ["files.read"]
    done = Outcome(status="done", result={"text": "late", "cut": False})
    agent.feed(m.EffectFinished(effect_id=read, attempt=1, outcome=done))
    assert agent.state.effects == {}
    assert agent.state.inner.run is None
