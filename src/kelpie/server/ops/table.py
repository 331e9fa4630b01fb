"""Kelpie's own operations."""

from __future__ import annotations

from typing import Any

from kelpie.server.operations import Nothing, Operation
from kelpie.server.ops import cluster, effects, events, health, plans, store
from kelpie.server.ops.requests import (
    ApprovalListQuery,
    AuditQuery,
    BackupRequest,
    Decision,
    EffectListQuery,
    EventQuery,
    NodeMarks,
    PinRequest,
    PlanCreate,
    PlanListQuery,
    Resolution,
    WhereQuery,
)
from kelpie.server.ops.responses import (
    AuditPage,
    AuditSoundness,
    BackupOut,
    ClusterOut,
    EffectOut,
    EffectPage,
    EventPage,
    HealthOut,
    NodeOut,
    PinOut,
    PlanList,
    ShardList,
    StoreHeld,
    StoreSoundness,
    WhereOut,
)
from kelpie.storage.protocol import Compaction, StoreStats

Table = tuple[Operation[Any, Any], ...]


def own_operations() -> Table:
    """Return Kelpie's own operations."""
    return (
        *(*_approvals(), *_effects(), *_events(), *_plans()),
        *(*_audit(), *_store(), *_cluster(), *_health()),
    )


def _approvals() -> Table:
    return (
        Operation(
            method="GET",
            path="/v1/approvals",
            summary="List what waits for a person",
            tag="approvals",
            handler=effects.list_approvals,
            query=ApprovalListQuery,
            body=Nothing,
            response=EffectPage,
        ),
        Operation(
            method="GET",
            path="/v1/approvals/{effect_id}",
            summary="Show one question with its Diff Card",
            tag="approvals",
            handler=effects.show_effect,
            query=Nothing,
            body=Nothing,
            response=EffectOut,
            errors=("not_found",),
        ),
        Operation(
            method="POST",
            path="/v1/approvals/{effect_id}/approve",
            summary="Say yes",
            tag="approvals",
            handler=effects.approve,
            query=Nothing,
            body=Decision,
            response=EffectOut,
            errors=("not_found", "already_decided"),
        ),
        Operation(
            method="POST",
            path="/v1/approvals/{effect_id}/deny",
            summary="Say no",
            tag="approvals",
            handler=effects.deny,
            query=Nothing,
            body=Decision,
            response=EffectOut,
            errors=("not_found", "already_decided"),
        ),
    )


def _effects() -> Table:
    return (
        Operation(
            method="GET",
            path="/v1/effects",
            summary="List effects",
            tag="effects",
            handler=effects.list_effects,
            query=EffectListQuery,
            body=Nothing,
            response=EffectPage,
        ),
        Operation(
            method="GET",
            path="/v1/effects/{effect_id}",
            summary="Show one effect",
            tag="effects",
            handler=effects.show_effect,
            query=Nothing,
            body=Nothing,
            response=EffectOut,
            errors=("not_found",),
        ),
        Operation(
            method="POST",
            path="/v1/effects/{effect_id}/resolve",
            summary="Say what became of an unknown effect",
            tag="effects",
            handler=effects.resolve,
            query=Nothing,
            body=Resolution,
            response=EffectOut,
            errors=("not_found", "conflict"),
        ),
    )


def _events() -> Table:
    return (
        Operation(
            method="GET",
            path="/v1/events",
            summary="Read or follow event logs",
            tag="events",
            handler=events.read_events,
            query=EventQuery,
            body=Nothing,
            response=EventPage,
            errors=("cursor_ahead", "cursor_expired"),
            streams=True,
        ),
    )


def _plans() -> Table:
    return (
        Operation(
            method="POST",
            path="/v1/plans",
            summary="Make a plan",
            tag="plans",
            handler=plans.create_plan,
            query=Nothing,
            body=PlanCreate,
            response=dict[str, Any],
        ),
        Operation(
            method="GET",
            path="/v1/plans",
            summary="List plans",
            tag="plans",
            handler=plans.list_plans,
            query=PlanListQuery,
            body=Nothing,
            response=PlanList,
        ),
        Operation(
            method="GET",
            path="/v1/plans/{plan_id}",
            summary="Show a plan",
            tag="plans",
            handler=plans.show_plan,
            query=Nothing,
            body=Nothing,
            response=dict[str, Any],
            errors=("not_found",),
        ),
        Operation(
            method="POST",
            path="/v1/plans/{plan_id}/apply",
            summary="Apply a plan",
            tag="plans",
            handler=plans.apply_plan,
            query=Nothing,
            body=Nothing,
            response=dict[str, Any],
            errors=("not_found", "conflict", "store_held"),
        ),
    )


