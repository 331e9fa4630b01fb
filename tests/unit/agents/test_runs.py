"""A run from its request to its end."""

from __future__ import annotations

import msgspec
import pytest

from kelpie.agents.model import (
    AgentConfig,
    CancelRun,
    InputMessage,
    ShowRun,
    StartRun,
    UpdateAgent,
    message_key,
)
from kelpie.core import limits
from kelpie.core.errors import (
    ConflictError,
    InvalidFieldError,
    LimitExceededError,
    NotFoundError,
    OverloadedError,
)
from tests.unit.agents.driver import CONFIG, Driver, answer, check_pairs, settled, tool_call


def test_a_question_is_answered() -> None:
    agent = Driver()
    run = agent.start(text="hello")
    assert (run.status, run.steps) == ("running", 1)
    agent.say(answer("hi", tokens=12))
    last = agent.last()
    assert (last.status, last.stop_reason, last.error) == ("completed", "end_turn", "")
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (11, 1)
    assert [(m.sequence, m.role, m.content) for m in agent.transcript] == [
        (1, "user", "hello"),
        (2, "assistant", "hi"),
    ]
    assert agent.kv["run/run-1"] == last
    assert agent.kinds() == [
        "run.started",
        "message",
        "step.started",
        "message",
        "step.finished",
        "run.finished",
    ]
    step = agent.events[4].body
    assert (step["step_id"], step["usage"]) == (last.step_id, last.usage)


def test_the_model_call_names_prompt_window_tools_and_options() -> None:
    settings = {"temperature": 0.5, "verbosity": "high", "max_tokens": None}
    agent = Driver(msgspec.structs.replace(CONFIG, model_settings=settings))
    agent.start()
    (ref,) = agent.refs("model.generate")
    args = agent.open[ref].args
    assert agent.state.run is not None
    assert ref == f"model/{agent.state.run.step_id}"
    assert args["sequences"] == [1]
    assert args["options"] == {"temperature": 0.5}
    assert args["tools"] == list(CONFIG.tools)
    assert args["model"] == "scripted/one"
    prompt = agent.kv[f"prompt/{args['prompt']}"]
    assert "Name: Ada" in prompt
    assert "<agent_name>Ada's helper</agent_name>" in prompt


def test_the_prompt_is_stored_again_only_when_it_changed() -> None:
    agent = Driver()
    agent.start()
    agent.say(answer("", tool_call("core_memory_append", label="human", content="Likes tea")))
    agent.say(answer("noted"))
    agent.start("run-2")
    agent.say(answer("again"))
    prompts = [key for key in agent.kv if key.startswith("prompt/")]
    assert len(prompts) == 2
    assert agent.state.blocks[0].value == "Name: Ada\nLikes tea"
    [*_, row] = [put for put in agent.lists if put.collection == "agents"]
    assert row.body.blocks[0].value == "Name: Ada\nLikes tea"


def test_a_repeated_request_starts_nothing() -> None:
    agent = Driver()
    agent.start()
    agent.start("run-2")
    assert agent.start().status == "running"
    assert agent.start("run-2").status == "queued"
    agent.say(answer("one"))
    assert agent.start().status == "completed"
    assert len(agent.open) == 1
    agent.say(answer("two"))
    with pytest.raises(ConflictError, match="has already ended"):
        agent.start("run-1")


def test_queued_runs_begin_in_order_when_the_active_one_ends() -> None:
    agent = Driver()
    for name in ("a", "b", "c"):
        agent.start(name, text=name)
    assert agent.start("c").status == "queued"
    for name in ("a", "b", "c"):
        assert agent.state.run is not None
        assert agent.state.run.run_id == name
        agent.say(answer(name.upper()))
    assert [m.content for m in agent.transcript] == ["a", "A", "b", "B", "c", "C"]
    assert agent.state.run is None


def test_a_full_queue_refuses_and_changes_nothing() -> None:
    agent = Driver()
    for index in range(limits.RUNS_QUEUED_PER_AGENT_MAX + 1):
        agent.start(f"run-{index}")
    before = agent.state
    with pytest.raises(OverloadedError, match="64 runs wait"):
        agent.start("one-more")
    assert agent.state is before


