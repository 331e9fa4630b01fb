"""Creating, changing, showing and deleting an agent; loading and dumping its state."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kelpie.actors.commands import Audit, Delete, DeleteListItem, Message
from kelpie.agents.machine import AgentMachine
from kelpie.agents.model import (
    AgentConfig,
    AgentState,
    CreateAgent,
    DeleteAgent,
    ShowAgent,
    ShowRun,
    StartRun,
    UpdateAgent,
    UpdateBlock,
)
from kelpie.core.errors import (
    ConflictError,
    InputError,
    InvalidFieldError,
    LimitExceededError,
    NotFoundError,
    StoreVersionError,
)
from kelpie.memory.blocks import Block
from kelpie.storage.records import StoredActor
from tests.unit.agents.driver import ACTOR, CONFIG, TOOLS, Driver, answer, settled, tool_call


def test_creating_lists_the_public_part_in_order_of_creation() -> None:
    agent = Driver()
    (row,) = agent.lists
    assert (row.collection, row.item_id, row.sort_key) == ("agents", "agent-1", f"{1001:016d}")
    assert (row.body.config, row.body.blocks) == (CONFIG, agent.state.blocks)
    assert (row.body.window, row.body.run) == ((), None)
    assert agent.state.created_ms == agent.state.updated_ms == 1001
    assert any(isinstance(command, Audit) for command in agent.commands)


def test_creating_twice_is_a_conflict() -> None:
    with pytest.raises(ConflictError, match="exists already"):
        Driver().feed(CreateAgent(config=CONFIG))


@pytest.mark.parametrize("message", [UpdateAgent(changes={}), DeleteAgent(), StartRun("r", ())])
def test_an_agent_that_was_never_created_is_not_found(message: Message) -> None:
    agent = Driver()
    agent.state = agent.machine.create(ACTOR)
    with pytest.raises(NotFoundError, match="agent 'agent-1'"):
        agent.feed(message)
    with pytest.raises(NotFoundError, match="agent 'agent-1'"):
        agent.machine.query(agent.state, ShowAgent())


def test_an_effect_of_a_deleted_agent_is_ignored() -> None:
    agent = Driver()
    agent.start()
    (effect,) = agent.open.values()
    agent.state = agent.machine.create(ACTOR)
    agent.feed(settled(effect))
    assert agent.commands == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "x" * 257},
        {"name": 3},
        {"nickname": "x"},
        {"system": "x" * (256 * 1024 + 1)},
        {"model": "no-provider"},
        {"model": "/x"},
        {"model": "p/" + "x" * 300},
        {"workspace": "relative"},
        {"workspace": "/a/../b"},
        {"workspace": "/" + "x" * 5_000},
        {"tools": ["fly"]},
        {"tools": ["read_file", "read_file"]},
        {"tools": [str(index) for index in range(300)]},
        {"steps_max": 0},
        {"steps_max": 51},
        {"tokens_max": -1},
        {"context_window": 0},
        {"context_window": 2**63},
        {"metadata": {"big": "x" * 2_000_000}},
        {"metadata": {"bad": "\ud800"}},
        {"metadata": {"big": 2**70}},
    ],
)
def test_a_refused_configuration_names_the_problem_and_changes_nothing(
    changes: dict[str, Any],
) -> None:
    agent = Driver()
    before = agent.state
    with pytest.raises(InputError):
        agent.feed(UpdateAgent(changes=changes))
    assert agent.state is before


def test_a_configuration_changes_field_by_field() -> None:
    agent = Driver()
    state = agent.feed(UpdateAgent(changes={"name": "Bob", "tags": ["x"]}))
    assert (state.config.name, state.config.tags) == ("Bob", ("x",))
    assert state.config.model == CONFIG.model
    assert agent.lists[-1].body.config.name == "Bob"
    assert agent.lists[-1].sort_key == agent.lists[0].sort_key


def test_a_block_changes_and_the_list_follows() -> None:
    agent = Driver()
    block = agent.feed(UpdateBlock(label="human", changes={"value": "Name: Eve"}))
    assert (block.value, block.version, block.id) == ("Name: Eve", 2, "block-1")
    assert agent.lists[-1].body.blocks == (block,)
    renamed = agent.feed(UpdateBlock(label="human", changes={"label": "person"}))
    assert (renamed.label, renamed.version) == ("person", 2)


@pytest.mark.parametrize(
    ("label", "changes", "error"),
    [
        ("nobody", {"value": "x"}, NotFoundError),
        ("human", {"value": "x" * 20_000}, LimitExceededError),
        ("human", {"id": "other"}, InvalidFieldError),
        ("human", {"value": 1}, InvalidFieldError),
        ("human", {"label": "persona"}, ConflictError),
        ("human", {"metadata": {"x": "\ud800"}}, InvalidFieldError),
    ],
)
def test_a_refused_block_change_changes_nothing(
    label: str, changes: dict[str, Any], error: type[Exception]
) -> None:
    blocks = (Block(id="1", label="human"), Block(id="2", label="persona"))
    agent = Driver(blocks=blocks)
    before = agent.state
    with pytest.raises(error):
        agent.feed(UpdateBlock(label=label, changes=changes))
    assert agent.state is before


def test_creating_with_bad_blocks_is_refused() -> None:
    with pytest.raises(ConflictError, match="two blocks"):
        Driver(blocks=(Block(id="1", label="a"), Block(id="2", label="a")))


def test_deleting_ends_the_run_and_removes_everything() -> None:
    agent = Driver()
    agent.start()
    agent.say(answer("", tool_call("read_file", path="x")))
    agent.start("queued")
    (ref,) = agent.refs("files.read")
    assert agent.feed(DeleteAgent()) is None
    kinds = [type(command) for command in agent.commands]
    assert kinds.index(DeleteListItem) < kinds.index(Delete)
    assert agent.cancelled == [ref]
    assert agent.events[-1].body["run"].status == "cancelled"
    assert agent.state == agent.machine.create(ACTOR)
    assert agent.open == {}


def test_an_idle_agent_is_deleted_without_a_run() -> None:
    agent = Driver()
    agent.feed(DeleteAgent())
    assert "run.finished" not in agent.kinds()
    assert agent.state.config.name == ""


def test_queries_answer_and_anything_else_is_refused() -> None:
    agent = Driver()
    run = agent.start()
    assert agent.machine.query(agent.state, ShowAgent()) is agent.state
    assert agent.machine.query(agent.state, ShowRun(run_id="run-1")) == run
    with pytest.raises(InvalidFieldError, match="not a query"):
        agent.machine.query(agent.state, DeleteAgent())
    with pytest.raises(InvalidFieldError, match="not a command"):
        agent.feed(ShowAgent())


def stored(state: bytes, version: int) -> StoredActor:
    """Return a stored agent."""
    return StoredActor(
        actor=ACTOR,
        incarnation=1,
        version=1,
        schema_version=version,
        state=state,
        effects=(),
        event_sequence=0,
        tombstoned=False,
    )


def test_a_state_survives_dump_and_load() -> None:
    agent = Driver()
    agent.start()
    agent.say(answer("", tool_call("write_file", path="x", content="y")))
    agent.start("queued")
    machine = AgentMachine(TOOLS)
    loaded = machine.load(stored(machine.dump(agent.state), machine.schema_version))
    assert loaded == agent.state
    assert machine.type_name == "agent"


def test_a_state_of_another_version_is_refused() -> None:
    machine = AgentMachine(TOOLS)
    data = machine.dump(AgentState(agent_id="x", config=AgentConfig(name="x")))
    with pytest.raises(StoreVersionError, match="version 2"):
        machine.load(stored(data, 2))


def test_every_message_decodes_by_its_tag() -> None:
    messages: list[Message] = [
        CreateAgent(config=CONFIG),
        UpdateAgent(changes={"name": "x"}),
        DeleteAgent(),
        ShowRun(run_id="r"),
    ]
    decoder = msgspec.msgpack.Decoder(AgentMachine(TOOLS).message_type)
    for message in messages:
        assert decoder.decode(msgspec.msgpack.encode(message)) == message
