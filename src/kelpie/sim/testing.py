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
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import httpx
import msgspec

from kelpie.actors.api.definition import Actor, definition_of
from kelpie.actors.api.upcast import State
from kelpie.app.remote import Remote
from kelpie.app.wire import ServerWire, error_of
from kelpie.core.limits import INVOCATION_TIMEOUT_MS
from kelpie.sim.client import insist
from kelpie.sim.host import SimulatedHost
from kelpie.sim.invariants import every_invariant
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
    if not world.invariants:
        world.invariants.extend(every_invariant())
    machine = world.add_host(host, actors=actors)
    await world.unleash()
    assert machine.is_serving, "a machine serves before its clients ask"
    return WorldClient(machine)


class SimulatedWire(ServerWire):
    """Requests to a simulated machine, each repeated under its key until it is answered."""

    def __init__(self, host: SimulatedHost) -> None:
        self.url = f"http://{host.name}.sim"
        self._host = host
        self._numbers = itertools.count(1)

    async def send(
        self,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_ms: int = INVOCATION_TIMEOUT_MS,
    ) -> httpx.Response:
        """Return a response that is no refusal; see `ServerWire.send`.

        Raises:
            KelpieError: What the server refuses for good, by its code.
        """
        del timeout_ms  # a repeated request has all the time of the world
        sent = dict(headers or {})
        key = sent.pop("idempotency-key", None)
        if key is None and method != "GET":
            key = f"call-{next(self._numbers)}"
        target = f"{path}?{urlencode(parameters)}" if parameters else path
        body = None if content is None else msgspec.Raw(content)
        answer = await insist(self._host, method, target, body, key=key, headers=sent)
        request = httpx.Request(method, f"{self.url}{target}")
        response = httpx.Response(answer.status, content=answer.body, request=request)
        if response.status_code >= 300:
            raise error_of(response)
        return response


class WorldClient(Remote):
    """A client of one machine's actors that repeats each call until somebody answers it.

    The client that ships, over the simulated network. Calls have a key each, so a repeated one
    happens once; so does a submitted one.

    Attributes:
        host: The machine.
    """

    def __init__(self, host: SimulatedHost) -> None:
        super().__init__(SimulatedWire(host))
        self.host = host


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
