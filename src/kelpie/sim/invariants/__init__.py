"""What always holds, as predicates over what the world saw become durable.

Every world has them all: an invariant whose subject does not occur in a run holds in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kelpie.sim.invariants.approvals import (
    ApprovalsAreUsedOnce,
    EffectsStepAsAllowed,
    NoMeansNo,
    OnceStartsOnce,
    PeopleSaidYes,
    StartsWithItsApproval,
    TransitionsAreAudited,
)
from kelpie.sim.invariants.audit import AuditIsUnbroken
from kelpie.sim.invariants.basic import EpochsNeverFall, OneEffectiveWriter, VersionsGrow
from kelpie.sim.invariants.keys import (
    OneAnswerPerKey,
    OneObjectPerKey,
    OneTurnPerKey,
    RepliesFollowCommits,
)
from kelpie.sim.invariants.life import CreatedIsReadable, DeletedStaysDeleted, ListsAreTrue
from kelpie.sim.invariants.messages import (
    HeldStoreRests,
    MessagesAreConsumedOnce,
    MessagesKeepTheirOrder,
    NoMessageIsDropped,
    RemindersFireAsSet,
)
from kelpie.sim.invariants.owners import EndedStaysEnded, OwnersWriteAlone
from kelpie.sim.invariants.plans import (
    AppliedIsApproved,
    ReplansAreEmpty,
    UnitsFollowTheirDependencies,
)
from kelpie.sim.invariants.recovery import (
    AcknowledgedIsPresent,
    NothingIsInvented,
    ReadsAreCommitted,
    RecoveredIsWhole,
)
from kelpie.sim.invariants.turns import MailboxesAreBounded, OneTurnAtATime
from kelpie.sim.view import Invariant

INVARIANTS: Final[tuple[Callable[[], Invariant], ...]] = (
    VersionsGrow,
    EpochsNeverFall,
    OneEffectiveWriter,
    OwnersWriteAlone,
    EndedStaysEnded,
    AcknowledgedIsPresent,
    NothingIsInvented,
    RecoveredIsWhole,
    ReadsAreCommitted,
    RepliesFollowCommits,
    OneTurnPerKey,
    OneAnswerPerKey,
    OneObjectPerKey,
    OneTurnAtATime,
    MailboxesAreBounded,
    MessagesAreConsumedOnce,
    MessagesKeepTheirOrder,
    NoMessageIsDropped,
    RemindersFireAsSet,
    DeletedStaysDeleted,
    CreatedIsReadable,
    ListsAreTrue,
    EffectsStepAsAllowed,
    OnceStartsOnce,
    StartsWithItsApproval,
    PeopleSaidYes,
    ApprovalsAreUsedOnce,
    NoMeansNo,
    TransitionsAreAudited,
    AuditIsUnbroken,
    UnitsFollowTheirDependencies,
    AppliedIsApproved,
    ReplansAreEmpty,
    HeldStoreRests,
)
"""How to make each, fresh for a run; they remember."""


def every_invariant() -> list[Invariant]:
    """Return fresh instances of them all."""
    made: list[Invariant] = [make() for make in INVARIANTS]
    assert len({each.name for each in made}) == len(made), "two invariants share a name"
    return made
