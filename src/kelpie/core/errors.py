"""Every error that crosses a room's border, and the one table of what each means outside.

    KelpieError
    ├── InputError                 the request is wrong; nothing changed
    │   ├── InvalidFieldError      a field has the wrong type, shape or characters
    │   ├── LimitExceededError     a field is larger than its limit
    │   ├── NotFoundError          no such object in this tenant
    │   ├── ConflictError          the object is not in a state that allows this
    │   ├── CallBegunError         a submitted call cannot be taken back any more
    │   ├── CallCancelledError     a submitted call was cancelled before it began
    │   ├── AlreadyDecidedError    an approval was decided before
    │   ├── TargetMovedError       a file is not as it was when its change was approved
    │   ├── ActorMovedError        the actor was exported, and takes no turn here
    │   ├── KeyReusedError         an idempotency key came back with another request
    │   ├── CursorAheadError       a cursor names a position that does not exist yet
    │   ├── CursorExpiredError     a cursor names a position that retention has removed
    │   ├── ConfigError            a setting is unknown, malformed or contradicts another
    │   └── UnauthorizedError      no key, or a wrong one
    ├── BusyError                  try again later; nothing changed
    │   ├── OverloadedError        a bounded queue is full
    │   ├── DrainingError          the node is shutting down
    │   ├── NotOwnerError          another node owns the actor's shard, or nobody does yet
    │   └── DeadlineError          the caller's deadline passed; the outcome may follow
    ├── StoreError                 the store refused or failed
    │   ├── FencedError            this node no longer owns the actor's shard
    │   ├── SessionEndedError      this node's session has ended; it must begin another
    │   ├── VersionConflictError   another turn committed first
    │   ├── MessageGoneError       the message was consumed before
    │   ├── StoreHeldError         another process holds the store, or it is held after a restore
    │   ├── StoreSealedError       the store was copied elsewhere, or is a copy in the making
    │   ├── StoreVersionError      the store's schema is newer than this program
    │   ├── CorruptionError        a checksum or the engine found damage
    │   ├── LogMissingError        the newest commits were in a log that is gone
    │   ├── DiskFullError          no space left
    │   ├── StoreAwayError         the database cannot be reached; nothing was kept
    │   └── CommitUnknownError     the commit's outcome is not known
    ├── CycleError                 a chain of calls came back to an actor in it
    ├── OrderError                 a handler did something at a time when it must not
    ├── DefinitionError            an actor class cannot be hosted as it is written
    ├── ActorFailedError           a turn raised; its changes were rolled back
    ├── UnavailableError           an optional part is missing from this host
    ├── ModelError                 a model provider failed
    ├── SandboxError               a sandbox could not run what it was given
    └── DeniedError                the gate refused an effect

``STATUS`` maps each ``code`` to its HTTP status and its exit status.
"""

from __future__ import annotations

from typing import ClassVar, Final, NamedTuple

from kelpie.core.quoting import quote_text


class Status(NamedTuple):
    """What an error code becomes at the edges."""

    http: int
    exit: int


class KelpieError(Exception):
    """Root of every typed error.

    Attributes:
        code: Stable identifier, part of the public interface.
        retriable: Whether the same request may succeed later, unchanged.
        message: What happened, to which value, and what to do next.
        fields: Structured details, JSON-compatible.
    """

    code: ClassVar[str] = "internal"
    retriable: ClassVar[bool] = False

    def __init__(self, message: str, **fields: str | float | bool | None) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields


class InputError(KelpieError):
    """The request is wrong; nothing changed."""

    code = "invalid_request"


class InvalidFieldError(InputError):
    """A field has the wrong type, shape or characters."""

    code = "invalid_field"

    def __init__(self, field: str, problem: str, **fields: str | float | bool | None) -> None:
        super().__init__(f"{field}: {problem}", field=field, **fields)


class LimitExceededError(InputError):
    """A field is larger than its limit."""

    code = "limit_exceeded"

    def __init__(self, field: str, *, actual: int, limit: int, unit: str, hint: str = "") -> None:
        advice = f"; {hint}" if hint else ""
        message = f"{field} is {actual:,} {unit}, the limit is {limit:,} {unit}{advice}"
        super().__init__(message, field=field, actual=actual, limit=limit, unit=unit)


