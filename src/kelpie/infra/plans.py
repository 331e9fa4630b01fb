"""Plans as the edges ask for them: made from a workspace, shown, listed, applied.

Owns no state: a plan is an actor. Replies are JSON-compatible mappings.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from kelpie.actors.calls import Calls
from kelpie.core.digests import digest_value
from kelpie.core.errors import (
    ConflictError,
    InvalidFieldError,
    KelpieError,
    KeyReusedError,
    NotFoundError,
)
from kelpie.core.ids import Tenant, derive_uuid, require_prefixed_id
from kelpie.core.quoting import quote_text
from kelpie.infra.config import Desired, Loader
from kelpie.infra.discover import OpenTarget
from kelpie.infra.messages import (
    COLLECTION,
    ApplyPlan,
    CreatePlan,
    PlanState,
    PlanSummary,
    ShowPlan,
    ShowTarget,
    plan_actor,
    target_actor,
)
from kelpie.infra.service import diff_plan, plan_workspace
from kelpie.ports.rng import Rng
from kelpie.storage.protocol import EventStore
from kelpie.storage.records import Page

ID_PREFIX: Final = "plan"


class RequireRoot(Protocol):
    """Says which directories a caller may have planned for."""

    def __call__(self, directory: str, *, local: bool) -> str:
        """Return the directory with links resolved.

        Raises:
            InvalidFieldError: It is not allowed.
        """
        ...


_decode_summary = msgspec.msgpack.Decoder(PlanSummary).decode


class Plans:
    """The plan service over the actor runtime."""

    def __init__(
        self,
        *,
        runtime: Calls,
        store: EventStore,
        loader: Loader,
        open_target: OpenTarget,
        require_root: RequireRoot,
        rng: Rng,
    ) -> None:
        self._runtime = runtime
        self._store = store
        self._loader = loader
        self._open_target = open_target
        self._require_root = require_root
        self._rng = rng

    async def create(
        self,
        *,
        workspace: str = "",
        yaml: str = "",
        root: str = "",
        local: bool,
        tenant: Tenant,
        principal: str,
        key: str | None,
    ) -> dict[str, Any]:
        """Make a plan from the file ``workspace``, or from the text ``yaml``, for ``root``.

        Without ``root`` the workspace file's own directory is meant. ``local`` says that the
        caller is the user that Kelpie runs as. The same request under the same ``key`` is answered
        with the plan that it made the first time, whatever has changed on the target since.

        Raises:
            InputError: The workspace is wrong; the error names file, unit and field.
            SandboxError: The target cannot be read.
        """
        asked = ("create", tenant, principal, workspace, yaml, root)
        plan_id = f"{ID_PREFIX}-{self._derive_id(key, asked)}"
        if key is not None and await self._exists(plan_id, tenant):
            return await self.show(plan_id, tenant=tenant)
        desired = await self._load(workspace, yaml)
        directory = self._require_root(root or str(Path(workspace).parent), local=local)
        holding = await self._runtime.query(target_actor(tenant, directory), ShowTarget())
        target = self._open_target(directory)
        plan = await plan_workspace(desired=desired, root=directory, target=target, holding=holding)
        actor = plan_actor(tenant, plan_id)
        try:
            await self._runtime.call(actor, CreatePlan(plan=plan), principal=principal, key=key)
        except (ConflictError, KeyReusedError):
            # The same request ran beside this one, and the target changed in between.
            if not await self._exists(plan_id, tenant):
                raise
        return await self.show(plan_id, tenant=tenant)

    async def show(self, plan_id: str, *, tenant: Tenant) -> dict[str, Any]:
        """Return one plan with its units and, while it can still be applied, their diffs.

        Raises:
            NotFoundError: There is none of this id.
        """
        state = await self._query(plan_id, tenant)
        assert state.plan is not None, "a plan that answers was created"
        plan = state.plan
        shown: dict[str, Any] = msgspec.to_builtins(
            {
                "plan_id": state.plan_id,
                "status": state.status,
                "root": plan.root,
                "source": plan.source,
                "digest": plan.digest,
                "has_changes": plan.has_changes,
                "counts": plan.count_actions(),
                "run_id": state.run_id,
                "grant": state.grant,
                "note": state.note,
                "created_ms": state.created_ms,
                "finished_ms": state.finished_ms,
                "units": [
                    {
                        "unit_id": unit.unit_id,
                        "type": unit.type,
                        "path": unit.path,
                        "action": unit.action,
                        "depends_on": unit.depends_on,
                        **msgspec.structs.asdict(state.units[unit.unit_id]),
                    }
                    if unit.unit_id in state.units
                    else {
                        "unit_id": unit.unit_id,
                        "type": unit.type,
                        "path": unit.path,
                        "action": unit.action,
                        "depends_on": unit.depends_on,
                    }
                    for unit in plan.units
                ],
            }
        )
        return shown | await self._diffs(state)

    async def list(self, *, tenant: Tenant, limit: int, after: str | None) -> list[dict[str, Any]]:
        """Return plans, newest first."""
        page = Page(tenant=tenant, limit=limit, after=after, descending=True)
        items = await self._store.list_page(COLLECTION, page)
        return [msgspec.to_builtins(_decode_summary(item.body)) for item in items]

    async def apply(
        self, plan_id: str, *, tenant: Tenant, principal: str, key: str | None
    ) -> dict[str, Any]:
        """Put the plan through the gate and return it; the apply goes on by itself.

        Raises:
            NotFoundError: There is none of this id.
            ConflictError: It is being applied or was applied before.
        """
        await self._query(plan_id, tenant)
        run_id = f"run-{self._derive_id(key, ('apply', tenant, principal, plan_id))}"
        actor = plan_actor(tenant, plan_id)
        await self._runtime.call(actor, ApplyPlan(run_id=run_id), principal=principal, key=key)
        return await self.show(plan_id, tenant=tenant)

    def _derive_id(self, key: str | None, asked: tuple[str, ...]) -> str:
        """Return an id: new without a ``key``, and with it the same for the same request."""
        if key is None:
            return derive_uuid(self._rng.bytes(16), 0)
        return derive_uuid(digest_value([key, *asked]).encode(), 0)

    async def _exists(self, plan_id: str, tenant: Tenant) -> bool:
        try:
            await self._query(plan_id, tenant)
        except NotFoundError:
            return False
        return True

    async def _query(self, plan_id: str, tenant: Tenant) -> PlanState:
        require_prefixed_id("plan_id", plan_id, ID_PREFIX)
        state = await self._runtime.query(plan_actor(tenant, plan_id), ShowPlan())
        assert isinstance(state, PlanState)
        if state.plan is None:
            raise NotFoundError("plan", plan_id)
        return state

    async def _load(self, workspace: str, yaml: str) -> Desired:
        if not workspace:
            return self._loader.load_text(yaml, name="workspace.yaml")
        if not Path(workspace).is_absolute():
            raise InvalidFieldError(
                "workspace", f"{quote_text(workspace)} must be an absolute path"
            )
        load = partial(self._loader.load, Path(workspace))
        return await asyncio.get_running_loop().run_in_executor(None, load)

    async def _diffs(self, state: PlanState) -> dict[str, Any]:
        assert state.plan is not None
        if state.status not in {"planned", "proposed", "waiting"}:
            return {"files": []}
        try:
            files = await diff_plan(state.plan, self._open_target(state.plan.root))
        except (ConflictError, NotFoundError) as error:
            return {"files": [], "note": _moved(error)}
        return {"files": msgspec.to_builtins(files)}


def _moved(error: KelpieError) -> str:
    return f"the target is not as it was planned ({error.message}); plan again"
