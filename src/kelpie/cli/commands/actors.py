"""``kelpie actors``."""

from __future__ import annotations

import json
from typing import Any, cast
from urllib.parse import quote

import click

from kelpie.cli.client import items_of
from kelpie.cli.errors import CommandError
from kelpie.cli.frame import Frame, framed
from kelpie.cli.rows import show_whole, text_of


@click.group()
def actors() -> None:
    """Call actors of your own classes, and care for them."""


def _path(actor: str, *, below: str = "/v1/actors", verb: str = "") -> str:
    """Return the route of the actor that ``type/key`` names."""
    kind, slash, key = actor.partition("/")
    if not kind or not slash or not key:
        raise CommandError("invalid_field", f"ACTOR: {actor[:100]!r} must read type/key")
    named = f"{below}/{quote(kind, safe='')}/{quote(key, safe='')}"
    return f"{named}/{quote(verb, safe='')}" if verb else named


@actors.command("types")
@framed()
def list_types(frame: Frame) -> None:
    """List the classes that the server hosts, with their methods."""
    rows = items_of(frame.ask(lambda api: api.get("/v1/actor-types")), "types")
    if frame.as_json:
        frame.terminal.data(rows)
        return
    cells = [
        [text_of(row, "name"), text_of(method, "kind"), _signature(method)]
        for row in rows
        for method in row["methods"]
    ]
    frame.terminal.table(["TYPE", "KIND", "METHOD"], cells)


def _signature(method: dict[str, Any]) -> str:
    schema = cast("dict[str, Any]", method["arguments"])
    reference = str(schema.get("$ref", "")).rpartition("/")[2]
    described = schema.get("$defs", {}).get(reference, schema)
    return f"{method['name']}({', '.join(described.get('properties', {}))})"


