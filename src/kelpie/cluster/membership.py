"""What a node does to be a member of a cluster, as a pure machine: `decide(state, event)`.

The store is the arbiter. A node begins a *session*, renews it, looks at all others, claims shards
that are free and should be its own, and hands over those that should be another's (`placement`).
What may be written is decided by epochs in the store's transactions alone; this machine decides
when a node may still *answer*, and when a silent one is replaced.

The argument why nobody answers for a shard that another has:

1. A renewal is timed from when it was *sent*. A node answers until ``sent + ttl - margin`` on its
   boot clock, looked at after the value was read (`Ownership.until_ns`).
2. Another node ends the session only if it sees one value of ``renewals`` for ``ttl + margin`` on
   *its* boot clock, measured from when it was told of the value; and the store ends it only if the
   counter still has that value. The renewal that made the value was sent before it was seen.
3. Let every boot clock run at a rate within 1 +- r of true time. From sending to ending there are
   at least ``(ttl + margin) / (1 + r)`` true seconds, in which the node's own clock advances by at
   least ``(ttl + margin) (1 - r) / (1 + r)``. That is no less than ``ttl - margin`` as long as
   ``margin >= r * ttl``; `core.limits` holds r at a fifth of that. Wall clocks play no part.
4. Time in which the watching node itself did not look does not count, so neither a suspended
   watcher nor one whose clock jumps ends anybody's session early.
5. Ending frees the shards and raises their epochs in the same transaction, and no statement
   renews, or claims for, a session that has ended. So whoever wakes up late writes nothing.

A clock that stops, or a program that is stopped between looking at the clock and answering for
longer than what is left of the margin, is beyond this; its writes are still refused.

Invariants: a shard is in at most one of ``owned`` and ``releasing``; what is being released is
never taken for owned again, however late its release arrives; one store operation on shards is
under way at a time, so that no view is older than what this node wrote itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from kelpie.cluster import commands as c
from kelpie.cluster import events as e
from kelpie.cluster.member import NEVER_NS, Member, Sighting, due_ns, lease_holders, silent
from kelpie.cluster.placement import living, open_nodes, place
from kelpie.storage.cluster import ClusterView, NodeRow, NodeState
from kelpie.storage.records import ShardGrant


class Decided(NamedTuple):
    """What follows from an event: the next state, and what to do, in order."""

    state: Member
    commands: tuple[c.Command, ...]


def decide(state: Member, event: e.Event) -> Decided:
    """Return what follows from ``event``; the same state and event give the same decision."""
    after, told = _take(state, event)
    after, planned = _plan(after, event.now_ns)
    after.check_invariants()
    return Decided(after, (*told, *planned))


def wake_ns(state: Member) -> int:
    """Return the boot time at which `decide` should be given a `Woke` at the latest."""
    if state.phase == "stopped":
        return NEVER_NS
    times: list[int] = []
    if not state.is_renewing and not state.is_refused:
        times.append(state.renew_at_ns)
        if state.is_leaving and state.is_joined:
            times.append(state.until_ns)
    if not state.is_busy and (state.is_joined or state.is_refused):
        waiting = [state.look_at_ns, *(due_ns(state, node) for node in lease_holders(state))]
        times.append(max(min(waiting), state.shards_at_ns))
    return min(times, default=NEVER_NS)


# --- what an event means ------------------------------------------------------------------------

_Told = tuple[c.Command, ...]


def _take(state: Member, event: e.Event) -> tuple[Member, _Told]:
    match event:
        case e.Began():
            assert not state.is_joined, "one session at a time"
            state = replace(state, session=event.session, phase="initializing", is_refused=False)
            return replace(state, renew_at_ns=event.now_ns), ()
        case e.Prepared():
            return replace(state, is_ready=True), ()
        case e.Left():
            return replace(state, is_leaving=True), ()
        case e.Hinted():
            return replace(state, look_at_ns=event.now_ns), ()
        case e.Woke():
            return state, ()
        case e.Fenced():
            lost = event.shards & state.owned.keys()
            return _lose(replace(state, look_at_ns=event.now_ns), lost)
        case e.Drained():
            return _drained(state, event)
        case _:
            return _take_answer(state, event)


def _take_answer(state: Member, event: e.Answer) -> tuple[Member, _Told]:
    """Take what an operation of the store came to; that of an earlier session tells nothing."""
    state = replace(
        state,
        is_renewing=state.is_renewing and not event.is_of_lease,
        is_busy=state.is_busy and event.is_of_lease,
    )
    if event.session != state.session:
        return state, ()
    match event:
        case e.Viewed() | e.Claimed() | e.Released() | e.Ended() | e.ShardsFailed():
            return _take_of_shards(state, event)
        case e.Joined() | e.Renewed():
            return _renewed(state, event)
        case e.LeaseEnded() | e.ShardsEnded():
            return _ended(state, event.now_ns)
        case e.StateWritten():
            return replace(state, written=event.state, look_at_ns=event.now_ns), ()
        case e.Refused():
            return replace(state, is_refused=True, look_at_ns=event.now_ns), ()
        case e.LeaseFailed():
            return replace(state, renew_at_ns=event.now_ns + state.timing.retry_ns), ()


def _take_of_shards(
    state: Member, event: e.Viewed | e.Claimed | e.Released | e.Ended | e.ShardsFailed
) -> tuple[Member, _Told]:
    now_ns = event.now_ns
    match event:
        case e.Viewed():
            return _viewed(state, event.view, now_ns)
        case e.Claimed():
            return _gain(replace(state, claimable=(), look_at_ns=now_ns), event.grants)
        case e.Released():
            left = {
                k: v for k, v in state.releasing.items() if ShardGrant(k, v) not in event.grants
            }
            state = replace(state, releasing=left, look_at_ns=now_ns)
            return state, _hint(state)
        case e.Ended():
            rest = {k: v for k, v in state.sightings.items() if k != event.other}
            return replace(state, sightings=rest, look_at_ns=now_ns), ()
        case e.ShardsFailed():
            later_ns = now_ns + state.timing.retry_ns
            return replace(state, look_at_ns=later_ns, shards_at_ns=later_ns, claimable=()), ()


def _renewed(state: Member, event: e.Joined | e.Renewed) -> tuple[Member, _Told]:
    """Answer longer, from when it was *sent*."""
    assert event.sent_ns <= event.now_ns, "an answer comes after what it answers"
    timing = state.timing
    until_ns = max(state.until_ns, event.sent_ns + timing.until_ns)
    state = replace(state, until_ns=until_ns, renew_at_ns=event.sent_ns + timing.renew_ns)
    if isinstance(event, e.Joined):
        state = replace(state, is_joined=True, written="initializing", look_at_ns=event.now_ns)
    return state, (c.AnswerUntil(until_ns),)


def _ended(state: Member, now_ns: int) -> tuple[Member, _Told]:
    """Own nothing any more, and begin anew, or be gone."""
    state, told = _lose(state, frozenset(state.owned))
    state = replace(
        state,
        **_NO_SESSION,
        phase="stopped" if state.is_leaving else "initializing",
        renew_at_ns=now_ns,
        look_at_ns=now_ns,
    )
    return state, (*told, c.AnswerUntil(0), c.Stop() if state.is_leaving else c.Begin())


_NO_SESSION: Final[dict[str, Any]] = {
    "session": "",
    "is_joined": False,
    "is_refused": False,
    "until_ns": 0,
    "releasing": {},
    "claimable": (),
    "surplus": (),
    "sightings": {},
    "free": {},
    "written": "stopped",
}


def _drained(state: Member, event: e.Drained) -> tuple[Member, _Told]:
    """Stop owning what came to rest; it is released next."""
    rested = event.shards & state.handing
    moved = {shard: state.owned[shard] for shard in sorted(rested)}
    state = replace(state, handing=state.handing - event.shards)
    state, told = _lose(state, rested)
    return replace(state, releasing={**state.releasing, **moved}), told


def _lose(state: Member, shards: frozenset[int]) -> tuple[Member, _Told]:
    owned = {shard: epoch for shard, epoch in state.owned.items() if shard not in shards}
    state = replace(state, owned=owned, handing=state.handing - shards)
    return state, (c.Lose(shards),) if shards else ()


def _gain(state: Member, grants: tuple[ShardGrant, ...]) -> tuple[Member, _Told]:
    gained = tuple(grant for grant in grants if grant.shard not in state.releasing)
    state = replace(state, owned={**state.owned, **dict(gained)})
    return state, (c.Gain(gained),) if gained else ()


# --- what a view means --------------------------------------------------------------------------


def _viewed(state: Member, view: ClusterView, now_ns: int) -> tuple[Member, _Told]:
    nodes = living(view)
    sightings = _seen(state, nodes, now_ns)
    is_there = any(node.session == state.session for node in nodes)
    if not state.is_joined:
        state, told = _judge_name(state, nodes, sightings, now_ns)
    elif not is_there:
        return _ended(state, now_ns)
    else:
        addresses = {each.session: each.address for each in nodes if each.session != state.session}
        shards = (row for row in view.shards if row.session in addresses)
        state, told = _compare(state, view)
        told = (*told, c.Point({row.shard: addresses[row.session] for row in shards}))
    # While something is free, it will soon be somebody's: callers want to know whose.
    is_settled = all(row.session for row in view.shards)
    timing = state.timing
    look_at_ns = now_ns + (timing.renew_ns if is_settled else timing.retry_ns)
    state = replace(state, view=view, sightings=sightings, looked_ns=now_ns, look_at_ns=look_at_ns)
    return _wish_for(state, now_ns), told


def _seen(state: Member, nodes: list[NodeRow], now_ns: int) -> dict[str, Sighting]:
    """Return since when the counter of each other node has been as it is now."""
    unwatched_ns = max(0, now_ns - state.looked_ns - 2 * state.timing.renew_ns)
    sightings: dict[str, Sighting] = {}
    for node in nodes:
        known = state.sightings.get(node.session)
        if node.session == state.session:
            continue
        if known is None or known.renewals != node.renewals:
            sightings[node.session] = Sighting(node.renewals, now_ns)
        else:
            since_ns = min(known.since_ns + unwatched_ns, now_ns)
            sightings[node.session] = known._replace(since_ns=since_ns)
    return sightings


def _judge_name(
    state: Member, nodes: list[NodeRow], sightings: Mapping[str, Sighting], now_ns: int
) -> tuple[Member, _Told]:
    """Find out who has the name of a node that was refused.

    It may be this node's own session, whose answer was lost; one that is about to end, as after a
    crash; or another node, which goes on renewing.
    """
    rival = next((node for node in nodes if node.name == state.name), None)
    if rival is None:
        return replace(state, is_refused=False, renew_at_ns=now_ns), ()
    if rival.session == state.session:
        return replace(state, is_joined=True, is_refused=False, renew_at_ns=now_ns), ()
    known = state.sightings.get(rival.session)
    if known is not None and known.renewals != sightings[rival.session].renewals:
        return replace(state, phase="stopped", is_refused=False), (c.Refuse(),)
    return state, ()


def _compare(state: Member, view: ClusterView) -> tuple[Member, _Told]:
    """Bring what this node believes in line with what the store says.

    A claim whose answer was lost is found here; so is a release.
    """
    mine = {row.shard: row.epoch for row in view.shards if row.session == state.session}
    lost = frozenset(k for k, epoch in state.owned.items() if mine.get(k) != epoch)
    releasing = {k: epoch for k, epoch in state.releasing.items() if mine.get(k) == epoch}
    state, told = _lose(replace(state, releasing=releasing), lost)
    found = tuple(
        ShardGrant(shard, epoch)
        for shard, epoch in sorted(mine.items())
        if shard not in state.owned and shard not in releasing
    )
    state, gained = _gain(state, found)
    return state, (*told, *gained)


def _wish_for(state: Member, now_ns: int) -> Member:
    """Decide which free shards to claim, and which of its own should be another's.

    A free shard that is left lying for a ttl is anybody's who may take shards at all.
    """
    view = state.view
    since = {r.shard: state.free.get(r.shard, now_ns) for r in view.shards if not r.session}
    state = replace(state, free=since, claimable=(), surplus=())
    if state.is_leaving or state.phase != "running":
        return state
    quiet = silent(state, now_ns)
    wished = place(view, silent=quiet)
    grace_ns = state.timing.ttl_ns
    takes_any = any(node.session == state.session for node in open_nodes(view, silent=quiet))
    claimable = tuple(
        ShardGrant(row.shard, row.epoch)
        for row in view.shards
        if row.shard in since
        and (
            wished.get(row.shard) == state.name
            or (takes_any and now_ns - since[row.shard] >= grace_ns)
        )
    )
    surplus = tuple(k for k in sorted(state.owned) if wished.get(k, state.name) != state.name)
    return replace(state, claimable=claimable, surplus=surplus)


def _hint(state: Member) -> _Told:
    """Tell the others to look: something is free for them."""
    own = state.session
    addresses = {node.address for node in living(state.view) if node.session != own}
    return (c.Hint(frozenset(addresses)),) if addresses else ()


# --- what to do next ----------------------------------------------------------------------------


def _plan(state: Member, now_ns: int) -> tuple[Member, _Told]:
    """Begin what is due and can begin."""
    if state.phase == "stopped":
        return state, ()
    if state.is_leaving and not state.may_answer(now_ns) and not state.is_renewing:
        # Out already, or cut off from the store: what is left of the lease ends by itself.
        state, told = _lose(state, frozenset(state.owned))
        state = replace(state, **_NO_SESSION, phase="stopped")
        return state, (*told, c.AnswerUntil(0), c.Stop())
    if not state.session:
        return state, ()
    state = replace(state, phase=_phase(state))
    state, lease = _plan_lease(state, now_ns)
    state, shards = _plan_shards(state, now_ns)
    state, moves = _plan_moves(state)
    return state, (*lease, *shards, *moves)


def _phase(state: Member) -> NodeState:
    if not state.is_joined:
        return "initializing"
    if state.is_leaving:
        return "shutting_down"
    return "running" if state.is_ready else "initializing"


def _plan_lease(state: Member, now_ns: int) -> tuple[Member, _Told]:
    is_due = now_ns >= state.renew_at_ns
    if state.is_renewing:
        return state, ()
    busy = replace(state, is_renewing=True)
    if not state.is_joined:
        if not is_due or state.is_refused:
            return state, ()
        return busy, (c.Join(state.session),)
    if is_due:
        return busy, (c.Renew(state.session),)
    if state.written != state.phase:
        return busy, (c.WriteState(state.session, state.phase),)
    return state, ()


def _plan_shards(state: Member, now_ns: int) -> tuple[Member, _Told]:
    if state.is_busy or now_ns < state.shards_at_ns or not (state.is_joined or state.is_refused):
        return state, ()
    busy = replace(state, is_busy=True)
    if state.releasing:
        grants = tuple(ShardGrant(*each) for each in sorted(state.releasing.items()))
        return busy, (c.Release(state.session, grants),)
    if state.is_leaving and not state.owned:
        return busy, (c.End(state.session, state.session, None),)
    ended = _find_ended(state, now_ns)
    if ended is not None:
        return busy, (c.End(state.session, ended, state.sightings[ended].renewals),)
    if state.claimable:
        return busy, (c.Claim(state.session, state.claimable),)
    return (busy, (c.Survey(state.session),)) if now_ns >= state.look_at_ns else (state, ())


def _find_ended(state: Member, now_ns: int) -> str | None:
    """Return a session that was silent for long enough, if this node has looked all the time."""
    if now_ns - state.looked_ns > 2 * state.timing.renew_ns:
        return None
    due = (node.session for node in lease_holders(state) if now_ns >= due_ns(state, node))
    return next(due, None)


def _plan_moves(state: Member) -> tuple[Member, _Told]:
    """Begin to hand over some of what should be another's."""
    if state.handing or state.releasing or not state.owned:
        return state, ()
    surplus = sorted(state.owned) if state.is_leaving else state.surplus
    shards = frozenset([k for k in surplus if k in state.owned][: state.timing.moves_max])
    if not shards:
        return state, ()
    return replace(state, handing=shards), (c.HandOver(shards),)
