"""A bank: money moves between accounts by messages, while servers die.

A transfer leaves one account and its message to the other in one commit. At every moment no account
has more than came in, and no more arrived than was sent; at rest, nothing is on its way and what
the accounts hold is what the clients brought.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from kelpie.actors.api.definition import Actor
from kelpie.actors.api.method import command, query
from kelpie.actors.api.reference import ref
from kelpie.actors.api.upcast import State
from kelpie.core.errors import ConflictError
from kelpie.sim.client import insist
from kelpie.sim.edge import HttpAnswer
from kelpie.sim.host import SimulatedHost
from kelpie.sim.scenarios.heal import settle
from kelpie.sim.view import View
from kelpie.sim.world import SimulatedWorld

ACCOUNTS: Final = 4
CENTS_MAX: Final = 500
DEPOSIT_SHARE: Final = 0.3
PAUSE_S_MAX: Final = 2.0


class Books(State):
    """What went through an account, in cents."""

    brought: int = 0
    sent: int = 0
    received: int = 0

    @property
    def cents(self) -> int:
        """What the account holds."""
        return self.brought + self.received - self.sent


class Vault(Actor[Books]):
    """One account."""

    actor_type = "sim-vault"

    @command
    def bring(self, cents: int) -> int:
        """Bring money in from outside; return what is there now."""
        self.state.brought += cents
        return self.state.cents

    @command
    async def move(self, to: str, cents: int) -> int:
        """Send money on; return what is left.

        Raises:
            ConflictError: There is not enough.
        """
        if cents > self.state.cents:
            raise ConflictError(f"{self.ctx.key} holds {self.state.cents} cents, not {cents}")
        self.state.sent += cents
        self.ctx.send(ref(Vault, to).arrive, cents)
        return self.state.cents

    @command
    def arrive(self, cents: int) -> None:
        """Take what another account sent."""
        self.state.received += cents

    @query
    def books(self) -> tuple[int, int, int]:
        """Return what was brought, sent and received."""
        return self.state.brought, self.state.sent, self.state.received


BRING: Final = Vault.bring.name
MOVE: Final = Vault.move.name


def conserve(view: View) -> str | None:
    """Return what is wrong with the money of the machine that committed last."""
    if view.last is None or view.last.commit.actor.type != Vault.actor_type:
        return None
    sent = received = 0
    for (host, actor), seen in view.actors.items():
        if host != view.last.host or actor.type != Vault.actor_type or seen.state is None:
            continue
        books = msgspec.msgpack.decode(seen.state, type=Books)
        if books.cents < 0:
            return f"{actor} holds {books.cents} cents"
        sent += books.sent
        received += books.received
    if received > sent:
        return f"{received} cents arrived, {sent} were sent"
    return None


class BankScenario:
    """Accounts on one or more machines, each with a store of its own."""

    name = "bank"

    def __init__(self) -> None:
        self._brought: dict[str, int] = {}

    async def run(self, world: SimulatedWorld) -> None:
        """Move money, heal, count it."""
        world.always("money-is-conserved", conserve)
        for index in range(world.config.hosts):
            host = world.add_host(f"n{index + 1}", actors=(Vault,))
            self._brought[host.name] = 0
        await world.unleash()
        async with asyncio.TaskGroup() as clients:
            for number in range(world.config.clients):
                clients.create_task(self._bank(world, number), name=f"client-{number}")
        await settle(world)
        for host in world.hosts.values():
            await self._count(host)

    async def _bank(self, world: SimulatedWorld, number: int) -> None:
        rng = world.stream(f"client:{number}")
        hosts = list(world.hosts.values())
        for turn in range(world.config.operations):
            await asyncio.sleep(rng.random() * PAUSE_S_MAX)
            host, cents = rng.choice(hosts), rng.randrange(1, CENTS_MAX)
            account, other = rng.sample(range(ACCOUNTS), 2)
            key = f"client-{number}-{turn}"
            if rng.random() < DEPOSIT_SHARE:
                answer = await self._ask(host, account, BRING, {"cents": cents}, key)
                assert answer.status == 200, answer.body
                self._brought[host.name] += cents
            else:
                body = {"to": f"v{other}", "cents": cents}
                answer = await self._ask(host, account, MOVE, body, key)
                assert answer.status in {200, 409}, answer.body
                world.sometimes("money moved", answer.status == 200)
                world.sometimes("a transfer was refused", answer.status == 409)

    async def _ask(
        self, host: SimulatedHost, account: int, method: str, body: object, key: str
    ) -> HttpAnswer:
        target = f"/v1/actors/{Vault.actor_type}/v{account}/{method}"
        return await insist(host, "POST", target, body, key=key)

    async def _count(self, host: SimulatedHost) -> None:
        totals = [0, 0, 0]
        for account in range(ACCOUNTS):
            answer = await self._ask(host, account, "books", {}, f"books-{account}")
            shown = answer.json()["result"]
            totals = [total + part for total, part in zip(totals, shown, strict=True)]
        brought, sent, received = totals
        assert sent == received, f"{host.name}: {sent} cents were sent, {received} arrived"
        expected = self._brought[host.name]
        assert brought == expected, f"{host.name}: {brought} cents, clients brought {expected}"
