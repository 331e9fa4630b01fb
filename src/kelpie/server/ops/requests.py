"""What Kelpie's own routes accept."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from kelpie.core.limits import (
    EVENT_PAGE_ROWS_MAX,
    INTEGER_MAX,
    LABEL_CHARS_MAX,
    LIST_PAGE_ROWS_MAX,
    NAME_CHARS_MAX,
    PATH_BYTES_MAX,
    REQUEST_BODY_BYTES_MAX,
    SHARD_COUNT,
)
from kelpie.storage.records import EffectState

Limit = Annotated[int, Meta(ge=1, le=LIST_PAGE_ROWS_MAX)]
EventLimit = Annotated[int, Meta(ge=1, le=EVENT_PAGE_ROWS_MAX)]
Cursor = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
Reason = Annotated[str, Meta(max_length=4_096)]
Path = Annotated[str, Meta(min_length=1, max_length=PATH_BYTES_MAX)]


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request that knows all its fields."""


class ApprovalListQuery(Strict, frozen=True, kw_only=True):
    """Parameters of ``GET /v1/approvals``; without states, what waits now."""

    state: list[EffectState] | None = None
    after: str | None = None
    limit: Limit = 100


class EffectListQuery(Strict, frozen=True, kw_only=True):
    """Parameters of ``GET /v1/effects``; ``actor`` reads ``type/key``."""

    actor: str | None = None
    state: list[EffectState] | None = None
    after: str | None = None
    limit: Limit = 100
    order: Literal["asc", "desc"] = "asc"


class Decision(Strict, frozen=True, kw_only=True):
    """A yes or no. With ``digest`` it counts only for the effect that has this digest."""

    digest: Annotated[str, Meta(max_length=100)] = ""
    reason: Reason = ""


class Resolution(Strict, frozen=True, kw_only=True):
    """What became of an unknown effect, by a person's word."""

    succeeded: bool
    reason: Annotated[str, Meta(min_length=1, max_length=4_096)]


class EventQuery(Strict, frozen=True, kw_only=True):
    """Parameters of ``GET /v1/events``.

    With ``actor`` (``type/key``) cursors count its own events, without it all of the tenant's.
    """

    actor: str | None = None
    after: Cursor = 0
    limit: EventLimit = 100
    follow: bool = False


class PlanCreate(Strict, frozen=True, kw_only=True):
    """``POST /v1/plans``: a workspace file, or YAML text with the directory it applies to."""

    workspace: Path | None = None
    yaml: Annotated[str, Meta(max_length=REQUEST_BODY_BYTES_MAX)] | None = None
    root: Path | None = None


class PlanListQuery(Strict, frozen=True, kw_only=True):
    """Parameters of ``GET /v1/plans``."""

    after: str | None = None
    limit: Limit = 50


class AuditQuery(Strict, frozen=True, kw_only=True):
    """Parameters of ``GET /v1/audit``; ``after`` reads ``<shard>:<sequence>``."""

    after: Annotated[str, Meta(pattern=r"^\d{1,9}:\d{1,18}$")] | None = None
    limit: Limit = 100


class BackupRequest(Strict, frozen=True, kw_only=True):
    """``POST /v1/store/backup``: an absolute path on the server that does not exist yet."""

    target: Path


class WhereQuery(Strict, frozen=True, kw_only=True):
    """Parameters of ``GET /v1/cluster/where``; ``actor`` reads ``type/key``."""

    actor: str


class NodeMarks(Strict, frozen=True, kw_only=True):
    """``POST /v1/cluster/nodes/{name}``: a draining node is cordoned as well."""

    cordoned: bool
    draining: bool


class PinRequest(Strict, frozen=True, kw_only=True):
    """``POST /v1/cluster/pins``: to a node, apart under a label, or with neither: anywhere."""

    actors: Annotated[list[str], Meta(min_length=1, max_length=SHARD_COUNT)]
    node: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]*$", max_length=NAME_CHARS_MAX)] = ""
    apart: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]*$", max_length=LABEL_CHARS_MAX)] = ""