def _audit() -> Table:
    return (
        Operation(
            method="GET",
            path="/v1/audit",
            summary="Read the audit chains",
            tag="audit",
            handler=store.list_audit,
            query=AuditQuery,
            body=Nothing,
            response=AuditPage,
        ),
        Operation(
            method="GET",
            path="/v1/audit/verify",
            summary="Verify the audit chains",
            tag="audit",
            handler=store.verify_audit,
            query=Nothing,
            body=Nothing,
            response=AuditSoundness,
        ),
    )


def _store() -> Table:
    return (
        Operation(
            method="GET",
            path="/v1/store/stats",
            summary="Show counts and sizes of the store",
            tag="store",
            handler=store.show_stats,
            query=Nothing,
            body=Nothing,
            response=StoreStats,
        ),
        Operation(
            method="POST",
            path="/v1/store/backup",
            summary="Back the store up (Unix socket only)",
            tag="store",
            handler=store.back_up,
            query=Nothing,
            body=BackupRequest,
            response=BackupOut,
            errors=("local_only", "conflict"),
        ),
        Operation(
            method="POST",
            path="/v1/store/compact",
            summary="Give free space back to the file system (Unix socket only)",
            tag="store",
            handler=store.compact,
            query=Nothing,
            body=Nothing,
            response=Compaction,
            errors=("local_only", "conflict"),
        ),
        Operation(
            method="POST",
            path="/v1/store/release",
            summary="Release a held store (Unix socket only)",
            tag="store",
            handler=store.release,
            query=Nothing,
            body=Nothing,
            response=StoreHeld,
            errors=("local_only",),
        ),
        Operation(
            method="POST",
            path="/v1/store/check",
            summary="Read the whole store and its blobs, and report damage",
            tag="store",
            handler=store.check,
            query=Nothing,
            body=Nothing,
            response=StoreSoundness,
        ),
    )


def _cluster() -> Table:
    return (
        Operation(
            method="GET",
            path="/v1/cluster",
            summary="List the nodes",
            tag="cluster",
            handler=cluster.show_cluster,
            query=Nothing,
            body=Nothing,
            response=ClusterOut,
        ),
        Operation(
            method="GET",
            path="/v1/cluster/shards",
            summary="List the shards and their owners",
            tag="cluster",
            handler=cluster.list_shards,
            query=Nothing,
            body=Nothing,
            response=ShardList,
        ),
        Operation(
            method="GET",
            path="/v1/cluster/where",
            summary="Find the node that serves an actor",
            tag="cluster",
            handler=cluster.find_actor,
            query=WhereQuery,
            body=Nothing,
            response=WhereOut,
        ),
        Operation(
            method="POST",
            path="/v1/cluster/nodes/{name}",
            summary="Cordon or drain a node",
            tag="cluster",
            handler=cluster.mark_node,
            query=Nothing,
            body=NodeMarks,
            response=NodeOut,
            errors=("not_found",),
        ),
        Operation(
            method="POST",
            path="/v1/cluster/pins",
            summary="Pin actors to a node, or keep them apart",
            tag="cluster",
            handler=cluster.pin_actors,
            query=Nothing,
            body=PinRequest,
            response=PinOut,
        ),
    )


def _health() -> Table:
    return (
        Operation(
            method="GET",
            path="/v1/health",
            summary="Say whether the server answers",
            tag="service",
            handler=health.show_health,
            query=Nothing,
            body=Nothing,
            response=HealthOut,
            public=True,
        ),
        Operation(
            method="GET",
            path="/metrics",
            summary="Metrics for Prometheus",
            tag="service",
            handler=health.show_metrics,
            query=Nothing,
            body=Nothing,
            media="text/plain",
            while_draining=True,
        ),
    )
