"""Effects of actor classes: asked for in one turn, settled in a later one, through the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kelpie import Actor, Runtime, Settled, State, command, outcome, query
from kelpie.core.errors import OrderError
from kelpie.core.ids import ActorId
from kelpie.effects.executor import Order
from kelpie.effects.messages import ApproveEffect, DenyEffect, ShowEffects
from kelpie.effects.model import EffectRecord, Outcome, Preparation, Promise
from tests.waiting import eventually_async


class Printer:
    """Carries out one kind of effect, and keeps what it printed."""

    kind = "print.page"
    concurrency_max = 1

    def __init__(self) -> None:
        self.pages: list[str] = []

    def promise(self, args: dict[str, Any]) -> Promise:
        return "once"

    async def prepare(self, actor: ActorId, record: EffectRecord) -> Preparation | Outcome:
        raise AssertionError("this kind is not prepared")

    async def execute(self, order: Order) -> Outcome:
        self.pages.append(order.record.args["text"])
        return Outcome(status="done", result={"page": len(self.pages)})

    async def reconcile(self, order: Order) -> Outcome | None:
        raise AssertionError("this kind cannot be read back")


class Pages(State):
    log: str = ""


class Author(Actor[Pages]):
    @command
    def publish(self, text: str) -> None:
        self.ctx.effect("print.page", {"text": text}, outcome=self.printed, ref=text)

    @outcome
    def printed(self, settled: Settled) -> None:
        self.state.log += f"{settled.ref} {settled.status} {settled.result};"

    @query
    def log(self) -> str:
        return self.state.log


async def answer(runtime: Runtime, author: Author, message: type[Any]) -> None:
    """Answers the one open question of an author."""
    actor = runtime.actor_of(author)
    (record,) = await runtime.engine.query(actor, ShowEffects())
    assert record.state == "waiting", "an unknown kind of effect is red"
    await runtime.engine.call(actor, message(effect_id=record.effect_id), principal="person:ada")


@pytest.mark.requirement("ACTOR-EFFECTS")
async def test_an_effect_waits_for_a_person_and_its_end_is_a_turn(tmp_path: Path) -> None:
    printer = Printer()
    path = tmp_path / "kelpie.db"
    async with Runtime.open(path, actors=[Author], executors=[printer]) as runtime:
        author = runtime.ref(Author, "ada")
        await author.publish("one")
        assert await author.log() == ""
    async with Runtime.open(path, actors=[Author], executors=[printer]) as runtime:
        author = runtime.ref(Author, "ada")
        await answer(runtime, author, ApproveEffect)

        async def is_printed() -> bool:
            return "one done {'page': 1};" in await author.log()

        await eventually_async(is_printed, within_s=5, what="the page is printed")
        assert printer.pages == ["one"]
        await author.publish("two")
        await answer(runtime, author, DenyEffect)
        assert (await author.log()).endswith("two denied {};")
        assert printer.pages == ["one"]


async def test_without_executors_an_effect_is_a_typed_error(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path / "kelpie.db", actors=[Author]) as runtime:
        with pytest.raises(OrderError, match="without executors"):
            await runtime.ref(Author, "ada").publish("one")
