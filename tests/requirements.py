"""Every promise that Kelpie makes, by id. A test names the promises it keeps:

    @pytest.mark.requirement("EFFECT-ONCE-UNKNOWN")

tests/tidy fails on a promise without a test and on a test that names no promise listed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CriticalPath = Literal["", "activation", "persistence", "calls", "recovery", "effects"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One promise, in a sentence that a person can check.

    `critical` promises are the ones whose loss would cost a user data, money or trust. Those on a
    critical `path` (actors coming and going, what is kept, calls between actors, failures and
    recovery, effects and approvals) must hold in the simulator too: tests/tidy wants a test there.
    """

    text: str
    critical: bool = False
    path: CriticalPath = ""


PROMISES: dict[str, Requirement] = {
    "ACTOR-CANCELLED-CALLER": Requirement(
        text="A caller that goes away does not tear the turn it asked for.", critical=True
    ),
    "ACTOR-DEADLINE": Requirement(
        text="A call ends at its deadline, with an error that does not claim to know the outcome."
    ),
    "ACTOR-DRAIN": Requirement(
        text="A node that drains refuses new calls at once and settles every turn that it took."
    ),
    "ACTOR-EVICTION": Requirement(
        text="An actor that was evicted comes back as it was.", critical=True, path="activation"
    ),
    "ACTOR-FAILURE-CONTAINED": Requirement(
        text="A bug in one actor, executor or task fails what it serves, and nothing else."
    ),
    "ACTOR-IDEMPOTENCY-KEY": Requirement(
        text="The same key and request give one turn and one reply; another request is refused.",
        critical=True,
        path="persistence",
    ),
    "ACTOR-MESSAGE-ONCE": Requirement(
        text="A message between actors has its effect exactly once, in order, across crashes.",
        critical=True,
        path="calls",
    ),
    "ACTOR-OUTPUT-GATE": Requirement(
        text="A reply or query result leaves only when everything that it read is durable.",
        critical=True,
        path="persistence",
    ),
    "ACTOR-REMINDER-SURVIVES": Requirement(
        text="A reminder fires once it is due, once, also when a process ended meanwhile.",
        critical=True,
    ),
    "AGENT-CALLS-ANSWERED": Requirement(
        text="Every tool call gets exactly one return, however its effect ended."
    ),
    "AUDIT-CHAIN": Requirement(
        text="An audit record that was changed, removed or moved is found and named.", critical=True
    ),
    "CARD-NO-FORGERY": Requirement(
        text="Nothing that a model or a file says can forge or hide a line of a Diff Card.",
        critical=True,
    ),
    "CLUSTER-LEASE": Requirement(
        text="A node that cannot renew its lease answers nothing any more before another takes its "
        "shards, and a session that has ended never comes back.",
        critical=True,
    ),
    "CLUSTER-MEMBERS": Requirement(
        text="Nodes join, leave, crash and come back, and every shard is owned again by one of "
        "those that live.",
        critical=True,
    ),
    "CLUSTER-PLACEMENT": Requirement(
        text="Shards are spread evenly over the nodes and move no more than they must."
    ),
    "CLUSTER-ANY-NODE": Requirement(
        text="Any node answers for any actor: it forwards, and follows the owner when it moves."
    ),
    "CLUSTER-CERTS": Requirement(
        text="Nodes' certificates come from one authority, and their keys are their owner's alone."
    ),
    "CLUSTER-FORWARDED-ONCE": Requirement(
        text="A forwarded command happens at most once, whatever becomes of lines and owners.",
        critical=True,
    ),
    "CLUSTER-FRAMES-BOUNDED": Requirement(
        text="What a node keeps of another's bytes is bounded, and of a stranger's hardly anything."
    ),
    "CLUSTER-FRAMES-FUZZED": Requirement(
        text="Whatever bytes come, a connection ends or what was promised of it holds."
    ),
    "CLUSTER-HISTORY": Requirement(
        text="Whatever becomes of nodes and their database, what was acknowledged is kept, happens "
        "once, and is seen in one order.",
        critical=True,
    ),
    "CLUSTER-NAMES": Requirement(
        text="Of two nodes with one name the second is refused, and the first goes on."
    ),
    "CLUSTER-NEWS": Requirement(text="Readers on one node are woken by what actors do on another."),
    "CLUSTER-PEERS-PROVEN": Requirement(
        text="Only a node that proves the cluster's secret, or its certificate, is talked to.",
        critical=True,
    ),
    "CLUSTER-ROLLING-UPGRADE": Requirement(
        text="Two nodes of neighbouring versions talk in what both of them know."
    ),
    "COPY-ONE-OPEN": Requirement(
        text="Of a store and its copy at most one can be opened, at whatever step the copy ended.",
        critical=True,
    ),
    "CRASH-ANY-STEP": Requirement(
        text="A process that dies at any step loses nothing acknowledged, repeats nothing that "
        "must not be repeated, and resumes what it began.",
        critical=True,
        path="recovery",
    ),
    "DEV-TEST-GROUPS": Requirement(
        text="./dev names the suites that exist when it is asked for one that does not."
    ),
    "DEBUG-REPLAY": Requirement(
        text="A run that happened is lived through again by the shipped machine and held against "
        "its record; a fork of it touches nothing outside."
    ),
    "DRAIN-BOUNDED": Requirement(
        text="A process that is told to stop ends, even when a handler swallows its cancellation: "
        "the log names it, and nothing that was acknowledged is lost."
    ),
    "EFFECT-APPROVAL-BOUND": Requirement(
        text="A yes is bound to the digest of what was shown; for anything else it is refused.",
        critical=True,
        path="effects",
    ),
    "EFFECT-APPROVAL-EXPIRES": Requirement(
        text="A question or an approval whose time has passed counts as no.",
        critical=True,
        path="effects",
    ),
    "EFFECT-APPROVAL-ONCE": Requirement(
        text="An approval is used once, and a second decision changes nothing.",
        critical=True,
        path="effects",
    ),
    "EFFECT-GRANT": Requirement(
        text="A grant covers exactly its members, once each, and is never started itself.",
        critical=True,
        path="effects",
    ),
    "EFFECT-NO-START-WITHOUT-YES": Requirement(
        text="Nothing starts without a verdict of green or a person's yes.",
        critical=True,
        path="effects",
    ),
    "EFFECT-OUTCOME-TOLD": Requirement(
        text="What an executor came to reaches its actor, although the disk fails meanwhile.",
        critical=True,
        path="effects",
    ),
    "EFFECT-ONCE-UNKNOWN": Requirement(
        text="A once effect whose attempt was cut off ends unknown and never runs again by itself.",
        critical=True,
        path="effects",
    ),
    "EFFECT-POLICY-RECHECKED": Requirement(
        text="The policy is asked again when an effect starts, and its newer no wins.",
        critical=True,
        path="effects",
    ),
    "FILES-EXACT-CHANGE": Requirement(
        text="A change set lands as it was approved or not at all, inside its root.", critical=True
    ),
    "PACKAGE-WHEEL": Requirement(
        text="The wheel installed into an empty environment with its declared dependencies runs "
        "`kelpie version` and `kelpie serve`."
    ),
    "POLICY-DENY-WINS": Requirement(
        text="A rule that denies wins over every other rule and every wording.", critical=True
    ),
    "POLICY-NO-WORDING": Requirement(text="No wording turns a write green.", critical=True),
    "POLICY-UNKNOWN-RED": Requirement(
        text="What the policy does not know is never green.", critical=True
    ),
    "SANDBOX-LIMITS": Requirement(
        text="Time, output, processes, memory and disk of a command stay within their bounds.",
        critical=True,
    ),
    "SANDBOX-MOUNTS": Requirement(
        text="A command sees nothing of the host beyond the system and its workspace.",
        critical=True,
    ),
    "SANDBOX-NETWORK": Requirement(
        text="A command reaches no network, the host's loopback included.", critical=True
    ),
    "SANDBOX-NOTHING-SURVIVES": Requirement(
        text="No process of a command outlives it, its caller or Kelpie.", critical=True
    ),
    "SANDBOX-WORKSPACE-UNTOUCHED": Requirement(
        text="A command changes its workspace never by itself; what it wrote is reported.",
        critical=True,
    ),
    "SERVER-KEYS": Requirement(
        text="Beyond the loopback nothing is served without a key.", critical=True
    ),
    "SECRETS-ROTATE": Requirement(
        text="What is encrypted is read by its recipients alone, whatever was rotated since.",
        critical=True,
    ),
    "SETTINGS-SECRETS": Requirement(
        text="A secret in a settings file is refused, and no message repeats it.", critical=True
    ),
    "TELEPORT-FITS": Requirement(
        text="A package goes on only on its own architecture and its own MAJOR.MINOR version."
    ),
    "TELEPORT-HOSTILE": Requirement(
        text="A package that is cut, changed or made to do harm is refused, and changes nothing.",
        critical=True,
    ),
    "TELEPORT-SEALED": Requirement(
        text="An exported actor takes no turn, and what is sent to it waits, until a person says "
        "that its package arrived or takes the export back.",
        critical=True,
    ),
    "TELEPORT-WHOLE": Requirement(
        text="An actor arrives with all that it had, or not at all; once, and held.",
        critical=True,
    ),
    "SIM-FAULT-BY-FAULT": Requirement(
        text="Every fault of the simulator that is built happens where it may, and breaks nothing.",
    ),
    "STORE-STOPPED-ENDS": Requirement(
        text="A server whose store stopped at an unknown commit ends, so that it is started anew.",
    ),
    "STORE-LOG-DAMAGE": Requirement(
        text="Damage in the middle of the log is found at the start; no acknowledged commit that "
        "another one followed is dropped in silence.",
        critical=True,
        path="persistence",
    ),
    "SIM-EXPLORED": Requirement(
        text="A model checker that was cut off says unknown, and one that finds a violation prints "
        "a shortest way to it."
    ),
    "SIM-LINEARIZABLE": Requirement(
        text="The checker of histories agrees with trying every order, and says unknown when it "
        "gave up."
    ),
    "SIM-VERSIONS": Requirement(
        text="A history is held against the versions that its operations committed as."
    ),
    "STORE-ATOMIC": Requirement(
        text="A commit is kept whole or not at all.", critical=True, path="persistence"
    ),
    "STORE-BLOBS": Requirement(
        text="Compacting removes no blob that a row names, or that a turn is about to name.",
        critical=True,
    ),
    "STORE-CORRUPTION": Requirement(
        text="Damaged data is found, named, and never served or taken for an empty state.",
        critical=True,
        path="persistence",
    ),
    "STORE-DURABLE": Requirement(
        text="What was acknowledged is there after the process was killed.",
        critical=True,
        path="persistence",
    ),
    "STORE-FENCED": Requirement(
        text="A commit of an earlier owner is refused.", critical=True, path="persistence"
    ),
    "STORE-LOG": Requirement(
        text="A store whose newest commits were in a log that is gone is refused, by name.",
        critical=True,
    ),
    "STORE-ONE-HOLDER": Requirement(
        text="A second process is refused and told who holds the store.", critical=True
    ),
    "STORE-RESTORE-HELD": Requirement(
        text="A restored store executes nothing until a person releases it.",
        critical=True,
        path="persistence",
    ),
    "STORE-TENANTS": Requirement(text="No tenant sees another's rows.", critical=True),
    "STORE-UNKNOWN-COMMIT": Requirement(
        text="When nobody knows what the disk kept, the store says so and writes nothing more.",
        critical=True,
        path="persistence",
    ),
    "TIDY-BITES": Requirement(text="Every rule of the style program finds a planted offence."),
    # --- simulation ------------------------------------------------------------------------------
    "SIM-COMMANDS": Requirement(
        text="A seed that fails is given again, told, stepped through and made smaller by command.",
    ),
    "SIM-CORPUS": Requirement(
        text="What the simulator found once is run again with every test run.",
    ),
    "SIM-HEALS": Requirement(
        text="Once faults heal, every pending operation ends, every actor answers, effects drain.",
        critical=True,
        path="recovery",
    ),
    "SIM-NODES": Requirement(
        text="A simulated node dies, stops and goes on alone; the others do not notice.",
    ),
    "SIM-PLUGIN": Requirement(
        text="Tests of a user's own actors run in simulated worlds, and a failure replays.",
    ),
    "SIM-SEALED": Requirement(
        text="Whatever would leave a simulated run raises an error that names who tried.",
    ),
    "SIM-MUTANTS": Requirement(
        text="Planted bugs are found by general invariants; the clean tree passes their seeds.",
    ),
    "SIM-ORACLES": Requirement(
        text="Every invariant of the simulator says what is wrong when it does not hold.",
    ),
    "SIM-SEED-REPEATS": Requirement(
        text="A seed gives the same run, step by step, in any process.",
    ),
    "SIM-TUTORIAL": Requirement(
        text="The simulator's tutorial finds its bug, replays it, tells it and repairs it.",
    ),
    # --- end to end ------------------------------------------------------------------------------
    "ANSWER-ONCE": Requirement(
        text="Of several answers to one question exactly one counts; the others are told so.",
        critical=True,
    ),
    "CRASH-INCREMENTS": Requirement(
        text="Under load and killed at any moment, a server loses no acknowledged turn, and a "
        "retry under the same key never makes a second one.",
        critical=True,
    ),
    "CRASH-SIGKILL": Requirement(
        text="A server that is killed at any moment goes on at the next start: each effect keeps "
        "its kind's promise, no acknowledged message is lost, every tool call has its return.",
        critical=True,
    ),
    "DISK-FULL": Requirement(
        text="A full disk is a typed error; nothing that was acknowledged is lost, and the store "
        "takes writes again once there is room.",
        critical=True,
    ),
    "DRAIN": Requirement(
        text="On SIGTERM new requests get a typed 503; what runs finishes, or goes on at the next "
        "start.",
        critical=True,
    ),
    "LETTA-CLIENT": Requirement(
        text="letta-client, as it is published, creates, sends, streams, lists, changes, approves "
        "and deletes, and reads its own types back."
    ),
    "MODEL-GARBAGE": Requirement(
        text="A model that fails or answers garbage ends the step with a typed error, and the "
        "conversation stays usable."
    ),
    "RESTORE-HELD": Requirement(
        text="A restored store starts held: nothing pending is executed before its release, and "
        "what may have run since the copy is unknown.",
        critical=True,
    ),
    "START-WHOLE": Requirement(
        text="A start that fails leaves nothing listening and the store as sound as it was."
    ),
    # --- actor runtime ---------------------------------------------------------------------------
    "ACTOR-API-FROZEN": Requirement(
        text="The public names of the package are a frozen list, and importing it imports nothing.",
    ),
    "ACTOR-API-TYPED": Requirement(
        text="Right calls through references type-check with mypy and pyright; wrong ones do not.",
    ),
    "ACTOR-ARGUMENTS": Requirement(
        text="An argument that does not fit its method is refused, and the error names it.",
    ),
    "ACTOR-ONE-TURN": Requirement(
        text="An actor has one command turn at a time, whatever it awaits.",
        critical=True,
        path="activation",
    ),
    "ACTOR-ONE-EFFECTIVE": Requirement(
        text="A process that lost its store may run a turn, but nothing of it leaves.",
        critical=True,
        path="activation",
    ),
    "ACTOR-FIFO": Requirement(
        text="Commands of one sender have their turns in the order they were sent.",
        critical=True,
        path="calls",
    ),
    "ACTOR-QUERY-INTERLEAVES": Requirement(
        text="A query is answered from the last finished state while a handler waits.",
    ),
    "ACTOR-QUERY-READS-ONLY": Requirement(
        text="A query changes nothing, whatever it does to its copy of the state.",
        critical=True,
    ),
    "ACTOR-REENTRANT-QUERY": Requirement(
        text="A query that comes back along a chain of calls sees the committed state.",
    ),
    "ACTOR-CYCLE": Requirement(
        text="A command that comes back along a chain of calls is a typed error at once.",
    ),
    "ACTOR-CROSSED-CHAINS": Requirement(
        text="Chains that wait for each other end by their deadlines and leave nothing.",
    ),
    "ACTOR-CALL-ORDER": Requirement(
        text="A handler that calls another actor after its first change gets a typed error.",
        critical=True,
    ),
    "ACTOR-DEADLINES": Requirement(
        text="Every call has a deadline, which holds for all the calls below it.",
    ),
    "ACTOR-MAILBOX-BOUND": Requirement(
        text="A full mailbox refuses with a retriable error; nothing queued is dropped.",
        critical=True,
        path="calls",
    ),
    "ACTOR-CANCELLATION": Requirement(
        text="A caller that is cancelled, at whatever await, tears no turn.",
        critical=True,
        path="calls",
    ),
    "ACTOR-ROLLBACK": Requirement(
        text="A handler's exception rolls its turn back and discards the activation, and so does a "
        "state that could not be loaded again.",
        critical=True,
        path="activation",
    ),
    "ACTOR-EXACTLY-ONCE": Requirement(
        text="A message between actors has one turn, in the order of sending.",
        critical=True,
        path="calls",
    ),
    "ACTOR-DEAD-LETTER": Requirement(
        text="A message that fails too often is kept with its traceback, and can be replayed.",
    ),
    "ACTOR-PAUSE": Requirement(
        text="A paused actor's commands wait until it is resumed; queries are answered.",
    ),
    "ACTOR-PAUSE-SURVIVES": Requirement(
        text="A pause and its end are in the store, with who did it, and hold after a restart.",
    ),
    "ACTOR-KILL": Requirement(
        text="A killed actor fails its callers as retriable and is loaded anew.",
    ),
    "ACTOR-STATE-BOUND": Requirement(
        text="A state up to 10 MB is kept whole; a larger one is refused and changes nothing.",
    ),
    "ACTOR-KV": Requirement(
        text="An actor's map is its own, ordered, ranged by cursor, and shows a turn its writes.",
    ),
    "ACTOR-IDEMPOTENCY": Requirement(
        text="A key makes one turn: same request, same reply; another request is an error.",
        critical=True,
        path="persistence",
    ),
    "ACTOR-REMINDERS": Requirement(
        text="Reminders of an actor fire in order, survive a restart, and can be cancelled.",
        critical=True,
        path="persistence",
    ),
    "ACTOR-REMINDERS-CLOCK": Requirement(
        text="No reminder is lost or fires twice when the wall clock jumps, either way.",
        critical=True,
        path="persistence",
    ),
    "ACTOR-REMINDERS-DEAD-LETTER": Requirement(
        text="A reminder that fails too often is kept with its traceback, holds up nothing, and "
        "fires once when it is replayed.",
    ),
    "ACTOR-REMINDERS-MANY": Requirement(
        text="More reminders than memory holds may be due at once: each fires, in order.",
    ),
    "ACTOR-EVENTS": Requirement(
        text="An actor's events are followed by cursor, in order and without gaps.",
    ),
    "ACTOR-EFFECTS": Requirement(
        text="An effect of an actor class passes the gate, and its end is a turn of the actor.",
        critical=True,
    ),
    "ACTOR-STATE-VERSION": Requirement(
        text="An older state is carried forward; one of an unknown version, or with a field that "
        "the class does not have, is refused and never reset.",
        critical=True,
    ),
    "ACTOR-BLOCKING": Requirement(
        text="A handler that holds the event loop is named in the log; one that was held up by "
        "the collector or the machine is not.",
    ),
    "ACTOR-LOOP-LAG": Requirement(
        text="How late the event loop runs is measured every second and exported as a metric.",
    ),
    "ACTOR-SUPERVISION": Requirement(
        text="A background task that fails is restarted, and the failure is reported.",
    ),
    "ACTOR-LOAD-FAILURE": Requirement(
        text="An actor that cannot be loaded fails its call and is never reset.",
        critical=True,
        path="activation",
    ),
    "ACTOR-EAGER": Requirement(
        text="Supervised work begins at once where the interpreter has eager tasks, and in the "
        "loop's next round where it has not.",
    ),
    "ACTOR-FAIRNESS": Requirement(
        text="One hot actor holds the event loop for a bounded number of turns and a bounded time.",
    ),
    "ACTOR-CONCURRENCY": Requirement(
        text="A type has at most its bound of handlers in flight; its actors come in one by one, "
        "in the order in which they asked.",
    ),
    "ACTOR-HOOKS": Requirement(
        text="Each activation runs its hooks once, whatever ends it; a hook that fails loses "
        "nothing.",
    ),
    "ACTOR-MEMORY": Requirement(
        text="An idle resident actor costs at most 512 bytes beside its state.",
    ),
    "ACTOR-TUTORIAL": Requirement(
        text="The tutorial's code runs as it is printed, and does what the text says.",
    ),
    "ACTOR-TRANSFER-CONSERVES": Requirement(
        text="Money moved between actors is neither lost nor made, whatever crashes.",
        critical=True,
        path="calls",
    ),
    # --- submitted calls -------------------------------------------------------------------------
    "CALL-DURABLE": Requirement(
        text="A submitted call that was acknowledged runs, whatever crashes.",
        critical=True,
        path="calls",
    ),
    "CALL-ONCE": Requirement(
        text="A submitted call has one turn, whose commit writes its result.",
        critical=True,
        path="calls",
    ),
    "CALL-KEY": Requirement(
        text="The same key and request name the same call; another request is refused.",
        critical=True,
        path="calls",
    ),
    "CALL-CANCEL": Requirement(
        text="A cancelled call never ran; one that had begun says so and goes on.",
        critical=True,
        path="calls",
    ),
    "CALL-ENDS": Requirement(
        text="A call that its actor refuses ends with that error; one that fails too often is a "
        "dead letter as well, and can be replayed.",
    ),
    "CALL-EXPIRES": Requirement(
        text="What a call came to is kept for a day, within a bound, and then forgotten.",
    ),
    "CALL-WAIT": Requirement(
        text="A look at a call may wait for its end, up to a bound, and no longer.",
    ),
    "REMOTE-APPROVAL-BOUND": Requirement(
        text="An approval given by a program counts for what it was shown, or not at all.",
        critical=True,
    ),
}

