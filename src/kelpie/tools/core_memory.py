"""The two tools by which an agent edits its own core memory: pure state, no effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from kelpie.core.digests import Digest, digest_value
from kelpie.memory.blocks import Blocks, append_text, replace_text
from kelpie.tools.model import MemoryChange, Settlement, ToolContext, ToolReturn

_LABEL: Final = {"type": "string", "description": "The label of the memory block to edit."}


class MemoryTool:
    """A tool that is done by changing blocks."""

    __slots__ = ("_change", "definition", "description", "name", "parameters")

    def __init__(
        self,
        name: str,
        description: str,
        properties: dict[str, Any],
        change: Callable[[Blocks, dict[str, Any]], Blocks],
    ) -> None:
        self.name = name
        self.description = description
        self.parameters: dict[str, Any] = {
            "type": "object",
            "properties": {"label": _LABEL, **properties},
            "required": ["label", *properties],
            "additionalProperties": False,
        }
        self.definition: Digest = digest_value([name, description, self.parameters])
        self._change = change

    def begin(self, arguments: dict[str, Any], context: ToolContext) -> MemoryChange:
        """Return the changed memory.

        Raises:
            InputError: There is no such block or text, it is read-only, or a limit is reached.
        """
        blocks = self._change(context.blocks, arguments)
        return MemoryChange(blocks=blocks, text=f"Memory block {arguments['label']!r} is updated.")

    def settle(self, arguments: dict[str, Any], settlement: Settlement) -> ToolReturn:
        """Refuse: this tool wishes for no effect."""
        raise AssertionError(f"{self.name} {arguments.keys()} has no effect {settlement.phase}")


def _append(blocks: Blocks, arguments: dict[str, Any]) -> Blocks:
    return append_text(blocks, arguments["label"], arguments["content"])


def _replace(blocks: Blocks, arguments: dict[str, Any]) -> Blocks:
    old, new = arguments["old_content"], arguments["new_content"]
    return replace_text(blocks, arguments["label"], old, new)


def memory_tools() -> tuple[MemoryTool, ...]:
    """Return ``core_memory_append`` and ``core_memory_replace``."""
    content = {"type": "string", "description": "Text to add as a new line."}
    old = {"type": "string", "description": "Text to replace, exactly as it stands in the block."}
    new = {"type": "string", "description": "Text to put there; empty removes the old text."}
    return (
        MemoryTool(
            "core_memory_append",
            "Append a line to a block of your core memory.",
            {"content": content},
            _append,
        ),
        MemoryTool(
            "core_memory_replace",
            "Replace text in a block of your core memory.",
            {"old_content": old, "new_content": new},
            _replace,
        ),
    )
