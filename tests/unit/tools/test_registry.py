"""The set of tools and the check of a call's arguments."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.core.errors import ConflictError, InputError, InvalidFieldError, NotFoundError
from kelpie.effects.model import EffectRecord
from kelpie.llm.model import ToolCall
from kelpie.memory.blocks import Block
from kelpie.tools.answers import cut_text, explain_failure
from kelpie.tools.builtin import builtin_registry
from kelpie.tools.files import WriteTool
from kelpie.tools.model import MemoryChange, Settlement, ToolContext, Wish
from kelpie.tools.registry import ToolRegistry
from tests.unit.tools.orders import make_record

TOOLS = builtin_registry()
CONTEXT = ToolContext(agent_id="a", workspace="/w", blocks=(Block(id="b", label="human"),))


def call(name: str, arguments: str) -> ToolCall:
    return ToolCall(id="1", name=name, arguments=arguments)


def begin(name: str, **arguments: Any) -> Any:
    """Begin a call whose arguments are parsed as a model's are."""
    parsed = TOOLS.parse(call(name, msgspec.json.encode(arguments).decode()))
    return TOOLS.get(name).begin(parsed, CONTEXT)


def test_the_built_in_tools_have_names_schemas_and_definitions_of_their_own() -> None:
    assert TOOLS.names == (
        "list_files",
        "read_file",
        "search_files",
        "write_file",
        "run_command",
        "core_memory_append",
        "core_memory_replace",
    )
    schemas = TOOLS.schemas(TOOLS.names)
    assert all(schema.parameters["additionalProperties"] is False for schema in schemas)
    assert len({TOOLS.get(name).definition for name in TOOLS.names}) == len(TOOLS.names)


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ConflictError, match="two tools are called 'write_file'"):
        ToolRegistry([WriteTool(), WriteTool()])


def test_an_unknown_tool_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="tool 'fly'"):
        TOOLS.parse(call("fly", "{}"))
    with pytest.raises(NotFoundError, match="tool 'fly'"):
        TOOLS.schemas(["fly"])


def test_no_text_means_no_arguments() -> None:
    assert TOOLS.parse(call("list_files", " ")) == {}


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("read_file", "{", "not valid JSON"),
        ("read_file", "7", "one JSON object"),
        ("read_file", "{}", '"path" is a required property'),
        ("read_file", '{"path": "a", "first_line": 0}', "first_line: 0 is less than"),
        ("run_command", '{"argv": []}', "argv: [] has less than 1 item"),
        ("run_command", '{"argv": ["a", 1]}', "argv.1: 1 is not of type"),
        ("run_command", '{"argv": ["a"], "shell": true}', "'shell' was unexpected"),
        ("run_command", '{"argv": ["a"], "timeout_s": 601}', "timeout_s: 601 is greater"),
    ],
)
def test_arguments_that_break_the_schema_are_explained(
    name: str, arguments: str, words: str
) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        TOOLS.parse(call(name, arguments))
    assert words in caught.value.message


@given(st.text(max_size=200))
def test_any_text_of_a_model_is_arguments_or_a_typed_error(text: str) -> None:
    message = "arguments: "
    try:
        parsed = TOOLS.parse(call("list_files", text))
    except InvalidFieldError as error:
        message = error.message
    else:
        assert isinstance(parsed, dict)
    assert message.startswith("arguments: ")


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a\0b", "x" * 5_000])
@pytest.mark.parametrize("name", ["read_file", "write_file"])
def test_a_path_that_leaves_the_workspace_is_refused(name: str, path: str) -> None:
    extra = {"content": ""} if name == "write_file" else {}
    with pytest.raises(InvalidFieldError, match="path"):
        begin(name, path=path, **extra)


@pytest.mark.parametrize("argv", [[""], ["a\0"], ["x" * 200_000]])
def test_a_command_that_cannot_be_run_is_refused(argv: list[str]) -> None:
    with pytest.raises(InputError, match="argv"):
        begin("run_command", argv=argv)


def test_a_file_beyond_the_limit_is_refused() -> None:
    with pytest.raises(InputError, match="content is"):
        begin("write_file", path="a", content="x" * (8 * 1024 * 1024 + 1))


@pytest.mark.parametrize(
    ("name", "arguments", "mode"),
    [
        ("list_files", {"depth": 2}, "list"),
        ("read_file", {"path": "a", "lines_max": 5}, "read"),
        ("search_files", {"text": "needle"}, "search"),
    ],
)
def test_reading_tools_wish_for_one_read(name: str, arguments: dict[str, Any], mode: str) -> None:
    wish = begin(name, **arguments)
    assert isinstance(wish, Wish)
    assert wish.kind == "files.read"
    assert wish.args == {"path": ".", "root": "/w", "mode": mode, **arguments}


def test_a_memory_tool_changes_memory_at_once_and_never_settles() -> None:
    change = begin("core_memory_append", label="human", content="x")
    assert isinstance(change, MemoryChange)
    assert change.blocks[0].value == "x"
    settlement = Settlement(record=make_record("none", {}), phase=0, note={})
    with pytest.raises(AssertionError, match="has no effect"):
        TOOLS.get("core_memory_append").settle({}, settlement)


@given(st.text(), st.integers(min_value=80, max_value=400))
def test_a_cut_text_fits_and_says_so(text: str, size: int) -> None:
    shown = cut_text(text, size)
    assert len(shown.encode()) <= size
    assert shown == text or "bytes are shown]" in shown


def test_a_failure_without_a_word_is_still_a_sentence() -> None:
    record = msgspec.structs.replace(make_record("x", {}), state="failed")
    assert isinstance(record, EffectRecord)
    assert explain_failure(record, "it").text == "Failed: it failed"