@actors.command("list")
@framed()
@click.option("--type", "kind", metavar="TYPE", help="Only actors of this class.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, help="At most so many.")
@click.option("--after", metavar="ACTOR", help="Only what follows this actor, type/key.")
def list_actors(frame: Frame, *, kind: str | None, limit: int, after: str | None) -> None:
    """List stored actors of your own classes."""
    answer = frame.ask(lambda api: api.get("/v1/actors", type=kind, limit=limit, after=after))
    rows = items_of(answer, "actors")
    if frame.as_json:
        frame.terminal.data(rows)
        return
    keys = ("version", "updated_ms")
    cells = [
        [
            *(text_of(row, key) for key in keys),
            "paused" if row.get("paused") else "",
            f"{row['type']}/{row['key']}",
        ]
        for row in rows
    ]
    frame.terminal.table(["VERSION", "CHANGED", "STATE", "ACTOR"], cells)


@actors.command()
@framed()
@click.argument("actor")
def show(frame: Frame, *, actor: str) -> None:
    """Show one actor, type/key: its version, its mailbox, what it is doing."""
    show_whole(frame, frame.ask(lambda api: api.get(_path(actor))))


@actors.command()
@framed()
@click.argument("actor")
@click.argument("method")
@click.argument("arguments", default="{}")
@click.option("--key", metavar="KEY", help="Idempotency key: the call happens once.")
@click.option("--timeout-ms", type=click.IntRange(1, 600_000), help="How long it may take.")
def call(
    frame: Frame,
    *,
    actor: str,
    method: str,
    arguments: str,
    key: str | None,
    timeout_ms: int | None,
) -> None:
    """Call METHOD of an actor, type/key, with ARGUMENTS, a JSON object; print its result."""
    named = _read_arguments(arguments)
    headers = {"idempotency-key": key} if key is not None else {}
    if timeout_ms is not None:
        headers["x-kelpie-timeout-ms"] = str(timeout_ms)
    path = _path(actor, verb=method)
    value = frame.ask(lambda api: api.post(path, named, headers=headers))
    frame.terminal.data(value if frame.as_json else value["result"])


@actors.command()
@framed()
@click.argument("actor")
@click.argument("method")
@click.argument("arguments", default="{}")
@click.option("--key", metavar="KEY", help="Idempotency key: the call is kept once.")
def submit(frame: Frame, *, actor: str, method: str, arguments: str, key: str | None) -> None:
    """Hand in a call of METHOD, as `call` makes one, and print its id; it runs by itself."""
    named = _read_arguments(arguments)
    headers = {"prefer": "respond-async"}
    if key is not None:
        headers["idempotency-key"] = key
    path = _path(actor, verb=method)
    value = frame.ask(lambda api: api.post(path, named, headers=headers))
    if "call_id" not in value:
        raise CommandError("invalid_field", f"METHOD: {method[:100]!r} is a query; call it")
    if frame.as_json:
        frame.terminal.data(value)
    else:
        frame.terminal.line(value["call_id"])


def _read_arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
        json.dumps(arguments, ensure_ascii=False).encode()  # else half a pair, or no text at all
    except ValueError as error:
        raise CommandError("invalid_field", f"ARGUMENTS: {error}; give a JSON object") from None
    if not isinstance(arguments, dict):
        raise CommandError("invalid_field", "ARGUMENTS: must be a JSON object, by name")
    return cast("dict[str, Any]", arguments)


def _administer(frame: Frame, actor: str, verb: str) -> Any:
    path = _path(actor, below="/v1/actor-admin", verb=verb)
    return frame.ask(lambda api: api.post(path))


@actors.command()
@framed()
@click.argument("actor")
def pause(frame: Frame, *, actor: str) -> None:
    """Let an actor's commands wait until it is resumed, across restarts."""
    value = _administer(frame, actor, "pause")
    if frame.as_json:
        frame.terminal.data(value)
    else:
        frame.terminal.say(f"{actor} is paused; {value['mailbox']} calls wait")


@actors.command()
@framed()
@click.argument("actor")
def resume(frame: Frame, *, actor: str) -> None:
    """Give a paused actor's waiting commands their turns."""
    value = _administer(frame, actor, "resume")
    if frame.as_json:
        frame.terminal.data(value)
    else:
        frame.terminal.say(f"{actor} goes on")


@actors.command()
@framed()
@click.argument("actor")
def kill(frame: Frame, *, actor: str) -> None:
    """Stop what an actor is doing; its next call loads what is durable."""
    value = _administer(frame, actor, "kill")
    if frame.as_json:
        frame.terminal.data(value)
    else:
        frame.terminal.say(f"{actor} {'was stopped' if value['killed'] else 'was not in memory'}")


@actors.command("dead-letters")
@framed()
@click.option("--type", "kind", metavar="TYPE", help="Only letters to actors of this type.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, help="At most so many.")
def dead_letters(frame: Frame, *, kind: str | None, limit: int) -> None:
    """List messages that failed too often, newest first; --json has their tracebacks."""
    answer = frame.ask(lambda api: api.get("/v1/dead-letters", type=kind, limit=limit))
    rows = items_of(answer, "dead_letters")
    if frame.as_json:
        frame.terminal.data(rows)
        return
    keys = ("id", "at_ms", "attempts", "sender", "receiver")
    cells = [
        [*(text_of(row, key) for key in keys), text_of(row, "error").partition("\n")[0]]
        for row in rows
    ]
    frame.terminal.table(["ID", "SINCE", "ATTEMPTS", "FROM", "TO", "ERROR"], cells)


@actors.command()
@framed()
@click.argument("letter")
def replay(frame: Frame, *, letter: str) -> None:
    """Give the dead letter of this ID all its attempts again."""
    path = f"/v1/dead-letters/{quote(letter, safe='')}/replay"
    value = frame.ask(lambda api: api.post(path))
    if frame.as_json:
        frame.terminal.data(value)
    else:
        frame.terminal.say(f"dead letter {letter} is on its way again")
