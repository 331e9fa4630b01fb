"""Core memory: edits, limits, and a rendering that no value can break out of."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.core.errors import ConflictError, InvalidFieldError, LimitExceededError, NotFoundError
from kelpie.core.limits import CORE_MEMORY_BYTES_MAX
from kelpie.memory.blocks import (
    Block,
    append_text,
    change_block,
    check_blocks,
    find_block,
    render_blocks,
    replace_text,
)

HUMAN = Block(id="1", label="human", value="Name: Ada. Ada likes tea.")
FIXED = Block(id="2", label="rules", value="Be kind.", read_only=True)
EMPTY = Block(id="3", label="notes", limit=10)
BLOCKS = (HUMAN, FIXED, EMPTY)


def test_appending_adds_a_line_and_a_version() -> None:
    first = append_text(BLOCKS, "notes", "one")
    second = append_text(first, "notes", "two")
    assert (second[2].value, second[2].version) == ("one\ntwo", 3)
    assert second[:2] == BLOCKS[:2]


def test_replacing_changes_every_occurrence() -> None:
    changed = replace_text(BLOCKS, "human", "Ada", "Eve")
    assert changed[0].value == "Name: Eve. Eve likes tea."
    assert changed[0].version == 2


def test_a_change_to_the_same_value_is_no_new_version() -> None:
    assert replace_text(BLOCKS, "human", "Ada", "Ada") is BLOCKS


@pytest.mark.parametrize(
    ("label", "old", "error"),
    [
        ("human", "", InvalidFieldError),
        ("human", "Bob", ConflictError),
        ("rules", "kind", ConflictError),
        ("nobody", "x", NotFoundError),
    ],
)
def test_a_replacement_that_cannot_be_made_is_a_typed_error(
    label: str, old: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        replace_text(BLOCKS, label, old, "new")


@pytest.mark.parametrize(
    ("label", "error"),
    [("rules", ConflictError), ("nobody", NotFoundError), ("notes", LimitExceededError)],
)
def test_an_append_that_cannot_be_made_is_a_typed_error(label: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        append_text(BLOCKS, label, "x" * 11)


def test_a_person_may_edit_what_is_read_only_to_the_agent() -> None:
    changed = change_block(BLOCKS, "rules", {"value": "Be brief.", "read_only": False})
    assert (changed[1].value, changed[1].read_only, changed[1].version) == ("Be brief.", False, 2)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"id": "9"}, InvalidFieldError),
        ({"version": 9}, InvalidFieldError),
        ({"value": None}, InvalidFieldError),
        ({"limit": 0}, InvalidFieldError),
        ({"limit": 2**63}, InvalidFieldError),
        ({"limit": 3}, LimitExceededError),
        ({"label": "human"}, ConflictError),
        ({"label": ""}, InvalidFieldError),
        ({"label": "a b"}, InvalidFieldError),
        ({"label": "x" * 51}, LimitExceededError),
        ({"value": "\ud800"}, InvalidFieldError),
    ],
)
def test_a_change_that_breaks_a_rule_is_a_typed_error(
    changes: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        change_block((HUMAN, Block(id="3", label="notes", value="four")), "notes", changes)


def test_core_memory_is_bounded_in_all() -> None:
    half = "x" * (CORE_MEMORY_BYTES_MAX // 2)
    blocks = tuple(Block(id=str(n), label=f"b{n}", value=half, limit=10**6) for n in range(2))
    check_blocks(blocks)
    with pytest.raises(LimitExceededError, match="core_memory is 32,770 bytes"):
        append_text(blocks, "b0", "x")
    with pytest.raises(LimitExceededError, match="core_memory"):
        change_block(blocks, "b0", {"description": "x"})


def test_the_number_of_blocks_is_bounded() -> None:
    with pytest.raises(LimitExceededError, match="blocks is 65 blocks"):
        check_blocks(tuple(Block(id=str(n), label=f"b{n}") for n in range(65)))


def test_labels_are_unique() -> None:
    with pytest.raises(ConflictError, match="two blocks have the label 'human'"):
        check_blocks((HUMAN, HUMAN))


def test_a_block_is_found_by_label() -> None:
    assert find_block(BLOCKS, "rules") is FIXED


def test_no_blocks_render_as_nothing() -> None:
    assert render_blocks(()) == ""


@given(st.text(), st.text())
def test_no_value_can_forge_a_tag(value: str, description: str) -> None:
    block = Block(id="1", label="human", value=value, description=description, read_only=True)
    text = render_blocks((block,))
    tags = re.findall(r"<(/?[a-z_]+)", text)
    described = ["description", "/description"] if description else []
    assert tags == [
        "memory_blocks",
        "block",
        *described,
        "value",
        "/value",
        "/block",
        "/memory_blocks",
    ]
    assert text.count(">") == len(tags)


@given(st.lists(st.tuples(st.sampled_from(["human", "notes"]), st.text(max_size=40)), max_size=20))
def test_any_sequence_of_edits_keeps_the_limits(edits: list[tuple[str, str]]) -> None:
    blocks: tuple[Block, ...] = (HUMAN, EMPTY)
    for label, text in edits:
        before = find_block(blocks, label)
        try:
            blocks = append_text(blocks, label, text)
        except LimitExceededError:
            assert find_block(blocks, label) is before
        check_blocks(blocks)
    assert [block.id for block in blocks] == ["1", "3"]
