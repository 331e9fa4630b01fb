"""Plans: make, list, show, apply."""

from __future__ import annotations

from kelpie.core.errors import InvalidFieldError
from kelpie.server.held import require_released
from kelpie.server.http import Response, json_response
from kelpie.server.operations import Call, Nothing
from kelpie.server.ops.requests import PlanCreate, PlanListQuery
from kelpie.server.ops.responses import PlanList
from kelpie.server.ports import PlanSource


async def create_plan(call: Call[Nothing, PlanCreate]) -> Response:
    """Compare a workspace with what is there; the answer has a diff per unit."""
    body = call.body
    if (body.workspace is None) == (body.yaml is None):
        raise InvalidFieldError("body.workspace", "give either workspace, or yaml with root")
    if body.yaml is not None and body.root is None:
        raise InvalidFieldError("body.root", "is missing; it is the directory the yaml applies to")
    source = PlanSource(
        workspace=body.workspace or "", yaml=body.yaml or "", root=body.root or "", local=call.local
    )
    plan = await call.deps.plans.create(
        source, tenant=call.tenant, principal=call.principal, key=call.key
    )
    return json_response(plan)


async def list_plans(call: Call[PlanListQuery, Nothing]) -> Response:
    """Return plans, newest first."""
    query = call.query
    plans = await call.deps.plans.list(tenant=call.tenant, limit=query.limit, after=query.after)
    return json_response(PlanList(plans=list(plans)))


async def show_plan(call: Call[Nothing, Nothing]) -> Response:
    """Return one plan."""
    return json_response(await call.deps.plans.show(call.path["plan_id"], tenant=call.tenant))


async def apply_plan(call: Call[Nothing, Nothing]) -> Response:
    """Put a plan through the gate as one question; the apply goes on by itself."""
    require_released(call)
    plan = await call.deps.plans.apply(
        call.path["plan_id"], tenant=call.tenant, principal=call.principal, key=call.key
    )
    return json_response(plan)
