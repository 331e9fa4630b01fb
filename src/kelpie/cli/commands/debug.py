"""``kelpie debug``: time travel over runs that happened, without touching the world."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import click
import msgspec

from kelpie.app.world import host_world
from kelpie.cli.debugging import say_lines, step_over
from kelpie.cli.errors import CommandError
from kelpie.cli.frame import Frame, framed, run_async
from kelpie.core.errors import InvalidFieldError
from kelpie.effects.model import Outcome
from kelpie.llm.model import ModelAnswer
from kelpie.settings import Settings
from kelpie.sim.faults.catalogue import CATALOGUE
from kelpie.sim.replay.again import make_machine
from kelpie.sim.replay.again import replay as live_again
from kelpie.sim.replay.fork import Change, fork
from kelpie.sim.replay.hands import Hands
from kelpie.sim.replay.record import RunRecord, read_run
from kelpie.sim.replay.story import RunDebugger, RunStory, describe, tell
from kelpie.sim.run import run_directory
from kelpie.storage.sqlite.store import SqliteStore
from kelpie.tools.builtin import builtin_registry

T = TypeVar("T")


@click.group()
def debug() -> None:
    """Look into runs that happened."""


@debug.command()
@click.argument("run_id", metavar="RUN")
@click.option("--fork", "at", type=click.IntRange(1), help="The step that goes differently.")
@click.option(
    "--model-says", multiple=True, metavar="TEXT", help="What the model says from there; repeat it."
)
@click.option(
    "--model-answer",
    multiple=True,
    metavar="FILE",
    help="An answer as JSON: text, tool_calls of id, name and arguments, finish.",
)
@click.option(
    "--tool-result", metavar="FILE", help="What the tool's effect came to, as JSON: status, result."
)
@click.option("--fault", default="", metavar="NAME", help="A fault that happens at that step.")
@click.option("--deny", is_flag=True, help="The person of that step says no.")
@click.option("--approve", is_flag=True, help="Say yes to what nobody was asked in the record.")
@click.option("--step", "by_step", is_flag=True, help="Step over it; `help` lists the commands.")
@framed(remote=False)
def replay(
    frame: Frame,
    *,
    run_id: str,
    at: int | None,
    model_says: tuple[str, ...],
    model_answer: tuple[str, ...],
    tool_result: str | None,
    fault: str,
    deny: bool,
    approve: bool,
    by_step: bool,
) -> int:
    """Live through a run once more, turn by turn, and hold it against what is stored.

    Reads the store beside a running server or without one, and writes nothing. With --fork it says
    what would have happened: no model is asked, nothing is run, no file of yours is read.
    Exit status 1: the run went differently than this program makes it.
    """
    change = None
    if at is not None:
        if fault and fault not in CATALOGUE:
            raise InvalidFieldError("fault", f"{fault!r} is no fault of the catalogue")
        change = Change(
            step=at,
            answers=(
                *(_read(frame, name, ModelAnswer) for name in model_answer),
                *(ModelAnswer(text=text, finish="stop") for text in model_says),
            ),
            result=None if tool_result is None else _read(frame, tool_result, Outcome),
            fault=fault,
            deny=deny,
            approve=approve,
        )
    elif model_says or model_answer or tool_result or fault or deny or approve:
        raise click.UsageError("what goes differently needs --fork STEP")
    settings = frame.settings()
    record = run_async(_read_record(settings, run_id))
    story = _live(record, settings, change)
    if by_step:
        step_over(frame, lambda say: RunDebugger(story, say))
    elif frame.as_json:
        frame.terminal.data(describe(story, record))
    else:
        say_lines(frame, tell(story))
    return 1 if story.violation is not None else 0


def _live(record: RunRecord, settings: Settings, change: Change | None) -> RunStory:
    tools = builtin_registry()
    with run_directory(f"replay-{record.run.run_id}") as directory:
        hands = Hands(directory, record.rows, tools)
        machine = make_machine(record, tools, hands.kinds(), settings.approvals.ttl_ms)
        replayed = live_again(record, machine)
        if change is None:
            return RunStory(record, replayed, None)
        forked = fork(record, replayed, machine, change, hands)
        return RunStory(record, replayed, forked, change.step)


async def _read_record(settings: Settings, run_id: str) -> RunRecord:
    async with host_world(settings) as world:
        store = await SqliteStore.open(
            settings.store.path, clock=world.clock, rng=world.rng, read_only=True
        )
        try:
            return await read_run(store, run_id)
        finally:
            await store.close()


def _read(frame: Frame, name: str, kind: type[T]) -> T:
    path: Path = frame.path(name)
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        problem = error.strerror or str(error)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        problem = str(error)
    raise CommandError("invalid_field", f"{name}: {problem}", fields={"field": name}, status=2)
