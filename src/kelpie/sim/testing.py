"""What tests of a user's own actors need: `simulate`, a typed client, and the settled end.

    @simulate(seeds=200, faults="swarm")
    async def test_an_order_is_paid_once(world):
        shop = await serve(world, Buyer, Till)
        await shop.ref(Buyer, "o1").buy(500)
        await settle(world)

The plugin `kelpie.sim.plugin` gives the decorated test its `world`, and pytest its options.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from kelpie.actors.api.definition import Actor, definition_of
from kelpie.actors.api.method import Method
from kelpie.actors.api.reference import Address
from kelpie.actors.api.upcast import State
from kelpie.app.wire import error_of
from kelpie.core.errors import OrderError
from kelpie.sim.client import insist
from kelpie.sim.host import SimulatedHost
from kelpie.sim.invariants.basic import basic_invariants
from kelpie.sim.plugin import Seeds
from kelpie.sim.scenarios.heal import settle
from kelpie.sim.subject import SIMULATED, SWARM, Workload, require_faults
from kelpie.sim.view import View
from kelpie.sim.world import SimulatedWorld

__all__ = ["SimulatedWorld", "View", "WorldClient", "serve", "settle", "simulate", "states"]

A = TypeVar("A", bound=Actor[Any])
S = TypeVar("S", bound=State)

SEEDS: Final = 200


def simulate(
    *, seeds: int = SEEDS, faults: str = SWARM
) -> Callable[[Workload], Callable[..., None]]:
    """Run an ``async def`` test in as many simulated worlds as there are seeds.

    The test takes ``world``, and any other fixtures; it is called once for each seed. The first
    seed that fails ends it, with one line that gives the run again.

    Args:
        seeds: How many; ``--sim-seeds`` replaces it.
        faults: ``swarm``, ``none``, or names and groups of the catalogue with commas between them.

    Raises:
        InvalidFieldError: A fault is not in the catalogue.
    """
    assert seeds >= 1, "a simulated test has a seed"
    require_faults(faults)

    def decorate(work: Workload) -> Callable[..., None]:
        assert inspect.iscoroutinefunction(work), "a simulated test is an async def"
        assert "world" in inspect.signature(work).parameters, "a simulated test takes the world"

        @functools.wraps(work)
        def test(*, world: Seeds, **fixtures: Any) -> None:
            world.run(work, fixtures, seeds=seeds, faults=faults)

        setattr(test, SIMULATED, work)
        return test

    return decorate


async def serve(world: SimulatedWorld, *actors: type[Actor[Any]], host: str = "n1") -> WorldClient:
    """Start a machine that hosts ``actors``, let faults happen from now on, return its client.

    The invariants of every store are checked from then on.
    """
    known = {each.name for each in world.invariants}
    world.invariants.extend(each for each in basic_invariants() if each.name not in known)
    machine = world.add_host(host, actors=actors)
    await world.unleash()
    assert machine.is_serving, "a machine serves before its clients ask"
    return WorldClient(machine)


class WorldClient:
    """A client of one machine's actors that repeats each call until somebody answers it.

    Calls have a key each, so a repeated one happens once. Implements `Caller`.

    Attributes:
        host: The machine.
    """

    def __init__(self, host: SimulatedHost) -> None:
        self.host = host
        self._numbers = itertools.count(1)

    def ref(self, kind: type[A], key: str, *, idempotency_key: str | None = None) -> A:
        """Return a typed reference: ``await shop.ref(Buyer, "o1").buy(500)``."""
        address = Address(kind.type_name(), key, caller=self, idempotency_key=idempotency_key)
        return kind.at(address)

    async def invoke(
        self,
        target: Address,
        method: Method[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call a method for a reference; see `Caller`.

        Raises:
            KelpieError: What the actor or the product refuses for good.
        """
        message = method.pack(args, kwargs)
        values = {name: getattr(message, name) for name in message.__struct_fields__}
        names = (target.type_name, target.key, method.name)
        path = "/v1/actors/" + "/".join(quote(name, safe="") for name in names)
        key = target.idempotency_key or f"call-{next(self._numbers)}"
        answer = await insist(self.host, "POST", path, values, key=key)
        if answer.status != 200:
            raise error_of(httpx.Response(answer.status, content=answer.body))
        return msgspec.convert(answer.json()["result"], method.result, strict=False)

    async def submit(
        self,
        target: Address,
        method: Method[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> NoReturn:
        """Refuse: this client waits for its answers.

        Raises:
            OrderError: Always.
        """
        del args, kwargs
        raise OrderError(
            f"{target.key}.{method.name}: a simulated client calls and does not submit"
        )

    def desk(self) -> NoReturn:
        """Refuse, as `submit`.

        Raises:
            OrderError: Always.
        """
        raise OrderError("a simulated client has submitted nothing")


def states(view: View, kind: type[Actor[S]]) -> dict[str, S]:
    """Return the newest durable state of every actor of a class, by key.

    With several machines, the last one that committed a key decides.
    """
    found: dict[str, S] = {}
    decode = definition_of(kind).codec.decode
    for (_, actor), seen in view.actors.items():
        if actor.type == kind.type_name() and seen.state is not None:
            found[actor.key] = decode(seen.state)
    return found