def test_a_queue_of_large_messages_is_bounded_in_bytes() -> None:
    agent = Driver()
    agent.start("active")
    text = "x" * 900_000
    for index in range(4):
        agent.start(f"run-{index}", text=text)
    with pytest.raises(OverloadedError, match="bytes of messages"):
        agent.start("one-more", text=text)


def test_a_run_without_a_model_is_refused() -> None:
    agent = Driver(AgentConfig(name="bare"))
    with pytest.raises(ConflictError, match="no model"):
        agent.start()
    assert agent.transcript == []


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (StartRun(run_id="run", messages=()), InvalidFieldError),
        (StartRun(run_id="a b", messages=(InputMessage(content="x"),)), InvalidFieldError),
        (StartRun(run_id="", messages=(InputMessage(content="x"),)), InvalidFieldError),
        (StartRun(run_id="r" * 300, messages=(InputMessage(content="x"),)), LimitExceededError),
        (StartRun(run_id="run", messages=(InputMessage(),)), InvalidFieldError),
        (StartRun(run_id="run", messages=(InputMessage(content="\ud800"),)), InvalidFieldError),
        (
            StartRun(run_id="run", messages=(InputMessage(content="x"),), steps_max=51),
            LimitExceededError | InvalidFieldError,
        ),
        (
            StartRun(run_id="run", messages=(InputMessage(content="x"),) * 257),
            LimitExceededError,
        ),
        (
            StartRun(run_id="run", messages=(InputMessage(content="x" * 1_000_001),)),
            LimitExceededError,
        ),
        (
            StartRun(run_id="run", messages=(InputMessage(content="é" * 600_000),)),
            LimitExceededError,
        ),
        (
            StartRun(run_id="run", messages=(InputMessage(content="x" * 900_000),) * 3),
            LimitExceededError,
        ),
        (
            StartRun(run_id="run", messages=(InputMessage(content=[{"type": "sound"}]),)),
            InvalidFieldError,
        ),
        (
            StartRun(run_id="run", messages=(InputMessage(content=[{"type": "text"}]),)),
            InvalidFieldError,
        ),
    ],
)
def test_a_malformed_request_is_refused_by_name_and_changes_nothing(
    message: StartRun, error: type[Exception]
) -> None:
    agent = Driver()
    before = agent.state
    with pytest.raises((InvalidFieldError, LimitExceededError)) as caught:
        agent.feed(message)
    assert isinstance(caught.value, error)
    assert agent.state is before


def test_images_are_accepted_as_parts() -> None:
    agent = Driver()
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image", "media_type": "image/png", "data": "AAAA"},
    ]
    agent.feed(StartRun(run_id="run", messages=(InputMessage(content=parts),)))
    assert agent.transcript[0].content == parts


def test_a_run_ends_at_its_step_limit_and_the_next_one_works() -> None:
    agent = Driver()
    agent.start(steps_max=2)
    for _ in range(2):
        agent.say(answer("", tool_call("core_memory_append", label="human", content="x")))
    assert (agent.last().status, agent.last().stop_reason) == ("completed", "max_steps")
    assert agent.kinds().count("step.started") == agent.kinds().count("step.finished") == 2
    check_pairs(agent.transcript)
    agent.start("run-2")
    agent.say(answer("fine"))
    assert agent.last().stop_reason == "end_turn"


def test_a_run_ends_at_its_token_limit() -> None:
    agent = Driver(msgspec.structs.replace(CONFIG, tokens_max=100))
    agent.start()
    agent.say(answer("", tool_call("core_memory_append", label="human", content="x"), tokens=100))
    last = agent.last()
    assert (last.status, last.stop_reason) == ("failed", "max_tokens_exceeded")
    assert "100" in last.error


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_tokens_exceeded"), ("content_filter", "error")]
)
def test_an_answer_the_provider_stopped_ends_the_run_with_its_reason(
    finish: str, reason: str
) -> None:
    agent = Driver()
    agent.start()
    agent.say(msgspec.convert({"text": "part", "finish": finish}, type(answer())))
    assert (agent.last().status, agent.last().stop_reason) == ("failed", reason)
    assert agent.transcript[-1].content == "part"


