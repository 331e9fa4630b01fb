"""``kelpie cluster``: who is in it, who serves what, and what should move."""

from __future__ import annotations

import asyncio
from typing import Any, Final
from urllib.parse import quote

import click

from kelpie.cli.client import Api
from kelpie.cli.frame import Frame, framed
from kelpie.cli.rows import show_fields, text_of

WATCH_S: Final = 1.0
_NODE: Final = ("name", "address", "state", "shards", "cordoned", "draining", "started_ms")
_SHARD: Final = ("shard", "node", "address", "epoch", "wished", "pinned", "apart")


@click.group()
def cluster() -> None:
    """See the nodes and their shards, and move work between them."""


@cluster.command()
@click.option("--watch", is_flag=True, help="Print it again every second, until interrupted.")
@framed()
def status(frame: Frame, *, watch: bool) -> None:
    """List the living nodes, and how many shards each serves."""

    async def look(api: Api) -> None:
        while True:
            _show_status(frame, await api.get("/v1/cluster"))
            if not watch:
                return
            await asyncio.sleep(WATCH_S)

    frame.ask(look)


def _show_status(frame: Frame, value: dict[str, Any]) -> None:
    if frame.as_json:
        frame.terminal.data(value)
        return
    nodes = [node for node in value["nodes"] if not node["ended_ms"]]
    headers = [key.removesuffix("_ms") for key in _NODE]
    frame.terminal.table(headers, [[text_of(node, key) for key in _NODE] for node in nodes])
    text = f"{value['shards']} shards, {value['unowned']} without an owner"
    frame.terminal.say(f"{text}, {value['moves']} to be moved.")


@cluster.command()
@framed()
def shards(frame: Frame) -> None:
    """List every shard with its owner, and the node that should own it."""
    value = frame.ask(lambda api: api.get("/v1/cluster/shards"))
    _show_shards(frame, value["shards"])


def _show_shards(frame: Frame, found: list[dict[str, Any]]) -> None:
    if frame.as_json:
        frame.terminal.data(found)
    else:
        rows = [[text_of(shard, key) for key in _SHARD] for shard in found]
        frame.terminal.table(list(_SHARD), rows)


@cluster.command()
@click.argument("actor")
@framed()
def where(frame: Frame, actor: str) -> None:
    """Say which node serves ACTOR, type/key."""
    value = frame.ask(lambda api: api.get("/v1/cluster/where", actor=actor))
    if frame.as_json:
        frame.terminal.data(value)
    else:
        show_fields(frame, value["where"], _SHARD)


@cluster.command()
@click.argument("node")
@click.option("--undo", is_flag=True, help="Let it take shards again.")
@framed()
def cordon(frame: Frame, node: str, *, undo: bool) -> None:
    """Let NODE keep its shards and take no other."""
    _mark(frame, node, cordoned=not undo, draining=False)


@cluster.command()
@click.argument("node")
@click.option("--undo", is_flag=True, help="Let it take shards again.")
@framed()
def drain(frame: Frame, node: str, *, undo: bool) -> None:
    """Have NODE hand all its shards over; it goes on running without."""
    _mark(frame, node, cordoned=not undo, draining=not undo)


def _mark(frame: Frame, node: str, *, cordoned: bool, draining: bool) -> None:
    path = f"/v1/cluster/nodes/{quote(node, safe='')}"
    body = {"cordoned": cordoned, "draining": draining}
    value = frame.ask(lambda api: api.post(path, body))
    if frame.as_json:
        frame.terminal.data(value)
    else:
        show_fields(frame, value, _NODE)


@cluster.command()
@click.option("--wait", is_flag=True, help="Return once nothing is left to be moved.")
@framed()
def rebalance(frame: Frame, *, wait: bool) -> None:
    """List the shards that are not where they should be; nodes move them by themselves."""

    async def look(api: Api) -> list[dict[str, Any]]:
        while True:
            value = await api.get("/v1/cluster/shards")
            found = [each for each in value["shards"] if each["wished"] != each["node"]]
            if not wait or not found:
                return found
            await asyncio.sleep(WATCH_S)

    found = frame.ask(look)
    _show_shards(frame, found)
    if not found and not frame.as_json:
        frame.terminal.say("Every shard is where it should be.")


@cluster.command()
@click.argument("actors", metavar="ACTOR...", nargs=-1, required=True)
@click.option("--to", "node", metavar="NODE", help="Serve them at this node while it lives.")
@click.option("--apart", metavar="LABEL", help="Serve them at nodes apart from each other.")
@framed()
def pin(frame: Frame, actors: tuple[str, ...], *, node: str | None, apart: str | None) -> None:
    """Say where ACTORs, type/key, should be served, with all that share their shards."""
    if bool(node) == bool(apart):
        raise click.UsageError("give either --to NODE or --apart LABEL")
    _pin(frame, actors, node=node or "", apart=apart or "")


@cluster.command()
@click.argument("actors", metavar="ACTOR...", nargs=-1, required=True)
@framed()
def unpin(frame: Frame, actors: tuple[str, ...]) -> None:
    """Let ACTORs, type/key, be served anywhere again, with all that share their shards."""
    _pin(frame, actors, node="", apart="")


def _pin(frame: Frame, actors: tuple[str, ...], *, node: str, apart: str) -> None:
    body = {"actors": list(actors), "node": node, "apart": apart}
    value = frame.ask(lambda api: api.post("/v1/cluster/pins", body))
    if frame.as_json:
        frame.terminal.data(value)
    else:
        frame.terminal.say(f"Shards {', '.join(map(str, value['shards']))} are marked.")
