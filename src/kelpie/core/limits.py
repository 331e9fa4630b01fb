"""Every bound of the product, with its unit in the name and its reason beside it.

A queue, loop, retry, payload or timeout without a constant here is a defect. Relations between the
bounds are asserted when this module is imported, so that a wrong edit cannot start.

Fixed here before what they bound exists, and so not in force: snapshots, working memory.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- identity ---------------------------------------------------------------------------------
ACTOR_ID_BYTES_MAX: Final = 256  # fits an index page several times over
NAME_CHARS_MAX: Final = 256  # names of agents, tools, blocks: one line on a screen
LABEL_CHARS_MAX: Final = 50  # a block's label is an XML-ish tag in the prompt
IDEMPOTENCY_KEY_BYTES_MAX: Final = 255  # the header's common bound in the field
SHARD_COUNT: Final = 256  # a power of two; one audit chain and one epoch each

# --- actors -----------------------------------------------------------------------------------
ACTOR_STATE_BYTES_MAX: Final = 10 * MIB  # more belongs in KV rows or blobs
TRANSACTION_BYTES_MAX: Final = 10 * MIB + 256 * KIB  # one whole state, and the rows beside it
TRANSACTION_OPERATIONS_MAX: Final = 10_000  # keeps the writer's lock under a second
MAILBOX_DEPTH_MAX: Final = 1_024  # calls waiting for one actor before back-pressure
INVOCATION_TIMEOUT_MS: Final = 30_000  # default deadline of a call
INVOCATION_TIMEOUT_MS_MAX: Final = 600_000  # longest deadline a caller may ask for
CALL_DEPTH_MAX: Final = 16  # a chain of actors that is deeper is a cycle in disguise
IDEMPOTENCY_TTL_MS: Final = 86_400_000  # one day: longer than any retry loop
CALL_TTL_MS: Final = 86_400_000  # an ended call's result: as long as an idempotency key
CALLS_KEPT_MAX: Final = 1_000_000  # of a tenant, pending and ended; the oldest ended ones go first
CALL_WAIT_MS_MAX: Final = 60_000  # one look at a call may wait so long for its end
PAUSED_ACTORS_MAX: Final = 100_000  # of a store; all of them are in memory
MESSAGE_ATTEMPTS_MAX: Final = 5  # then the message is a dead letter
MESSAGE_BYTES_MAX: Final = 4 * MIB  # one actor message or call payload
RESIDENT_ACTORS_MAX: Final = 1_000_000  # the design point of one process
RESIDENT_BYTES_MAX: Final = 1_024 * MIB  # states in memory with their actors' own records
RESIDENT_RECORD_BYTES: Final = 512  # what an idle actor costs beside its state
TURNS_PER_TICK_MAX: Final = 256  # answered inline before the loop gets a chance
TURNS_PER_QUICK_TICK_MAX: Final = 1_024  # the same, while ticks are shorter than the next line
TURNS_MS_PER_TICK_MAX: Final = 10  # of one mailbox, however many turns that is
TURNS_PER_STEP_MIN: Final = 4  # of one caller among many, before the next one's
BLOCKING_MS_MAX: Final = 100  # code that holds the loop longer is named in the log
FAILURE_TRACE_CHARS_MAX: Final = 16 * KIB  # of a traceback kept with a dead letter
FAILURE_BYTES_MAX: Final = 8 * FAILURE_TRACE_CHARS_MAX  # traceback and message, as UTF-8
DEAD_LETTERS_PAGE_MAX: Final = 1_000
EVENT_BYTES_MAX: Final = 1 * MIB  # one row of an event log
EVENT_PAGE_ROWS_MAX: Final = 1_000
REMINDER_NAME_CHARS_MAX: Final = 256
KV_KEY_BYTES_MAX: Final = 512
KV_VALUE_BYTES_MAX: Final = 4 * MIB  # one message of a conversation with its images
LIST_PAGE_ROWS_MAX: Final = 1_000
INTEGER_MIN: Final = -(2**63)  # what SQLite and PostgreSQL hold
INTEGER_MAX: Final = 2**63 - 1

# --- nodes ------------------------------------------------------------------------------------
LEASE_TTL_MS: Final = 5_000  # how long a node may be silent before another takes its shards
LEASE_TTL_MS_MIN: Final = 500  # below, a slow commit of the store costs a lease
LEASE_TTL_MS_MAX: Final = 60_000
LEASE_RENEWALS_PER_TTL: Final = 3  # two may be lost
LEASE_MARGIN_PARTS: Final = 10  # the margin on either side of a lease's end: a tenth of it
CLOCK_RATE_PPM_MAX: Final = 10_000  # how wrong a clock's rate may be; a kernel slews by 500
SHARD_MOVES_MAX: Final = 16  # what one node hands over at a time
DRAIN_TIMEOUT_MS: Final = 20_000  # below systemd's 90 s, above one model call's usual length

# --- storage ----------------------------------------------------------------------------------
COMMIT_BATCH_ROWS_MAX: Final = 512  # actor commits in one transaction (group commit)
COMMIT_QUEUE_DEPTH_MAX: Final = 16_384  # commits waiting for the writer before back-pressure
COMMIT_BATCH_BYTES_MAX: Final = 32 * MIB  # a batch of large states stays well below a second
COMMIT_QUEUE_BYTES_MAX: Final = 256 * MIB  # memory that waiting commits may hold
STATE_CHUNK_BYTES: Final = 256 * KIB  # a larger state is kept in rows of this size
COMPACT_SLICE_PAGES: Final = 256  # 1 MB moved between two batches of commits
STATE_INLINE_READ_BYTES_MAX: Final = 1 * MIB  # a larger state is read beside the event loop
PURGE_SLICE_ROWS: Final = 64  # rows of deleted actors removed per batch; each may be 4 MiB
LIST_CURSOR_TTL_MS: Final = 3_600_000  # how long a deleted item keeps its place for a cursor
WAL_CHECKPOINT_PAGES: Final = 1_000  # 4 MB of log: twice as much stalls commits half as long again
BACKUP_STEP_PAGES: Final = 1_024  # 4 MB between two chances for other work
DATABASE_WRITERS: Final = 4  # connections of one node that write; a shard keeps to one of them
DATABASE_READERS: Final = 3  # connections of one node that read; one more renews its lease
DATABASE_STATEMENT_MS_MAX: Final = 10_000  # a batch of large states on a slow disk, with room
DATABASE_IDLE_MS_MAX: Final = 5_000  # inside a transaction: a stopped node holds nobody up longer
DATABASE_LOCK_MS_MAX: Final = 500  # that a claim waits for the shard's last batch, and tries again
DATABASE_CONNECT_MS_MAX: Final = 10_000
DATABASE_AWAY_MS_MAX: Final = 20_000  # then an outcome that nobody can ask for is unknown
DATABASE_RETRY_MS: Final = 100  # between two tries to reach the database
DATABASE_ATTEMPTS_MAX: Final = 8  # of one batch, when others' locks were in the way
DISK_FREE_BYTES_MIN: Final = 64 * MIB  # below this, `doctor` warns
BLOB_BYTES_MAX: Final = 256 * MIB
BLOB_UNNAMED_KEEP_MS: Final = 86_400_000  # put, and not named by a commit yet
SNAPSHOT_BYTES_MAX: Final = 1024 * MIB
COPY_PAGE_ROWS: Final = 64  # rows of one step of a copy; each may be a whole state

# --- packages ---------------------------------------------------------------------------------
PACKAGE_FRAME_BYTES_MAX: Final = 1 * MIB  # one frame; what a reader must be ready to hold
PACKAGE_HEAD_BYTES_MAX: Final = 64 * KIB  # far above the facts of one actor
PACKAGE_PARTS_MAX: Final = 50_000  # every changed path, every blob and every table
PACKAGE_BYTES_MAX: Final = 2 * SNAPSHOT_BYTES_MAX  # a whole package: rows, blobs and workspace
PACKAGE_ROWS_BYTES_MAX: Final = 256 * MIB  # an actor's rows, which arrive in one transaction
PACKAGE_TREE_BYTES_MAX: Final = 64 * MIB  # the listing of a workspace with the longest paths
EXPORT_REST_TIMEOUT_MS: Final = 30_000  # for the turn that runs when an export begins

# --- effects ----------------------------------------------------------------------------------
EFFECT_ARGS_BYTES_MAX: Final = 4 * MIB
EFFECT_RESULT_BYTES_MAX: Final = 4 * MIB
EFFECTS_OPEN_PER_ACTOR_MAX: Final = 256  # a fan-out wider than this is a bug or an attack
EFFECT_ATTEMPTS_MAX: Final = 5  # repeatable and keyed effects, after restarts or transient errors
EFFECT_CASCADE_MAX: Final = 64  # verdicts fed back to a machine within one turn
APPROVAL_TTL_MS: Final = 3_600_000  # a question nobody answers within an hour is denied
APPROVAL_TTL_MS_MAX: Final = 7 * 86_400_000
GRANT_MEMBERS_MAX: Final = 1_000  # effects one approval may cover
EXECUTOR_MARGIN_MS: Final = 2_000  # between an executor's own stop and `not_after`
MODEL_CALLS_CONCURRENT_MAX: Final = 64
COMMANDS_CONCURRENT_MAX: Final = 8  # jails at once on one node
FILES_CONCURRENT_MAX: Final = 16
STREAM_ROW_BYTES_MAX: Final = 64 * KIB
DIFF_LINES_MAX: Final = 2_000  # a card shows this much and says how much more there is

# --- agents -----------------------------------------------------------------------------------
CORE_MEMORY_BYTES_MAX: Final = 32 * KIB  # all blocks of one agent, rendered into every prompt
BLOCK_CHARS_DEFAULT: Final = 16 * KIB  # a block's own limit when none is given
BLOCKS_PER_AGENT_MAX: Final = 64
WORKING_MEMORY_BYTES_MAX: Final = 1 * MIB
STEPS_PER_RUN_MAX: Final = 50  # model calls in answer to one user message
TOKENS_PER_RUN_MAX: Final = 1_000_000
REPAIRS_PER_RUN_MAX: Final = 3  # malformed answers handed back to the model before giving up
TOOL_CALLS_PER_STEP_MAX: Final = 32
RUNS_QUEUED_PER_AGENT_MAX: Final = 64
MESSAGE_TEXT_CHARS_MAX: Final = 1_000_000
SYSTEM_PROMPT_CHARS_MAX: Final = 256 * KIB
TOOLS_PER_AGENT_MAX: Final = 256
CONTEXT_MESSAGES_MAX: Final = 2_000
CONTEXT_BYTES_MAX: Final = 16 * MIB  # one request to a model; far above any context window
MESSAGES_PER_RUN_MAX: Final = 256  # what one request may bring
MESSAGE_ROW_BYTES_MAX: Final = 1 * MIB - 4 * KIB  # a transcript message is an event row as well
RUN_INPUT_BYTES_MAX: Final = 2 * MIB  # twice in one transaction: as rows and as events
RUNS_QUEUED_BYTES_MAX: Final = 4 * MIB  # queued messages wait in the agent's state
RUNS_REMEMBERED_MAX: Final = 64  # ids of finished runs, so that a late repeat starts nothing
ANSWER_BYTES_MAX: Final = 512 * KIB  # a longer answer of a model is garbage
TOOL_RETURN_BYTES_MAX: Final = 64 * KIB  # then cut, and the text says so
CONFIG_BYTES_MAX: Final = 1 * MIB + 512 * KIB  # an agent's whole configuration with its blocks
ERROR_TEXT_CHARS_MAX: Final = 2_000  # of a failure, as kept in a run or told to a model

# --- models -----------------------------------------------------------------------------------
MODEL_TIMEOUT_MS: Final = 120_000
MODEL_CONNECT_TIMEOUT_MS: Final = 10_000
MODEL_RETRIES_MAX: Final = 4
MODEL_RETRY_DELAY_MS_MIN: Final = 250
MODEL_RETRY_DELAY_MS_MAX: Final = 20_000
MODEL_RESPONSE_BYTES_MAX: Final = 4 * MIB
MODEL_EVENT_BYTES_MAX: Final = 1 * MIB  # one server-sent event
MODEL_ERROR_BYTES_MAX: Final = 64 * KIB  # how much of a refusal's body is read
MODEL_ERROR_CHARS_MAX: Final = 500  # how much of a provider's own words an error repeats
MODEL_DRAIN_TIMEOUT_MS: Final = 250  # after the last event, so that the connection can be kept
MODEL_ANSWER_TOKENS_DEFAULT: Final = 8_192  # one wire demands a number where none was asked for

# --- sandbox ----------------------------------------------------------------------------------
SANDBOX_MEMORY_BYTES: Final = 512 * MIB
SANDBOX_PROCESSES_MAX: Final = 128
SANDBOX_OUTPUT_BYTES_MAX: Final = 1 * MIB  # then cut, and the result says so
SANDBOX_TIMEOUT_MS: Final = 60_000
SANDBOX_TIMEOUT_MS_MAX: Final = 600_000
SANDBOX_START_TIMEOUT_MS: Final = 5_000
SANDBOX_SCRATCH_BYTES_MAX: Final = 1024 * MIB
WORKSPACE_FILE_BYTES_MAX: Final = 8 * MIB  # one file read or written by a tool
WORKSPACE_ENTRIES_MAX: Final = 20_000  # changed paths in one change set; entries of one listing
PATH_BYTES_MAX: Final = 4_096
ARGUMENTS_MAX: Final = 1_024  # argv entries of one command
ARGUMENTS_BYTES_MAX: Final = 128 * KIB

# --- plans ------------------------------------------------------------------------------------
PLAN_UNITS_MAX: Final = 1_000
PLAN_UNITS_RUNNING_MAX: Final = 8  # half of what a node's file executor takes: plans share it
PLAN_UNIT_TIMEOUT_MS: Final = 60_000  # one file on a slow disk, with room
PLAN_BYTES_MAX: Final = 768 * KIB  # an encoded plan; with its diffs it fits one event
PLAN_DIFF_BYTES_MAX: Final = 192 * KIB  # diff text of one plan's card; it says how much is hidden
PLAN_CONFIG_BYTES_MAX: Final = 1 * MIB  # one YAML workspace
PLAN_CONFIG_NODES_MAX: Final = 100_000  # bounds the time and memory of parsing
PLAN_CONFIG_DEPTH_MAX: Final = 8  # a valid workspace nests four deep
PLAN_CONTENT_BYTES_MAX: Final = 64 * MIB  # all file contents of a workspace, in memory at once

# --- server -----------------------------------------------------------------------------------
PORT_DEFAULT: Final = 8283
REQUEST_BODY_BYTES_MAX: Final = 16 * MIB
REQUEST_HEADERS_BYTES_MAX: Final = 64 * KIB
REQUEST_RECEIVE_TIMEOUT_MS: Final = 60_000  # the largest body over 2.3 Mbit/s; then it is a hold-up
CONNECTIONS_MAX: Final = 8_192  # per listener; every stream, and as many callers again
STREAM_PING_INTERVAL_MS: Final = 15_000
STREAMS_CONCURRENT_MAX: Final = 4_096

# --- settings ---------------------------------------------------------------------------------
SETTINGS_FILE_BYTES_MAX: Final = 256 * KIB  # far above any file a person wrote
SECRET_BYTES_MAX: Final = 16 * KIB  # a key or a token, not an archive named by mistake

# --- simulator --------------------------------------------------------------------------------
SIMULATION_STEPS_MAX: Final = 3_000_000  # ten times a long run; then it spins

assert ACTOR_STATE_BYTES_MAX < TRANSACTION_BYTES_MAX, "a whole state must fit one transaction"
assert RESIDENT_RECORD_BYTES * RESIDENT_ACTORS_MAX < RESIDENT_BYTES_MAX, "a million idle ones fit"
assert TURNS_PER_STEP_MIN <= TURNS_PER_TICK_MAX <= TURNS_PER_QUICK_TICK_MAX
assert LEASE_TTL_MS_MIN <= LEASE_TTL_MS <= LEASE_TTL_MS_MAX
assert LEASE_RENEWALS_PER_TTL >= 3, "two lost renewals end no lease"
assert LEASE_TTL_MS_MIN % (LEASE_MARGIN_PARTS * 5) == 0, "a margin is a whole number"
assert 2 * CLOCK_RATE_PPM_MAX * LEASE_MARGIN_PARTS <= 1_000_000, (
    "clocks that drift apart use up half of the margin at most"
)
assert LEASE_RENEWALS_PER_TTL * (LEASE_MARGIN_PARTS - 2) >= LEASE_MARGIN_PARTS * 2, (
    "a renewal is due long before its lease ends"
)
assert BLOB_UNNAMED_KEEP_MS > 10 * INVOCATION_TIMEOUT_MS_MAX, "a turn names its blobs in time"
assert IDEMPOTENCY_TTL_MS > 2 * INVOCATION_TIMEOUT_MS_MAX, "a key outlives every deadline"
assert INVOCATION_TIMEOUT_MS <= INVOCATION_TIMEOUT_MS_MAX
assert CORE_MEMORY_BYTES_MAX >= BLOCK_CHARS_DEFAULT, "one default block fits core memory"
assert STEPS_PER_RUN_MAX * (TOOL_CALLS_PER_STEP_MAX + 1) + MESSAGES_PER_RUN_MAX <= (
    CONTEXT_MESSAGES_MAX
), "a whole run fits the window, so trimming never cuts inside one"
assert MESSAGE_ROW_BYTES_MAX < EVENT_BYTES_MAX, "a message with its envelope fits an event row"
assert TOOL_CALLS_PER_STEP_MAX * TOOL_RETURN_BYTES_MAX + RUNS_QUEUED_BYTES_MAX < (
    ACTOR_STATE_BYTES_MAX - CONFIG_BYTES_MAX - ANSWER_BYTES_MAX
), "a step's results, the queue and the configuration fit one state"
assert SANDBOX_TIMEOUT_MS <= SANDBOX_TIMEOUT_MS_MAX
assert APPROVAL_TTL_MS <= APPROVAL_TTL_MS_MAX
assert WORKSPACE_FILE_BYTES_MAX <= BLOB_BYTES_MAX
assert EFFECT_ARGS_BYTES_MAX <= TRANSACTION_BYTES_MAX
assert PLAN_BYTES_MAX + PLAN_DIFF_BYTES_MAX < EVENT_BYTES_MAX, "a plan's card fits one event"
assert PLAN_UNITS_MAX <= GRANT_MEMBERS_MAX, "one approval covers a whole plan"
assert PLAN_UNITS_RUNNING_MAX <= FILES_CONCURRENT_MAX
assert KV_VALUE_BYTES_MAX <= TRANSACTION_BYTES_MAX
assert TRANSACTION_BYTES_MAX <= COMMIT_BATCH_BYTES_MAX <= COMMIT_QUEUE_BYTES_MAX
assert STATE_CHUNK_BYTES <= ACTOR_STATE_BYTES_MAX
assert ACTOR_STATE_BYTES_MAX < PACKAGE_ROWS_BYTES_MAX < PACKAGE_BYTES_MAX
assert WORKSPACE_ENTRIES_MAX < PACKAGE_PARTS_MAX
assert DATABASE_WRITERS + DATABASE_READERS + 1 <= 8, "a fixed handful of connections per node"
assert DATABASE_STATEMENT_MS_MAX < DATABASE_AWAY_MS_MAX, "a lost batch ends before it is given up"
assert (
    COMMIT_BATCH_ROWS_MAX * 2 * TRANSACTION_OPERATIONS_MAX
    > 2**20
    > (2 * TRANSACTION_OPERATIONS_MAX)
), "a batch is cut by its rows, so that their ordinals fit 20 bits"
assert MODEL_RETRY_DELAY_MS_MIN < MODEL_RETRY_DELAY_MS_MAX < MODEL_TIMEOUT_MS
assert SHARD_COUNT & (SHARD_COUNT - 1) == 0