# Defects seen in designs of this kind. Each must not come back; K-nn is its number in the list that
# Kelpie was designed against.
KNOWN_DEFECTS: dict[str, Requirement] = {
    "K-01": Requirement(
        text="Who joins a cluster is a member of it: it gets shards, and the others know."
    ),
    "K-02": Requirement(
        text="When a node fails or leaves, its shards are moved, not only planned to be.",
        critical=True,
    ),
    "K-03": Requirement(
        text="Who owns a shard is agreed on by one transaction of the store that all share.",
        critical=True,
    ),
    "K-04": Requirement(
        text="A frame is read whole, however its bytes arrive; what is none ends its connection."
    ),
    "K-05": Requirement(text="Settings are checked at the start, with the field named."),
    "K-06": Requirement(text="The simulator compares values and histories after every crash."),
    "K-08": Requirement(
        text="Concurrent access, deadlock, a data race and a partial write are faults that the "
        "simulator injects, and each ends in a typed error or in nothing."
    ),
    "K-07": Requirement(
        text="The transition functions that ship are explored exhaustively, and breaking one is "
        "found.",
        critical=True,
    ),
    "K-09": Requirement(text="Clocks are skewed and jump in the simulator, and it is counted."),
    "K-10": Requirement(
        text="State changes only inside the owning actor's turns, one after the other.",
        critical=True,
    ),
    "K-11": Requirement(
        text="State and everything that belongs to its change are one transaction.",
        critical=True,
        path="persistence",
    ),
    "K-12": Requirement(
        text="Whatever expires stops counting when it expires, not when it is removed."
    ),
    "K-13": Requirement(
        text="A process that lost its store cannot write to it any more.",
        critical=True,
        path="recovery",
    ),
    "K-14": Requirement(
        text="Taking a store over reads and writes in one transaction.", critical=True
    ),
    "K-15": Requirement(text="Who owns what is read from one snapshot, not piece by piece."),
    "K-16": Requirement(
        text="Of those who want a shard one gets it, and the others learn who.", critical=True
    ),
    "K-17": Requirement(text="Ownership ends with the session that had it."),
    "K-18": Requirement(text="A background task that dies is reported and runs again."),
    "K-19": Requirement(
        text="What a sandbox run is at is its effect's state, which a stale report does not change."
    ),
    "K-20": Requirement(text="A cancelled command leaves nothing, whenever it is cancelled."),
    "K-21": Requirement(
        text="A kill reaches the whole group it is meant for, and no process that came later.",
        critical=True,
    ),
    "K-22": Requirement(text="From the moment the gate closes, no request is accepted."),
    "K-23": Requirement(text="What a reply names can be read, by its tenant alone.", critical=True),
    "K-24": Requirement(
        text="Recovery drives every pending message and effect of an earlier process.",
        critical=True,
        path="recovery",
    ),
    "K-25": Requirement(text="No reader sees a part of a transaction.", critical=True),
    "K-26": Requirement(text="The size of a transaction has a limit, and more is a typed error."),
    "K-27": Requirement(
        text="A copy of the store is checked by SHA-256, and a damaged one restores nothing.",
        critical=True,
    ),
}

# Defects that cannot come back yet, because what had them does not exist here: K-nn and why.
DUE_DEFECTS: dict[str, str] = {}

REQUIREMENTS: dict[str, Requirement] = PROMISES | KNOWN_DEFECTS
