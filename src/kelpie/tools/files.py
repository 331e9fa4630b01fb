"""The tools over files: list, read and search (green), and write (red).

Pure: reading is the effect ``files.read``, writing ``files.apply``.
"""

from __future__ import annotations

from typing import Any, Final

from kelpie.core.digests import Digest, digest_value
from kelpie.core.errors import LimitExceededError
from kelpie.core.limits import (
    EXECUTOR_MARGIN_MS,
    SANDBOX_TIMEOUT_MS,
    TOOL_RETURN_BYTES_MAX,
    WORKSPACE_FILE_BYTES_MAX,
)
from kelpie.tools.answers import cut_text, explain_failure, require_path
from kelpie.tools.model import Settlement, ToolContext, ToolReturn, Wish

FILES_TIMEOUT_MS: Final = SANDBOX_TIMEOUT_MS + EXECUTOR_MARGIN_MS
LINES_MAX: Final = 2_000_000  # above what a readable file can hold; bounds the integer
DEPTH_MAX: Final = 16
_PATH: Final = {"type": "string", "description": "Path relative to the workspace."}


class ReadTool:
    """A tool whose call is one read: its mode and arguments go to the executor as they are."""

    __slots__ = ("_mode", "definition", "description", "name", "parameters")

    def __init__(
        self, name: str, mode: str, description: str, schema: dict[str, Any], required: list[str]
    ) -> None:
        self.name = name
        self.description = description
        self.parameters: dict[str, Any] = {
            "type": "object",
            "properties": schema,
            "required": required,
            "additionalProperties": False,
        }
        self.definition: Digest = digest_value([name, description, self.parameters])
        self._mode = mode

    def begin(self, arguments: dict[str, Any], context: ToolContext) -> Wish:
        """Wish for the read.

        Raises:
            InputError: The path leaves the workspace, or there is no workspace.
        """
        path = require_path(arguments)
        args = {**arguments, "root": context.require_workspace(), "path": path, "mode": self._mode}
        summary = f"{self._mode} {path}"
        return Wish(kind="files.read", args=args, timeout_ms=FILES_TIMEOUT_MS, summary=summary)

    def settle(self, arguments: dict[str, Any], settlement: Settlement) -> ToolReturn:
        """Return the text that was read."""
        record = settlement.record
        path = arguments.get("path", ".")
        if record.state != "done" or record.outcome is None:
            return explain_failure(record, f"the {self._mode} of {path!r}")
        result = record.outcome.result
        note = "\n[cut: there is more than is shown]" if result.get("cut") else ""
        text = cut_text(str(result.get("text", "")), TOOL_RETURN_BYTES_MAX - len(note))
        return ToolReturn(text=text + note)


class WriteTool:
    """``write_file``: the whole new content of one file."""

    __slots__ = ("definition", "description", "name", "parameters")

    def __init__(self) -> None:
        self.name = "write_file"
        self.description = (
            "Create or overwrite a file with the given content. A person sees the difference and "
            "approves it before the file changes."
        )
        content = {"type": "string", "description": "The complete new content."}
        self.parameters: dict[str, Any] = {
            "type": "object",
            "properties": {"path": _PATH, "content": content},
            "required": ["path", "content"],
            "additionalProperties": False,
        }
        self.definition: Digest = digest_value([self.name, self.description, self.parameters])

    def begin(self, arguments: dict[str, Any], context: ToolContext) -> Wish:
        """Wish for the write.

        Raises:
            InputError: The path leaves the workspace, there is none, or the content is too large.
        """
        path = require_path(arguments)
        content: str = arguments["content"]
        size = len(content.encode())
        if size > WORKSPACE_FILE_BYTES_MAX:
            limit = WORKSPACE_FILE_BYTES_MAX
            raise LimitExceededError("content", actual=size, limit=limit, unit="bytes")
        write = {"path": path, "content": content}
        args = {"root": context.require_workspace(), "write": write}
        summary = f"write {path} ({size:,} bytes)"
        return Wish(kind="files.apply", args=args, timeout_ms=FILES_TIMEOUT_MS, summary=summary)

    def settle(self, arguments: dict[str, Any], settlement: Settlement) -> ToolReturn:
        """Say whether the file was written."""
        record = settlement.record
        path = arguments["path"]
        if record.state != "done":
            return explain_failure(record, f"writing {path!r}")
        return ToolReturn(text=f"Wrote {path!r}.")


def file_tools() -> tuple[ReadTool | WriteTool, ...]:
    """Return ``list_files``, ``read_file``, ``search_files`` and ``write_file``."""
    depth = {"type": "integer", "minimum": 1, "maximum": DEPTH_MAX, "description": "Default 1."}
    first = {"type": "integer", "minimum": 1, "maximum": LINES_MAX, "description": "Default 1."}
    lines = {"type": "integer", "minimum": 1, "maximum": LINES_MAX, "description": "Default all."}
    text = {"type": "string", "minLength": 1, "maxLength": 1_000, "description": "Text to find."}
    return (
        ReadTool(
            "list_files",
            "list",
            "List a directory of the workspace.",
            {"path": _PATH, "depth": depth},
            [],
        ),
        ReadTool(
            "read_file",
            "read",
            "Read a text file of the workspace, or some of its lines.",
            {"path": _PATH, "first_line": first, "lines_max": lines},
            ["path"],
        ),
        ReadTool(
            "search_files",
            "search",
            "Find lines that contain a text, in a file or in all files beneath a directory.",
            {"path": _PATH, "text": text},
            ["text"],
        ),
        WriteTool(),
    )
