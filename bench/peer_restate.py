"""The benchmark's actor on Restate: a virtual object that counts, served by Restate's own SDK.

Run by the Python of Restate's environment under hypercorn (``peer_restate:app``). Never imports the
product or the rest of the bench: neither is installed where it runs.
"""

from __future__ import annotations

import importlib
from typing import Any

restate: Any = importlib.import_module("restate")


def make_app() -> Any:
    """Return the ASGI application that Restate's server calls."""
    counter = restate.VirtualObject("Counter")

    async def add(context: Any, amount: int) -> int:
        total = (await context.get("total") or 0) + amount
        context.set("total", total)
        return int(total)

    # The SDK reads the types of what it decodes from the signature, as real classes.
    add.__annotations__ = {"context": restate.ObjectContext, "amount": int, "return": int}
    counter.handler()(add)
    return restate.app(services=[counter])


app = make_app()
