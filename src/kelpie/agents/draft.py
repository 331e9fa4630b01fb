"""One turn of an agent in progress: the state so far and the commands so far.

A draft lives for one call of ``decide`` and never leaves it; a turn that raises drops it, so that
a refused message changes nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kelpie.actors.commands import Command, Emit, PutKv, PutListItem
from kelpie.actors.machine import Turn
from kelpie.agents import window
from kelpie.agents.model import (
    COLLECTION,
    AgentState,
    OpenCall,
    Run,
    TranscriptMessage,
    message_key,
)
from kelpie.agents.window import Window
from kelpie.memory.blocks import Blocks
from kelpie.tools.registry import ToolRegistry


class Draft:
    """The state and commands of a turn, as they grow."""

    __slots__ = ("commands", "state", "tools", "turn")

    def __init__(self, state: AgentState, turn: Turn, tools: ToolRegistry) -> None:
        self.state = state
        self.turn = turn
        self.tools = tools
        self.commands: list[Command] = []

    @property
    def run(self) -> Run:
        """The active run; there must be one."""
        run = self.state.run
        assert run is not None, "only an active run gets here"
        return run

    def do(self, command: Command) -> None:
        """Add a command."""
        self.commands.append(command)

    def emit(self, kind: str, **body: Any) -> None:
        """Add an event whose body is a mapping."""
        self.commands.append(Emit(kind=kind, body=body))

    def change(self, **fields: Any) -> None:
        """Replace fields of the state."""
        self.state = msgspec.structs.replace(self.state, **fields)

    def change_run(self, **fields: Any) -> None:
        """Replace fields of the active run."""
        self.change(run=msgspec.structs.replace(self.run, **fields))

    def change_call(self, index: int, **fields: Any) -> None:
        """Replace fields of one open call of the active run."""
        calls = list(self.run.open_calls)
        calls[index] = msgspec.structs.replace(calls[index], **fields)
        self.change_run(open_calls=tuple(calls))

    def change_blocks(self, blocks: Blocks) -> None:
        """Replace core memory."""
        self.change(blocks=blocks)
        self.publish()

    def publish(self) -> None:
        """Write the agent's row in the list of agents: the part of its state that others see."""
        self.change(updated_ms=self.turn.now_ms)
        state = self.state
        assert state.config.name, "only a created agent is listed"
        assert state.updated_ms >= 0, "wall time is not negative"
        public = AgentState(
            agent_id=state.agent_id,
            config=state.config,
            blocks=state.blocks,
            created_ms=state.created_ms,
            updated_ms=state.updated_ms,
        )
        sort_key = f"{state.created_ms:016d}"
        self.do(
            PutListItem(
                collection=COLLECTION, item_id=state.agent_id, sort_key=sort_key, body=public
            )
        )

    def set_window(self, changed: Window) -> None:
        """Replace the window, and say which messages left it; they stay stored."""
        kept = set(changed.sequences)
        dropped = sum(sequence not in kept for sequence in self.state.window)
        self.change(window=changed.sequences, exchanges=changed.exchanges)
        if dropped:
            first = changed.sequences[0] if changed.sequences else 0
            self.emit("context.trimmed", dropped=dropped, first=first)

    def find_call(self, ref: str) -> int | None:
        """Return the index of the open call that waits for the effect ``ref``, if there is one."""
        calls: tuple[OpenCall, ...] = self.state.run.open_calls if self.state.run else ()
        for index, call in enumerate(calls):
            if call.effect_ref == ref and not call.settled:
                return index
        return None

    def say(self, message: TranscriptMessage, *, opens: bool = False) -> None:
        """Append a message to transcript and window, under the next sequence.

        ``opens`` marks the first message of a run: an exchange begins with it.
        """
        sequence = self.state.next_sequence
        assert sequence >= 1, "sequences count from 1"
        placed = msgspec.structs.replace(message, sequence=sequence)
        grown = window.append(self.state.window, self.state.exchanges, sequence, opens=opens)
        self.change(next_sequence=sequence + 1)
        self.set_window(grown)
        assert self.state.window[-1] == sequence, "the newest message is in context"
        self.do(PutKv(key=message_key(sequence), value=placed))
        self.do(Emit(kind="message", body=placed))
