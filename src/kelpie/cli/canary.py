"""The canary: one red effect in a throw-away store proves that the gate holds on this host.

A plan would overwrite a file in a temporary directory. The gate must stop it for a person, the
file must stay as it was while it waits, and after the answer "no" too.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections.abc import Generator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx

from kelpie.cli.checks import Check
from kelpie.cli.client import Api, connect
from kelpie.cli.errors import CommandError
from kelpie.cli.plans import follow_plan, make_plan
from kelpie.cli.world import World
from kelpie.core.errors import KelpieError
from kelpie.settings import Settings
from kelpie.settings.model import StoreSettings, WorkspaceSettings

_TIMEOUT_S: Final = 30.0
_BEFORE: Final = "the canary lives\n"
_WORKSPACE: Final = """\
version: 1
units:
  - id: canary
    type: linux.file
    path: canary.txt
    content: "the gate let this through\\n"
"""
_STEP: Final = "do not run agents on this host"


class _EscapedError(Exception):
    """The gate did not hold; the message says how."""


async def check_gate(world: World, settings: Settings) -> Check:
    """Propose a red effect and see that it waits, and that a denied one never happens."""
    with _scratch() as directory:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await _fly(world, _throw_away(settings, directory), directory)
        except TimeoutError:
            return Check("gate", "fail", f"no question came within {_TIMEOUT_S:.0f} s", _STEP)
        except _EscapedError as error:
            return Check("gate", "fail", str(error), _STEP)
        except (KelpieError, CommandError, httpx.HTTPError) as error:
            return Check("gate", "fail", f"cannot be tried: {error}", "mend the failures above")
    return Check("gate", "ok", "a red effect waited, was denied, and changed nothing")


@contextmanager
def _scratch() -> Generator[Path, None, None]:
    with tempfile.TemporaryDirectory(prefix="kelpie-canary-") as name:
        yield Path(name).resolve()


async def _fly(world: World, settings: Settings, directory: Path) -> None:
    root = directory / "root"
    root.mkdir()
    canary = root / "canary.txt"
    canary.write_text(_BEFORE, encoding="utf-8")
    workspace = directory / "workspace.yaml"
    workspace.write_text(_WORKSPACE, encoding="utf-8")
    async with connect(world, settings, url="", drive=True) as api:
        plan = await make_plan(api, workspace, root)
        await api.post(f"/v1/plans/{quote(plan['plan_id'], safe='')}/apply")
        approval = await _question(api, plan["plan_id"])
        _require_alive(canary, "while it waited")
        await api.post(
            f"/v1/approvals/{quote(str(approval['effect_id']), safe='')}/deny", {"reason": ""}
        )
        await _end(api, plan["plan_id"])
    _require_alive(canary, "after it was denied")


async def _question(api: Api, plan_id: str) -> dict[str, Any]:
    async with aclosing(follow_plan(api, plan_id)) as events:
        async for event in events:
            if event["kind"] in {"unit.started", "plan.finished", "plan.approved"}:
                raise _EscapedError(f"a red effect did not wait: {event['kind']}")
            if event["kind"] == "plan.waiting":
                effect_id = quote(event["body"]["effect_id"], safe="")
                approval: dict[str, Any] = await api.get(f"/v1/approvals/{effect_id}")
                return approval
    raise AssertionError("a followed plan ends with an error or an event")


async def _end(api: Api, plan_id: str) -> None:
    async with aclosing(follow_plan(api, plan_id)) as events:
        async for event in events:
            if event["kind"] == "unit.started":
                raise _EscapedError("a denied effect was started")
            if event["kind"] == "plan.finished":
                return


def _require_alive(canary: Path, when: str) -> None:
    if canary.read_text(encoding="utf-8") != _BEFORE:
        raise _EscapedError(f"a red effect changed a file {when}")


def _throw_away(settings: Settings, directory: Path) -> Settings:
    """Return settings whose store lies in ``directory`` and that reach no model."""
    return dataclasses.replace(
        settings,
        data_dir=directory / "data",
        store=StoreSettings(path=directory / "data" / "kelpie.db"),
        workspaces=WorkspaceSettings(),
        providers=(),
        model="",
    )
