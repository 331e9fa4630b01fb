"""Whatever comes in whatever order, the conversation stays whole."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from kelpie.agents.model import UpdateBlock
from kelpie.core.errors import ConflictError, OverloadedError
from kelpie.effects.model import Effect
from kelpie.llm.model import ToolCall
from tests.unit.agents.driver import Driver, answer, check_pairs, settled, tool_call

CALLS = (
    tool_call("read_file", "r", path="a"),
    tool_call("write_file", "w", path="a", content="x"),
    tool_call("run_command", "c", argv=["make"]),
    tool_call("core_memory_append", "m", label="human", content="x"),
    tool_call("core_memory_replace", "n", label="human", old_content="nowhere", new_content=""),
    ToolCall(id="u", name="fly", arguments="{}"),
    ToolCall(id="j", name="read_file", arguments="{"),
)
ENDS: Any = st.sampled_from(
    ["done", "failed", "denied", "expired", "voided", "cancelled", "unknown"]
)
CHANGED = {"path": "a", "kind": "file", "before": "", "after": "x", "mode": 420}


class Interleavings(RuleBasedStateMachine):
    runs: Bundle[str] = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self.agent = Driver()
        self.begun: dict[str, str] = {}
        self.past: list[Effect] = []

    @rule(target=runs, number=st.integers(0, 30), steps_max=st.integers(0, 3))
    def start(self, number: int, steps_max: int) -> str:
        run_id = f"run-{number}"
        text = f"message of {run_id}"
        try:
            run = self.agent.start(run_id, text=text, steps_max=steps_max)
        except (ConflictError, OverloadedError):
            return run_id
        assert run.run_id == run_id
        self.begun[run_id] = text
        return run_id

    @rule(run_id=runs)
    def cancel(self, run_id: str) -> None:
        state = self.agent.state
        known = [state.run, state.last_run, *(entry.run for entry in state.queue)]
        if any(run is not None and run.run_id == run_id for run in known):
            self.past.extend(self.agent.open.values())
            assert self.agent.cancel(run_id).finished_ms > 0

    @rule(
        text=st.sampled_from(["", "hello"]),
        calls=st.lists(st.sampled_from(CALLS), max_size=4),
    )
    def answer(self, text: str, calls: list[ToolCall]) -> None:
        for ref in self.agent.refs("model.generate"):
            self.past.append(self.agent.open[ref])
            said = answer(text, *calls)
            self.agent.settle(ref, result=msgspec.to_builtins(said))

    @rule(data=st.data(), state=ENDS, changed=st.booleans())
    def settle(self, data: st.DataObject, state: Any, changed: bool) -> None:
        if self.agent.open:
            ref = data.draw(st.sampled_from(sorted(self.agent.open)))
            self.past.append(self.agent.open[ref])
            result = {"exit_status": 0, "text": "t", "changes": [CHANGED] if changed else []}
            self.agent.settle(ref, state, result=result, error="because")

    @rule(data=st.data(), approved=st.booleans())
    def wait(self, data: st.DataObject, approved: bool) -> None:
        if self.agent.open:
            ref = data.draw(st.sampled_from(sorted(self.agent.open)))
            (self.agent.approve if approved else self.agent.wait)(ref)

    @rule(data=st.data(), state=ENDS)
    def settle_again(self, data: st.DataObject, state: Any) -> None:
        late = [effect for effect in self.past if effect.ref not in self.agent.open]
        if late:
            effect = data.draw(st.sampled_from(late))
            before = self.agent.state
            self.agent.feed(settled(effect, state, result={"text": "late"}))
            assert self.agent.state == before

    @rule(value=st.text(max_size=20))
    def edit(self, value: str) -> None:
        block = self.agent.feed(UpdateBlock(label="human", changes={"value": value}))
        assert block.value == value

    @invariant()
    def every_call_has_its_return(self) -> None:
        run = self.agent.state.run
        check_pairs(self.agent.transcript, open_calls=len(run.open_calls) if run else 0)

    @invariant()
    def nothing_is_lost(self) -> None:
        state = self.agent.state
        queued = {entry.run.run_id for entry in state.queue}
        active = {state.run.run_id} if state.run else set()
        contents = [m.content for m in self.agent.transcript if m.role == "user"]
        for run_id, text in self.begun.items():
            ended = self.agent.kv.get(f"run/{run_id}")
            assert (run_id in queued) + (run_id in active) + (ended is not None) == 1
            never_began = ended is not None and ended.steps == 0
            assert contents.count(text) == (0 if run_id in queued or never_began else 1)

    @invariant()
    def what_is_open_is_what_the_run_waits_for(self) -> None:
        run = self.agent.state.run
        refs = {call.effect_ref for call in run.open_calls if not call.settled} if run else set()
        refs |= {run.model_ref} if run and run.model_ref else set()
        assert refs == set(self.agent.open)

    @invariant()
    def steps_that_began_have_ended_but_the_last(self) -> None:
        kinds = self.agent.kinds()
        active = 1 if self.agent.state.run else 0
        assert kinds.count("step.started") == kinds.count("step.finished") + active
        assert kinds.count("run.started") <= kinds.count("run.finished") + active


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
