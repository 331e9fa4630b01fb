"""Invariants of a store that several nodes share: who may write, and who is gone."""

from __future__ import annotations

from kelpie.sim.view import CommitSeen, LeaseSeen, View
from kelpie.storage.records import ShardGrant


class OwnersWriteAlone:
    """A commit is accepted from the session that owns its shard under that epoch at that moment."""

    name = "one-effective-writer"

    def __init__(self) -> None:
        self._owners: dict[tuple[str, int], tuple[int, str]] = {}

    def check(self, view: View) -> str | None:
        """Follow every change of owners, and hold every commit against the newest."""
        if view.look is not None:
            for shard, epoch in view.look.epochs.items():
                known = self._owners.get((view.look.host, shard))
                if known is not None and known[0] != epoch:
                    del self._owners[view.look.host, shard]  # of whose change nobody heard
        if view.lease is not None:
            return self._follow(view.lease)
        # Without a receipt it was found later: its shard may be another's by now.
        if view.last is None or view.last.receipt is None:
            return None
        return self._judge(view.last)

    def _follow(self, seen: LeaseSeen) -> str | None:
        match seen.kind:
            case "claimed":
                for grant in seen.grants:
                    problem = self._give(seen, grant)
                    if problem is not None:
                        return problem
            case "released":
                for shard, epoch in seen.grants:
                    if self._owners.get((seen.host, shard)) == (epoch - 1, seen.session):
                        self._owners[seen.host, shard] = (epoch, "")
            case "ended":
                for place, (epoch, owner) in self._owners.items():
                    if place[0] == seen.host and owner == seen.session:
                        self._owners[place] = (epoch + 1, "")
            case _:
                assert seen.kind == "renewed", f"nothing else happens to a session: {seen.kind}"
        return None

    def _give(self, seen: LeaseSeen, grant: ShardGrant) -> str | None:
        place = (seen.host, grant.shard)
        epoch, owner = self._owners.get(place, (0, ""))
        assert grant.epoch > 0, "an epoch counts owners"
        if owner:
            return f"shard {grant.shard} was given to {seen.session} while {owner} owned it"
        if grant.epoch <= epoch:
            return f"shard {grant.shard} was given away under epoch {grant.epoch} after {epoch}"
        self._owners[place] = (grant.epoch, seen.session)
        return None

    def _judge(self, seen: CommitSeen) -> str | None:
        commit = seen.commit
        known = self._owners.get((seen.host, commit.shard))
        if known is None or known == (commit.epoch, seen.session):
            return None
        epoch, owner = known
        whose = f"{owner}'s" if owner else "nobody's"
        found = f"a commit of {seen.session} under epoch {commit.epoch} was accepted"
        return f"shard {commit.shard} is {whose} under epoch {epoch}; {found}"


class EndedStaysEnded:
    """A session that has ended is neither renewed nor given a shard."""

    name = "ended-session-stays-ended"

    def __init__(self) -> None:
        self._ended: set[tuple[str, str]] = set()

    def check(self, view: View) -> str | None:
        """Look for the session among those that ended."""
        seen = view.lease
        if seen is None:
            return None
        assert seen.session, "a session has a name"
        place = (seen.host, seen.session)
        if seen.kind == "ended":
            self._ended.add(place)
        elif seen.kind != "released" and place in self._ended:
            return f"{seen.session} had ended, and was {seen.kind}"
        return None
