"""Core memory blocks: short texts that are always in an agent's context.

Pure functions over immutable blocks; only the owning actor's turn calls them. A function returns
the complete new tuple or raises and leaves everything as it was.

Invariants (``check_blocks`` holds them): labels are unique and fit a tag; a value keeps its
block's limit; all blocks together keep the core memory limit. ``render_blocks`` escapes, so that
no value can close its own tag.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from kelpie.core.errors import ConflictError, InvalidFieldError, LimitExceededError, NotFoundError
from kelpie.core.limits import (
    BLOCK_CHARS_DEFAULT,
    BLOCKS_PER_AGENT_MAX,
    CORE_MEMORY_BYTES_MAX,
    INTEGER_MAX,
    LABEL_CHARS_MAX,
)

_LABEL: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*\Z")
_CHANGEABLE: Final = frozenset(
    {"label", "value", "limit", "description", "read_only", "metadata", "tags"}
)


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """One labelled text. ``version`` grows by one with every change of the value."""

    id: str
    label: str
    value: str = ""
    limit: int = BLOCK_CHARS_DEFAULT
    description: str = ""
    read_only: bool = False
    metadata: dict[str, Any] = {}
    tags: tuple[str, ...] = ()
    version: int = 1


Blocks = tuple[Block, ...]


def find_block(blocks: Blocks, label: str) -> Block:
    """Return the block with this label.

    Raises:
        NotFoundError: There is none.
    """
    for block in blocks:
        if block.label == label:
            return block
    raise NotFoundError("block", label[:LABEL_CHARS_MAX])


def append_text(blocks: Blocks, label: str, text: str) -> Blocks:
    """Return ``blocks`` with ``text`` as a new last line of one block, as an agent edits it.

    Raises:
        NotFoundError: No block has this label.
        ConflictError: The block is read-only for the agent.
        LimitExceededError: The value would exceed the block's or core memory's limit.
    """
    block = _find_editable(blocks, label)
    return _put_value(blocks, block, f"{block.value}\n{text}" if block.value else text)


def replace_text(blocks: Blocks, label: str, old: str, new: str) -> Blocks:
    """Return ``blocks`` with every occurrence of ``old`` in one block replaced, as an agent edits.

    Raises:
        NotFoundError: No block has this label.
        ConflictError: The block is read-only for the agent, or does not contain ``old``.
        InvalidFieldError: ``old`` is empty.
        LimitExceededError: The value would exceed the block's or core memory's limit.
    """
    block = _find_editable(blocks, label)
    if not old:
        raise InvalidFieldError("old", "must not be empty; append text instead")
    if old not in block.value:
        raise ConflictError(
            f"block {label!r} does not contain the text to replace; repeat it exactly as shown",
            label=label,
        )
    return _put_value(blocks, block, block.value.replace(old, new))


def change_block(blocks: Blocks, label: str, changes: dict[str, Any]) -> Blocks:
    """Return ``blocks`` with fields of one block changed, as a person edits: read-only is no bar.

    Raises:
        NotFoundError: No block has this label.
        InvalidFieldError: A field is unknown, cannot be changed or has the wrong type.
        ConflictError: Another block has the new label.
        LimitExceededError: A limit would be exceeded.
    """
    block = find_block(blocks, label)
    for field in changes:
        if field not in _CHANGEABLE:
            known = ", ".join(sorted(_CHANGEABLE))
            raise InvalidFieldError(f"block.{field[:64]}", f"cannot be changed; one of {known} can")
    try:
        changed = msgspec.convert({**msgspec.to_builtins(block), **changes}, Block)
    except msgspec.ValidationError as error:
        raise InvalidFieldError("block", str(error)) from error
    if changed.value != block.value:
        changed = msgspec.structs.replace(changed, version=block.version + 1)
    return _put_block(blocks, block, changed)


def check_blocks(blocks: Blocks) -> None:
    """Return if ``blocks`` may be one agent's core memory.

    Raises:
        ConflictError: Two blocks have the same label.
        InvalidFieldError: A label is empty or has other characters than a tag's.
        LimitExceededError: There are too many blocks, or a label, value or their sum is too long.
    """
    if len(blocks) > BLOCKS_PER_AGENT_MAX:
        raise LimitExceededError(
            "blocks", actual=len(blocks), limit=BLOCKS_PER_AGENT_MAX, unit="blocks"
        )
    labels: set[str] = set()
    for block in blocks:
        _check_block(block)
        if block.label in labels:
            raise ConflictError(f"two blocks have the label {block.label!r}", label=block.label)
        labels.add(block.label)
    size = sum(
        len(_encode(b.value, b.label)) + len(_encode(b.description, b.label)) for b in blocks
    )
    if size > CORE_MEMORY_BYTES_MAX:
        raise LimitExceededError(
            "core_memory",
            actual=size,
            limit=CORE_MEMORY_BYTES_MAX,
            unit="bytes",
            hint="shorten another block first",
        )


def render_blocks(blocks: Blocks) -> str:
    """Return core memory as tagged text for the system prompt; the empty string without blocks."""
    if not blocks:
        return ""
    parts = [_render_block(block) for block in blocks]
    return "\n".join(["<memory_blocks>", *parts, "</memory_blocks>"])


def escape_text(text: str) -> str:
    """Return ``text`` so that it can neither open nor close a tag nor end an attribute."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace('"', "&quot;")


def _render_block(block: Block) -> str:
    flags = ' read_only="true"' if block.read_only else ""
    size = f'chars="{len(block.value)}" limit="{block.limit}"'
    lines = [f'<block label="{escape_text(block.label)}" {size}{flags}>']
    if block.description:
        lines.append(f"<description>{escape_text(block.description)}</description>")
    lines.append(f"<value>\n{escape_text(block.value)}\n</value>")
    lines.append("</block>")
    return "\n".join(lines)


def _find_editable(blocks: Blocks, label: str) -> Block:
    block = find_block(blocks, label)
    if block.read_only:
        raise ConflictError(f"block {label!r} is read-only", label=label)
    return block


def _put_value(blocks: Blocks, block: Block, value: str) -> Blocks:
    if value == block.value:
        return blocks
    changed = msgspec.structs.replace(block, value=value, version=block.version + 1)
    return _put_block(blocks, block, changed)


def _put_block(blocks: Blocks, block: Block, changed: Block) -> Blocks:
    assert changed.id == block.id, "a block keeps its identity"
    result = tuple(changed if each is block else each for each in blocks)
    check_blocks(result)
    return result


def _check_block(block: Block) -> None:
    if len(block.label) > LABEL_CHARS_MAX:
        raise LimitExceededError(
            "block.label", actual=len(block.label), limit=LABEL_CHARS_MAX, unit="characters"
        )
    if not _LABEL.match(block.label):
        problem = f"{block.label!r} must be letters, digits and _ . / -, and not begin with . / -"
        raise InvalidFieldError("block.label", problem)
    if not 1 <= block.limit <= INTEGER_MAX:
        raise InvalidFieldError("block.limit", f"{block.limit} must be from 1 to {INTEGER_MAX}")
    if len(block.value) > block.limit:
        raise LimitExceededError(
            f"block {block.label!r}",
            actual=len(block.value),
            limit=block.limit,
            unit="characters",
            hint="replace some of its text with less",
        )


def _encode(text: str, label: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidFieldError(f"block {label!r}", "is not valid Unicode text") from error
