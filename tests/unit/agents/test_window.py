"""What stays in a model's context, and what an over-long one does."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.agents import window
from kelpie.agents.model import InputMessage, StartRun
from kelpie.agents.window import Window
from kelpie.core.limits import CONTEXT_MESSAGES_MAX
from tests.unit.agents.driver import CONFIG, Driver, answer, tool_call


@given(st.lists(st.integers(min_value=1, max_value=400), min_size=1, max_size=60))
def test_a_full_window_loses_whole_exchanges_from_its_old_end(sizes: list[int]) -> None:
    current = Window((), ())
    begins: list[int] = []
    sequence = 0
    for size in sizes:
        for index in range(size):
            sequence += 1
            current = window.append(*current, sequence, opens=index == 0)
            begins += [sequence] if index == 0 else []
    first = current.sequences[0]
    assert first in begins
    assert current.sequences == tuple(range(first, sequence + 1))
    assert current.exchanges == tuple(begin for begin in begins if begin >= first)
    assert len(current.sequences) <= CONTEXT_MESSAGES_MAX
    if first > 1:
        before = begins[begins.index(first) - 1]
        # No more was dropped than had to be, give or take the message that did not fit.
        assert sequence - before + 1 > CONTEXT_MESSAGES_MAX - max(sizes)


@pytest.mark.parametrize(
    ("exchanges", "kept"), [((1,), ()), ((1, 3), (3, 4, 5)), ((1, 3, 5), (5,))]
)
def test_halving_keeps_the_newer_exchanges(
    exchanges: tuple[int, ...], kept: tuple[int, ...]
) -> None:
    assert window.halve(Window((1, 2, 3, 4, 5), exchanges)).sequences == kept


def test_a_long_conversation_drops_old_exchanges_and_keeps_them_stored() -> None:
    agent = Driver()
    messages = tuple(InputMessage(content=str(index)) for index in range(250))
    for index in range(9):
        agent.feed(StartRun(run_id=f"run-{index}", messages=messages))
        agent.say(answer("ok"))
    assert len(agent.transcript) == 9 * 251
    assert agent.state.window[0] == 2 * 251 + 1
    trims = [event.body for event in agent.events if event.kind == "context.trimmed"]
    assert [(trim["dropped"], trim["first"]) for trim in trims] == [(251, 252), (251, 503)]


def test_a_request_the_model_cannot_hold_ends_the_run_and_the_next_one_works() -> None:
    agent = Driver()
    for index in range(4):
        agent.start(f"run-{index}")
        if index < 3:
            agent.say(answer("ok"))
    agent.settle(agent.refs()[0], "failed", result={"reason": "too_large"}, error="413")
    last = agent.last()
    assert (last.status, last.stop_reason) == ("failed", "max_tokens_exceeded")
    assert "does not fit" in last.error
    assert agent.window == [5, 6, 7]
    agent.start("next")
    agent.settle(agent.refs()[0], "failed", result={"reason": "too_large"})
    agent.start("after")
    agent.settle(agent.refs()[0], "failed", result={"reason": "too_large"})
    agent.start("alone")
    assert len(agent.window) <= 2
    agent.say(answer("fits"))
    assert agent.last().stop_reason == "end_turn"


def test_a_request_that_alone_is_too_large_leaves_an_empty_window() -> None:
    agent = Driver()
    agent.start()
    agent.settle(agent.refs()[0], "failed", result={"reason": "too_large"})
    assert (agent.state.window, agent.state.exchanges) == ((), ())
    assert agent.events[-2].body == {"dropped": 1, "first": 0}


def test_a_conversation_beyond_its_context_window_ends_the_run_with_a_typed_reason() -> None:
    agent = Driver(msgspec.structs.replace(CONFIG, context_window=100))
    agent.start()
    agent.say(answer("fine"))
    agent.start("run-2")
    agent.say(answer("", tool_call("core_memory_append", label="human", content="x"), tokens=101))
    assert agent.last().stop_reason == "max_tokens_exceeded"
    assert "the context window holds 100" in agent.last().error
    assert agent.window == [3, 4, 5]
    agent.start("run-3")
    agent.say(answer("fine", tokens=90))
    assert agent.last().stop_reason == "end_turn"


def test_a_new_run_first_makes_room_in_a_full_context_window() -> None:
    agent = Driver(msgspec.structs.replace(CONFIG, context_window=100))
    agent.start("run-1")
    agent.say(answer("fine"))
    agent.start("run-2")
    agent.say(answer("fine", tokens=200))
    agent.start("run-3")
    assert agent.window == [3, 4, 5]
    agent.say(answer("fine"))
    assert agent.last().stop_reason == "end_turn"
