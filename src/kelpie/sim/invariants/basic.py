"""Invariants of every commit: versions, epochs, and who may write."""

from __future__ import annotations

from kelpie.core.ids import ActorId
from kelpie.sim.view import View


class VersionsGrow:
    """Durable versions of an actor grow by one; a later incarnation begins anew."""

    name = "versions-grow"

    def __init__(self) -> None:
        self._newest: dict[tuple[str, ActorId], tuple[int, int]] = {}

    def check(self, view: View) -> str | None:
        """Compare the last commit with the one before it."""
        if view.look is not None and view.look.is_held:
            for actor, held in view.look.rows.actors.items():
                place = (view.look.host, ActorId.parse(actor))
                self._newest.setdefault(place, (held.incarnation, held.version))
        if view.last is None:
            return None
        commit = view.last.commit
        assert commit.incarnation >= 1, "incarnations count from one"
        assert commit.expected_version >= 0, "versions count from one"
        place = (view.last.host, commit.actor)
        incarnation, version = self._newest.get(place, (1, 0))
        self._newest[place] = (commit.incarnation, commit.expected_version + 1)
        if commit.incarnation < incarnation:
            return f"{commit.actor}: incarnation {commit.incarnation} after {incarnation}"
        expected = version if commit.incarnation == incarnation else 0
        if commit.expected_version != expected:
            found = f"a commit on version {commit.expected_version}"
            return f"{commit.actor}: {found} became durable after version {expected}"
        return None


class EpochsNeverFall:
    """A shard's accepted epochs never fall, and each belongs to one session."""

    name = "epochs-never-fall"

    def __init__(self) -> None:
        self._newest: dict[tuple[str, int], tuple[int, str]] = {}

    def check(self, view: View) -> str | None:
        """Compare the last commit's epoch with its shard's newest."""
        if view.last is None:
            return None
        commit, session = view.last.commit, view.last.session
        assert session, "who commits has a session"
        assert commit.epoch >= 1, "epochs count from one"
        place = (view.last.host, commit.shard)
        epoch, owner = self._newest.get(place, (0, ""))
        if commit.epoch < epoch:
            return f"shard {commit.shard}: epoch {commit.epoch} was accepted after {epoch}"
        if commit.epoch == epoch and owner != session:
            return f"shard {commit.shard}: epoch {epoch} has two writers, {owner} and {session}"
        self._newest[place] = (commit.epoch, session)
        return None


class OneEffectiveWriter:
    """What is accepted carries the newest epoch of its shard, so one session writes at a time."""

    name = "committed-under-the-current-epoch"

    def __init__(self) -> None:
        self._epochs: dict[tuple[str, int], int] = {}

    def check(self, view: View) -> str | None:
        """Compare the last commit's epoch with the one that its shard was granted at."""
        seen = view.look
        if seen is not None:
            assert seen.host, "a file is some machine's"
            for shard, epoch in seen.epochs.items():
                assert epoch >= 0, "an epoch only grows from zero"
                before = self._epochs.get((seen.host, shard), 0)
                if epoch < before:
                    return f"{seen.host}: shard {shard} fell from epoch {before} to {epoch}"
                self._epochs[seen.host, shard] = epoch
        if view.lease is not None:
            for shard, epoch in view.lease.grants:
                place = (view.lease.host, shard)
                self._epochs[place] = max(epoch, self._epochs.get(place, 0))
        # Without a receipt it was found after its writer's death: it may be older than the grant.
        if view.last is None or view.last.receipt is None:
            return None
        commit = view.last.commit
        current = self._epochs.get((view.last.host, commit.shard), commit.epoch)
        if commit.epoch != current:
            return f"shard {commit.shard} is at epoch {current}; one of {commit.epoch} was accepted"
        return None
