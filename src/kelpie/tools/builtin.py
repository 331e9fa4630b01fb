"""The built-in tools as one registry."""

from __future__ import annotations

from kelpie.tools.commands import CommandTool
from kelpie.tools.core_memory import memory_tools
from kelpie.tools.files import file_tools
from kelpie.tools.registry import ToolRegistry


def builtin_registry() -> ToolRegistry:
    """Return the registry of every built-in tool."""
    return ToolRegistry([*file_tools(), CommandTool(), *memory_tools()])
