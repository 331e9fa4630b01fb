"""Hints between nodes: messages that wait for another node's actors, and news for readers here.

A hint makes things quick, never right: whoever is hinted at looks into the store, and looks now and
then without one. So each may be lost, doubled or late, and none is answered.

Invariants: nobody is told of actors that it did not ask for; what a node wants is bounded.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

from kelpie.actors.hub import EventHub
from kelpie.actors.ownership import Ownership
from kelpie.cluster.line import Line
from kelpie.cluster.messages import ChangedHint, Hint, LookHint, WakeHint, WatchHint
from kelpie.cluster.rpc import AskedListener, Lines
from kelpie.core.errors import KelpieError
from kelpie.core.ids import ActorId
from kelpie.core.limits import ACTOR_ID_BYTES_MAX, RPC_WATCHES_MAX, SHARD_COUNT

WakeListener = Callable[[Sequence[int], int], None]
"""Told that messages up to an id wait for actors of shards."""

ALL: Final = ""
ACTORS_PER_HINT_MAX: Final = 4_096


class Hints:
    """Both sides of one node's hints."""

    def __init__(
        self,
        *,
        lines: Lines,
        listener: AskedListener,
        ownership: Ownership,
        hub: EventHub,
        wake: WakeListener,
        look: Callable[[], None],
    ) -> None:
        self._lines = lines
        self._ownership = ownership
        self._hub = hub
        self._wake = wake
        self._look = look
        self._wanted: dict[str, int] = {}
        self._nodes: tuple[str, ...] = ()
        self._watchers: defaultdict[str, dict[Line, None]] = defaultdict(dict)
        self._watches: defaultdict[Line, set[str]] = defaultdict(set)
        self._changed: defaultdict[Line, dict[str, None]] = defaultdict(dict)
        lines.on_hint = self._take_news
        lines.on_open = self._tell_again
        listener.on_hint = self._take
        listener.on_close = self._forget
        hub.listen(self._want)

    # --- messages -------------------------------------------------------------------------------

    def wake(self, shards: Iterable[int], message_id: int) -> None:
        """Tell the owners of ``shards`` that messages up to ``message_id`` wait for them."""
        by_owner: defaultdict[str, list[int]] = defaultdict(list)
        for shard in sorted(set(shards)):
            by_owner[self._ownership.owner(shard)].append(shard)
        for address, theirs in by_owner.items():
            if address:
                self._lines.hint(address, WakeHint(tuple(theirs), message_id))

    def look(self, addresses: Iterable[str]) -> None:
        """Tell the nodes at these addresses to look at the cluster now."""
        for address in sorted(addresses):
            self._lines.hint(address, LookHint())

    # --- news, where they are wanted ------------------------------------------------------------

    def point(self, addresses: Sequence[str]) -> None:
        """Note who the other nodes are, and tell the owners that changed what is wanted here.

        For whoever has just pointed `Ownership` at the owners.
        """
        assert all(addresses), "a node has an address"
        self._nodes = tuple(addresses)
        self._lines.keep_only(self._nodes)
        for name in self._wanted:
            self._tell(name, is_wanted=True)
        assert len(self._nodes) == len(addresses)

    def _want(self, actor: ActorId | None, *, is_wanted: bool) -> None:
        name, shard = (ALL, -1) if actor is None else (str(actor), actor.shard)
        if is_wanted:
            self._wanted[name] = shard
            self._tell(name, is_wanted=True)
        elif name in self._wanted:
            self._tell(name, is_wanted=False)
            del self._wanted[name]

    def _tell(self, name: str, *, is_wanted: bool) -> None:
        shard = self._wanted[name]
        addresses = self._nodes if shard < 0 else (self._ownership.owner(shard),)
        for address in addresses:
            if address:
                self._lines.hint(address, WatchHint(name, is_wanted))

    def _tell_again(self, line: Line) -> None:
        """Tell a node to which there was no line; a want that is not its own is harmless."""
        for name in self._wanted:
            line.hint(WatchHint(name, is_wanted=True))

    def _take_news(self, line: Line, hint: Hint) -> None:
        del line
        if isinstance(hint, ChangedHint):
            for name in hint.actors:
                with suppress(KelpieError):  # a name that no actor can have is nobody's news
                    self._hub.publish(ActorId.parse(name))

    # --- news, where they happen ----------------------------------------------------------------

    def changed(self, actor: ActorId) -> None:
        """Tell the nodes that want to know that there is news of ``actor``; once in a tick."""
        if not self._watchers:
            return
        name = str(actor)
        for group in (name, ALL):
            for line in self._watchers.get(group, ()):
                if not self._changed:
                    asyncio.get_running_loop().call_soon(self._flush)
                self._changed[line][name] = None

    def _flush(self) -> None:
        changed, self._changed = self._changed, defaultdict(dict)
        for line, names in changed.items():
            every = tuple(names)
            for start in range(0, len(every), ACTORS_PER_HINT_MAX):
                line.hint(ChangedHint(every[start : start + ACTORS_PER_HINT_MAX]))

    def _take(self, line: Line, hint: Hint) -> None:
        if isinstance(hint, WakeHint):
            shards = [shard for shard in hint.shards if 0 <= shard < SHARD_COUNT]
            self._wake(shards, hint.message_id)
        elif isinstance(hint, WatchHint):
            self._watch(line, hint)
        elif isinstance(hint, LookHint):
            self._look()

    def _watch(self, line: Line, hint: WatchHint) -> None:
        watched = self._watches[line]
        if not hint.is_wanted:
            watched.discard(hint.actor)
            self._drop(line, hint.actor)
        elif len(watched) < RPC_WATCHES_MAX and len(hint.actor) <= ACTOR_ID_BYTES_MAX:
            watched.add(hint.actor)
            self._watchers[hint.actor][line] = None
        assert len(watched) <= RPC_WATCHES_MAX

    def _drop(self, line: Line, name: str) -> None:
        group = self._watchers.get(name)
        if group is not None:
            group.pop(line, None)
            if not group:
                del self._watchers[name]

    def _forget(self, line: Line) -> None:
        self._changed.pop(line, None)
        for name in self._watches.pop(line, ()):
            self._drop(line, name)

    def check_invariants(self) -> None:
        """Assert that both indexes of what others want agree."""
        pairs = {(line, name) for line, names in self._watches.items() for name in names}
        assert pairs == {(line, name) for name, lines in self._watchers.items() for line in lines}
