"""``kelpie apply``: a plan goes through the gate as one Diff Card, and is followed to its end."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import quote

import click

from kelpie.cli.client import Api
from kelpie.cli.decisions import answer_card, decide
from kelpie.cli.errors import CommandError
from kelpie.cli.frame import Frame, framed
from kelpie.cli.keyboard import Keyboard
from kelpie.cli.plans import describe_event, follow_plan, load_plan, make_plan, print_plan

WAITING_STATUS: Final = 3
FAILED_STATUS: Final = 7
_STARTABLE: Final = frozenset({"planned", "refused"})
_FINAL: Final = frozenset({"applied", "failed", "denied", "expired"})


@click.command()
@framed()
@click.argument("file", required=False)
@click.option("--root", metavar="DIR", help="The directory it is about; else the one FILE is in.")
@click.option("--plan", "plan_id", metavar="ID", help="Carry out or go on with this plan.")
@click.option("--yes", is_flag=True, help="Approve it without asking.")
@click.option("--no-wait", is_flag=True, help="Do not wait for an approval; exit status 3.")
def apply(
    frame: Frame,
    *,
    file: str | None,
    root: str | None,
    plan_id: str | None,
    yes: bool,
    no_wait: bool,
) -> int:
    """Carry out a workspace FILE once a person has approved it.

    The plan goes through the gate as one Diff Card and is followed to its end.
    """
    if (file is None) == (plan_id is None):
        raise click.UsageError("give either FILE or --plan ID")
    path = frame.path(file).resolve() if file is not None else None
    directory = frame.path(root).resolve() if root else None

    async def work(api: Api) -> int:
        if path is None:
            plan = await load_plan(api, str(plan_id))
        else:
            plan = await make_plan(api, path, directory or path.parent)
        return await _Apply(frame, api, yes=yes, no_wait=no_wait).run(plan)

    return frame.ask(work, drive=True)


class _Apply:
    """One apply as the terminal follows it."""

    def __init__(self, frame: Frame, api: Api, *, yes: bool, no_wait: bool) -> None:
        self._frame = frame
        self._terminal = frame.terminal
        self._api = api
        self._yes = yes
        self._no_wait = no_wait
        self._keyboard = Keyboard()

    async def run(self, plan: dict[str, Any]) -> int:
        """Carry the plan out and return the exit status."""
        if not self._frame.as_json:
            print_plan(self._terminal, plan)
        if plan["status"] in _FINAL or not plan["has_changes"]:
            return await self._finish(plan["plan_id"])
        if plan["status"] in _STARTABLE:
            await self._api.post(f"/v1/plans/{quote(plan['plan_id'], safe='')}/apply")
        try:
            return await self._follow(plan)
        except asyncio.CancelledError:
            self._terminal.say(f"\nThe plan stays: kelpie apply --plan {plan['plan_id']}")
            raise

    async def _follow(self, plan: dict[str, Any]) -> int:
        """Stay with the plan until it ends, or waits for somebody else."""
        async with aclosing(follow_plan(self._api, plan["plan_id"])) as events:
            async for event in events:
                if line := describe_event(event):
                    self._terminal.say(line)
                match event["kind"]:
                    case "plan.waiting":
                        if not await self._answer(event["body"]["effect_id"]):
                            return WAITING_STATUS
                    case "plan.finished" | "plan.refused":
                        return await self._finish(plan["plan_id"])
                    case _:
                        pass
        raise AssertionError("a followed plan ends with an error or an event")

    async def _answer(self, effect_id: str) -> bool:
        """See to it that the question gets an answer; False to leave it waiting."""
        approval = await self._api.get(f"/v1/approvals/{quote(effect_id, safe='')}")
        if approval["state"] != "waiting":
            return True
        if self._yes:
            await decide(self._api, approval, "approve", reason="kelpie apply --yes")
            return True
        if self._terminal.interactive and not self._no_wait:
            return await answer_card(self._terminal, self._api, self._keyboard, approval)
        self._terminal.say(f"Waits for: kelpie approvals approve {effect_id}")
        if self._no_wait and self._frame.as_json:
            self._terminal.data(approval)
        return not self._no_wait

    async def _finish(self, plan_id: str) -> int:
        plan = await load_plan(self._api, plan_id)
        if self._frame.as_json:
            self._terminal.data(plan)
        if plan["status"] == "applied" or not plan["has_changes"]:
            self._terminal.say("Nothing is left to change.")
            return 0
        if plan["status"] == "refused":
            raise CommandError("conflict", plan["note"], next_step="kelpie approvals list")
        self._terminal.say(f"The plan is {plan['status']}. {plan.get('note') or ''}".rstrip())
        return FAILED_STATUS