class NotFoundError(InputError):
    """No such object in this tenant."""

    code = "not_found"

    def __init__(self, kind: str, name: str, *, hint: str = "") -> None:
        said = f"{kind} {name!r} does not exist"
        super().__init__(f"{said}; {hint}" if hint else said, kind=kind, name=name)


class ConflictError(InputError):
    """The object is not in a state that allows this."""

    code = "conflict"


class CallBegunError(ConflictError):
    """A submitted call cannot be taken back: it runs, or has ended.

    Attributes:
        state: What it was at: ``running``, ``completed``, ``failed`` or ``dead``.
    """

    code = "call_begun"

    def __init__(self, call_id: str, state: str) -> None:
        told = "runs already" if state == "running" else f"is {state}"
        message = f"call {call_id} {told}; what was asked for cannot be taken back"
        super().__init__(message, call_id=call_id, state=state)
        self.state = state


class CallCancelledError(ConflictError):
    """A submitted call was cancelled before it began: it never ran, and never will."""

    code = "call_cancelled"


class AlreadyDecidedError(ConflictError):
    """An approval was decided before."""

    code = "already_decided"


class TargetMovedError(ConflictError):
    """A path is neither as its change expects it nor as the change would leave it.

    Attributes:
        path: The first such path, relative to the workspace.
        applied: How many paths were changed before this was noticed; 0 means nothing was touched.
    """

    code = "target_moved"

    def __init__(self, path: str, *, applied: int) -> None:
        touched = f"{applied} path(s) had been written" if applied else "nothing was touched"
        shown = quote_text(path)
        message = f"{shown} changed meanwhile; {touched}; look at it again and ask again"
        super().__init__(message, path=path, applied=applied)
        self.path = path
        self.applied = applied


class ActorMovedError(ConflictError):
    """The actor was exported: nothing happens to it here.

    Attributes:
        is_final: Whether it is elsewhere for good; else the export can still be taken back, and
            what is sent to the actor waits.
    """

    code = "actor_moved"

    def __init__(self, actor: str, *, destination: str, package: str, is_final: bool) -> None:
        done = "moved" if is_final else "was exported"
        step = "" if is_final else "; kelpie teleport abort takes it back, confirm ends it here"
        message = f"{actor} {done} to {quote_text(destination)} as package {package}{step}"
        super().__init__(
            message, actor=actor, destination=destination, package=package, final=is_final
        )
        self.is_final = is_final


class KeyReusedError(InputError):
    """An idempotency key came back with another request."""

    code = "idempotency_key_reused"


class CursorAheadError(InputError):
    """A cursor names a position that does not exist yet."""

    code = "cursor_ahead"


class CursorExpiredError(InputError):
    """A cursor names a position that retention has removed."""

    code = "cursor_expired"


class ConfigError(InputError):
    """A setting is unknown, malformed or contradicts another."""

    code = "invalid_setting"


class UnauthorizedError(InputError):
    """The request carries no key, or a wrong one."""

    code = "unauthorized"


class BusyError(KelpieError):
    """Try again later; nothing changed."""

    code = "busy"
    retriable = True


class OverloadedError(BusyError):
    """A bounded queue is full."""

    code = "overloaded"


class DrainingError(BusyError):
    """The node is shutting down and accepts nothing new."""

    code = "draining"


class NotOwnerError(BusyError):
    """Another node owns the actor's shard, or nobody does yet.

    ``fields["owner"]`` is the owner's address as far as this node knows, empty when it does not.
    """

    code = "not_owner"


class DeadlineError(BusyError):
    """The caller's deadline passed; the turn's outcome may still follow."""

    code = "deadline_exceeded"


class StoreError(KelpieError):
    """The store refused or failed."""

    code = "store_failed"


class FencedError(StoreError):
    """This node no longer owns the actor's shard."""

    code = "fenced"
    retriable = True


class SessionEndedError(StoreError):
    """This node's session has ended for good; the node stops, and may join with another."""

    code = "session_ended"
    retriable = True


class VersionConflictError(StoreError):
    """Another turn committed first."""

    code = "version_conflict"
    retriable = True


class MessageGoneError(StoreError):
    """The message of this turn was consumed before; the turn must not happen again."""

    code = "message_gone"


