"""The product opened in one process: a node and its HTTP edge."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from kelpie.actors.api.definition import Actor
from kelpie.app.edge import make_edge
from kelpie.app.hosting import host_actors
from kelpie.app.teleport import make_teleport
from kelpie.app.wiring import Node, open_node
from kelpie.app.world import World
from kelpie.server.http import AsgiApp
from kelpie.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """The opened product; ``asgi`` is its HTTP edge."""

    node: Node
    asgi: AsgiApp


@asynccontextmanager
async def open_app(
    settings: Settings,
    *,
    drive: bool,
    world: World | None = None,
    address: str = "",
    actors: Sequence[type[Actor[Any]]] = (),
) -> AsyncGenerator[App]:
    """Open the product and yield it; everything is closed at the end.

    Args:
        settings: What a person configured.
        drive: Whether pending messages, timers and effects are executed.
        world: The ports; the host's own when None.
        address: Where this process listens, for those who find the store held.
        actors: User-defined classes to host beside the built-in types.

    Raises:
        StoreHeldError: Another process holds the store.
        ConfigError: A setting does not fit this host.
        StoreError: The store cannot be opened.
        DefinitionError: An actor class cannot be hosted as it is written.
        InvalidFieldError: An actor class has the name of another type.
    """
    async with open_node(settings, world=world, address=address) as node:
        hosted = host_actors(node, actors)
        teleport = make_teleport(settings, node)
        is_settled = drive and node.store.held
        if is_settled:
            await node.drive()  # settles the effects of paused actors too; nothing is delivered
        await node.pauses.load()
        if teleport is not None:
            await teleport.load()
        edge = make_edge(settings, node, hosted, teleport)
        if node.membership is not None:
            node.membership.service.edge = edge.answer_passed
        node.enter()
        app = App(node=node, asgi=edge)
        if drive and not is_settled:
            await node.drive()
        yield app
