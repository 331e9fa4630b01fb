"""The hands of ``model.generate``: builds the request from stored rows, streams, answers.

Owns no state. Deltas are durable in the stream log before the answer is reported. The promise is
``repeatable``: an interrupted call is simply made again, as a new attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from kelpie.agents.context import build_request
from kelpie.agents.delta_log import DeltaLog
from kelpie.core import limits
from kelpie.core.errors import InputError, ModelError
from kelpie.core.ids import ActorId
from kelpie.effects.executor import Order
from kelpie.effects.model import DiffCard, EffectRecord, Outcome, Preparation, Promise
from kelpie.llm.model import Delta, ModelAnswer, ModelProvider, ModelRequest
from kelpie.ports.clock import Clock
from kelpie.storage.protocol import KvStore
from kelpie.tools.registry import ToolRegistry

KIND: Final = "model.generate"
Resolve = Callable[[str], ModelProvider]
"""Returns the provider of a handle ``<provider>/<name>``; raises InputError or ModelError."""


class ModelExecutor:
    """The `Executor` of model calls."""

    __slots__ = ("_clock", "_resolve", "_store", "_tools", "concurrency_max")

    def __init__(
        self,
        *,
        store: KvStore,
        tools: ToolRegistry,
        resolve: Resolve,
        clock: Clock,
        concurrency_max: int = limits.MODEL_CALLS_CONCURRENT_MAX,
    ) -> None:
        assert concurrency_max > 0, "an executor runs something"
        self._store = store
        self._tools = tools
        self._resolve = resolve
        self._clock = clock
        self.concurrency_max = concurrency_max

    @property
    def kind(self) -> str:
        """The effect kind it runs."""
        return KIND

    def promise(self, args: dict[str, Any]) -> Promise:
        """Return ``repeatable``, whatever is asked."""
        assert args is not None, "arguments are a mapping"
        return "repeatable"

    async def prepare(self, actor: ActorId, record: EffectRecord) -> Preparation | Outcome:
        """Describe the call without making it; the conversation itself is not in the card."""
        model = str(record.args.get("model", ""))
        count = len(record.args.get("sequences", ()))
        card = DiffCard(
            title=f"Ask {model}",
            request=f"{count} messages of {actor.key}",
            where=f"the provider of {model}, over the network",
            undo="nothing to undo",
        )
        return Preparation(card=card, facts={"model": model})

    async def execute(self, order: Order) -> Outcome:
        """Call the model once; a refusal or garbage is a failed outcome with its reason.

        Raises:
            StoreError: The agent's rows are damaged, or deltas could not be stored.
        """
        if self._clock.now_ms() >= order.not_after_ms:
            return _fail(ModelError("timeout", "the call's time was over"), sent=False)
        args = order.record.args
        try:
            request = await build_request(self._store, self._tools, order.actor, args)
            provider = self._resolve(request.model)
        except (InputError, ModelError) as error:
            return _fail(error, sent=False)
        answer = await _stream(provider, request, order)
        if not isinstance(answer, ModelAnswer):
            return _fail(answer)
        size = len(msgspec.msgpack.encode(answer))
        if size > limits.ANSWER_BYTES_MAX:
            text = f"the answer has {size:,} bytes, at most {limits.ANSWER_BYTES_MAX:,} fit"
            return _fail(ModelError("malformed", text))
        return Outcome(status="done", result=msgspec.to_builtins(answer))

    async def reconcile(self, order: Order) -> Outcome | None:
        """Return None: a model call changes nothing outside."""
        assert order.record.kind == KIND, "an order of another kind"
        return None


async def _stream(
    provider: ModelProvider, request: ModelRequest, order: Order
) -> ModelAnswer | ModelError | InputError:
    """Return the answer, or why there is none, once all deltas before it are durable."""
    log = DeltaLog(order.stream)
    result: ModelAnswer | ModelError | InputError
    result = ModelError("malformed", "the provider's stream ended without an answer")
    async with asyncio.TaskGroup() as scope:
        scope.create_task(log.run())
        try:
            async with _closing(provider.stream(request)) as items:
                async for item in items:
                    if log.failure is not None:
                        break
                    if isinstance(item, ModelAnswer):
                        result = item
                    else:
                        log.add(item)
        except (ModelError, InputError) as error:
            result = error
        finally:
            log.close()
    if log.failure is not None:
        raise log.failure
    return result


@asynccontextmanager
async def _closing(
    items: AsyncIterator[Delta | ModelAnswer],
) -> AsyncGenerator[AsyncIterator[Delta | ModelAnswer], None]:
    """Close the exchange whichever way it is left."""
    try:
        yield items
    finally:
        if isinstance(items, AsyncGenerator):
            await items.aclose()


def _fail(error: ModelError | InputError, *, sent: bool = True) -> Outcome:
    reason = error.reason if isinstance(error, ModelError) else "bad_request"
    text = error.message[: limits.ERROR_TEXT_CHARS_MAX]
    return Outcome(
        status="failed", result={"reason": reason}, error=text, code=ModelError.code, sent=sent
    )