@pytest.mark.parametrize("state", ["failed", "denied", "expired", "voided", "unknown"])
def test_a_failed_model_call_fails_the_run_with_the_error_and_the_next_one_works(
    state: str,
) -> None:
    agent = Driver()
    agent.start()
    (ref,) = agent.refs()
    agent.settle(ref, state, error="no such model")  # type: ignore[arg-type]
    last = agent.last()
    assert (last.status, last.stop_reason, last.error) == (
        "failed",
        "llm_api_error",
        "no such model",
    )
    agent.start("run-2")
    agent.say(answer("fine"))
    assert agent.last().status == "completed"


def test_a_cancelled_model_call_without_a_word_still_says_why() -> None:
    agent = Driver()
    agent.start()
    agent.settle(agent.refs()[0], "cancelled")
    assert agent.last().error == "the call was cancelled"


def test_a_cancelled_run_gives_up_its_model_call_and_late_answers_are_only_noted() -> None:
    agent = Driver()
    agent.start()
    agent.start("run-2")
    (ref,) = agent.refs()
    effect = agent.open[ref]
    run = agent.cancel()
    assert (run.status, run.stop_reason) == ("cancelled", "cancelled")
    assert agent.cancelled == [ref]
    assert agent.state.run is not None
    assert agent.state.run.run_id == "run-2"
    before = agent.state
    agent.feed(settled(effect, result=msgspec.to_builtins(answer("late"))))
    assert agent.state == before
    assert agent.events[-1].kind == "effect.late"
    assert agent.events[-1].body["state"] == "done"


def test_cancelling_twice_changes_nothing_and_an_unknown_run_is_not_found() -> None:
    agent = Driver()
    agent.start()
    first = agent.cancel()
    state = agent.state
    assert agent.cancel() == first
    assert agent.state == state
    with pytest.raises(NotFoundError, match="run 'other'"):
        agent.feed(CancelRun(run_id="other"))
    with pytest.raises(NotFoundError, match="run 'other'"):
        agent.machine.query(agent.state, ShowRun(run_id="other"))


def test_a_queued_run_can_be_cancelled_and_its_messages_never_appear() -> None:
    agent = Driver()
    agent.start("a", text="first")
    agent.start("b", text="second")
    assert agent.cancel("b").status == "cancelled"
    assert agent.state.queue == ()
    agent.say(answer("done"))
    assert [m.content for m in agent.transcript] == ["first", "done"]
    assert agent.kv["run/b"].status == "cancelled"


def test_a_model_call_that_waits_for_a_person_makes_the_run_wait() -> None:
    agent = Driver()
    agent.start()
    (ref,) = agent.refs()
    agent.wait(ref)
    agent.wait(ref)
    assert agent.status == "waiting"
    assert agent.kinds().count("run.waiting") == 1
    agent.approve(ref)
    assert agent.status == "running"
    agent.say(answer("ok"))
    assert agent.last().status == "completed"


def test_words_about_effects_that_nobody_waits_for_change_nothing() -> None:
    agent = Driver()
    for _ in range(2):
        before = agent.state
        agent.wait("tool/gone/0/0")
        agent.approve("tool/gone/0/0")
        assert agent.state == before
        agent.start()
    assert "run.waiting" not in agent.kinds()


def test_a_nonsense_token_count_stays_storable() -> None:
    agent = Driver()
    agent.start()
    said = answer("ok")
    usage = msgspec.structs.replace(said.usage, prompt_tokens=2**63 - 1, completion_tokens=-5)
    agent.say(msgspec.structs.replace(said, usage=usage))
    assert agent.state.context_tokens == limits.INTEGER_MAX


def test_a_new_configuration_holds_from_the_next_model_call() -> None:
    agent = Driver()
    agent.start()
    agent.feed(UpdateAgent(changes={"model": "scripted/two", "tools": ["core_memory_append"]}))
    agent.say(answer("", tool_call("core_memory_append", label="human", content="x")))
    (ref,) = agent.refs()
    assert agent.open[ref].args["model"] == "scripted/two"
    assert agent.open[ref].args["tools"] == ["core_memory_append"]


def test_a_message_key_sorts_like_its_sequence() -> None:
    assert message_key(9) < message_key(10) < message_key(123_456_789_012)