class StoreHeldError(StoreError):
    """Another process holds the store, or the store is held after a restore."""

    code = "store_held"


class StoreSealedError(StoreError):
    """The store was copied to another and is closed for good, or it is a copy in the making."""

    code = "store_sealed"


class StoreVersionError(StoreError):
    """The store's schema is newer than this program."""

    code = "store_version"


class CorruptionError(StoreError):
    """A checksum or the engine found damage; the damaged value was not served."""

    code = "store_corrupt"


class LogMissingError(StoreError):
    """The database was not closed in order, and the log with its newest commits is gone."""

    code = "store_log_missing"


class DiskFullError(StoreError):
    """No space is left on the store's disk; nothing of the commit was kept."""

    code = "disk_full"
    retriable = True


class StoreAwayError(StoreError):
    """The database does not answer; nothing of what was asked was kept."""

    code = "store_away"
    retriable = True


class CommitUnknownError(StoreError):
    """The commit's outcome is not known; the actor reloads before it answers again."""

    code = "commit_unknown"
    retriable = True


class CycleError(KelpieError):
    """A chain of calls came back to an actor in it, or grew too deep."""

    code = "call_cycle"


class OrderError(KelpieError):
    """A handler did something at a time when it must not; its turn was rolled back."""

    code = "call_order"


class DefinitionError(KelpieError):
    """An actor class cannot be hosted as it is written; the message names the member."""

    code = "invalid_definition"


class ActorFailedError(KelpieError):
    """A turn raised; its changes were rolled back and the activation discarded."""

    code = "actor_failed"


class UnavailableError(KelpieError):
    """An optional part is missing from this host.

    The message says what to install.
    """

    code = "unavailable"


class ModelError(KelpieError):
    """A model provider failed.

    Attributes:
        reason: One of ``auth``, ``quota``, ``rate_limited``, ``timeout``, ``server``,
            ``malformed``, ``too_large``, ``bad_request``, ``unreachable``.
    """

    code = "model_failed"

    def __init__(self, reason: str, message: str, *, status: int | None = None) -> None:
        super().__init__(message, reason=reason, status=status)
        self.reason = reason
        self.status = status


class SandboxError(KelpieError):
    """A sandbox could not run what it was given."""

    code = "sandbox_failed"


class DeniedError(KelpieError):
    """The gate refused an effect."""

    code = "denied"


STATUS: Final[dict[str, Status]] = {
    "internal": Status(500, 70),
    "invalid_request": Status(400, 2),
    "invalid_field": Status(422, 2),
    "limit_exceeded": Status(422, 2),
    "not_found": Status(404, 4),
    "conflict": Status(409, 5),
    "call_begun": Status(409, 5),
    "call_cancelled": Status(409, 5),
    "already_decided": Status(409, 5),
    "target_moved": Status(409, 5),
    "actor_moved": Status(409, 5),
    "idempotency_key_reused": Status(422, 5),
    "cursor_ahead": Status(400, 2),
    "cursor_expired": Status(410, 5),
    "invalid_setting": Status(422, 2),
    "unauthorized": Status(401, 6),
    "busy": Status(503, 75),
    "overloaded": Status(429, 75),
    "draining": Status(503, 75),
    "not_owner": Status(503, 75),
    "deadline_exceeded": Status(504, 75),
    "store_failed": Status(500, 74),
    "fenced": Status(503, 75),
    "session_ended": Status(503, 75),
    "version_conflict": Status(503, 75),
    "message_gone": Status(409, 5),
    "store_held": Status(503, 73),
    "store_sealed": Status(503, 73),
    "store_version": Status(500, 73),
    "store_corrupt": Status(500, 74),
    "store_log_missing": Status(500, 74),
    "disk_full": Status(507, 74),
    "store_away": Status(503, 75),
    "commit_unknown": Status(503, 75),
    "call_cycle": Status(409, 5),
    "call_order": Status(500, 70),
    "invalid_definition": Status(500, 70),
    "actor_failed": Status(500, 70),
    "unavailable": Status(503, 69),
    "model_failed": Status(502, 69),
    "sandbox_failed": Status(500, 70),
    "denied": Status(403, 7),
}
"""Exit statuses follow ``sysexits.h`` where it has one; 4 to 7 are Kelpie's own."""
