"""Every fault by name: what fails, where it is injected, how often a swarm lets it.

A fault is *built* when its subject exists: then it has a place, either in the product (a call of
`kelpie.ports.faults.fault`) or in a simulated port that stands for the outside world (a call of
``fires``). tests/tidy holds names and places against each other, both ways. A fault whose subject
comes with a later part is *due*: it is listed, names that part, and cannot be switched on.

Invariants: names are unique and begin with their group; a due fault has no place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, get_args

Group = Literal[
    "storage",
    "crash",
    "network",
    "time",
    "resource",
    "mcp",
    "model",
    "sandbox",
    "snapshot",
    "migration",
    "concurrency",
]
Place = Literal["product", "world", ""]

GROUPS: Final[tuple[Group, ...]] = get_args(Group)


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultKind:
    """One fault.

    Attributes:
        text: What happens, in a few words.
        place: Whether product code or a simulated port asks for it; empty while it is due.
        rate: How likely it is per occasion when a swarm has chosen it, before scaling.
        count_max: How often a swarm lets it happen in one run.
        seconds: Least and most virtual seconds that it takes, where it takes time.
        damages: Whether it destroys what was durable, so that no promise but "found, never served"
            survives it. Only scenarios about damage ask for it.
        due: The part that brings its subject; empty when it is built.
        reference: Its name in the design that Kelpie was compared with, if it has one there.
    """

    name: str
    text: str
    place: Place
    rate: float = 0.02
    count_max: int = 20
    seconds: tuple[float, float] = (0.0, 0.0)
    damages: bool = False
    due: str = ""
    reference: str = ""

    @property
    def group(self) -> str:
        """The group that its name begins with."""
        return self.name.partition(".")[0]

    @property
    def is_built(self) -> bool:
        """Whether it can be switched on."""
        return not self.due


def _due(name: str, text: str, part: str, reference: str = "") -> FaultKind:
    return FaultKind(name=name, text=text, place="", due=part, reference=reference)


def _product(name: str, text: str, reference: str = "", *, rate: float = 0.02) -> FaultKind:
    return FaultKind(name=name, text=text, place="product", rate=rate, reference=reference)


def _crash(name: str, text: str, reference: str = "", *, rate: float = 0.01) -> FaultKind:
    return FaultKind(
        name=name, text=text, place="product", rate=rate, count_max=2, reference=reference
    )


def _world(
    name: str,
    text: str,
    reference: str = "",
    *,
    rate: float = 0.05,
    count_max: int = 20,
    seconds: tuple[float, float] = (0.0, 0.0),
    damages: bool = False,
) -> FaultKind:
    return FaultKind(
        name=name,
        text=text,
        place="world",
        rate=rate,
        count_max=count_max,
        seconds=seconds,
        damages=damages,
        reference=reference,
    )


_STORAGE: Final = (
    _product("storage.write_fail", "a batch of commits cannot be written", "WriteFail"),
    _product("storage.read_fail", "a read ends with an I/O error", "ReadFail", rate=0.003),
    _product(
        "storage.corruption",
        "a body comes back from the disk with a flipped bit",
        "Corruption",
        rate=0.001,
    ),
    _world("storage.latency", "a disk job takes long", "Latency", seconds=(0.001, 0.5)),
    _product("storage.disk_full", "no space is left for a batch", "DiskFull"),
    _product(
        "storage.partial_write", "the disk fails when half of a batch is written", "PartialWrite"
    ),
    FaultKind(
        name="storage.commit_lost",
        text="COMMIT fails without an outcome, and nothing was kept",
        place="product",
        rate=0.005,
        count_max=2,
    ),
    FaultKind(
        name="storage.commit_kept",
        text="COMMIT fails without an outcome, and everything was kept",
        place="product",
        rate=0.005,
        count_max=2,
    ),
    _product("storage.locked", "another program writes to the store"),
    _product("storage.checkpoint_fail", "a checkpoint of the log fails", rate=0.3),
    _product("storage.open_fail", "the store cannot be opened", rate=0.1),
    _product("storage.sync_fail", "a file cannot be synced"),
    _product("storage.blob_disk_full", "no space is left for a blob", rate=0.1),
    _product("storage.blob_corruption", "a blob comes back with a flipped bit", rate=0.05),
    _product("storage.workspace_write_fail", "a file of a workspace cannot be written", rate=0.05),
    _product("storage.workspace_disk_full", "no space is left in a workspace", rate=0.05),
    _world("storage.torn_write", "the frames of a commit in progress are torn", rate=0.5),
    _world("storage.lost_unsynced", "what was never synced is lost with the power", rate=0.7),
    _world("storage.rename_unsynced", "a name that was not synced is lost", rate=0.5),
    _world("storage.bit_rot", "a bit of a file at rest flips", rate=0.3, damages=True),
    _world(
        "storage.misdirected_write",
        "a page is written to the place of another",
        rate=0.3,
        damages=True,
    ),
)

_CRASH: Final = (
    _crash("crash.before_write", "the process dies before a batch is written", "BeforeWrite"),
    _crash("crash.after_write", "the process dies when a batch is durable", "AfterWrite"),
    _crash(
        "crash.during_transaction",
        "the process dies when half of a transaction is written",
        "DuringTransaction",
    ),
    _crash("crash.during_commit", "the process dies while COMMIT writes its frames"),
    _crash("crash.during_checkpoint", "the process dies while the log moves to the file", rate=0.2),
    _crash("crash.before_directory_sync", "the process dies before a name is synced", rate=0.05),
    _crash("crash.while_opening", "the process dies when it has taken the store", rate=0.1),
    _world("crash.at_any_step", "the process dies between two steps", rate=0.0005, count_max=3),
    _world("crash.power_loss", "the machine loses its power with its processes", rate=0.3),
)

_NETWORK: Final = (
    _world(
        "network.partition",
        "no message passes",
        "Partition",
        rate=0.2,
        seconds=(0.5, 10),
        count_max=3,
    ),
    _world("network.delay", "a message takes long", "Delay", seconds=(0.01, 2)),
    _world("network.packet_loss", "a message is lost", "PacketLoss"),
    _world(
        "network.message_reorder", "a later message passes", "MessageReorder", seconds=(0.01, 0.5)
    ),
    _world("network.duplicate", "a message arrives twice"),
    _world(
        "network.one_way_cut",
        "messages pass in one direction alone",
        rate=0.2,
        seconds=(0.5, 10),
        count_max=3,
    ),
    _world("network.refused", "nobody listens for a moment"),
    _world("network.reset", "a connection is reset in the middle of a stream", rate=0.01),
    _world("network.slow_trickle", "a stream comes in tiny pieces", seconds=(0.01, 0.2)),
    _world(
        "network.swizzle_clog",
        "links stop one after the other and come back in another order",
        rate=0.2,
        seconds=(0.5, 5),
        count_max=3,
    ),
)

_TIME: Final = (
    _world("time.clock_skew", "a machine's clock runs fast or slow", "ClockSkew", count_max=3),
    _world("time.clock_jump", "a machine's wall clock jumps", "ClockJump", seconds=(-3600, 3600)),
    _world("time.node_pause", "a node stops for a while and goes on", seconds=(0.1, 30)),
)

_RESOURCE: Final = (
    _product(
        "resource.out_of_memory", "memory is short: idle actors must leave", "OutOfMemory", rate=0.1
    ),
    _world(
        "resource.cpu_starvation", "a step gets no processor", "CPUStarvation", seconds=(0.01, 2)
    ),
    _product("resource.commit_queue_full", "too many commits wait for the disk", rate=0.01),
    _product("resource.descriptors", "no file descriptor is left for a long read", rate=0.1),
)

_MCP: Final = (
    _due("mcp.server_crash", "a tool server dies", "MCP", "MCP ServerCrash"),
    _due("mcp.slow_start", "a tool server takes long to start", "MCP", "MCP SlowStart"),
    _due("mcp.tool_timeout", "a tool does not answer", "MCP", "MCP ToolTimeout"),
    _due("mcp.tool_fail", "a tool answers with an error", "MCP", "MCP ToolFail"),
)

_MODEL: Final = (
    _world("model.timeout", "the model is silent", "LLM Timeout"),
    _world("model.failure", "the provider answers 500", "LLM Failure"),
    _world("model.rate_limited", "the provider answers 429", "LLM RateLimited"),
    _product(
        "model.agent_loop_panic",
        "the agent's loop raises in a turn",
        "LLM AgentLoopPanic",
        rate=0.01,
    ),
    _world("model.garbage", "the answer is not JSON"),
    _world("model.empty_answer", "the answer says nothing"),
    _world("model.unknown_tool", "the answer calls a tool that does not exist", rate=0.03),
    _world("model.bad_arguments", "a call's arguments are cut", rate=0.03),
    _world("model.cut_answer", "the answer ends without its end"),
)

_SANDBOX: Final = (
    _world("sandbox.boot_fail", "the sandbox cannot be set up", "Sandbox BootFail"),
    _world("sandbox.crash", "the sandbox dies under a command", "Sandbox Crash"),
    _world("sandbox.exec_fail", "the command cannot be started", "Sandbox ExecFail"),
    _world("sandbox.exec_timeout", "the command does not end", "Sandbox ExecTimeout"),
    _world("sandbox.output_flood", "the command prints more than may be kept"),
    _world("sandbox.harvest_fail", "what the command changed cannot be read"),
    _due("sandbox.pause_fail", "a sandbox cannot be paused", "micro-VMs", "Sandbox PauseFail"),
    _due("sandbox.resume_fail", "a sandbox cannot go on", "micro-VMs", "Sandbox ResumeFail"),
)

_SNAPSHOT: Final = (
    _product("snapshot.backup_fail", "a backup breaks off", rate=0.3),
    _world("snapshot.backup_damaged", "a bit of a backup's file flips", rate=0.3),
    _due("snapshot.create_fail", "no snapshot can be made", "micro-VMs", "Snapshot CreateFail"),
    _due("snapshot.corruption", "a snapshot is damaged", "micro-VMs", "Snapshot Corruption"),
    _due("snapshot.restore_fail", "a snapshot does not start", "micro-VMs", "Snapshot RestoreFail"),
    _due("snapshot.too_large", "a snapshot is too large", "micro-VMs", "Snapshot TooLarge"),
)

_MIGRATION: Final = (
    _product("migration.schema_fail", "a change of the store's schema breaks off", rate=0.2),
    _product("migration.upcast_fail", "an old state cannot be brought up to date", rate=0.2),
    _due("migration.upload_fail", "the parcel cannot be sent", "teleport", "Teleport UploadFail"),
    _due("migration.download_fail", "the parcel is lost", "teleport", "Teleport DownloadFail"),
    _due("migration.timeout", "the move takes too long", "teleport", "Teleport Timeout"),
    _due("migration.arch_mismatch", "another processor", "teleport", "Teleport ArchMismatch"),
    _due("migration.image_mismatch", "another image", "teleport", "Teleport ImageMismatch"),
    _due("migration.owner_lost", "the source dies while an actor moves", "cluster"),
)

_CONCURRENCY: Final = (
    _product(
        "concurrency.access_conflict",
        "another turn of the actor committed first",
        "ConcurrentAccessConflict",
    ),
    _product(
        "concurrency.deadlock",
        "the engine breaks a deadlock by refusing the commit",
        "DeadlockDetection",
    ),
    _product(
        "concurrency.data_race",
        "others run between an actor's reading and its installing",
        "DataRace",
        rate=0.3,
    ),
    _product("concurrency.duplicate_delivery", "a message is delivered twice", rate=0.1),
    _product("concurrency.target_moved", "somebody changes a file that was approved", rate=0.05),
    _world("concurrency.approval_late", "a person says yes after the expiry", rate=0.2),
    _world("concurrency.approval_twice", "a person says yes twice", rate=0.3),
    _world("concurrency.approval_never", "nobody answers", rate=0.1),
    _world("concurrency.approval_stale", "a person says yes to another digest", rate=0.2),
    _world("concurrency.approval_contradicted", "yes and no arrive at once", rate=0.2),
    _due("concurrency.lease_lost", "a node's lease lapses while it serves", "cluster"),
)

CATALOGUE: Final[dict[str, FaultKind]] = {
    kind.name: kind
    for group in (
        _STORAGE,
        _CRASH,
        _NETWORK,
        _TIME,
        _RESOURCE,
        _MCP,
        _MODEL,
        _SANDBOX,
        _SNAPSHOT,
        _MIGRATION,
        _CONCURRENCY,
    )
    for kind in group
}


def built(kinds: Iterable[FaultKind] = CATALOGUE.values()) -> tuple[FaultKind, ...]:
    """Return the faults that can be switched on, in the catalogue's order."""
    return tuple(kind for kind in kinds if kind.is_built)


def find_kind(name: str) -> FaultKind:
    """Return the built fault ``name``.

    Raises:
        KeyError: There is no such fault, or it is due; the message says which.
    """
    kind = CATALOGUE.get(name)
    if kind is None:
        raise KeyError(f"{name} is not in the catalogue of faults")
    if kind.due:
        raise KeyError(f"{name} comes with {kind.due}; it cannot be switched on yet")
    return kind
