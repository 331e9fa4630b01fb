"""A transfer between two accounts: money is neither lost nor made, whatever crashes.

The transfer leaves the first account and the message to the second in one commit. The message
arrives exactly once; an account that cannot take it sends it back the same way.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from kelpie import Actor, Runtime, State, command, query, ref
from kelpie.core.errors import ConflictError


class Balance(State):
    """What an account holds, in cents."""

    cents: int = 0
    is_closed: bool = False


class Account(Actor[Balance]):
    """One account."""

    @command
    def deposit(self, cents: int) -> int:
        """Bring money in from outside."""
        if cents <= 0:
            raise ConflictError("a deposit is more than nothing")
        self.state.cents += cents
        return self.state.cents

    @command
    def transfer(self, to: str, cents: int) -> int:
        """Send money to another account; return what is left here.

        Raises:
            ConflictError: There is not enough.
        """
        if not 0 < cents <= self.state.cents:
            raise ConflictError(f"{self.ctx.key} has {self.state.cents} cents, not {cents}")
        self.state.cents -= cents
        self.ctx.send(ref(Account, to).receive, self.ctx.key, cents)
        self.ctx.emit("account.sent", {"to": to, "cents": cents})
        return self.state.cents

    @command
    def receive(self, sender: str, cents: int) -> None:
        """Take money that another account sent; send it back when this one is closed."""
        if self.state.is_closed:
            self.ctx.send(ref(Account, sender).give_back, cents)
            return
        self.state.cents += cents
        self.ctx.emit("account.received", {"sender": sender, "cents": cents})

    @command
    def give_back(self, cents: int) -> None:
        """Take back what could not be delivered, even when closed meanwhile."""
        self.state.cents += cents

    @command
    def close(self) -> None:
        """Take no more transfers."""
        self.state.is_closed = True

    @query
    def balance(self) -> int:
        """Return the cents held."""
        return self.state.cents


async def main(path: Path) -> int:
    """Move money from Ada to Ben and return what Ada has left."""
    async with Runtime.open(path, actors=[Account]) as runtime:
        ada = runtime.ref(Account, "ada")
        await ada.deposit(10_000)
        return await ada.transfer("ben", 2_500)


if __name__ == "__main__":
    print(asyncio.run(main(Path("bank.db"))))
