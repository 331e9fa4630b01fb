"""The system text of a model call: the base prompt, core memory, and a few fixed facts.

Pure. The text holds nothing that changes by itself (no time, no counters), so that it is stored
once per change of the configuration or of memory, and a provider's prompt cache can hold it.
"""

from __future__ import annotations

from typing import Final

from kelpie.agents.model import AgentState
from kelpie.memory.blocks import escape_text, render_blocks

_BASE: Final = """\
You are an agent with persistent memory. Your core memory blocks are shown below; keep them true
with your memory tools when you have them. Some tool calls wait for a person's approval: a call
that is denied, expired or voided did nothing, and a call with an unknown outcome may or may not
have taken effect. Say plainly what happened."""


def render_prompt(state: AgentState) -> str:
    """Return the system text of the agent's next model call."""
    config = state.config
    facts = [f"<agent_name>{escape_text(config.name)}</agent_name>"]
    facts.append(f"<timezone>{escape_text(config.timezone)}</timezone>")
    if config.workspace:
        facts.append("<workspace>paths of your file tools are relative to it</workspace>")
    metadata = "\n".join(["<agent_metadata>", *facts, "</agent_metadata>"])
    parts = [config.system or _BASE, render_blocks(state.blocks), metadata]
    return "\n\n".join(part for part in parts if part)
