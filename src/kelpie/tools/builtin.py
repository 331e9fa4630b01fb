"""The built-in tools as one registry."""

from __future__ import annotations

from typing import Final

from kelpie.tools.commands import CommandTool
from kelpie.tools.core_memory import memory_tools
from kelpie.tools.files import file_tools
from kelpie.tools.registry import ToolRegistry

WORKSPACE_TOOLS: Final = frozenset({"list_files", "read_file", "write_file", "run_command"})
"""The tools that make sense only for an agent with a workspace."""


def builtin_registry() -> ToolRegistry:
    """Return the registry of every built-in tool."""
    return ToolRegistry([*file_tools(), CommandTool(), *memory_tools()])
