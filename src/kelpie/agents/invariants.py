"""What is true of every agent between two turns."""

from __future__ import annotations

from itertools import pairwise

from kelpie.agents.model import AgentState, Run
from kelpie.core import limits


def check_invariants(state: AgentState) -> None:
    """Return if ``state`` can be an agent's; a failed assertion is a defect of the machine."""
    _check_window(state)
    _check_queue(state)
    if state.run is not None:
        _check_active(state.run)
    if state.last_run is not None:
        assert state.last_run.status in {"completed", "failed", "cancelled"}, "it has ended"
        assert not state.last_run.open_calls, "an ended run left no call open"
        assert state.last_run.run_id in state.recent_runs, "an ended run is remembered"
    labels = [block.label for block in state.blocks]
    assert len(labels) == len(set(labels)), "labels are unique"


def _check_window(state: AgentState) -> None:
    window, exchanges = state.window, state.exchanges
    assert all(a < b for a, b in pairwise(window)), "the window ascends"
    assert all(a < b for a, b in pairwise(exchanges)), "so do exchanges"
    assert not window or 1 <= window[0] <= window[-1] < state.next_sequence, "it holds messages"
    assert set(exchanges) <= set(window), "an exchange in context begins in context"
    assert window[:1] == exchanges[:1], "the window begins with an exchange"
    assert len(window) <= limits.CONTEXT_MESSAGES_MAX, "the window is bounded"


def _check_queue(state: AgentState) -> None:
    ids = [entry.run.run_id for entry in state.queue]
    ids += [state.run.run_id] if state.run else []
    assert len(ids) == len(set(ids)), "a run is queued once"
    assert not set(ids) & set(state.recent_runs), "a finished run is not begun again"
    assert state.run is not None or not state.queue, "nothing queues behind nothing"
    assert len(state.queue) <= limits.RUNS_QUEUED_PER_AGENT_MAX, "the queue is bounded"
    assert all(entry.run.status == "queued" for entry in state.queue), "queued runs are queued"


def _check_active(run: Run) -> None:
    assert run.status in {"running", "waiting"}, "an active run is active"
    assert bool(run.model_ref) != bool(run.open_calls), "it waits for a model or for tools"
    open_refs = [call.effect_ref for call in run.open_calls if not call.settled]
    assert all(open_refs), "an unsettled call waits for an effect"
    assert len(open_refs) == len(set(open_refs)), "references are unique"
    assert not run.open_calls or open_refs, "a step with all returns is over"
    assert run.steps <= run.steps_max, "steps are bounded"
    assert run.repairs <= limits.REPAIRS_PER_RUN_MAX, "repairs are bounded"
