"""Which shards this node may write, under which epochs, and until when it may answer.

One object that everything which writes or answers shares. Whoever keeps the session's lease tells
it what was gained and lost; what listens begins and ends its work for those shards. A store with
one holder grants every shard at once and for good.

Invariants: a lost shard has no epoch from that moment; nothing is both gained and lost in one step;
a shard that is being handed over is owned, so that its last commits are taken, and not served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from kelpie.core.errors import NotOwnerError
from kelpie.core.limits import SHARD_COUNT
from kelpie.storage.records import ShardGrant

FOREVER_NS: Final = 2**63 - 1

ShardListener = Callable[[frozenset[int]], None]
"""Told of shards, once they are gained or lost."""


class Ownership:
    """The shards of this node.

    Attributes:
        until_ns: The boot time from which on nothing may be answered any more.
    """

    __slots__ = ("_epochs", "_gained", "_leaving", "_lost", "_owners", "_pointed", "until_ns")

    def __init__(self, grants: Iterable[ShardGrant] = (), *, until_ns: int = FOREVER_NS) -> None:
        self._epochs = {grant.shard: grant.epoch for grant in grants}
        self._leaving: set[int] = set()
        self._owners: dict[int, str] = {}
        self._gained: list[ShardListener] = []
        self._lost: list[ShardListener] = []
        self._pointed: list[Callable[[], None]] = []
        self.until_ns = until_ns

    def listen(
        self, *, gained: ShardListener | None = None, lost: ShardListener | None = None
    ) -> None:
        """Tell a listener of every shard that is gained, or lost, from now on."""
        assert gained is not None or lost is not None, "a listener listens to something"
        if gained is not None:
            self._gained.append(gained)
        if lost is not None:
            self._lost.append(lost)
        assert self._gained or self._lost

    def listen_pointed(self, pointed: Callable[[], None]) -> None:
        """Tell a listener whenever other nodes own other shards than before."""
        assert pointed not in self._pointed, "a listener is told once"
        self._pointed.append(pointed)
        assert self._pointed

    @property
    def is_whole(self) -> bool:
        """Whether every shard is owned, so that nobody need ask for one."""
        return len(self._epochs) == SHARD_COUNT and not self._leaving

    def owns(self, shard: int) -> bool:
        """Return whether this node may write to ``shard``."""
        return shard in self._epochs

    def serves(self, shard: int) -> bool:
        """Return whether this node takes calls for ``shard``: it owns it, and not for the last."""
        return shard in self._epochs and shard not in self._leaving

    def epoch(self, shard: int) -> int:
        """Return the epoch that a commit to ``shard`` must carry.

        Raises:
            NotOwnerError: This node does not own the shard; the error names who does, if known.
        """
        epoch = self._epochs.get(shard)
        if epoch is None:
            raise self.refusal(shard)
        return epoch

    def refusal(self, shard: int) -> NotOwnerError:
        """Return the error of whoever asks this node for ``shard`` in vain."""
        return NotOwnerError(
            f"shard {shard} is not served here; ask its owner, or again in a moment",
            shard=shard,
            owner=self.owner(shard),
        )

    def grants(self) -> tuple[ShardGrant, ...]:
        """Return what is owned now, by shard."""
        return tuple(ShardGrant(shard, epoch) for shard, epoch in sorted(self._epochs.items()))

    def owner(self, shard: int) -> str:
        """Return the address of the node that owns ``shard`` elsewhere, empty when unknown."""
        return self._owners.get(shard, "")

    def point(self, owners: dict[int, str]) -> None:
        """Note who owns the shards that are owned elsewhere."""
        assert all(0 <= shard < SHARD_COUNT for shard in owners), "there are no other shards"
        self._owners = {shard: address for shard, address in owners.items() if address}
        assert all(self._owners.values()), "an owner has an address"
        for listener in self._pointed:
            listener()

    def gain(self, grants: Sequence[ShardGrant]) -> None:
        """Own shards from now on; listeners begin their work."""
        for grant in grants:
            assert grant.epoch > self._epochs.get(grant.shard, 0), "an epoch only grows"
            self._epochs[grant.shard] = grant.epoch
        fresh = frozenset(grant.shard for grant in grants)
        for listener in self._gained if fresh else ():
            listener(fresh)
        assert all(shard in self._epochs for shard in fresh)

    def leave(self, shards: Iterable[int]) -> None:
        """Serve shards no longer, and own them until they are lost: they are being handed over."""
        assert self._leaving <= self._epochs.keys()
        self._leaving.update(shard for shard in shards if shard in self._epochs)
        assert self._leaving <= self._epochs.keys(), "only what is owned is handed over"

    def lose(self, shards: Iterable[int]) -> None:
        """Own shards no longer; listeners drop what belongs to them."""
        gone = frozenset(shard for shard in shards if shard in self._epochs)
        for shard in gone:
            del self._epochs[shard]
        self._leaving -= gone
        for listener in self._lost if gone else ():
            listener(gone)
        assert not any(shard in self._epochs for shard in gone)
        assert not self._leaving & gone, "what is lost has left"

    def fence(self, shard: int, epoch: int) -> None:
        """Lose a shard whose write under ``epoch`` was refused, unless it was gained anew since."""
        assert epoch > 0, "what was written carried an epoch"
        if self._epochs.get(shard) == epoch:
            self.lose((shard,))
        assert self._epochs.get(shard) != epoch, "what the store refused is lost"
