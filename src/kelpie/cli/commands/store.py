"""``kelpie store``."""

from __future__ import annotations

from collections.abc import Callable

import click

from kelpie.cli.commands.backup import require_unheld
from kelpie.cli.frame import Frame, framed, run_async
from kelpie.cli.rows import show_whole


@click.group()
def store() -> None:
    """Release, measure, check, compact and copy the store."""


@store.command()
@framed()
def release(frame: Frame) -> None:
    """End the held state after a restore: pending messages, timers and effects go on."""
    value = frame.ask(lambda api: api.post("/v1/store/release"))
    if frame.as_json:
        frame.terminal.data(value)
    else:
        frame.terminal.say("The store is released.")


@store.command()
@framed()
def stats(frame: Frame) -> None:
    """Print counts and sizes."""
    value = frame.ask(lambda api: api.get("/v1/store/stats"))
    show_whole(frame, value)


@store.command()
@framed()
def compact(frame: Frame) -> None:
    """Give the space of removed rows and unnamed blobs back, beside a running server too."""
    value = frame.ask(lambda api: api.post("/v1/store/compact"))
    if frame.as_json:
        frame.terminal.data(value)
    else:
        freed = value["before_bytes"] - value["after_bytes"]
        frame.terminal.say(f"Gave {freed:,} bytes back; the store is {value['after_bytes']:,}.")
        blobs, size = value["blobs_removed"], value["blob_bytes_removed"]
        frame.terminal.say(f"Removed {blobs:,} blobs that nothing named, {size:,} bytes.")


@store.command()
@framed()
def check(frame: Frame) -> int:
    """Read the whole store and its blobs, and report damage. Exit status 1: there is some."""
    value = frame.ask(lambda api: api.post("/v1/store/check"))
    show_whole(frame, value)
    return 0 if value["ok"] else 1


@store.command(name="accept-loss")
@framed(remote=False)
def accept_loss(frame: Frame) -> None:
    """Go on without a log that is gone, from the last checkpoint; the store is held then.

    Held: nothing pending is executed before "kelpie store release", because what was lost may
    have been carried out.
    """
    require_unheld(frame)
    value = run_async(_accept(frame))
    if frame.as_json:
        frame.terminal.data(value)
        return
    if value["lost_after"] is None:
        frame.terminal.say("No log is missing; nothing was changed.")
        return
    frame.terminal.say(
        f"What was committed after {value['lost_after']} is gone; the store is held."
    )
    frame.terminal.say("  next: kelpie effects list, then kelpie store release")


async def _accept(frame: Frame) -> dict[str, object]:
    return dict(await frame.world.accept_loss(frame.settings()))


@store.command()
@framed(remote=False)
@click.argument("source")
@click.argument("target")
def copy(frame: Frame, *, source: str, target: str) -> None:
    """Copy the store at SOURCE to TARGET, and close SOURCE for good.

    Each is sqlite:PATH, or a database as postgresql://HOST/NAME. Nobody may use either meanwhile.
    Everything is verified before SOURCE is closed; TARGET starts held. A copy that was interrupted
    goes on with the same command.
    """
    places = (_place(frame, source), _place(frame, target))

    def tell(line: str) -> None:
        if not frame.as_json:
            frame.terminal.say(f"  {line}")

    value = run_async(_copy(frame, *places, tell))
    if frame.as_json:
        frame.terminal.data(value)
        return
    frame.terminal.say(f"{value['source']} is closed; {value['target']} is the store, and is held.")
    frame.terminal.say("  next: kelpie effects list, then kelpie store release, with KELPIE_STORE")


def _place(frame: Frame, text: str) -> str:
    path = text.removeprefix("sqlite:")
    return text if "://" in path else str(frame.path(path))


async def _copy(
    frame: Frame, source: str, target: str, tell: Callable[[str], None]
) -> dict[str, object]:
    return dict(await frame.world.copy_store(frame.settings(), source, target, tell))
